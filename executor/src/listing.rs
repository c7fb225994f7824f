//! How much memory the listing of a directory takes before it is made.
//!
//! Wasmtime reads a whole directory into memory when a guest asks for its first entry, and a guest with a disk can make
//! directories with a million names. What a listing takes is counted against the guest's memory first. Owns the estimate.

use crate::limits::{Budget, Charge};
use crate::state::State;
use rustix::fs::Dir;
use std::fs::File;
use std::sync::Arc;
use wasmtime_wasi::WasiView;
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::runtime::spawn_blocking;

/// What an entry takes beside its name.
const ENTRY_BYTES: u64 = 128;
/// A directory file of so many bytes has at most so few entries that its listing is not worth counting: ext4 takes at least 12
/// bytes for an entry, tmpfs says 20.
const SMALL_DIRECTORY_BYTES: u64 = 64 << 10;

/// Counts the listing of one directory. `None`: it is more than the guest's memory has left.
pub(crate) async fn charge(budget: Arc<Budget>, directory: Arc<File>) -> Option<Charge> {
    let left = budget.left();
    let needed = spawn_blocking(move || measure(&directory, left)).await;
    budget.charge(needed)
}

/// Counts the listing of the largest directory that the guest holds: preview 1 does not say which one a number means.
pub(crate) async fn charge_largest(state: &mut State) -> Option<Charge> {
    let directories: Vec<Arc<File>> = state
        .ctx()
        .table
        .iter_mut()
        .filter_map(|entry| match entry.downcast_ref() {
            Some(Descriptor::Dir(dir)) => Some(dir.dir.clone()),
            _ => None,
        })
        .collect();
    let budget = state.limiter.budget.clone();
    let left = budget.left();
    let needed = spawn_blocking(move || directories.iter().map(|d| measure(d, left)).max().unwrap_or(0)).await;
    budget.charge(needed)
}

/// Bytes of the listing; stops counting beyond `enough`. What cannot be read is Wasmtime's to complain about.
fn measure(directory: &File, enough: u64) -> u64 {
    if directory.metadata().is_ok_and(|m| m.len() <= SMALL_DIRECTORY_BYTES) {
        return 0;
    }
    let Ok(entries) = Dir::read_from(directory) else { return 0 };
    let mut bytes = 0_u64;
    for entry in entries.map_while(Result::ok) {
        bytes += ENTRY_BYTES + entry.file_name().to_bytes().len() as u64;
        if bytes > enough {
            break;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_directory_is_counted_and_a_small_one_is_free() {
        let temp = tempfile::tempdir().expect("a directory");
        let open = || File::open(temp.path()).expect("opened");
        assert_eq!(measure(&open(), u64::MAX), 0);
        // Names of 250 bytes: even where an entry costs 20 bytes of directory, this many are more than the threshold.
        let count = 4_000_u64;
        for i in 0..count {
            File::create(temp.path().join(format!("{i:0250}"))).expect("made");
        }
        let all = measure(&open(), u64::MAX);
        assert!(all >= count * (250 + ENTRY_BYTES) && all < (count + 4) * (250 + ENTRY_BYTES), "{all}");
        let some = measure(&open(), 1000);
        assert!((1001..2000).contains(&some), "{some}");
    }
}
