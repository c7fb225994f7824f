//! Reads what a guest is, wants and offers, without compiling it: kind, imports, exports.
//!
//! Refuses what no executor could run, with the reason. Only what is certain here: whether a WASI function exists in the
//! version that the host has is for the executor's linker.

use super::Refusal;
use super::limits::{Amount, Counted, check_text};
use serde::{Deserialize, Serialize};
use smalti_engine::{MAX_MEMORIES, MAX_TABLE_ELEMENTS, MAX_TABLES};
use smalti_types::Reason;
use std::borrow::Cow;
use wasmparser::{ComponentExternalKind, Encoding, ExternalKind, Parser, Payload};

/// Most imports and exports that are listed; the rest is only counted out.
const MAX_NAMES: usize = 1_000;
/// Longest listed name in characters.
const MAX_NAME: usize = 200;
/// How many missing imports a message names.
const NAMED: usize = 5;

/// The import modules that the host gives to core modules.
const CORE_MODULES: [&str; 2] = ["wasi_snapshot_preview1", "smalti"];
/// What the host's module `smalti` has.
const SMALTI_FUNCTIONS: [&str; 3] = ["should_stop", "progress", "result"];
/// The packages that the host gives to components.
const COMPONENT_PACKAGES: [&str; 2] = ["wasi:", "smalti:guest/"];
/// The interface that a component must export to be run.
const RUN: &str = "wasi:cli/run";

/// What a guest is, wants and offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// A component, else a core module.
    pub component: bool,
    /// `module::name` of a core module, the names of a component.
    pub imports: Vec<String>,
    /// Names.
    pub exports: Vec<String>,
    /// Whether it mentions the variables in which a task is told who it is. A program that does not has no use for them, and
    /// may mind variables that nobody gave it.
    pub asks_who_it_is: bool,
}

/// How the names of those variables begin.
const OWN_VARIABLES: &[u8] = b"SMALTI_";

