//! The directories of tasks: where outputs lie, who may still write there, and which go when they take too much room.
//!
//! Owns `sandboxes/<framework>/<task>.<attempt>/` below the data directory, and the making of output files in it: executors get them as
//! descriptors and never see a path. Ended sandboxes are kept up to a budget, the oldest go
//! first; those of running tasks never go. What has nothing in it is used again (see `spare`). Whoever reads opens beneath the directory
//! without following links ([`Sandboxes::open`]). Deliberately absent: what the files mean (see `outputs`).

mod spare;

use crate::prepare::LAID_OUT;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;
use smalti_types::{Bytes, FrameworkId, TaskId, TaskKey};
pub(crate) use spare::OUTPUTS;
use spare::Spares;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, watch};

/// Ended tasks whose size is not counted yet; beyond it the event loop does not wait, and the next one that is counted catches up.
const QUEUE: usize = 16_384;
/// What was laid out for guests of an earlier life of the agent is called that with this behind it.
const ASIDE: &str = ".before";
/// Least room that a file or directory is counted with.
const BLOCK: u64 = 4096;

/// What is known of one sandbox. As long as somebody has this, its files are nobody else's.
#[derive(Debug, Clone)]
pub(crate) struct Sandbox {
    /// Turns true when its task has ended: nothing is written after that.
    pub(crate) ended: watch::Receiver<bool>,
    /// Whether outputs lie in slots' files.
    pub(crate) array: bool,
    /// Whether its task has ended and wrote nothing: there is nothing to open.
    pub(crate) empty: bool,
}

/// What a sandbox is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An array part: outputs lie in slots' files.
    Array,
    /// A single task. Its directory may have been that of another one of its framework.
    Single,
    /// A single task that runs alone: its directory is new, and nobody's afterwards.
    Alone,
}

/// What is where a sandbox should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    /// Its directory.
    Directory,
    /// Its directory, with the outputs of another task in it, which wrote nothing.
    Outputs,
    /// A link that stands for nothing.
    Nothing,
}

#[derive(Debug)]
struct Entry {
    ended: watch::Sender<bool>,
    kind: Kind,
    there: There,
}

impl Entry {
    fn new(ended: bool, kind: Kind, there: There) -> Self {
        Self { ended: watch::Sender::new(ended), kind, there }
    }
}

#[derive(Debug, Default)]
struct State {
    live: BTreeMap<TaskKey, Entry>,
    /// Ended ones, oldest first, with their sizes.
    order: VecDeque<(TaskKey, u64)>,
    total: u64,
    spares: Spares,
}

/// All sandboxes of an agent. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Sandboxes {
    root: PathBuf,
    base: Arc<File>,
    state: Arc<Mutex<State>>,
    ended: mpsc::Sender<TaskKey>,
}

/// Why a file of a sandbox cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It was never here, or had to make room.
    #[error("the sandbox of {0} is not on this agent: it was removed to make room, or was never here")]
    Gone(TaskKey),
    /// A path that is not allowed, or not there.
    #[error("cannot open {path:?} in the sandbox of {key}: {why}")]
    Open {
        /// Whose.
        key: TaskKey,
        /// Which path.
        path: String,
        /// Why not.
        why: String,
    },
}

