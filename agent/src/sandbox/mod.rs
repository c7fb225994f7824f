//! The outputs of tasks: where they lie, who may still write there, and which go when they take too much room.
//!
//! Owns `sandboxes/<framework>/` below the data directory: segments with the outputs of single tasks (`segments`), a directory
//! `<task>.<attempt>/` for each array part with its slots' files, and such a directory for what is laid out for a guest. Executors get
//! files as descriptors and never see a path. What has ended is kept up to a budget and an age (`collect`). Whoever reads
//! opens beneath the directory without following links.
//! Deliberately absent: what the files mean (see `outputs`).

mod collect;
mod left;
mod segments;

use crate::prepare::LAID_OUT;
pub(crate) use collect::{Collector, Limits};
use collect::{Over, remove};
use left::LeftBehind;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;
use segments::{Full, Place, SegmentId, Segments};
use smalti_types::TaskKey;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// What has ended and is not counted yet; beyond it the event loop does not wait, and what comes then is removed.
const QUEUE: usize = 16_384;
/// Spare segments are made so long after a task of class `process` has begun, unless there are few.
const AFTER_BEGIN: Duration = Duration::from_millis(5);
/// What was laid out for guests of an earlier life of the agent is called that with this behind it.
const ASIDE: &str = ".before";

/// How an attempt's outputs are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An array part: in slots' files.
    Part,
    /// A single task: in a segment, which others of its framework use before and after it.
    Task,
    /// A single task with an executor of its own: in a segment that nobody else has written anything into.
    Alone,
}

/// Where the outputs of an attempt lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outputs {
    /// In slots' files in its directory.
    Slots,
    /// In its directory, as earlier builds did it.
    Files,
    /// In a segment, once it has begun.
    Segment(Option<Place>),
}

#[derive(Debug)]
struct Entry {
    /// What is in its segment is nobody else's.
    alone: bool,
    /// Nothing is written after that.
    ended: bool,
    outputs: Outputs,
    /// It has a directory with what was laid out for its guest.
    laid_out: bool,
}

/// One output of a single task, and which part of the file is its own.
#[derive(Debug)]
pub(crate) struct OutputFile {
    pub(crate) file: File,
    pub(crate) from: u64,
}

#[derive(Debug)]
pub(super) struct State {
    live: BTreeMap<TaskKey, Entry>,
    segments: Segments,
    /// Tasks of an earlier life that hold a segment each.
    held: BTreeMap<TaskKey, Full>,
}

impl State {
    fn forget(&mut self, full: &Full) {
        for key in &full.keys {
            let of_it = |entry: &Entry| matches!(entry.outputs, Outputs::Segment(Some(place)) if place.segment == full.id.number);
            // The same attempt may have begun again, in another segment.
            if self.live.get(key).is_some_and(|entry| of_it(entry) && entry.ended) {
                self.live.remove(key);
            }
        }
    }
}

