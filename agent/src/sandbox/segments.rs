//! Where single tasks' outputs lie: segments, that is pairs of files that one task after another appends to.
//!
//! A directory and two files of its own cost a task more than running it does: inodes are made and removed, and a file system that
//! has just freed many looks long for one that is free. So a task borrows a segment of its framework and gives it back at its end; an
//! index beside the files says which task began where. Tasks of class `process` share their bytes with nobody: for them some are made
//! beforehand, off the way of whoever starts them, and one in which a task has written nothing is lent to another of the same framework
//! once the executor that could write there is dead. Owns `sandboxes/<framework>/seg-<n>.{out,err,index}` and `sandboxes/spare-<n>.*`. An executor gets the two
//! files as descriptors that only append; it could spoil what its own framework's tasks wrote, and nothing else.
//! Deliberately absent: who reads, and which segments go when room is needed (see `collect`).

use super::open_beneath;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek};
use smalti_types::{FrameworkId, TaskId, TaskKey};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::SystemTime;

/// Bytes after which a segment takes no further task, so that what is old can go.
const MOST_BYTES: u64 = 1 << 20;
/// Tasks after which it takes no further one.
const MOST_TASKS: usize = 512;
/// Segments that nobody uses and that may be used again.
const MOST_IDLE: usize = 512;
/// Segments in which tasks of class `process` have written nothing, and that may be used again.
const MOST_EMPTY: usize = 64;
/// Segments whose files stay open between tasks; beyond that those are closed that were idle longest.
const MOST_OPEN: usize = 256;
/// Segments that are made beforehand, as soon as one was wanted that nobody else uses.
const SPARES: usize = 4;
/// Name of the files of one, before their number.
pub(super) const SPARE: &str = "spare-";
/// Its files: outputs, errors, index.
const KINDS: [&str; 3] = ["out", "err", "index"];

/// Names a segment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SegmentId {
    pub(super) framework: FrameworkId,
    pub(super) number: u64,
}

impl SegmentId {
    /// Below the directory of all sandboxes.
    fn file(&self, kind: &str) -> String {
        format!("{}/seg-{}.{kind}", self.framework, self.number)
    }

    /// Its three files, below the directory of all sandboxes.
    pub(super) fn files(&self) -> [String; 3] {
        KINDS.map(|kind| self.file(kind))
    }
}

/// Where one task's output lies in its segment: outputs and errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) from: [u64; 2],
    /// `None` while it may grow.
    pub(super) to: Option<[u64; 2]>,
}

/// A segment that takes no task any more.
#[derive(Debug)]
pub(super) struct Full {
    pub(super) id: SegmentId,
    pub(super) keys: Vec<TaskKey>,
    /// When its last task ended.
    pub(super) ended: SystemTime,
}

/// A segment's open files.
#[derive(Debug)]
struct Files {
    outputs: [Arc<OwnedFd>; 2],
    index: File,
}

#[derive(Debug)]
struct Segment {
    id: SegmentId,
    alone: bool,
    keys: Vec<TaskKey>,
    files: Option<Files>,
    /// When its first task began, and its last one ended.
    began: SystemTime,
    ended: SystemTime,
    /// Whether the end of its task's executor will be told ([`Segments::release`]), or was.
    executor: Executor,
}

/// What is known of whoever can write into a segment of class `process`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Executor {
    /// Nothing: nobody ever uses the segment again.
    Unknown,
    Lives,
    Dead,
}

/// All segments that are in use or may be.
#[derive(Debug)]
pub(super) struct Segments {
    base: Arc<File>,
    next: u64,
    /// The last one was used last.
    idle: Vec<Segment>,
    busy: BTreeMap<TaskKey, Segment>,
    /// Of tasks of class `process` that have written nothing, as long as their executors live; then without anybody.
    resting: BTreeMap<TaskKey, Segment>,
    empty: Vec<Segment>,
    /// Segments whose files are open.
    open: usize,
    full: Vec<Full>,
    spares: Vec<Spare>,
    /// Being made.
    coming: usize,
}

