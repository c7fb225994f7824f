//! A machine's disk: what was written, and what a power failure leaves of it.
//!
//! Two crashes, as the design has them. A process crash keeps every completed write; only the one under way may be cut short. A
//! machine crash leaves the disk as it was at some moment after the last sync, the write of that moment torn.
//! A disk may be full for a while: then what has room can be written, and nothing else.
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
    /// No file can grow.
    pub(crate) full: bool,
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

    /// Takes room for a file up to this length. False: there is none.
    pub(crate) fn reserve(&mut self, name: &str, length: usize) -> bool {
        let missing = length > self.len(name);
        if missing && !self.full {
            // Behind its end a file reads as zeros.
            self.write(name, length, &[]);
        }
        !missing || !self.full
    }

    /// Gives a file this content, durably, at once or not at all.
    pub(crate) fn replace(&mut self, name: &str, bytes: &[u8]) {
        self.unsynced.retain(|c| !matches!(c, Change::Write { name: n, .. } if n == name));
        self.files.insert(name.to_owned(), bytes.to_vec());
        self.synced.insert(name.to_owned(), bytes.to_vec());
    }

    /// Each of two files takes the other's name, at once or not at all.
    pub(crate) fn swap(&mut self, one: &str, other: &str) {
        self.change(Change::Swap { one: one.to_owned(), other: other.to_owned() });
    }

    /// The last write was cut short: the process was killed in it. What was there before it stays behind.
    pub(crate) fn tear(&mut self, rng: &mut Rng) {
        let Some(Change::Write { bytes, .. }) = self.unsynced.back_mut() else { return };
        bytes.truncate(rng.index(bytes.len().max(1)));
        let mut files = self.synced.clone();
        self.unsynced.iter().for_each(|change| apply(&mut files, change));
        self.files = files;
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

    impl Disk {
        fn append(&mut self, name: &str, bytes: &[u8]) {
            self.write(name, self.len(name), bytes);
        }

        fn sync(&mut self) {
            while let Some(change) = self.unsynced.pop_front() {
                apply(&mut self.synced, &change);
            }
        }
    }

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
    }

    #[test]
    fn a_full_disk_takes_what_has_room_and_nothing_else() {
        let mut disk = Disk::default();
        assert!(disk.reserve("log", 8));
        disk.full = true;
        assert!(disk.reserve("log", 8) && !disk.reserve("log", 9) && !disk.reserve("other", 1));
        disk.write("log", 2, b"abcd");
        disk.write("log", 3, b"xyz");
        disk.tear(&mut Rng::new(5));
        let log = disk.read("log").unwrap();
        assert!(log.len() == 8 && log.starts_with(b"\0\0a") && log != b"\0\0axyz\0\0", "what was there stays behind: {log:?}");
        disk.full = false;
        assert!(disk.reserve("other", 1));
    }

    #[test]
    fn what_is_replaced_survives_alone() {
        let mut disk = Disk::default();
        disk.append("log", b"x");
        disk.replace("boot", b"1");
        disk.replace("boot", b"2");
        let mut rng = (0..99).map(Rng::new).find(|rng| rng.clone().index(2) == 0).unwrap();
        disk.power_fails(&mut rng);
        assert_eq!((disk.read("boot"), disk.len("log")), (Some(&b"2"[..]), 0));
    }
}