/// Turns text into binary; binary passes unchanged.
pub(crate) fn to_binary(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Refusal> {
    if bytes.starts_with(b"\0asm") {
        return Ok(Cow::Borrowed(bytes));
    }
    if bytes.is_empty() {
        return Err(Refusal::invalid("the file is empty"));
    }
    let text = std::str::from_utf8(bytes).ok().filter(|t| {
        let t = t.trim_start();
        t.starts_with('(') || t.starts_with(";;")
    });
    let Some(text) = text else {
        let head: Vec<_> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
        return Err(Refusal::invalid(format!("it is not Wasm: it begins with the bytes {}, not with 00 61 73 6d", head.join(" "))));
    };
    check_text(text.len())?;
    wat::parse_str(text).map(Cow::Owned).map_err(|e| Refusal::invalid(format!("it is not valid Wasm text: {}", one_line(&e.to_string()))))
}

/// Reads a binary and refuses what cannot run.
///
/// # Errors
/// [`Refusal`] for what is not Wasm, has an import that the host does not give, or has no entry point.
pub fn inspect(bytes: &[u8]) -> Result<Inspection, Refusal> {
    let mut found = Found::default();
    // Sections of nested modules and components belong to those; only the outermost level counts.
    let mut depth = 0_u32;
    let mut counted = Counted::default();
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(|e| broken(&e))?;
        fits(&payload, depth, &mut counted)?;
        match payload {
            Payload::Version { encoding, .. } if depth == 0 => {
                found.component = encoding == Encoding::Component;
                depth = 1;
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            other if depth == 1 => found.section(other).map_err(|e| broken(&e))?,
            _ => {}
        }
    }
    let asks_who_it_is = bytes.windows(OWN_VARIABLES.len()).any(|w| w == OWN_VARIABLES);
    Ok(Inspection { asks_who_it_is, ..found.finish()? })
}

/// Refuses a module, also one inside a component, that has more memories or tables than any slot of an executor, or more of
/// anything than a compiler should be given.
fn fits(payload: &Payload<'_>, depth: u32, counted: &mut Counted) -> Result<(), Refusal> {
    let check = |what: &str, found: u64, most: usize| {
        if found > most as u64 { Err(Refusal::invalid(format!("{what} {found}, at most {most} are allowed"))) } else { Ok(()) }
    };
    match payload {
        Payload::MemorySection(reader) => check("the number of its memories is", u64::from(reader.count()), MAX_MEMORIES),
        Payload::TableSection(reader) => {
            check("the number of its tables is", u64::from(reader.count()), MAX_TABLES)?;
            for table in reader.clone() {
                let table = table.map_err(|e| broken(&e))?;
                check("the number of elements of a table is", table.ty.initial, MAX_TABLE_ELEMENTS)?;
            }
            Ok(())
        }
        Payload::ImportSection(reader) => counted.add(Amount::Imports(reader.count())),
        Payload::ComponentImportSection(reader) => counted.add(Amount::Imports(reader.count())),
        Payload::FunctionSection(reader) => counted.add(Amount::Functions(reader.count())),
        Payload::DataSection(reader) => counted.add(Amount::Segments(reader.count())),
        Payload::ElementSection(reader) => counted.add(Amount::Segments(reader.count())),
        Payload::GlobalSection(reader) => counted.add(Amount::Globals(reader.count())),
        Payload::CodeSectionEntry(body) => counted.add(Amount::Body(body.range().len() as u64)),
        Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => counted.add(Amount::Nested { depth }),
        _ => Ok(()),
    }
}

#[derive(Default)]
struct Found {
    component: bool,
    imports: Vec<String>,
    exports: Vec<String>,
    missing: Vec<String>,
    missing_more: usize,
    entry: bool,
}

impl Found {
    fn section(&mut self, payload: Payload<'_>) -> wasmparser::Result<()> {
        match payload {
            Payload::ImportSection(reader) => {
                for import in reader.into_imports() {
                    let import = import?;
                    let known =
                        CORE_MODULES.contains(&import.module) && (import.module != "smalti" || SMALTI_FUNCTIONS.contains(&import.name));
                    self.import(format!("{}::{}", import.module, import.name), known);
                }
            }
            Payload::ExportSection(reader) => {
                for export in reader {
                    let export = export?;
                    self.entry |= export.name == "_start" && export.kind == ExternalKind::Func;
                    self.export(export.name);
                }
            }
            Payload::ComponentImportSection(reader) => {
                for import in reader {
                    let name = import?.name.name;
                    self.import(name.to_owned(), COMPONENT_PACKAGES.iter().any(|p| name.starts_with(p)));
                }
            }
            Payload::ComponentExportSection(reader) => {
                for export in reader {
                    let export = export?;
                    let name = export.name.name;
                    self.entry |= export.kind == ComponentExternalKind::Instance && name.split('@').next() == Some(RUN);
                    self.export(name);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn import(&mut self, name: String, known: bool) {
        let name = cut(&name);
        if !known {
            if self.missing.len() < NAMED {
                self.missing.push(name.clone());
            } else {
                self.missing_more += 1;
            }
        }
        if self.imports.len() < MAX_NAMES {
            self.imports.push(name);
        }
    }

    fn export(&mut self, name: &str) {
        if self.exports.len() < MAX_NAMES {
            self.exports.push(cut(name));
        }
    }

    fn finish(self) -> Result<Inspection, Refusal> {
        if !self.missing.is_empty() {
            let more = if self.missing_more > 0 { format!(" and {} more", self.missing_more) } else { String::new() };
            let given = if self.component { "wasi:* and smalti:guest" } else { "wasi_snapshot_preview1 and smalti" };
            let message = format!("it imports {}{more}, which the host does not give (it gives {given})", self.missing.join(", "));
            return Err(Refusal::new(Reason::MissingImport, message));
        }
        if !self.entry {
            let message = if self.component {
                format!("the component does not export {RUN}: build it as a command, not as a library")
            } else {
                "the module does not export a function `_start`: build it as a program, not as a library".to_owned()
            };
            return Err(Refusal::new(Reason::NoEntryPoint, message));
        }
        Ok(Inspection { component: self.component, imports: self.imports, exports: self.exports, asks_who_it_is: false })
    }
}

fn broken(error: &wasmparser::BinaryReaderError) -> Refusal {
    Refusal::invalid(format!("it is not valid Wasm: {}", one_line(&error.to_string())))
}

/// Names come from the guest: bounded, and without what would break a line.
fn cut(name: &str) -> String {
    name.chars().take(MAX_NAME).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Compiler messages come over several lines; ours are one.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(1_000).collect()
}
