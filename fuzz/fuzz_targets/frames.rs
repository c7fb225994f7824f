//! Whatever an executor that was taken over sends to its agent or leaves in a ledger. The checks are in `agent/src/fuzzing.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use smalti_agent::fuzzing::{frames, ledger, messages};
use std::sync::LazyLock;
use tempfile::TempDir;

/// Where the ledgers lie.
static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| TempDir::new().expect("a directory"));

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    match choice % 4 {
        0 => ledger(DIRECTORY.path(), data),
        1 => _ = frames(data, usize::from(*choice)),
        // Well-formed lies get further than arbitrary bytes.
        _ => _ = frames(&messages(data), usize::from(*choice)),
    }
});