/// What the collector shares with everybody else.
#[derive(Debug, Clone)]
struct Shared {
    root: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All sandboxes of an agent. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Sandboxes {
    base: Arc<File>,
    shared: Shared,
    over: mpsc::Sender<(SystemTime, Over)>,
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
    /// are array parts; all others have ended, when their files' times say. The collector is to be run as a task.
    ///
    /// # Errors
    /// When the directory cannot be read or made.
    pub(crate) fn start(
        data_dir: &Path,
        limits: impl Into<Limits>,
        attempts: &BTreeMap<TaskKey, (bool, bool)>,
    ) -> std::io::Result<(Self, Collector)> {
        let root = data_dir.join("sandboxes");
        make_private(&root)?;
        let base = Arc::new(File::open(&root)?);
        let mut left = LeftBehind::default();
        left.look(&root, &base, attempts)?;
        let LeftBehind { live, held, over, next } = left;
        let (sender, inbox) = mpsc::channel(QUEUE);
        let state = State { live, held, segments: Segments::new(base.clone(), next) };
        let shared = Shared { root, state: Arc::new(Mutex::new(state)) };
        // The collector must not keep its own queue open.
        let collector = Collector { shared: shared.clone(), over, inbox, limits: limits.into() };
        Ok((Self { base, shared, over: sender }, collector))
    }

    /// A task's directory, whether it is there or not.
    pub(crate) fn task_directory(&self, key: &TaskKey) -> PathBuf {
        self.shared.root.join(relative(key))
    }

    /// Makes room for an attempt's outputs, empty unless it is to `keep` what is there: then only what was laid out for guests goes out of the
    /// way of what will be, and guests that run go on with theirs. `laid_out`: something will be put into its directory for the guest.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn make(&self, key: &TaskKey, kind: Kind, keep: bool, laid_out: bool) -> std::io::Result<PathBuf> {
        let path = self.task_directory(key);
        let known = self.shared.lock().live.contains_key(key);
        if keep {
            put_aside(&path)?;
        } else if known {
            match std::fs::remove_dir_all(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        if kind == Kind::Part {
            make_private(&path)?;
        }
        let mut state = self.shared.lock();
        match state.live.get_mut(key) {
            Some(entry) if keep => entry.laid_out |= laid_out,
            _ => {
                let outputs = if kind == Kind::Part { Outputs::Slots } else { Outputs::Segment(None) };
                state.live.insert(key.clone(), Entry { alone: kind == Kind::Alone, ended: false, outputs, laid_out });
            }
        }
        Ok(path)
    }

    /// A single task begins: two files for its `stdout` and `stderr`, in this order, which take what is appended.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn begin_task(&self, key: &TaskKey) -> std::io::Result<Vec<Arc<OwnedFd>>> {
        let mut state = self.shared.lock();
        // Its message to the executor never arrived, and it begins again.
        state.segments.give_back(key);
        let alone = state.live.get(key).is_some_and(|entry| entry.alone);
        let lent = state.segments.lend(key, alone);
        let full = state.segments.take_full();
        let lent = lent.map(|(files, place)| {
            if let Some(entry) = state.live.get_mut(key) {
                entry.outputs = Outputs::Segment(Some(place));
            }
            files
        });
        let missing = if alone { state.segments.missing() } else { Vec::new() };
        let short = state.segments.are_short();
        drop(state);
        full.into_iter().for_each(|full| self.is_over(full.ended, Over::Segment(full)));
        if !missing.is_empty() {
            self.make_spares(missing, if short { Duration::ZERO } else { AFTER_BEGIN });
        }
        lent
    }

    /// Makes segments that will be wanted, without anybody waiting for that, and `after` a while: not beside a task that has just begun.
    fn make_spares(&self, numbers: Vec<u64>, after: Duration) {
        let (base, shared) = (self.base.clone(), self.shared.clone());
        let make = move || {
            for number in numbers {
                let spare = segments::Spare::make(&base, number);
                shared.lock().segments.made(spare.ok());
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if after.is_zero() => drop(runtime.spawn_blocking(make)),
            Ok(runtime) => drop(runtime.spawn(async move {
                tokio::time::sleep(after).await;
                tokio::task::spawn_blocking(make);
            })),
            Err(_) => make(),
        }
    }

    /// Makes `slot-<n>.out`, `.err` and `.ledger` of one slot of an array part, in this order, open for writing.
    ///
    /// # Errors
    /// What the file system says; a file that is there already is an error too.
    pub(crate) fn create_slot_outputs(&self, key: &TaskKey, slot: u32) -> std::io::Result<Vec<OwnedFd>> {
        self.slot_outputs(key, slot, OFlag::O_EXCL)
    }

    /// The same files, new or as an executor before has left them: in class `process` one follows the other.
    ///
    /// # Errors
    /// As [`Sandboxes::create_slot_outputs`], but for files that are there.
    pub(crate) fn reopen_slot_outputs(&self, key: &TaskKey, slot: u32) -> std::io::Result<Vec<OwnedFd>> {
        self.slot_outputs(key, slot, OFlag::empty())
    }

    fn slot_outputs(&self, key: &TaskKey, slot: u32, flags: OFlag) -> std::io::Result<Vec<OwnedFd>> {
        let directory = relative(key);
        ["out", "err", "ledger"].iter().map(|kind| open_new(&*self.base, &format!("{directory}/slot-{slot}.{kind}"), flags)).collect()
    }

    /// The task has ended: readers that follow it come to their end, and its outputs may go when room is needed.
    pub(crate) fn ended(&self, key: &TaskKey) {
        let mut state = self.shared.lock();
        let State { live, segments, held } = &mut *state;
        // A launch that was refused has none.
        let Some(entry) = live.get_mut(key) else { return };
        entry.ended = true;
        let laid_out = std::mem::take(&mut entry.laid_out);
        let mut over: Vec<Over> = match &mut entry.outputs {
            Outputs::Slots | Outputs::Files => vec![Over::Directory(key.clone())],
            Outputs::Segment(place) => {
                if let (Some(place), Some(to)) = (place, segments.give_back(key)) {
                    place.to = Some(to);
                }
                laid_out.then(|| Over::LaidOut(key.clone())).into_iter().collect()
            }
        };
        if matches!(entry.outputs, Outputs::Segment(None)) {
            // It never began: there is nothing to read.
            live.remove(key);
        }
        over.extend(segments.take_full().into_iter().chain(held.remove(key)).map(Over::Segment));
        drop(state);
        over.into_iter().for_each(|over| self.is_over(SystemTime::now(), over));
    }

    /// [`Self::executor_is_gone`] will be called for this task of class `process`, which has begun.
    pub(crate) fn has_executor(&self, key: &TaskKey) {
        self.shared.lock().segments.expect_release(key);
    }

    /// The executor that a single task of class `process` had to itself is dead: nobody writes into its outputs any more.
    pub(crate) fn executor_is_gone(&self, key: &TaskKey) {
        let mut state = self.shared.lock();
        state.segments.release(key);
        let full = state.segments.take_full();
        drop(state);
        full.into_iter().for_each(|full| self.is_over(full.ended, Over::Segment(full)));
    }

    fn is_over(&self, ended: SystemTime, over: Over) {
        if let Err(e) = self.over.try_send((ended, over)) {
            tracing::warn!("too many tasks end at once: the outputs of some are removed at once");
            remove(&self.shared, e.into_inner().1);
        }
    }

    /// How an attempt's outputs are kept.
    ///
    /// # Errors
    /// When it is not here (any more).
    pub(crate) fn find(&self, key: &TaskKey) -> Result<Kind, Error> {
        let state = self.shared.lock();
        let entry = state.live.get(key).ok_or_else(|| Error::Gone(key.clone()))?;
        Ok(if entry.outputs == Outputs::Slots { Kind::Part } else { Kind::Task })
    }

    /// Whether nothing more will be written; also when it is not here.
    pub(crate) fn has_ended(&self, key: &TaskKey) -> bool {
        self.shared.lock().live.get(key).is_none_or(|entry| entry.ended)
    }

    /// One output of a single task: 0 is `stdout`, 1 `stderr`. `None` before it has begun.
    ///
    /// # Errors
    /// When it is not here (any more), or cannot be opened.
    pub(crate) fn task_output(&self, key: &TaskKey, stream: usize) -> Result<Option<OutputFile>, Error> {
        let outputs = self.shared.lock().live.get(key).map(|entry| entry.outputs).ok_or_else(|| Error::Gone(key.clone()))?;
        match outputs {
            Outputs::Slots | Outputs::Segment(None) => Ok(None),
            Outputs::Files => Ok(self.open(key, ["stdout", "stderr"][stream], false).ok().map(|file| OutputFile { file, from: 0 })),
            Outputs::Segment(Some(place)) => {
                let id = SegmentId { framework: key.framework.clone(), number: place.segment };
                let file = segments::open(&self.base, &id, stream).map_err(|_| Error::Gone(key.clone()))?;
                Ok(Some(OutputFile { file, from: place.from[stream] }))
            }
        }
    }

    /// Up to where `file`, which [`Sandboxes::task_output`] gave, is the task's own.
    ///
    /// # Errors
    /// When the file cannot be asked for its length.
    pub(crate) fn task_output_end(&self, key: &TaskKey, stream: usize, file: &File) -> std::io::Result<u64> {
        // Asked before: nobody else writes as long as the task has not ended.
        let length = file.metadata()?.len();
        Ok(match self.shared.lock().live.get(key).map(|entry| entry.outputs) {
            Some(Outputs::Segment(Some(Place { to: Some(to), .. }))) => to[stream].min(length),
            Some(_) => length,
            // It was removed to make room meanwhile, and where it ended is forgotten.
            None => 0,
        })
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

/// A new file, for the agent's own user by its name; whoever gets the descriptor can write.
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

#[cfg(test)]
mod tests;