/// A segment that nobody had yet, under a name that no framework has.
#[derive(Debug)]
pub(super) struct Spare {
    number: u64,
    files: Files,
}

impl Spare {
    /// # Errors
    /// What the file system says.
    pub(super) fn make(base: &File, number: u64) -> std::io::Result<Self> {
        let files = open_all(base, |kind| Self::name(number, kind), OFlag::O_CREAT | OFlag::O_EXCL)?;
        Ok(Self { number, files })
    }

    fn name(number: u64, kind: &str) -> String {
        format!("{SPARE}{number}.{kind}")
    }

    /// Gives it to a framework. The index goes last: without it there is no segment.
    fn give(self, base: &File, framework: &FrameworkId) -> std::io::Result<(SegmentId, Files)> {
        let id = SegmentId { framework: framework.clone(), number: self.number };
        for kind in KINDS {
            let (from, to) = (Self::name(self.number, kind), id.file(kind));
            let rename = || nix::fcntl::renameat(base, from.as_str(), base, to.as_str());
            match rename() {
                Err(nix::errno::Errno::ENOENT) => {
                    nix::sys::stat::mkdirat(base, framework.as_str(), Mode::S_IRWXU)?;
                    rename()?;
                }
                renamed => renamed?,
            }
        }
        Ok((id, self.files))
    }
}

impl Segments {
    /// Numbers go on behind those of an earlier life.
    pub(super) fn new(base: Arc<File>, next: u64) -> Self {
        let (idle, empty, busy, resting) = (Vec::new(), Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { base, next, idle, busy, resting, empty, open: 0, full: Vec::new(), spares: Vec::new(), coming: 0 }
    }

    /// A segment for a task, its output files open for appending; `alone`: nobody else's before or after.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn lend(&mut self, key: &TaskKey, alone: bool) -> std::io::Result<(Vec<Arc<OwnedFd>>, Place)> {
        let unused = if alone { &mut self.empty } else { &mut self.idle };
        let used = unused.iter().rposition(|s| s.id.framework == key.framework);
        let mut segment = match used {
            Some(at) => unused.remove(at),
            None => self.make(&key.framework, alone)?,
        };
        segment.executor = Executor::Unknown;
        let lent = self.begin(&mut segment, key);
        if self.open > MOST_OPEN {
            let idle = self.idle.iter_mut().chain(&mut self.empty).find(|idle| idle.files.is_some());
            self.open -= usize::from(idle.unwrap_or(&mut segment).files.take().is_some());
        }
        match lent {
            Ok(lent) => {
                segment.keys.push(key.clone());
                self.busy.insert(key.clone(), segment);
                Ok(lent)
            }
            Err(e) => {
                // Half a line may stand in its index.
                self.retire(segment);
                Err(e)
            }
        }
    }

    fn make(&mut self, framework: &FrameworkId, alone: bool) -> std::io::Result<Segment> {
        let spare = if alone { self.spares.pop() } else { None };
        let spare = match spare {
            Some(spare) => spare,
            None => {
                let number = self.number();
                Spare::make(&self.base, number)?
            }
        };
        let (id, files) = spare.give(&self.base, framework)?;
        self.open += 1;
        let now = SystemTime::now();
        Ok(Segment { id, alone, keys: Vec::new(), files: Some(files), began: now, ended: now, executor: Executor::Unknown })
    }

    const fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Numbers of spares that are to be made; each comes back by [`Self::made`].
    pub(super) fn missing(&mut self) -> Vec<u64> {
        let missing = SPARES.saturating_sub(self.spares.len() + self.coming);
        self.coming += missing;
        (0..missing).map(|_| self.number()).collect()
    }

    /// Whether the next one who wants one would find none.
    pub(super) fn are_short(&self) -> bool {
        self.spares.len() < SPARES / 2
    }

    /// One was made, or could not be: then it is made when it is needed.
    pub(super) fn made(&mut self, spare: Option<Spare>) {
        self.coming -= 1;
        self.spares.extend(spare);
    }

