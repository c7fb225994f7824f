//! How much a guest may cost the compiler, and how large it may be before it is tried at all.
//!
//! Numbers and their checks, no I/O. Wasm's own limits (a million functions, 7.6 MB for one of them, 50,000 locals, 1,000 nested
//! types) are checked by the parser; those here are lower where a compiler suffers before they are reached.

use super::Refusal;
use std::time::Duration;

/// Processor time that every guest may take, all threads together: the smallest ones need 50 ms.
const PROCESSOR_TIME: Duration = Duration::from_secs(30);
/// As much again for each MiB of Wasm: Cranelift takes about half a second for one that people wrote.
const PROCESSOR_TIME_PER_MIB: Duration = Duration::from_secs(2);
/// Whatever its size, no guest may take more.
pub const MAX_PROCESSOR_TIME: Duration = Duration::from_secs(300);
/// Most functions, all modules of a component together. Large programs (a Python interpreter) have 15,000, the largest known
/// (whole compilers) 80,000.
const MAX_FUNCTIONS: u64 = 200_000;
/// Most imports of one module or component. WASI preview 1 has 46 functions.
const MAX_IMPORTS: u64 = 1_000;
/// Most modules and components inside a component.
const MAX_NESTED: u64 = 100;
/// How deep components may lie in components.
const MAX_DEPTH: u64 = 10;
/// Most data and element segments of one module.
const MAX_SEGMENTS: u64 = 100_000;
/// Most globals of one module.
const MAX_GLOBALS: u64 = 100_000;
/// Largest function body in bytes: the allocation of registers takes more than linear time.
const MAX_BODY: u64 = 2 << 20;
/// Text is for tests and small examples: its parser needs many times its size.
const MAX_TEXT: usize = 8 << 20;

/// Most processor time for a guest of this size in bytes.
#[must_use]
pub fn processor_time(wasm: u64) -> Duration {
    let per_size = PROCESSOR_TIME_PER_MIB.mul_f64(f64::from(u32::try_from(wasm >> 10).unwrap_or(u32::MAX)) / 1024.0);
    (PROCESSOR_TIME + per_size).min(MAX_PROCESSOR_TIME)
}

/// What of a guest has been counted so far.
#[derive(Debug, Default)]
pub(super) struct Counted {
    functions: u64,
    nested: u64,
}

/// Something that there may be too much of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Amount {
    Functions(u32),
    Imports(u32),
    Segments(u32),
    Globals(u32),
    Body(u64),
    Nested { depth: u32 },
}

impl Counted {
    /// Adds an amount; an error when that is too much.
    pub(super) fn add(&mut self, amount: Amount) -> Result<(), Refusal> {
        let check = |what: &str, found: u64, most: u64| {
            if found > most { Err(Refusal::invalid(format!("{what} {found}, at most {most} are allowed"))) } else { Ok(()) }
        };
        match amount {
            Amount::Functions(n) => {
                self.functions += u64::from(n);
                check("the number of its functions is", self.functions, MAX_FUNCTIONS)
            }
            Amount::Imports(n) => check("the number of its imports is", u64::from(n), MAX_IMPORTS),
            Amount::Segments(n) => check("the number of its data or element segments is", u64::from(n), MAX_SEGMENTS),
            Amount::Globals(n) => check("the number of its globals is", u64::from(n), MAX_GLOBALS),
            Amount::Body(bytes) => check("the length of a function in bytes is", bytes, MAX_BODY),
            Amount::Nested { depth } => {
                self.nested += 1;
                check("the number of modules and components in it is", self.nested, MAX_NESTED)?;
                check("the depth of components in components is", u64::from(depth), MAX_DEPTH)
            }
        }
    }
}

/// Refuses text that would cost too much to parse.
pub(super) fn check_text(length: usize) -> Result<(), Refusal> {
    let refuse = || Refusal::invalid(format!("it is Wasm text of {length} bytes, at most {MAX_TEXT} are allowed: convert it to binary"));
    if length > MAX_TEXT { Err(refuse()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_grows_with_size_up_to_a_limit() {
        assert_eq!(processor_time(0), PROCESSOR_TIME);
        assert_eq!(processor_time(10 << 20), Duration::from_secs(50));
        assert_eq!(processor_time(u64::MAX), MAX_PROCESSOR_TIME);
    }

    #[test]
    fn functions_of_all_modules_count_together() {
        let mut counted = Counted::default();
        counted.add(Amount::Functions(150_000)).unwrap();
        let refusal = counted.add(Amount::Functions(50_001)).unwrap_err();
        assert!(refusal.message.contains("functions is 200001, at most 200000"), "{refusal}");
    }
}
