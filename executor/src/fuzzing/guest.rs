//! Random guests, made from bytes: equal bytes give equal guests.
//!
//! Owns the choice between the kinds of guests and how much of everything they may have, which is a little more than an executor
//! allows. Deliberately absent: running them.

use super::{component, wasi};
use arbitrary::{Arbitrary, Result, Unstructured};
use wasm_smith::{Config, Module};

/// What ends a guest that does not end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// So much fuel.
    Fuel(u64),
    /// So many microseconds.
    Time(u64),
}

/// A guest and how it is to be run.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) wasm: Vec<u8>,
    pub(crate) component: bool,
    pub(crate) limit: Limit,
    /// In bytes.
    pub(crate) memory: u64,
    /// In bytes.
    pub(crate) output: u64,
    pub(crate) disk: bool,
    pub(crate) stdin: bool,
    /// It has no imports and is limited by fuel: it must end in the same way each time.
    pub(crate) repeats: bool,
    /// The compiler may refuse it.
    pub(crate) doubtful: bool,
}

/// Bytes of one 64 KiB page.
const PAGE: u64 = 64 << 10;
/// Enough for what random code does that ends at all.
const FUEL: [u64; 3] = [1_000, 100_000, 3_000_000];
/// A few of the ticks at which a limit of time is looked at.
const TIME_US: u64 = 25_000;
/// More than any machine needs for a guest that ends.
const LONG_US: u64 = 60_000_000;

impl Guest {
    /// Makes one.
    ///
    /// # Errors
    /// When the bytes do not last.
    pub(crate) fn new(data: &[u8]) -> Result<Self> {
        let mut u = Unstructured::new(data);
        let repeats = u.ratio(1, 8)?;
        let limit = if repeats || u.ratio(3, 4)? { Limit::Fuel(*u.choose(&FUEL)?) } else { Limit::Time(TIME_US) };
        let memory = *u.choose(&[PAGE, 4 << 20, 32 << 20, 32 << 20])?;
        let output = *u.choose(&[0, 100, 1 << 20])?;
        let (disk, stdin) = (!repeats && u.arbitrary()?, !repeats && u.arbitrary()?);
        let kind = if repeats { 7 } else { u.int_in_range(0..=7)? };
        let (wasm, doubtful) = match kind {
            0 | 1 => (binary(&wasi::calls(&mut u)?), false),
            2 => (binary(&component::calls(&mut u)?), false),
            _ => smith(&mut u, !repeats)?,
        };
        Ok(Self { component: kind == 2, limit, memory, output, disk, stdin, repeats, doubtful, ..Self::plain(wasm) })
    }

    /// A module that has time but no more.
    pub(super) const fn plain(wasm: Vec<u8>) -> Self {
        Self {
            wasm,
            component: false,
            limit: Limit::Time(LONG_US),
            memory: 0,
            output: 0,
            disk: false,
            stdin: false,
            repeats: false,
            doubtful: false,
        }
    }

    /// All but its code.
    pub(super) fn summary(&self) -> String {
        format!("{:?}, {} bytes of code", Self { wasm: Vec::new(), ..self.clone() }, self.wasm.len())
    }
}

/// Text that is written here is right, whatever was chosen.
fn binary(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// A random module that exports what a program must, and whether it may be one that the compiler refuses.
fn smith(u: &mut Unstructured<'_>, imports: bool) -> Result<(Vec<u8>, bool)> {
    let memory = *u.choose(&["1", "0", "1 3", "20", "200 1000"])?;
    let exports = format!(r#"(module (func (export "_start")) (memory (export "memory") {memory}))"#);
    // The most there may be of some things is chosen by the bytes, too.
    let mut config = Config::arbitrary(u)?;
    config.exports = Some(binary(&exports));
    config.available_imports = Some(binary(&if imports { format!("(module {})", wasi::imports()) } else { "(module)".to_owned() }));
    config.max_imports = 20;
    config.max_memories = config.max_memories.clamp(1, 5);
    config.max_tables = config.max_tables.min(17);
    config.max_memory32_bytes = *u.choose(&[64 << 10, 2 << 20, 2 << 20, 4 << 30])?;
    config.max_table_elements = *u.choose(&[1_000, 120_000])?;
    config.max_instructions = 200;
    config.memory_max_size_required = false;
    config.allow_invalid_funcs = u.ratio(1, 50)?;
    // Once in a while something that no guest may have.
    let forbidden = u.ratio(1, 32)?;
    for switch in [
        &mut config.gc_enabled,
        &mut config.exceptions_enabled,
        &mut config.threads_enabled,
        &mut config.memory64_enabled,
        &mut config.custom_page_sizes_enabled,
        &mut config.wide_arithmetic_enabled,
    ] {
        *switch &= forbidden;
    }
    // Guests may have function references; those to the host's objects, which come with them here, they may not.
    config.reference_types_enabled &= forbidden || u.ratio(1, 4)?;
    if !config.reference_types_enabled {
        config.max_tables = config.max_tables.min(1);
        config.gc_enabled = false;
    }
    config.shared_everything_threads_enabled = false;
    config.custom_descriptors_enabled = false;
    let doubtful = forbidden || config.allow_invalid_funcs || config.reference_types_enabled;
    Ok((Module::new(config, u)?.to_bytes(), doubtful))
}