    fn begin(&mut self, segment: &mut Segment, key: &TaskKey) -> std::io::Result<(Vec<Arc<OwnedFd>>, Place)> {
        let files = match &mut segment.files {
            Some(files) => files,
            none => {
                self.open += 1;
                none.insert(open_all(&self.base, |kind| segment.id.file(kind), OFlag::empty()).inspect_err(|_| self.open -= 1)?)
            }
        };
        let from = lengths(&files.outputs)?;
        files.index.write_all(format!("{}.{} {} {}\n", key.task, key.attempt, from[0], from[1]).as_bytes())?;
        Ok((files.outputs.to_vec(), Place { segment: segment.id.number, from, to: None }))
    }

    /// The task has ended: where its outputs end. `None`: it had no segment of this life.
    pub(super) fn give_back(&mut self, key: &TaskKey) -> Option<[u64; 2]> {
        let mut segment = self.busy.remove(key)?;
        segment.ended = SystemTime::now();
        let to = self.written(&segment);
        // Without knowing where this one ends, another must not begin.
        let Ok(to) = to else {
            self.retire(segment);
            return Some([u64::MAX; 2]);
        };
        let most = if segment.alone { 0 } else { MOST_BYTES };
        if to[0].saturating_add(to[1]) > most || segment.keys.len() >= MOST_TASKS {
            self.retire(segment);
        } else if segment.alone {
            self.put_aside(key, segment);
        } else {
            self.idle.push(segment);
            if self.idle.len() > MOST_IDLE {
                let oldest = self.idle.remove(0);
                self.retire(oldest);
            }
        }
        Some(to)
    }

    /// One without a byte of a task of class `process` that has ended.
    fn put_aside(&mut self, key: &TaskKey, segment: Segment) {
        match segment.executor {
            Executor::Unknown => self.retire(segment),
            Executor::Dead => self.keep_empty(segment),
            Executor::Lives => {
                // The same attempt has begun twice.
                if let Some(older) = self.resting.insert(key.clone(), segment) {
                    self.retire(older);
                }
            }
        }
    }

    /// How much lies in a segment.
    fn written(&self, segment: &Segment) -> std::io::Result<[u64; 2]> {
        match &segment.files {
            Some(files) => lengths(&files.outputs),
            None => ends(&self.base, &segment.id),
        }
    }

    /// The end of the executor of this task of class `process` will be told.
    pub(super) fn expect_release(&mut self, key: &TaskKey) {
        if let Some(segment) = self.busy.get_mut(key) {
            segment.executor = Executor::Lives;
        }
    }

    /// The executor of a task of class `process` is dead.
    pub(super) fn release(&mut self, key: &TaskKey) {
        if let Some(segment) = self.resting.remove(key) {
            self.keep_empty(segment);
        } else if let Some(segment) = self.busy.get_mut(key) {
            segment.executor = Executor::Dead;
        }
    }

    /// One that nobody can write into: for another task, if nobody has, whatever became of the one whose end was told before.
    fn keep_empty(&mut self, segment: Segment) {
        if !matches!(self.written(&segment), Ok([0, 0])) {
            return self.retire(segment);
        }
        self.empty.push(segment);
        if self.empty.len() > MOST_EMPTY {
            let oldest = self.empty.remove(0);
            self.retire(oldest);
        }
    }

    fn retire(&mut self, segment: Segment) {
        self.open -= usize::from(segment.files.is_some());
        self.full.push(Full { id: segment.id, keys: segment.keys, ended: segment.ended });
    }

    /// Those that no task has now take no further one, if their first began at that time or before.
    pub(super) fn retire_idle(&mut self, before: SystemTime) {
        let is_old = |segment: &mut Segment| segment.began <= before;
        let old: Vec<_> = self.idle.extract_if(.., is_old).chain(self.empty.extract_if(.., is_old)).collect();
        old.into_iter().for_each(|segment| self.retire(segment));
    }

    /// Those that became full since the last call.
    pub(super) fn take_full(&mut self) -> Vec<Full> {
        std::mem::take(&mut self.full)
    }
}

