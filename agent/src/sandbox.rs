//! The directories of tasks: where outputs lie, who may still write there, and which go when they take too much room.
//!
//! Owns `sandboxes/<framework>/<task>.<attempt>/` below the data directory, and the making of output files in it: executors get them as
//! descriptors and never see a path. Ended sandboxes are kept up to a budget; when room is needed the oldest go of the framework that takes
//! most, so that a flood of one framework's tasks costs nobody else's outputs (see `collector`). Those of running tasks never go. What has
//! nothing in it is used again (see `spare`). Whoever reads opens beneath the directory without following links ([`Sandboxes::open`]).
//! Deliberately absent: what the files mean (see `outputs`).

mod collector;
mod spare;

use crate::prepare::LAID_OUT;
use collector::{Collector, Ended};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;
use smalti_types::{Bytes, FrameworkId, TaskId, TaskKey};
pub(crate) use spare::OUTPUTS;
use spare::Spares;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, watch};

/// Ended tasks whose size is not counted yet; beyond it the event loop does not wait, and the next one that is counted catches up.
const QUEUE: usize = 16_384;
/// What was laid out for guests of an earlier life of the agent is called that with this behind it.
const ASIDE: &str = ".before";

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
    /// Ended ones.
    ended: BTreeMap<FrameworkId, Ended>,
    /// Sum of what they take.
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

#[cfg(test)]
mod tests;
