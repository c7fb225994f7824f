//! What is inside a bundle: imports, exports, memories, custom sections, producers, and for archives their files.
//!
//! Reads, never compiles or validates. Everything is bounded: an archive may be a bomb, a section may lie about its length.

use super::kind::{Compression, HEAD, Kind};
use crate::failure::{BAD_BUNDLE, Failure, Result};
use serde::Serialize;
use smalti_types::Digest;
use std::collections::BTreeMap;
use std::io::Read;
use wasmparser::{ExternalKind, KnownCustom, MemoryType, Parser, Payload, TypeRef};

/// Most bytes that an archive may unpack to while we look at it.
const MAX_UNPACKED: u64 = 1 << 30;
/// Most entries of an archive that are listed.
const MAX_ENTRIES: usize = 10_000;
/// Names that a guest may have where an archive has several.
const GUEST_NAMES: [&str; 2] = ["main.wasm", "app.wasm"];

#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) struct Extern {
    /// `null` for components, whose imports have one name.
    pub(crate) module: Option<String>,
    pub(crate) name: String,
    pub(crate) kind: &'static str,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Bytes at the start.
    pub(crate) initial: u64,
    /// Bytes at most, when the module says.
    pub(crate) maximum: Option<u64>,
    pub(crate) imported: bool,
    pub(crate) shared: bool,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) name: String,
    /// Bytes.
    pub(crate) size: usize,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: String,
    /// Bytes, unpacked.
    pub(crate) size: u64,
}

#[derive(Debug, Default, Serialize, PartialEq, Eq)]
pub(crate) struct Inspection {
    pub(crate) digest: String,
    /// Bytes.
    pub(crate) size: u64,
    /// `module`, `component`, `archive` or `text`.
    pub(crate) kind: &'static str,
    pub(crate) imports: Vec<Extern>,
    pub(crate) exports: Vec<Extern>,
    pub(crate) memory: Vec<Memory>,
    pub(crate) custom_sections: Vec<Section>,
    /// By field (`language`, `processed-by`, `sdk`): name and version of each.
    pub(crate) producers: BTreeMap<String, Vec<String>>,
    /// What it would need on an agent, in words.
    pub(crate) needs: Vec<String>,
    /// Archives only: the file that is run.
    pub(crate) guest: Option<String>,
    /// Archives only.
    pub(crate) files: Vec<Entry>,
}

/// Looks into a bundle; `name` is for the error.
///
/// # Errors
/// Exit code 126 for what is no bundle.
pub(crate) fn inspect(name: &str, bytes: &[u8]) -> Result<Inspection> {
    let bad = |why: String| Failure::with_code(BAD_BUNDLE, format!("{name} cannot be run: {why}"));
    let kind = Kind::of(&bytes[..bytes.len().min(HEAD)]).map_err(|what| bad(format!("it is {what}")))?;
    let mut found = Inspection { size: bytes.len() as u64, kind: kind.as_str(), ..Inspection::default() };
    let read = match kind {
        Kind::Module | Kind::Component => read_wasm(bytes, &mut found),
        Kind::Text => wat::parse_bytes(bytes).map_err(|e| e.to_string()).and_then(|wasm| read_wasm(&wasm, &mut found)),
        Kind::Archive(compression) => read_archive(bytes, compression, &mut found),
    };
    read.map_err(bad)?;
    found.needs.splice(0..0, needs(&found));
    found.digest = Digest::of(bytes).to_string();
    Ok(found)
}

/// What a task of this bundle has to ask for, as far as the bundle says.
fn needs(found: &Inspection) -> Vec<String> {
    let mut needs = Vec::new();
    let name = |e: &Extern| e.module.clone().unwrap_or_else(|| e.name.clone());
    let uses = |what: &str| found.imports.iter().any(|e| name(e).starts_with(what));
    if uses("wasi_snapshot_preview1") {
        needs.push("WASI preview 1".to_owned());
    }
    let mut interfaces: Vec<String> = found.imports.iter().map(name).filter(|n| n.starts_with("wasi:")).collect();
    interfaces.sort();
    interfaces.dedup();
    if !interfaces.is_empty() {
        needs.push(format!("WASI 0.2: {}", interfaces.join(", ")));
    }
    let memory: u64 = found.memory.iter().map(|m| m.initial).sum();
    if memory > 0 {
        needs.push(format!("memory: more than {} (--mem)", smalti_types::Bytes(memory)));
    }
    if found.memory.iter().any(|m| m.shared) {
        needs.push("shared memory, which no agent has: threads do not run".to_owned());
    }
    let sockets = found.imports.iter().any(|e| e.name.starts_with("sock_"));
    if uses("wasi:sockets/") {
        needs.push("network, if it uses it: --connect HOST:PORT, --ports N".to_owned());
    } else if sockets {
        needs.push("network, if it uses it: --ports N".to_owned());
    }
    needs
}