impl Sandboxes {
    /// Takes up what an earlier life of the agent left. `attempts`: those that it still knows, with whether they have ended and whether they
    /// are array parts; all others have ended, the oldest first by their directories' times. The future is the collector: run it as a task.
    ///
    /// # Errors
    /// When the directory cannot be read or made.
    pub(crate) fn start(
        data_dir: &Path,
        budget: Bytes,
        attempts: &BTreeMap<TaskKey, (bool, bool)>,
    ) -> std::io::Result<(Self, impl Future<Output = ()> + Send + use<>)> {
        let root = data_dir.join("sandboxes");
        make_private(&root)?;
        let mut state = State::default();
        let mut left = Vec::new();
        for (key, time, there) in left_behind(&root)? {
            let known = attempts.get(&key);
            let array = known.map_or_else(|| is_array(&root.join(relative(&key))), |(_, array)| *array);
            let over = known.is_none_or(|(ended, _)| *ended);
            // Who ran it, and with whom, is not known any more.
            state.live.insert(key.clone(), Entry::new(over, if array { Kind::Array } else { Kind::Alone }, there));
            if over {
                left.push((time, key));
            }
        }
        left.sort();
        let left = left.into_iter().map(|(_, key)| key).collect();
        let (ended, inbox) = mpsc::channel(QUEUE);
        let all = Self { base: Arc::new(File::open(&root)?), root, state: Arc::new(Mutex::new(state)), ended };
        // The collector must not keep its own queue open.
        let collector = Collector { root: all.root.clone(), base: all.base.clone(), state: all.state.clone(), budget };
        Ok((all, collector.run(left, inbox)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A task's directory.
    pub(crate) fn task_directory(&self, key: &TaskKey) -> PathBuf {
        self.root.join(relative(key))
    }

    /// Makes a task's directory, empty unless it is to `keep` what is there: then only what was laid out for guests goes out of the way of what
    /// will be, and guests that run go on with theirs.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn make(&self, key: &TaskKey, kind: Kind, keep: bool) -> std::io::Result<PathBuf> {
        let path = self.task_directory(key);
        let known = self.lock().live.get(key).map(|entry| entry.there);
        if keep {
            put_aside(&path)?;
        } else if let Some(there) = known {
            remove(&path, there)?;
        }
        if keep && known.is_some() {
            make_private(&path)?;
            return Ok(path);
        }
        let there = if kind == Kind::Single && self.give_spare(key) {
            There::Outputs
        } else {
            make_private(&path)?;
            There::Directory
        };
        self.lock().live.insert(key.clone(), Entry::new(false, kind, there));
        Ok(path)
    }

    /// Gives a task a directory that is there, if there is one.
    fn give_spare(&self, key: &TaskKey) -> bool {
        let Some(number) = self.lock().spares.take(&key.framework) else { return false };
        let given = spare::give(&*self.base, &key.framework, number, &relative(key));
        given.inspect_err(|e| tracing::warn!(%key, "a spare directory cannot be used: {e}")).is_ok()
    }

    /// Makes `stdout` and `stderr` of a single task, in this order, open for writing.
    ///
    /// # Errors
    /// What the file system says; a file that is there already is an error too, unless the directory was given with it.
    pub(crate) fn create_task_outputs(&self, key: &TaskKey) -> std::io::Result<Vec<OwnedFd>> {
        let again = match self.lock().live.get_mut(key) {
            // Once.
            Some(entry) => std::mem::replace(&mut entry.there, There::Directory) == There::Outputs,
            None => false,
        };
        // Two calls a task, each with a short path: this is on the way of every single task.
        let directory = relative(key);
        let open = |path: &str| if again { spare::open_again(&*self.base, path) } else { create(&*self.base, path) };
        OUTPUTS.iter().map(|name| open(&format!("{directory}/{name}"))).collect()
    }

    /// Makes `slot-<n>.out`, `.err` and `.ledger` of one slot of an array part, in this order, open for writing.
    ///
    /// # Errors
    /// As [`Sandboxes::create_task_outputs`].
    pub(crate) fn create_slot_outputs(&self, key: &TaskKey, slot: u32) -> std::io::Result<Vec<OwnedFd>> {
        self.slot_outputs(key, slot, OFlag::O_EXCL)
    }

    /// The same files, new or as an executor before has left them: in class `process` one follows the other.
    ///
    /// # Errors
    /// As [`Sandboxes::create_task_outputs`], but for files that are there.
    pub(crate) fn reopen_slot_outputs(&self, key: &TaskKey, slot: u32) -> std::io::Result<Vec<OwnedFd>> {
        self.slot_outputs(key, slot, OFlag::empty())
    }

    fn slot_outputs(&self, key: &TaskKey, slot: u32, flags: OFlag) -> std::io::Result<Vec<OwnedFd>> {
        let directory = relative(key);
        ["out", "err", "ledger"].iter().map(|kind| open_new(&*self.base, &format!("{directory}/slot-{slot}.{kind}"), flags)).collect()
    }

    /// The task has ended: readers that follow it come to their end, and the directory may go when room is needed.
    pub(crate) fn ended(&self, key: &TaskKey) {
        match self.lock().live.get(key) {
            Some(entry) => entry.ended.send_replace(true),
            // A launch that was refused has none.
            None => return,
        };
        if self.ended.try_send(key.clone()).is_err() {
            tracing::warn!(%key, "too many tasks end at once: this sandbox is removed at once");
            let removed = self.lock().live.remove(key);
            if let Some(entry) = removed {
                let _ = remove(&self.task_directory(key), entry.there);
            }
        }
    }

    /// What is known of a sandbox.
    ///
    /// # Errors
    /// When it is not here (any more).
    pub(crate) fn find(&self, key: &TaskKey) -> Result<Sandbox, Error> {
        let state = self.lock();
        let entry = state.live.get(key).ok_or_else(|| Error::Gone(key.clone()))?;
        Ok(Sandbox { ended: entry.ended.subscribe(), array: entry.kind == Kind::Array, empty: entry.there == There::Nothing })
    }

    /// Opens a file or directory of a sandbox for reading. No part of the path may be a link or lead out of it.
    ///
    /// # Errors
    /// When it is not there or not allowed.
    pub(crate) fn open(&self, key: &TaskKey, path: &str, directory: bool) -> Result<File, Error> {
        let failed = |why: String| Error::Open { key: key.clone(), path: path.chars().take(256).collect(), why };
        let task = open_beneath(&*self.base, &relative(key), true).map_err(|e| failed(e.to_string()))?;
        let relative = path.trim_start_matches('/');
        let relative = if relative.is_empty() { "." } else { relative };
        let file = File::from(open_beneath(task, relative, directory).map_err(|e| failed(explain(e)))?);
        let kind = file.metadata().map_err(|e| failed(e.to_string()))?;
        if !directory && !kind.is_file() {
            return Err(failed("it is not a file".into()));
        }
        Ok(file)
    }
}

/// A task's directory below that of all sandboxes. Ids are safe file names.
fn relative(key: &TaskKey) -> String {
    format!("{}/{}.{}", key.framework, key.task, key.attempt)
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new file, for the agent's own user by its name; whoever gets the descriptor can write.
fn create(base: impl AsFd, path: &str) -> std::io::Result<OwnedFd> {
    open_new(base, path, OFlag::O_EXCL)
}

fn open_new(base: impl AsFd, path: &str, flags: OFlag) -> std::io::Result<OwnedFd> {
    let flags = flags | OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(base, path, flags, Mode::S_IRUSR | Mode::S_IWUSR)?)
}

/// Without waiting for a pipe's other end, and never as this process's terminal.
fn open_beneath(base: impl AsFd, path: &str, directory: bool) -> nix::Result<OwnedFd> {
    let mut flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    if directory {
        flags |= OFlag::O_DIRECTORY;
    }
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(base, path, OpenHow::new().flags(flags).mode(Mode::empty()).resolve(resolve))
}

fn explain(errno: nix::errno::Errno) -> String {
    match errno {
        nix::errno::Errno::EXDEV => "the path leads out of the sandbox".into(),
        nix::errno::Errno::ELOOP => "a part of the path is a symbolic link".into(),
        nix::errno::Errno::ENOENT => "no such file".into(),
        nix::errno::Errno::ENOTDIR => "it is not a directory".into(),
        other => other.desc().to_owned(),
    }
}

/// Makes a directory that only its owner can enter.
pub(crate) fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// What was laid out for guests that still run gets another name; those of an earlier time go.
fn put_aside(path: &Path) -> std::io::Result<()> {
    for name in LAID_OUT {
        let (is, was) = (path.join(name), path.join(format!("{name}{ASIDE}")));
        match std::fs::rename(&is, &was) {
            // A second restart: the guests of the first one's time hold their files open.
            Err(e) if matches!(e.kind(), std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::AlreadyExists) => {
                std::fs::remove_dir_all(&was)?;
                std::fs::rename(&is, &was)?;
            }
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Removes a sandbox, if it is there.
fn remove(path: &Path, there: There) -> std::io::Result<()> {
    let removed = if there == There::Nothing { std::fs::remove_file(path) } else { std::fs::remove_dir_all(path) };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The sandboxes below `root`, with the times of their directories.
fn left_behind(root: &Path) -> std::io::Result<Vec<(TaskKey, std::time::SystemTime, There)>> {
    let mut found = Vec::new();
    for framework in std::fs::read_dir(root)?.flatten() {
        let Some(id) = framework.file_name().to_str().and_then(|name| FrameworkId::new(name).ok()) else { continue };
        spare::clear(&framework.path())?;
        for entry in std::fs::read_dir(framework.path()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let parts = name.to_str().and_then(|name| name.rsplit_once('.'));
            let key = parts.and_then(|(task, attempt)| {
                Some(TaskKey { framework: id.clone(), task: TaskId::new(task).ok()?, attempt: attempt.parse().ok()? })
            });
            if let (Some(key), Ok(meta)) = (key, entry.metadata()) {
                let there = if meta.is_dir() { There::Directory } else { There::Nothing };
                // All links to nothing have the time of the one file: among what ended before, they go first.
                found.push((key, meta.modified().unwrap_or(std::time::UNIX_EPOCH), there));
            }
        }
    }
    Ok(found)
}

/// Whether outputs lie in slots' files there.
fn is_array(path: &Path) -> bool {
    let names = std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.file_name());
    names.into_iter().any(|name| name.to_str().is_some_and(|n| n.starts_with("slot-")))
}

/// Counts what has ended, takes what has nothing in it for others, and removes the oldest beyond the budget.
#[derive(Debug, Clone)]
struct Collector {
    root: PathBuf,
    base: Arc<File>,
    state: Arc<Mutex<State>>,
    budget: Bytes,
}

impl Collector {
    /// Begins with `keys`, which ended before the agent was started.
    async fn run(self, mut keys: Vec<TaskKey>, mut inbox: mpsc::Receiver<TaskKey>) {
        while !keys.is_empty() || inbox.recv_many(&mut keys, 256).await > 0 {
            let (this, batch) = (self.clone(), std::mem::take(&mut keys));
            let work = move || {
                batch.into_iter().for_each(|key| this.take_in(key));
                for (key, there) in take_excess(&mut lock(&this.state), this.budget) {
                    let path = this.root.join(relative(&key));
                    if let Err(e) = remove(&path, there) {
                        tracing::warn!("cannot remove the sandbox {}: {e}", path.display());
                    }
                }
            };
            if tokio::task::spawn_blocking(work).await.is_err() {
                tracing::error!("counting sandboxes failed; their budget is not kept");
            }
        }
    }

    /// One has ended.
    fn take_in(&self, key: TaskKey) {
        let path = self.root.join(relative(&key));
        // One without anything is counted like one with empty files: what is known of it takes room, too.
        let size = if self.is_nothing(&key, &path) {
            self.put_by(&key);
            BLOCK * (1 + OUTPUTS.len() as u64)
        } else {
            remove_laid_out(&path);
            size_of(&path)
        };
        let mut state = lock(&self.state);
        state.total = state.total.saturating_add(size);
        state.order.push_back((key, size));
    }

    /// Whether a task has left nothing, in a directory that others of its framework may have.
    fn is_nothing(&self, key: &TaskKey, path: &Path) -> bool {
        let may = lock(&self.state).live.get(key).is_some_and(|entry| entry.kind == Kind::Single && entry.there != There::Nothing);
        may && spare::is_nothing(path)
    }

    /// Takes the directory of a task that left nothing, unless somebody reads there: who comes from now on finds nothing.
    fn put_by(&self, key: &TaskKey) {
        let number = {
            let mut state = lock(&self.state);
            let State { live, spares, .. } = &mut *state;
            let Some(entry) = live.get_mut(key).filter(|entry| entry.ended.receiver_count() == 0) else { return };
            let Some(number) = spares.reserve(&key.framework) else { return };
            entry.there = There::Nothing;
            number
        };
        let put = spare::put_by(&*self.base, &key.framework, &relative(key), number);
        let mut state = lock(&self.state);
        match put {
            Ok(()) => state.spares.put(&key.framework, number),
            // Not every file system can exchange two names.
            Err(e) => {
                tracing::debug!(%key, "its directory cannot be used again: {e}");
                if let Some(entry) = state.live.get_mut(key) {
                    entry.there = There::Directory;
                }
            }
        }
    }
}

/// The oldest ended ones, until the rest fits.
fn take_excess(state: &mut State, budget: Bytes) -> Vec<(TaskKey, There)> {
    let mut gone = Vec::new();
    while state.total > budget.0
        && let Some((key, size)) = state.order.pop_front()
    {
        state.total = state.total.saturating_sub(size);
        let there = state.live.remove(&key).map_or(There::Directory, |entry| entry.there);
        gone.push((key, there));
    }
    gone
}

/// Removes what was only there for the guest. Inputs are hard links into the cache: when the cache had given them up to make room, nobody
/// would count them any more.
fn remove_laid_out(path: &Path) {
    for name in LAID_OUT.into_iter().flat_map(|name| [name.to_owned(), format!("{name}{ASIDE}")]) {
        let path = path.join(name);
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        if let Err(e) = removed
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {e}", path.display());
        }
    }
}

/// Room that a directory takes, every entry at least a block. Does not follow links.
fn size_of(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut size = BLOCK;
    let mut todo = vec![path.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            size = size.saturating_add((meta.blocks() * 512).max(BLOCK));
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    size
}

#[cfg(test)]
mod tests {
    use super::*;
    fn key(n: u32) -> TaskKey {
        TaskKey { framework: FrameworkId::new("F").unwrap(), task: TaskId::new(format!("t{n}")).unwrap(), attempt: 0 }
    }

    #[test]
    fn outputs_are_made_once_and_only_for_the_agent_by_name() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (all, _collector) = Sandboxes::start(dir.path(), Bytes::gib(1), &BTreeMap::new()).unwrap();
        assert!(all.create_task_outputs(&key(1)).is_err(), "there is no directory yet");
        let path = all.make(&key(1), Kind::Single, false).unwrap();
        assert_eq!(all.create_task_outputs(&key(1)).unwrap().len(), 2);
        assert!(all.create_task_outputs(&key(1)).is_err());
        assert_eq!(all.create_slot_outputs(&key(1), 7).unwrap().len(), 3);
        for name in ["stdout", "stderr", "slot-7.out", "slot-7.err", "slot-7.ledger"] {
            assert_eq!(std::fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        assert!(all.create_slot_outputs(&key(1), 7).is_err());
        std::fs::write(path.join("slot-7.out"), "kept").unwrap();
        assert_eq!(all.reopen_slot_outputs(&key(1), 7).unwrap().len(), 3);
        assert_eq!(std::fs::read(path.join("slot-7.out")).unwrap(), b"kept");
        std::os::unix::fs::symlink("../../../x", path.join("slot-8.out")).unwrap();
        assert!(all.create_slot_outputs(&key(1), 8).is_err() && all.reopen_slot_outputs(&key(1), 8).is_err());
        assert!(!dir.path().join("x").exists());
    }

    #[test]
    fn nothing_outside_of_the_sandbox_can_be_opened() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        let (all, _collector) = Sandboxes::start(dir.path(), Bytes::gib(1), &BTreeMap::new()).unwrap();
        let path = all.make(&key(1), Kind::Single, false).unwrap();
        std::fs::write(path.join("stdout"), "hello").unwrap();
        std::os::unix::fs::symlink("../../../secret", path.join("link")).unwrap();
        std::os::unix::fs::symlink("/etc", path.join("etc")).unwrap();
        nix::unistd::mkfifo(&path.join("pipe"), Mode::S_IRUSR).unwrap();
        assert!(all.open(&key(1), "stdout", false).is_ok());
        assert!(all.open(&key(1), "/stdout", false).is_ok());
        assert!(all.open(&key(1), "", true).is_ok());
        for bad in ["../../../secret", "link", "etc/passwd", "pipe", ".", "../t1.0/stdout", "no", "a\0b"] {
            assert!(all.open(&key(1), bad, false).is_err(), "{bad:?}");
        }
        assert!(matches!(all.find(&key(2)), Err(Error::Gone(_))));
    }

    /// Ends tasks and waits until the collector has seen them; gives what is known then.
    async fn collected(all: Sandboxes, collector: impl Future<Output = ()>, keys: &[TaskKey]) -> Arc<Mutex<State>> {
        keys.iter().for_each(|key| all.ended(key));
        let state = all.state.clone();
        drop(all);
        collector.await;
        state
    }

    #[tokio::test]
    async fn what_a_task_left_empty_is_used_again_by_its_framework_only() {
        use std::io::Write;
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let inode =
            |key: &TaskKey, name: &str| std::fs::metadata(dir.path().join("sandboxes").join(relative(key)).join(name)).unwrap().ino();
        let (all, collector) = Sandboxes::start(dir.path(), Bytes::gib(1), &BTreeMap::new()).unwrap();
        let other = TaskKey { framework: FrameworkId::new("G").unwrap(), ..key(1) };
        let running = tokio::spawn(collector);
        // A task that writes nothing, one that writes, one that runs alone, and one that is being read.
        let mut kept: Option<OwnedFd> = None;
        for (n, kind) in [(1, Kind::Single), (2, Kind::Single), (3, Kind::Alone), (4, Kind::Single)] {
            all.make(&key(n), kind, false).unwrap();
            let mut outputs = all.create_task_outputs(&key(n)).unwrap();
            match n {
                1 => kept = outputs.pop(),
                2 => File::from(outputs.remove(0)).write_all(b"x").unwrap(),
                _ => {}
            }
        }
        let before = (inode(&key(1), "stdout"), inode(&key(1), "stderr"));
        let reader = all.find(&key(4)).unwrap();
        (1..=4).for_each(|n| all.ended(&key(n)));
        while lock(&all.state).order.len() < 4 {
            tokio::task::yield_now().await;
        }
        let empty: Vec<bool> = (1..=4).map(|n| all.find(&key(n)).unwrap().empty).collect();
        assert_eq!(empty, [true, false, false, false]);
        assert!(all.open(&key(1), "stdout", false).is_err() && all.open(&key(4), "stdout", false).is_ok());
        drop(reader);
        // Who kept a descriptor may write; the next task's output begins empty all the same.
        File::from(kept.unwrap()).write_all(b"late").unwrap();
        all.make(&other, Kind::Single, false).unwrap();
        assert_eq!(all.create_task_outputs(&other).unwrap().len(), 2);
        all.make(&key(5), Kind::Single, false).unwrap();
        assert_eq!(all.create_task_outputs(&key(5)).unwrap().len(), 2);
        assert!(all.create_task_outputs(&key(5)).is_err(), "once");
        assert_eq!((inode(&key(5), "stdout"), inode(&key(5), "stderr")), before);
        assert!(inode(&other, "stdout") != before.0);
        assert_eq!(std::fs::read(all.task_directory(&key(5)).join("stderr")).unwrap(), b"");
        // The same attempt once more.
        all.make(&key(1), Kind::Single, false).unwrap();
        assert_eq!(all.create_task_outputs(&key(1)).unwrap().len(), 2);
        drop(all);
        running.await.unwrap();
    }

    #[tokio::test]
    async fn after_a_restart_what_was_nothing_still_is() {
        let dir = tempfile::tempdir().unwrap();
        let (all, collector) = Sandboxes::start(dir.path(), Bytes::gib(1), &BTreeMap::new()).unwrap();
        for n in 1..=2 {
            all.make(&key(n), Kind::Single, false).unwrap();
            all.create_task_outputs(&key(n)).unwrap();
        }
        collected(all, collector, &[key(1), key(2)]).await;
        let (all, collector) = Sandboxes::start(dir.path(), Bytes(0), &BTreeMap::new()).unwrap();
        assert!([1, 2].iter().all(|n| all.find(&key(*n)).is_ok_and(|found| found.empty && *found.ended.borrow())));
        let state = collected(all, collector, &[]).await;
        assert!(lock(&state).live.is_empty());
        let left: Vec<_> = std::fs::read_dir(dir.path().join("sandboxes/F")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, [".nothing"]);
    }

    #[tokio::test]
    async fn the_oldest_ended_sandboxes_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let (all, collector) = Sandboxes::start(dir.path(), Bytes(100_000), &BTreeMap::new()).unwrap();
        for n in 0..4 {
            let path = all.make(&key(n), Kind::Single, false).unwrap();
            std::fs::write(path.join("stdout"), vec![b'x'; 40_000]).unwrap();
        }
        // An input that is still in the cache, of a task that keeps its outputs.
        let kept = all.task_directory(&key(3)).join(LAID_OUT[0]);
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(dir.path().join("cached"), vec![b'x'; 200_000]).unwrap();
        std::fs::hard_link(dir.path().join("cached"), kept.join("in")).unwrap();
        let state = collected(all, collector, &[key(1), key(2), key(3)]).await;
        let left: Vec<_> = lock(&state).live.keys().cloned().collect();
        assert_eq!(left, [key(0), key(2), key(3)]);
        assert!(!kept.exists() && dir.path().join("cached").exists());
        assert!(!dir.path().join("sandboxes/F/t1.0").exists() && dir.path().join("sandboxes/F/t0.0").exists());
    }
}
