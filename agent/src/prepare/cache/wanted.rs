//! Which bundles tickets wait for: what the cache has of them goes last.
//!
//! Owns the numbers of tickets by digest. Deliberately absent: files, and when they were used.

use smalti_types::Digest;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::sync::{Arc, Mutex, PoisonError};

/// Hexadecimal digits of a digest.
const DIGITS: usize = 64;

/// Bundles that tickets wait for, and how many do. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted(Arc<Mutex<HashMap<Digest, usize>>>);

/// Somebody waits for a bundle, as long as it lives.
#[derive(Debug)]
pub(crate) struct Want {
    digest: Digest,
    all: Wanted,
}

/// What names of files begin with that belong to these bundles.
pub(super) struct Names(HashSet<String>);

impl Wanted {
    pub(super) fn want(&self, digest: Digest) -> Want {
        *self.lock().entry(digest).or_default() += 1;
        Want { digest, all: self.clone() }
    }

    pub(super) fn names(&self) -> Names {
        Names(self.lock().keys().map(Digest::to_hex).collect())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Names {
    /// Whether a file or directory of that name belongs to one of them. Inputs that are kept under their digest are kept by another one: with the
    /// role in it.
    pub(super) fn has(&self, name: &OsStr) -> bool {
        name.to_str().and_then(|name| name.get(..DIGITS)).is_some_and(|digest| self.0.contains(digest))
    }
}

impl Drop for Want {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(n) = all.get_mut(&self.digest) {
            *n -= 1;
            if *n == 0 {
                all.remove(&self.digest);
            }
        }
    }
}
