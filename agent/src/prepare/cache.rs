//! What the caches hold, how large it is and when it was last used; and what to remove when they exceed their budget.
//!
//! Owns the book-keeping over `bundles/`, `compiled/`, `unpacked/`, `inputs/` and `partial/`. Removes least recently used entries
//! first and never one that is pinned. Deliberately absent: any knowledge of what an entry means.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::UNIX_EPOCH;

/// Names of unfinished files begin with this; they are removed at start.
pub(crate) const PARTIAL_PREFIX: &str = ".partial-";

/// The cache directories, below the data directory.
#[derive(Debug, Clone)]
pub(crate) struct Dirs {
    /// Bundles as they were fetched, by digest.
    pub(crate) bundles: PathBuf,
    /// Compiled code and a description each, by digest, settings and fuel.
    pub(crate) compiled: PathBuf,
    /// Files of archives, one directory per digest.
    pub(crate) unpacked: PathBuf,
    /// Inputs, by digest or by what else pins them.
    pub(crate) inputs: PathBuf,
    /// What is not whole yet.
    pub(crate) partial: PathBuf,
}

impl Dirs {
    pub(crate) fn below(data: &Path) -> Self {
        let at = |name| data.join(name);
        Self { bundles: at("bundles"), compiled: at("compiled"), unpacked: at("unpacked"), inputs: at("inputs"), partial: at("partial") }
    }

    pub(crate) fn all(&self) -> [&Path; 5] {
        [&self.bundles, &self.compiled, &self.unpacked, &self.inputs, &self.partial]
    }
}

/// Keeps an entry from being removed while it lives.
#[derive(Debug, Clone)]
pub(crate) struct Pin {
    _alive: Arc<()>,
}

struct Entry {
    size: u64,
    /// Greater is later. Counted, not timed: only the order matters.
    used: u64,
    pins: Weak<()>,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<PathBuf, Entry>,
    total: u64,
}

/// The book-keeping of one agent's caches.
pub(crate) struct Cache {
    budget: u64,
    clock: AtomicU64,
    inner: Mutex<Inner>,
}

impl Cache {
    /// Takes stock of what an earlier life of the agent left, and removes what it did not finish. Call [`Cache::evict`] once what is
    /// in use is pinned.
    pub(crate) fn open(dirs: &Dirs, budget: u64) -> io::Result<Self> {
        let mut found = Vec::new();
        for dir in dirs.all() {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(PARTIAL_PREFIX) {
                    remove(&entry.path());
                    continue;
                }
                let modified = entry.metadata()?.modified().unwrap_or(UNIX_EPOCH);
                found.push((modified, entry.path()));
            }
        }
        found.sort();
        let cache = Self { budget, clock: AtomicU64::new(0), inner: Mutex::default() };
        for (_, path) in found {
            let size = size_of(&path);
            cache.add(&path, size);
        }
        Ok(cache)
    }

    /// A point later than all before, for [`Cache::touch`].
    pub(crate) fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Says that an entry was last used at `used`.
    pub(crate) fn touch(&self, path: &Path, used: u64) {
        if let Some(entry) = self.lock().entries.get_mut(path) {
            entry.used = entry.used.max(used);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a new file or directory and pins it. Call [`Cache::evict`] afterwards, off the hot path.
    pub(crate) fn add(&self, path: &Path, size: u64) -> Pin {
        let used = self.now();
        let mut inner = self.lock();
        let alive = inner.entries.get(path).and_then(|e| e.pins.upgrade()).unwrap_or_default();
        let old = inner.entries.insert(path.to_owned(), Entry { size, used, pins: Arc::downgrade(&alive) });
        inner.total = inner.total + size - old.map_or(0, |e| e.size);
        Pin { _alive: alive }
    }

    /// Pins an entry and marks it as used now; `None` when there is none.
    pub(crate) fn pin(&self, path: &Path) -> Option<Pin> {
        let now = self.now();
        let mut inner = self.lock();
        let entry = inner.entries.get_mut(path)?;
        entry.used = now;
        let alive = entry.pins.upgrade().unwrap_or_default();
        entry.pins = Arc::downgrade(&alive);
        Some(Pin { _alive: alive })
    }

    /// Moves an entry to another name, whole or not at all, and pins it there.
    pub(crate) fn moved(&self, from: &Path, to: &Path, size: u64) -> io::Result<Pin> {
        // Under the lock, so that nobody removes it in between.
        let mut inner = self.lock();
        fs::rename(from, to)?;
        if let Some(entry) = inner.entries.remove(from) {
            inner.total -= entry.size;
        }
        drop(inner);
        Ok(self.add(to, size))
    }

    /// Takes an entry out of the books and leaves its file alone.
    pub(crate) fn forget(&self, path: &Path) {
        let mut inner = self.lock();
        if let Some(entry) = inner.entries.remove(path) {
            inner.total -= entry.size;
        }
    }

    /// Removes one entry, whoever uses it: its bytes were found to be wrong.
    pub(crate) fn discard(&self, path: &Path) {
        let mut inner = self.lock();
        if let Some(entry) = inner.entries.remove(path) {
            inner.total -= entry.size;
        }
        remove(path);
    }

    /// Whether there is more than the budget allows.
    pub(crate) fn is_over(&self) -> bool {
        self.lock().total > self.budget
    }

    /// Removes least recently used entries that nobody has pinned, when the budget is exceeded, until a tenth of it is
    /// free: else every further download would begin by making room. Touches the disk.
    pub(crate) fn evict(&self) {
        // Under the lock, so that nobody pins what is being removed.
        let mut inner = self.lock();
        if inner.total <= self.budget {
            return;
        }
        let mut idle: Vec<_> =
            inner.entries.iter().filter(|(_, e)| e.pins.strong_count() == 0).map(|(path, e)| (e.used, path.clone())).collect();
        idle.sort_unstable();
        for (_, path) in idle {
            if inner.total <= self.budget / 10 * 9 {
                break;
            }
            if let Some(entry) = inner.entries.remove(&path) {
                inner.total -= entry.size;
                tracing::debug!(path = %path.display(), bytes = entry.size, "cache entry removed");
                remove(&path);
            }
        }
    }

    /// Bytes that all entries take.
    #[cfg(test)]
    pub(crate) fn total(&self) -> u64 {
        self.lock().total
    }
}

/// Removes a file or a whole directory; a failure costs only space and is reported.
pub(crate) fn remove(path: &Path) {
    let result = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    if let Err(error) = result
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a cache entry");
    }
}