fn read_wasm(bytes: &[u8], found: &mut Inspection) -> std::result::Result<(), String> {
    // Only the outermost module or component is described, not those nested in it.
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(|e| format!("it is damaged Wasm: {e}"))?;
        match payload {
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            other if depth == 1 => describe(other, found).map_err(|e| format!("it is damaged Wasm: {e}"))?,
            _ => {}
        }
    }
    // The agents' own word.
    if let Err(refusal) = smalti_agent::compiler::inspect(bytes) {
        found.needs.push(format!("no agent can run it: {}", refusal.message));
    }
    Ok(())
}

fn describe(payload: Payload<'_>, found: &mut Inspection) -> wasmparser::Result<()> {
    match payload {
        Payload::ImportSection(section) => {
            for import in section.into_imports() {
                let import = import?;
                if let TypeRef::Memory(ty) = import.ty {
                    found.memory.push(memory(&ty, true));
                }
                let kind = type_kind(&import.ty);
                found.imports.push(Extern { module: Some(import.module.into()), name: import.name.into(), kind });
            }
        }
        Payload::MemorySection(section) => {
            for ty in section {
                found.memory.push(memory(&ty?, false));
            }
        }
        Payload::ExportSection(section) => {
            for export in section {
                let export = export?;
                found.exports.push(Extern { module: None, name: export.name.into(), kind: external_kind(export.kind) });
            }
        }
        Payload::ComponentImportSection(section) => {
            for import in section {
                let import = import?;
                found.imports.push(Extern { module: None, name: import.name.name.into(), kind: import.ty.kind().desc() });
            }
        }
        Payload::ComponentExportSection(section) => {
            for export in section {
                let export = export?;
                found.exports.push(Extern { module: None, name: export.name.name.into(), kind: export.kind.desc() });
            }
        }
        Payload::CustomSection(section) => {
            found.custom_sections.push(Section { name: section.name().into(), size: section.data().len() });
            if let KnownCustom::Producers(producers) = section.as_known() {
                for field in producers {
                    let field = field?;
                    let values = found.producers.entry(field.name.into()).or_default();
                    for value in field.values {
                        let value = value?;
                        values.push(format!("{} {}", value.name, value.version).trim_end().to_owned());
                    }
                }
            }
        }
        _ => {}
    }
    Ok(())
}

fn memory(ty: &MemoryType, imported: bool) -> Memory {
    let page = 1_u64 << ty.page_size_log2.unwrap_or(16).min(16);
    let bytes = |pages: u64| pages.saturating_mul(page);
    Memory { initial: bytes(ty.initial), maximum: ty.maximum.map(bytes), imported, shared: ty.shared }
}

const fn type_kind(ty: &TypeRef) -> &'static str {
    match ty {
        TypeRef::Func(_) | TypeRef::FuncExact(_) => "func",
        TypeRef::Table(_) => "table",
        TypeRef::Memory(_) => "memory",
        TypeRef::Global(_) => "global",
        TypeRef::Tag(_) => "tag",
    }
}

const fn external_kind(kind: ExternalKind) -> &'static str {
    match kind {
        ExternalKind::Func | ExternalKind::FuncExact => "func",
        ExternalKind::Table => "table",
        ExternalKind::Memory => "memory",
        ExternalKind::Global => "global",
        ExternalKind::Tag => "tag",
    }
}

