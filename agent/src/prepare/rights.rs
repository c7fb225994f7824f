//! Which roles may use which bundle of this agent's cache.
//!
//! A digest alone opens nothing: a role may use what it has fetched itself, from a place that it may fetch from, whatever others have left in
//! the cache. Owns a small file beside each bundle with the roles, which goes when the cache needs the room; the right is then shown again by
//! fetching. Deliberately absent: what a role may fetch (the policy), and the store's own word on its digests.

use super::cache::Cache;
use smalti_types::{Digest, Role};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Digests whose roles are kept in memory.
const MOST: usize = 65_536;

/// The roles by digest.
pub(crate) struct Rights {
    dir: PathBuf,
    known: Mutex<HashMap<Digest, BTreeSet<Role>>>,
    /// Counts grants.
    generation: AtomicU64,
}

impl Rights {
    pub(crate) fn new(bundles: &Path) -> Self {
        Self { dir: bundles.to_owned(), known: Mutex::default(), generation: AtomicU64::new(0) }
    }

    /// Counts grants: when it is the same, so are the rights.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Takes into memory what an earlier life of the agent left: before there is an event loop that would wait for the disk.
    pub(crate) fn read_all(&self) {
        let names = std::fs::read_dir(&self.dir).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
        for digest in names.filter_map(|name| Digest::from_hex(name.strip_suffix(".roles")?).ok()).take(MOST) {
            self.read(digest);
        }
    }

    /// Whose it is, as far as memory goes.
    pub(crate) fn roles(&self, digest: Digest) -> Vec<Role> {
        self.lock().get(&digest).map(|roles| roles.iter().cloned().collect()).unwrap_or_default()
    }

    /// Takes what the disk says into memory.
    fn read(&self, digest: Digest) -> Option<BTreeSet<Role>> {
        let text = std::fs::read_to_string(self.path(digest)).ok()?;
        let mut known = self.lock();
        if known.len() >= MOST {
            known.clear();
        }
        let entry = known.entry(digest).or_default();
        entry.extend(text.lines().filter_map(|line| Role::new(line.strip_prefix('=')?).ok()));
        Some(entry.clone())
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(format!("{}.roles", digest.to_hex()))
    }

    /// Whether `role` has shown its right, as far as memory goes: for the hot path.
    pub(crate) fn has(&self, digest: Digest, role: &Role) -> bool {
        self.lock().get(&digest).is_some_and(|roles| roles.contains(role))
    }

    /// The same with a look at the disk.
    pub(crate) fn recalls(&self, digest: Digest, role: &Role) -> bool {
        self.has(digest, role) || self.read(digest).is_some_and(|roles| roles.contains(role))
    }

    /// The role has fetched it.
    pub(crate) fn grant(&self, digest: Digest, role: &Role, cache: &Cache) {
        if self.recalls(digest, role) {
            return;
        }
        let text = {
            let mut known = self.lock();
            if known.len() >= MOST {
                known.clear();
            }
            let roles = known.entry(digest).or_default();
            roles.insert(role.clone());
            // A role may be the empty text: each line has a mark.
            roles.iter().map(|role| format!("={}\n", role.as_str())).collect::<String>()
        };
        self.generation.fetch_add(1, Ordering::Relaxed);
        let path = self.path(digest);
        // Without the file the right is shown again after a restart.
        // Its successor is beside it for a moment.
        if let Ok(_pin) = cache.reserve(&path, 2 * super::cache::BLOCK + text.len() as u64) {
            let _ = super::bundles::write_whole(&path, text.as_bytes());
            cache.settle(&path, text.len() as u64);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, BTreeSet<Role>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::cache::Dirs;
    use super::*;

    #[test]
    fn a_right_is_one_roles_own_and_outlives_the_agent() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(temp.path());
        for dir in dirs.all() {
            std::fs::create_dir(dir).unwrap();
        }
        let cache = Cache::open(&dirs, super::super::Budgets::shared(smalti_types::Bytes(1 << 20))).unwrap();
        let (digest, a, b) = (Digest::of(b"x"), Role::new("a").unwrap(), Role::new("b").unwrap());
        let rights = Rights::new(&dirs.bundles);
        rights.grant(digest, &a, &cache);
        rights.grant(digest, &Role::default(), &cache);
        assert!(rights.has(digest, &a) && rights.has(digest, &Role::default()) && !rights.recalls(digest, &b));
        let later = Rights::new(&dirs.bundles);
        assert!(!later.has(digest, &a) && later.recalls(digest, &a) && later.has(digest, &Role::default()) && !later.recalls(digest, &b));
        let last = Rights::new(&dirs.bundles);
        assert_eq!(last.roles(digest), []);
        last.read_all();
        assert_eq!(last.roles(digest), later.roles(digest));
        assert!(last.roles(digest).contains(&a) && !last.roles(digest).contains(&b));
    }
}
