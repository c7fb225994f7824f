//! A machine's disk: what was written, and what a power failure leaves of it.
//!
//! Two crashes, as the design has them. A process crash keeps every completed write; only the one under way may be cut short. A
//! machine crash leaves the disk as it was at some moment after the last sync, the write of that moment torn.
//! Deliberately absent: permissions, directories, errors of the medium.

use crate::rng::Rng;
use std::collections::{BTreeMap, VecDeque};

/// Changes that the kernel keeps before it writes the oldest back by itself.
const MOST_UNSYNCED: usize = 200;

/// One change of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    /// Bytes at an offset; the file is made if it is not there.
    Write {
        name: String,
        offset: usize,
        bytes: Vec<u8>,
    },
    Swap {
        one: String,
        other: String,
    },
    Remove {
        name: String,
    },
}

type Files = BTreeMap<String, Vec<u8>>;

fn apply(files: &mut Files, change: &Change) {
    match change {
        Change::Write { name, offset, bytes } => {
            let file = files.entry(name.clone()).or_default();
            if file.len() < offset + bytes.len() {
                file.resize(offset + bytes.len(), 0);
            }
            file[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        Change::Swap { one, other } => {
            let (first, second) = (files.remove(one), files.remove(other));
            second.into_iter().for_each(|bytes| drop(files.insert(one.clone(), bytes)));
            first.into_iter().for_each(|bytes| drop(files.insert(other.clone(), bytes)));
        }
        Change::Remove { name } => {
            files.remove(name);
        }
    }
}

/// One disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    files: Files,
    /// What survives a power failure for sure …
    synced: Files,
    /// … and what has changed since, in order.
    unsynced: VecDeque<Change>,
}

impl Disk {
    fn change(&mut self, change: Change) {
        apply(&mut self.files, &change);
        self.unsynced.push_back(change);
        while self.unsynced.len() > MOST_UNSYNCED {
            if let Some(oldest) = self.unsynced.pop_front() {
                apply(&mut self.synced, &oldest);
            }
        }
    }

    pub(crate) fn read(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(Vec::as_slice)
    }

    pub(crate) fn len(&self, name: &str) -> usize {
        self.files.get(name).map_or(0, Vec::len)
    }

    pub(crate) fn write(&mut self, name: &str, offset: usize, bytes: &[u8]) {
        self.change(Change::Write { name: name.to_owned(), offset, bytes: bytes.to_vec() });
    }

    pub(crate) fn append(&mut self, name: &str, bytes: &[u8]) {
        self.write(name, self.len(name), bytes);
    }

    /// Each of two files takes the other's name, at once or not at all.
    pub(crate) fn swap(&mut self, one: &str, other: &str) {
        self.change(Change::Swap { one: one.to_owned(), other: other.to_owned() });
    }

    /// The last write was cut short: the process was killed in it.
    pub(crate) fn tear(&mut self, rng: &mut Rng) {
        let Some(Change::Write { name, offset, bytes }) = self.unsynced.back_mut() else { return };
        let kept = rng.index(bytes.len().max(1));
        if let Some(file) = self.files.get_mut(name) {
            file.truncate(*offset + kept);
        }
        bytes.truncate(kept);
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.change(Change::Remove { name: name.to_owned() });
    }

    /// Everything written so far survives a power failure.
    pub(crate) fn sync(&mut self) {
        while let Some(change) = self.unsynced.pop_front() {
            apply(&mut self.synced, &change);
        }
    }

    /// The power fails: the disk is as it was at some moment since the last sync.
    pub(crate) fn power_fails(&mut self, rng: &mut Rng) {
        let kept = if self.unsynced.is_empty() { 0 } else { rng.index(self.unsynced.len() + 1) };
        for change in self.unsynced.iter().take(kept) {
            apply(&mut self.synced, change);
        }
        if let Some(Change::Write { name, offset, bytes }) = self.unsynced.get(kept)
            && rng.chance(50)
        {
            let torn = rng.index(bytes.len().max(1));
            let change = Change::Write { name: name.clone(), offset: *offset, bytes: bytes[..torn].to_vec() };
            apply(&mut self.synced, &change);
        }
        self.unsynced.clear();
        self.files = self.synced.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_stays_and_the_rest_is_a_prefix_in_time() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut disk = Disk::default();
            disk.append("log", b"one");
            disk.sync();
            disk.append("log", b"twothree");
            disk.swap("log", "log.old");
            disk.append("log", b"new");
            disk.power_fails(&mut rng);
            let state = (disk.read("log.old").map(<[u8]>::to_vec), disk.read("log").map(<[u8]>::to_vec));
            let (old, new) = (state.0.clone(), state.1.clone());
            let longest = old.as_ref().or(new.as_ref()).unwrap();
            assert!(longest.starts_with(b"one") && b"onetwothree".starts_with(longest), "{state:?}");
            if old.is_some() {
                assert_eq!(longest, b"onetwothree", "renamed after it was written");
            }
            seen.insert(state);
        }
        assert!(seen.len() > 8, "torn writes differ: {seen:?}");
    }

    #[test]
    fn old_changes_reach_the_disk_by_themselves() {
        let mut disk = Disk::default();
        for _ in 0..MOST_UNSYNCED + 5 {
            disk.append("log", b"x");
        }
        disk.power_fails(&mut Rng::new(1));
        assert!(disk.len("log") >= 5);
        disk.remove("log");
        assert_eq!(disk.read("log"), None);
    }
}
