//! What the caches hold, how large it is and when it was last used; and who may take how much of the disk.
//!
//! Owns the book-keeping over `bundles/`, `compiled/`, `unpacked/`, `inputs/` and `partial/`: one budget over all of them, and one for each
//! kind. Room is entered into the books before the bytes are written, so what is on the disk is within the budgets at all times. Who needs
//! room gets that of what nobody waits for and was not used for the longest time, never of what is in use; when all is in use, [`NoRoom`] says so
//! at once, and nobody waits here: whoever may wait holds nothing meanwhile (see `queue`). Deliberately absent: any knowledge of what an entry means.

use smalti_types::{Bytes, Digest};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::UNIX_EPOCH;
use tokio::sync::Notify;
pub(crate) use wanted::Want;
use wanted::Wanted;

mod wanted;

/// Names of unfinished files begin with this; they are removed at start.
pub(crate) const PARTIAL_PREFIX: &str = ".partial-";
/// What a file or directory takes beside its bytes, and what files are rounded up to: a block.
pub(crate) const BLOCK: u64 = 4 << 10;

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
    /// What is not whole yet: `b…` are bundles, the others inputs.
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

    fn kind(&self, path: &Path) -> Kind {
        let dir = path.parent().unwrap_or(Path::new(""));
        let is_bundle = || {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.strip_prefix(PARTIAL_PREFIX).unwrap_or(&name).starts_with('b')
        };
        if dir == self.compiled {
            Kind::Compiled
        } else if dir == self.bundles || dir == self.unpacked || (dir == self.partial && is_bundle()) {
            Kind::Bundles
        } else {
            Kind::Inputs
        }
    }
}

/// What has a budget of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Bundles, as they were fetched and unpacked.
    Bundles,
    /// Machine code.
    Compiled,
    /// Inputs.
    Inputs,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Bundles, Self::Compiled, Self::Inputs];

    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bundles => "bundles",
            Self::Compiled => "compiled",
            Self::Inputs => "inputs",
        }
    }
}

/// Most bytes on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// All kinds together.
    pub total: Bytes,
    /// By [`Kind`], in the order of [`Kind::ALL`].
    pub kinds: [Bytes; 3],
}

impl Budgets {
    /// Kinds share it as they need it.
    #[must_use]
    pub const fn shared(total: Bytes) -> Self {
        Self { total, kinds: [total; 3] }
    }

    fn of(&self, kind: Kind) -> u64 {
        self.kinds[kind as usize].0.min(self.total.0)
    }
}

/// There is no room now: everything is in use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} of room for {} are needed, and {} of {} are in use by tasks and by what is being prepared", Bytes(*wanted), kind.name(), Bytes(*in_use), Bytes(*budget))]
pub(crate) struct NoRoom {
    pub(crate) kind: Kind,
    /// Bytes that were missing from the books.
    pub(crate) wanted: u64,
    /// The budget that was exceeded.
    pub(crate) budget: u64,
    /// What of it could not go.
    pub(crate) in_use: u64,
}

/// A bundle that is ready in memory and used by nobody.
pub(crate) struct Idle {
    pub(crate) used: u64,
    pub(crate) key: (Digest, bool),
    pub(crate) paths: Vec<PathBuf>,
}

/// Who keeps entries ready that nobody uses, and gives them up when the room is needed.
pub(crate) trait Warm: Send + Sync {
    fn idle(&self) -> Vec<Idle>;
    /// Gives one up, unless it is used by now.
    fn release(&self, key: (Digest, bool)) -> bool;
}

/// Tells that something is not in use any more.
#[derive(Debug)]
struct Alive(Arc<Notify>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// Keeps an entry from being removed while it lives.
#[derive(Debug, Clone)]
pub(crate) struct Pin {
    _alive: Arc<Alive>,
}

/// Keeps what a task uses, and tells of its end.
#[derive(Debug)]
pub(crate) struct Held {
    _pins: Vec<Pin>,
    _others: Vec<Arc<dyn std::fmt::Debug + Send + Sync>>,
    _told: Alive,
}

struct Entry {
    size: u64,
    kind: Kind,
    /// Greater is later. Counted, not timed: only the order matters.
    used: u64,
    pins: Weak<Alive>,
}

/// What may go: whether somebody waits for its bundle, when it was used, the warm code that holds it, its files.
type Candidate = (bool, u64, Option<(Digest, bool)>, Vec<PathBuf>);

/// What there is too much of.
enum Excess {
    Of(Kind),
    OfAny,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<PathBuf, Entry>,
    /// Counts entries that came and went.
    generation: u64,
    kinds: [u64; 3],
}

impl Inner {
    fn total(&self) -> u64 {
        self.kinds.iter().sum()
    }

    /// Enters what an entry takes from now on.
    fn book(&mut self, path: &Path, size: u64) {
        if let Some(entry) = self.entries.get_mut(path) {
            let sum = &mut self.kinds[entry.kind as usize];
            *sum = (*sum).saturating_sub(entry.size).saturating_add(size);
            entry.size = size;
        }
    }

    fn take(&mut self, path: &Path) -> bool {
        self.book(path, 0);
        self.generation += 1;
        self.entries.remove(path).is_some()
    }
}

/// What one kind takes, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stock {
    /// Which.
    pub kind: Kind,
    /// On the disk, or about to be written there.
    pub bytes: Bytes,
    /// At most.
    pub budget: Bytes,
    /// Files and directories.
    pub entries: usize,
}