fn open_all(base: &File, name: impl Fn(&str) -> String, flags: OFlag) -> std::io::Result<Files> {
    let flags = flags | OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let open = |kind| Ok::<_, std::io::Error>(openat(base.as_fd(), name(kind).as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    Ok(Files { outputs: [Arc::new(open(KINDS[0])?), Arc::new(open(KINDS[1])?)], index: open(KINDS[2])?.into() })
}

/// By seeking: a fraction of what all that is known about a file costs. Whoever appends does not mind where the file stands.
fn lengths(files: &[impl AsFd; 2]) -> std::io::Result<[u64; 2]> {
    let length = |file| Ok::<_, std::io::Error>(lseek(file, 0, Whence::SeekEnd)?.cast_unsigned());
    Ok([length(files[0].as_fd())?, length(files[1].as_fd())?])
}

fn ends(base: &File, id: &SegmentId) -> std::io::Result<[u64; 2]> {
    let open = |kind| open_beneath(base, &id.file(kind), false);
    lengths(&[open(KINDS[0])?, open(KINDS[1])?])
}

/// One output of a segment, for reading.
///
/// # Errors
/// When it is not there.
pub(super) fn open(base: &File, id: &SegmentId, stream: usize) -> std::io::Result<File> {
    Ok(open_beneath(base, &id.file(KINDS[stream]), false)?.into())
}

/// What an earlier life left of a segment: its tasks in their order. Of the last one nobody knows whether it has ended; a line that is not
/// whole is of one that never began.
pub(super) fn read_index(base: &File, id: &SegmentId) -> std::io::Result<Vec<(TaskKey, Place)>> {
    let text = std::io::read_to_string(File::from(open_beneath(base, &id.file(KINDS[2]), false)?))?;
    let mut tasks: Vec<(TaskKey, Place)> = Vec::new();
    for line in text.split_inclusive('\n') {
        let Some((key, from)) = parse(line, &id.framework) else { break };
        if let Some((_, before)) = tasks.last_mut() {
            before.to = Some(from);
        }
        tasks.push((key, Place { segment: id.number, from, to: None }));
    }
    Ok(tasks)
}

fn parse(line: &str, framework: &FrameworkId) -> Option<(TaskKey, [u64; 2])> {
    let mut words = line.strip_suffix('\n')?.split(' ');
    let (task, attempt) = words.next()?.rsplit_once('.')?;
    let key = TaskKey { framework: framework.clone(), task: TaskId::new(task).ok()?, attempt: attempt.parse().ok()? };
    let from = [words.next()?.parse().ok()?, words.next()?.parse().ok()?];
    words.next().is_none().then_some((key, from))
}

/// Number of the segment that a file belongs to whose name is that of an index.
pub(super) fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix("seg-")?.strip_suffix(".index")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many tasks of a framework at once.
    fn run(segments: &mut Segments, framework: &FrameworkId, tasks: usize) {
        let key = |n| TaskKey { framework: framework.clone(), task: TaskId::new(format!("t{n}")).unwrap(), attempt: 0 };
        let keys: Vec<_> = (0..tasks).map(key).collect();
        keys.iter().for_each(|key| drop(segments.lend(key, false).unwrap()));
        keys.iter().for_each(|key| assert_eq!(segments.give_back(key), Some([0, 0])));
    }

    #[test]
    fn of_too_many_open_segments_those_are_closed_that_nobody_used_for_longest() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = Segments::new(Arc::new(File::open(dir.path()).unwrap()), 0);
        let [gone, present] = ["gone", "present"].map(|name| FrameworkId::new(name).unwrap());
        run(&mut segments, &gone, MOST_OPEN - 10);
        for _ in 0..3 {
            run(&mut segments, &present, 40);
            assert_eq!(segments.open, MOST_OPEN);
            let closed: Vec<_> = segments.idle.iter().filter(|s| s.files.is_none()).map(|s| &s.id.framework).collect();
            assert!(closed.len() >= 30 && closed.iter().all(|framework| **framework == gone), "{closed:?}");
        }
    }
}