/// Lists an archive's files and describes the one that is run: the only `.wasm` at its top level, or `main.wasm`, or `app.wasm`.
fn read_archive(bytes: &[u8], compression: Compression, found: &mut Inspection) -> std::result::Result<(), String> {
    let unpacked: Box<dyn Read + '_> = match compression {
        Compression::None => Box::new(bytes),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(bytes)),
        Compression::Zstd => {
            Box::new(ruzstd::decoding::StreamingDecoder::new(bytes).map_err(|e| format!("it is a damaged zstd file: {e}"))?)
        }
    };
    let damaged = |e: std::io::Error| format!("it is not a readable tar archive: {e}");
    let mut archive = tar::Archive::new(unpacked.take(MAX_UNPACKED));
    let mut guests: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for entry in archive.entries().map_err(damaged)?.take(MAX_ENTRIES) {
        let mut entry = entry.map_err(damaged)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path().map_err(damaged)?.to_string_lossy().trim_start_matches("./").to_owned();
        if !path.contains('/') && std::path::Path::new(&path).extension().is_some_and(|e| e == "wasm") {
            let mut wasm = Vec::new();
            entry.read_to_end(&mut wasm).map_err(damaged)?;
            guests.insert(path.clone(), wasm);
        }
        found.files.push(Entry { path, size: entry.size() });
    }
    if found.files.is_empty() {
        return Err("it is an empty archive".into());
    }
    let name = match guests.len() {
        0 => return Err("it is an archive without a .wasm file at its top level".into()),
        1 => guests.keys().next(),
        _ => GUEST_NAMES.iter().find_map(|n| guests.get_key_value(*n)).map(|(name, _)| name),
    };
    let Some(name) = name.cloned() else {
        return Err("it is an archive with several .wasm files at its top level; call the one to run main.wasm".into());
    };
    let wasm = guests.remove(&name).unwrap_or_default();
    found.guest = Some(name);
    read_wasm(&wasm, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAT: &str = r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
        (memory (export "memory") 2 3) (func (export "_start")))"#;

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, data) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, *data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_module_says_what_it_needs_and_gives() {
        let wasm = wat::parse_str(WAT).unwrap();
        let found = inspect("d", &wasm).unwrap();
        assert_eq!((found.kind, found.size), ("module", wasm.len() as u64));
        assert_eq!(found.imports, [Extern { module: Some("wasi_snapshot_preview1".into()), name: "proc_exit".into(), kind: "func" }]);
        assert_eq!(found.exports.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["memory", "_start"]);
        assert_eq!(found.memory, [Memory { initial: 131_072, maximum: Some(196_608), imported: false, shared: false }]);
        assert_eq!(found.needs, ["WASI preview 1", "memory: more than 128KiB (--mem)"]);
        assert_eq!(inspect("d", WAT.as_bytes()).unwrap().kind, "text");
    }

    #[test]
    fn a_component_is_described_from_outside() {
        let text = r#"(component (import "wasi:cli/x" (instance)) (core module (memory 1)))"#;
        let found = inspect("d", &wat::parse_str(text).unwrap()).unwrap();
        assert_eq!(found.imports, [Extern { module: None, name: "wasi:cli/x".into(), kind: "instance" }]);
        assert_eq!((found.kind, found.memory.len()), ("component", 0));
    }

    #[test]
    fn an_archive_lists_its_files_and_describes_its_guest() {
        let wasm = wat::parse_str(WAT).unwrap();
        let found = inspect("d", &tar(&[("hello.wasm", &wasm), ("data/x.txt", b"abc")])).unwrap();
        assert_eq!((found.kind, found.guest.as_deref()), ("archive", Some("hello.wasm")));
        assert_eq!(found.files[1], Entry { path: "data/x.txt".into(), size: 3 });
        assert_eq!(found.exports.len(), 2);
        let two = inspect("d", &tar(&[("a.wasm", &wasm), ("main.wasm", &wasm)])).unwrap();
        assert_eq!(two.guest.as_deref(), Some("main.wasm"));
    }

    #[test]
    fn what_is_no_bundle_exits_with_126() {
        let wasm = wat::parse_str(WAT).unwrap();
        let cases: [&[u8]; 5] = [b"", b"hello", &wasm[..20], &tar(&[("x.txt", b"a")]), &tar(&[("a.wasm", &wasm), ("b.wasm", &wasm)])];
        for bytes in cases {
            assert_eq!(inspect("d", bytes).unwrap_err().code, BAD_BUNDLE);
        }
    }
}