/// The book-keeping of one agent's caches.
pub(crate) struct Cache {
    dirs: Dirs,
    budgets: Budgets,
    clock: AtomicU64,
    inner: Mutex<Inner>,
    warm: OnceLock<Weak<dyn Warm>>,
    freed: Arc<Notify>,
    /// What tickets wait for.
    wanted: Wanted,
}

impl Cache {
    /// Takes stock of what an earlier life of the agent left, and removes what it did not finish. Call [`Cache::evict`] once what is
    /// in use is pinned.
    pub(crate) fn open(dirs: &Dirs, budgets: Budgets) -> io::Result<Self> {
        let mut found = Vec::new();
        for dir in dirs.all() {
            for entry in fs::read_dir(dir)? {
                let (path, meta) = entry.and_then(|e| Ok((e.path(), e.metadata()?)))?;
                let is_unfinished = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(PARTIAL_PREFIX));
                // What a task of that life still has a link to takes room as long as that.
                if is_unfinished && (meta.is_dir() || meta.nlink() == 1) {
                    remove(&path);
                    continue;
                }
                found.push((if is_unfinished { UNIX_EPOCH } else { meta.modified().unwrap_or(UNIX_EPOCH) }, path));
            }
        }
        found.sort();
        let (clock, inner) = (AtomicU64::new(1), Mutex::default());
        let cache =
            Self { dirs: dirs.clone(), budgets, clock, inner, warm: OnceLock::new(), freed: Arc::default(), wanted: Wanted::default() };
        for (_, path) in found {
            let size = size_of(&path);
            let mut inner = cache.lock();
            cache.enter(&mut inner, &path);
            inner.book(&path, size);
        }
        Ok(cache)
    }

    /// Who else keeps entries.
    pub(crate) fn set_warm(&self, warm: Weak<dyn Warm>) {
        let _ = self.warm.set(warm);
    }

    /// Told whenever something may have become free.
    pub(crate) fn freed(&self) -> Arc<Notify> {
        self.freed.clone()
    }

    /// A point later than all before.
    pub(crate) fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Holds on to entries for a task, and to what else ends with it.
    pub(crate) fn hold(&self, pins: Vec<Pin>, others: Vec<Arc<dyn std::fmt::Debug + Send + Sync>>) -> Held {
        Held { _pins: pins, _others: others, _told: Alive(self.freed.clone()) }
    }

    /// Somebody waits for this bundle: what there is of it goes after what nobody waits for.
    pub(crate) fn want(&self, digest: Digest) -> Want {
        self.wanted.want(digest)
    }

    /// What an entry takes; 0 when there is none.
    pub(crate) fn size(&self, path: &Path) -> u64 {
        self.lock().entries.get(path).map_or(0, |entry| entry.size)
    }

    /// Whether there is an entry.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.lock().entries.contains_key(path)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, inner: &mut Inner, path: &Path) -> Pin {
        let used = self.now();
        let kind = self.dirs.kind(path);
        let before = inner.entries.len();
        let entry = inner.entries.entry(path.to_owned()).or_insert(Entry { size: 0, kind, used, pins: Weak::new() });
        entry.used = used;
        let alive = entry.pins.upgrade().unwrap_or_else(|| Arc::new(Alive(self.freed.clone())));
        entry.pins = Arc::downgrade(&alive);
        inner.generation += u64::from(inner.entries.len() > before);
        Pin { _alive: alive }
    }

    /// When it is the same, the same entries are there.
    pub(crate) fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// The entries of one directory, with the point at which each was used last.
    pub(crate) fn used(&self, dir: &Path) -> Vec<(u64, PathBuf)> {
        let inner = self.lock();
        let there = inner.entries.iter().filter(|(path, _)| path.parent() == Some(dir));
        there.map(|(path, entry)| (entry.used, path.clone())).collect()
    }

    /// Takes room for `bytes` at `path` before they are written there: its whole size, whatever was entered before if that is not more.
    /// Pinned, so that nobody removes what is being written. Touches the disk.
    pub(crate) fn reserve(&self, path: &Path, bytes: u64) -> Result<Pin, NoRoom> {
        let size = blocks(bytes);
        let mut inner = self.lock();
        let is_new = !inner.entries.contains_key(path);
        let pin = self.enter(&mut inner, path);
        let had = inner.entries.get(path).map_or(0, |e| e.size);
        let made = self.make_room(&mut inner, self.dirs.kind(path), size.saturating_sub(had));
        match made {
            Ok(()) => inner.book(path, size.max(had)),
            Err(_) if is_new => drop(inner.take(path)),
            Err(_) => {}
        }
        drop(inner);
        made.map(|()| pin)
    }

    /// What is at `path` takes that much and no more: the rest of what was reserved goes back.
    pub(crate) fn settle(&self, path: &Path, bytes: u64) {
        let mut inner = self.lock();
        if inner.entries.get(path).is_some_and(|e| e.size > blocks(bytes)) {
            inner.book(path, blocks(bytes));
        }
        drop(inner);
        self.freed.notify_one();
    }

    /// Pins an entry and marks it as used now; `None` when there is none.
    pub(crate) fn pin(&self, path: &Path) -> Option<Pin> {
        let mut inner = self.lock();
        inner.entries.contains_key(path).then(|| self.enter(&mut inner, path))
    }

    /// Moves an entry to another name, whole or not at all, with the room it has, and pins it there. What was there is replaced.
    pub(crate) fn moved(&self, from: &Path, to: &Path) -> io::Result<Pin> {
        // Under the lock, so that nobody removes it in between.
        let mut inner = self.lock();
        let _ = fs::remove_dir_all(to);
        fs::rename(from, to)?;
        let size = inner.entries.get(from).map_or(0, |e| e.size);
        inner.take(from);
        let pin = self.enter(&mut inner, to);
        inner.book(to, size);
        Ok(pin)
    }

    /// It is of no use when nobody uses it any more.
    pub(crate) fn forsake(&self, path: &Path) {
        let mut inner = self.lock();
        if is_linked(path) {
            if let Some(entry) = inner.entries.get_mut(path) {
                entry.used = 0;
            }
        } else if inner.take(path) {
            remove(path);
        }
        drop(inner);
        self.freed.notify_one();
    }

    /// Removes one entry, whoever uses it: its bytes were found to be wrong, or were never finished.
    pub(crate) fn discard(&self, path: &Path) {
        let mut inner = self.lock();
        remove(path);
        inner.take(path);
        drop(inner);
        self.freed.notify_one();
    }

    /// Keeps the budgets after a start with lower ones.
    pub(crate) fn evict(&self) {
        let mut inner = self.lock();
        for kind in Kind::ALL {
            // What is in use stays; what is missing comes back when that ends.
            let _ = self.make_room(&mut inner, kind, 0);
        }
    }

    /// Bytes that could be had for a kind if everybody who uses nothing gave up what he has.
    pub(crate) fn could_have(&self, kind: Kind) -> u64 {
        let inner = self.lock();
        let idle: HashSet<PathBuf> = self.idle().into_iter().flat_map(|i| i.paths).collect();
        let mut in_use = [0_u64; 3];
        for (path, entry) in &inner.entries {
            if (entry.pins.strong_count() > 0 && !idle.contains(path)) || (entry.kind == Kind::Inputs && is_linked(path)) {
                in_use[entry.kind as usize] += entry.size;
            }
        }
        let of_kind = self.budgets.of(kind).saturating_sub(in_use[kind as usize]);
        of_kind.min(self.budgets.total.0.saturating_sub(in_use.iter().sum()))
    }

    /// Most that there can ever be for a kind.
    pub(crate) fn budget(&self, kind: Kind) -> u64 {
        self.budgets.of(kind)
    }

    /// The lowest of them.
    pub(crate) fn smallest_budget(&self) -> u64 {
        Kind::ALL.into_iter().map(|kind| self.budgets.of(kind)).min().unwrap_or_default()
    }

    /// What there is.
    pub(crate) fn stock(&self) -> Vec<Stock> {
        let inner = self.lock();
        let stock = |kind| Stock {
            kind,
            bytes: Bytes(inner.kinds[kind as usize]),
            budget: Bytes(self.budgets.of(kind)),
            entries: inner.entries.values().filter(|e| e.kind == kind).count(),
        };
        Kind::ALL.map(stock).to_vec()
    }

    fn idle(&self) -> Vec<Idle> {
        self.warm.get().and_then(Weak::upgrade).map_or_else(Vec::new, |warm| warm.idle())
    }

    /// The budget that `more` bytes of a kind do not fit into.
    fn exceeded(&self, inner: &Inner, kind: Kind, more: u64) -> Option<u64> {
        let (of_kind, total) = (self.budgets.of(kind), self.budgets.total.0);
        let over = |sum: u64, budget| (sum.saturating_add(more) > budget).then_some(budget);
        over(inner.kinds[kind as usize], of_kind).or_else(|| over(inner.total(), total))
    }

    /// Removes what was not used for the longest time until `more` bytes of a kind fit. Under the lock, so that nobody pins what is being
    /// removed.
    fn make_room(&self, inner: &mut Inner, kind: Kind, more: u64) -> Result<(), NoRoom> {
        // Only others of the kind help when the kind has too much.
        let excess = |inner: &Inner| {
            let budget = self.exceeded(inner, kind, more)?;
            Some(if budget < self.budgets.total.0 { Excess::Of(kind) } else { Excess::OfAny })
        };
        self.remove_oldest(inner, excess);
        match self.exceeded(inner, kind, more) {
            None => Ok(()),
            Some(budget) => {
                let in_use = if budget < self.budgets.total.0 { inner.kinds[kind as usize] } else { inner.total() };
                Err(NoRoom { kind, wanted: more, budget, in_use })
            }
        }
    }

    /// Removes what nobody uses, what was not used for the longest time first, until it is so many bytes.
    pub(crate) fn give_up(&self, bytes: u64) {
        let mut inner = self.lock();
        let before = inner.total();
        self.remove_oldest(&mut inner, |inner| (before.saturating_sub(inner.total()) < bytes).then_some(Excess::OfAny));
        let gone = Bytes(before.saturating_sub(inner.total()));
        if gone.0 > 0 {
            tracing::warn!("the disk is too full for more tasks: {gone} of what was cached went");
        }
    }

    /// Removes one after the other as long as there is an excess.
    fn remove_oldest(&self, inner: &mut Inner, excess: impl Fn(&Inner) -> Option<Excess>) {
        if excess(inner).is_none() {
            return;
        }
        let wanted = self.wanted.names();
        let is_wanted = |path: &Path| wanted.has(path.file_name().unwrap_or_default());
        let free = inner.entries.iter().filter(|(_, e)| e.pins.strong_count() == 0);
        let mut oldest: Vec<Candidate> = free.map(|(path, e)| (is_wanted(path), e.used, None, vec![path.clone()])).collect();
        oldest.extend(self.idle().into_iter().map(|i| (i.paths.iter().any(|p| is_wanted(p)), i.used, Some(i.key), i.paths)));
        oldest.sort_unstable();
        for (_, _, key, paths) in oldest {
            let Some(excess) = excess(inner) else { return };
            let is_of = |kind| paths.iter().any(|p| inner.entries.get(p).is_some_and(|e| e.kind == kind));
            if let Excess::Of(kind) = excess
                && !is_of(kind)
            {
                continue;
            }
            if let Some(key) = key
                && !self.warm.get().and_then(Weak::upgrade).is_some_and(|warm| warm.release(key))
            {
                continue;
            }
            for path in paths {
                let Some(entry) = inner.entries.get(&path).filter(|e| e.pins.strong_count() == 0) else { continue };
                if entry.kind == Kind::Inputs && is_linked(&path) {
                    continue;
                }
                tracing::debug!(path = %path.display(), bytes = entry.size, "cache entry removed");
                remove(&path);
                inner.take(&path);
            }
        }
    }

    /// What lies on the disk, looked at while nothing is moved or removed: what is written meanwhile was reserved before.
    #[cfg(test)]
    pub(crate) fn on_disk(&self) -> u64 {
        let _still = self.lock();
        let entries = self.dirs.all().into_iter().flat_map(|dir| fs::read_dir(dir).unwrap()).flatten();
        entries.map(|entry| size_of(&entry.path())).sum()
    }

    /// Bytes that all entries take.
    #[cfg(test)]
    pub(crate) fn total(&self) -> u64 {
        self.lock().total()
    }
}

/// Whether a task has the file in its own directory.
fn is_linked(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && m.nlink() > 1)
}

/// Bytes in whole blocks.
const fn blocks(bytes: u64) -> u64 {
    bytes.saturating_add(BLOCK - 1) / BLOCK * BLOCK
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

/// Room that a file takes, or a directory with all that is below it. Follows no links.
pub(crate) fn size_of(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    if !meta.is_dir() {
        return blocks(meta.len());
    }
    // A directory of many names is larger than a block.
    let below = fs::read_dir(path).map_or(0, |entries| entries.flatten().map(|e| size_of(&e.path())).sum());
    blocks(meta.len().max(1)) + below
}

#[cfg(test)]
mod tests;
