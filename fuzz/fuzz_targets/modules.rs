//! Random guests through the worker's real entry. The guests and the checks are in `executor/src/fuzzing.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| smalti_executor::fuzzing::modules(data));