/// What a file or directory below an unpacked bundle takes beside its bytes: a block, at least.
const ENTRY_BYTES: u64 = 4 << 10;

/// Bytes of a file, or of all that is below a directory. Follows no links.
pub(crate) fn size_of(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    if !meta.is_dir() {
        return meta.len();
    }
    fs::read_dir(path).map_or(0, |entries| entries.flatten().map(|e| ENTRY_BYTES + size_of(&e.path())).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(budget: u64) -> (tempfile::TempDir, Dirs, Cache) {
        let temp = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(temp.path());
        for dir in dirs.all() {
            fs::create_dir(dir).unwrap();
        }
        let cache = Cache::open(&dirs, budget).unwrap();
        (temp, dirs, cache)
    }

    fn file(cache: &Cache, dirs: &Dirs, name: &str, size: usize) -> (PathBuf, Pin) {
        let path = dirs.inputs.join(name);
        fs::write(&path, vec![0; size]).unwrap();
        let pin = cache.add(&path, size as u64);
        (path, pin)
    }

    #[test]
    fn the_least_recently_used_goes_first_and_what_is_pinned_stays() {
        let (_temp, dirs, cache) = cache(250);
        let (a, _pinned) = file(&cache, &dirs, "a", 100);
        let (b, pin_b) = file(&cache, &dirs, "b", 100);
        let (c, pin_c) = file(&cache, &dirs, "c", 100);
        drop((pin_b, pin_c));
        drop(cache.pin(&b));
        assert!(cache.is_over());
        cache.evict();
        assert!(a.exists() && b.exists() && !c.exists());
        assert_eq!(cache.total(), 200);
    }

    #[test]
    fn stock_is_taken_at_start_and_partial_files_go() {
        let (_temp, dirs, _) = cache(1_000);
        fs::write(dirs.bundles.join("x"), [0; 10]).unwrap();
        fs::write(dirs.bundles.join(format!("{PARTIAL_PREFIX}1")), [0; 10]).unwrap();
        fs::create_dir(dirs.unpacked.join("d")).unwrap();
        fs::write(dirs.unpacked.join("d/f"), [0; 5]).unwrap();
        let cache = Cache::open(&dirs, 1_000_000).unwrap();
        assert_eq!(cache.total(), 15 + ENTRY_BYTES);
        assert!(cache.pin(&dirs.bundles.join("x")).is_some());
        assert!(cache.pin(&dirs.bundles.join("y")).is_none());
        assert_eq!(fs::read_dir(&dirs.bundles).unwrap().count(), 1);
    }
}
