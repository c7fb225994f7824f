//! Which outputs go, never those of running tasks: what ended too long ago; when they take too much room, the oldest of the framework that has
//! most, so that a flood of one framework's costs nobody else's; and while the disk is too full for more tasks, the oldest of all.
//!
//! Owns the sizes and ages of what has ended, and removing it, on threads that may block. Ages are in the files' times, so that a later life of
//! the agent knows them.

use super::segments::{Full, SegmentId};
use super::{Shared, relative};
use crate::prepare::LAID_OUT;
use crate::watermark;
use smalti_types::{Bytes, FrameworkId, TaskKey};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// Least room that a file or directory is counted with.
const BLOCK: u64 = 4096;
/// Ended attempts whose outputs are kept, however little room they take: each is remembered.
const MOST_TASKS: usize = 200_000;
/// Between two looks at ages and at the disk.
const LOOKS_EVERY: Duration = Duration::from_secs(1);
/// Files that a framework's tasks share take no further task after this part of the age, so that what is old can go.
const RETIRED_AFTER_PART: u32 = 8;

/// What has ended and may go when room is needed.
#[derive(Debug)]
pub(super) enum Over {
    /// The directory of an array part, or of a single task of an earlier build.
    Directory(TaskKey),
    /// Nothing but what was laid out for a guest: of no use any more.
    LaidOut(TaskKey),
    Segment(Full),
}

impl Over {
    fn framework(&self) -> &FrameworkId {
        match self {
            Self::Directory(key) | Self::LaidOut(key) => &key.framework,
            Self::Segment(full) => &full.id.framework,
        }
    }

    fn tasks(&self) -> usize {
        if let Self::Segment(full) = self { full.keys.len() } else { 1 }
    }
}

/// Something that has ended.
#[derive(Debug)]
struct One {
    over: Over,
    ended: SystemTime,
    size: u64,
}

/// What has ended of one framework.
#[derive(Debug, Default)]
struct Theirs {
    /// Oldest first.
    order: VecDeque<One>,
    bytes: u64,
    tasks: usize,
}

/// What has ended.
#[derive(Debug, Default)]
pub(super) struct Kept {
    by_framework: BTreeMap<FrameworkId, Theirs>,
    bytes: u64,
    tasks: usize,
}

/// Up to when outputs are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// All together take no more.
    pub(crate) budget: Bytes,
    /// For so long after their end.
    pub(crate) age: Duration,
    /// While less is free on their disk, the oldest go until there is a quarter more. 0: never for that.
    pub(crate) reserve: Bytes,
    /// Not for that before so long after their end: whoever waits for a task reads them then.
    pub(crate) grace: Duration,
}

impl From<Bytes> for Limits {
    /// A budget alone.
    fn from(budget: Bytes) -> Self {
        Self { budget, age: Duration::MAX, reserve: Bytes(0), grace: Duration::ZERO }
    }
}

/// Removes what is to go.
pub(crate) struct Collector {
    pub(super) shared: Shared,
    /// What ended before the agent was started.
    pub(super) over: Vec<(SystemTime, Over)>,
    pub(super) inbox: mpsc::Receiver<(SystemTime, Over)>,
    pub(super) limits: Limits,
}

impl Collector {
    /// Collects until all [`super::Sandboxes`] are dropped. `relief` is asked for bytes of the same disk that no outputs can give.
    pub(crate) async fn run(self, relief: impl Fn(u64) + Send + Sync + 'static) {
        let Self { shared, mut over, mut inbox, limits } = self;
        let (mut kept, relief) = (Kept::default(), Arc::new(relief));
        let mut tick = tokio::time::interval(LOOKS_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let (is_over, looks) = tokio::select! {
                n = inbox.recv_many(&mut over, 256) => (n == 0, false),
                _ = tick.tick() => (false, true),
            };
            let (shared, relief, batch) = (shared.clone(), relief.clone(), std::mem::take(&mut over));
            let work = move || {
                let free = || watermark::room(&shared.root).map_or(u64::MAX, |(free, _)| free);
                let missing = kept.step(&shared, batch, limits, SystemTime::now(), looks.then_some(&free));
                if missing > 0 {
                    relief(missing);
                }
                kept
            };
            match tokio::task::spawn_blocking(work).await {
                Ok(k) => kept = k,
                Err(e) => {
                    tracing::error!("counting sandboxes failed, what was counted before stays for this agent's life: {e}");
                    kept = Kept::default();
                }
            }
            if is_over {
                return;
            }
        }
    }
}

impl Kept {
    /// Counts what has ended, and removes what is to go now. With a look at what is free, it gives the bytes that are still missing there.
    pub(super) fn step(
        &mut self,
        shared: &Shared,
        batch: Vec<(SystemTime, Over)>,
        limits: Limits,
        now: SystemTime,
        free: Option<&dyn Fn() -> u64>,
    ) -> u64 {
        for (ended, one) in batch {
            self.take(shared, ended.min(now), one);
        }
        if free.is_some() {
            self.retire(shared, now.checked_sub(limits.age / RETIRED_AFTER_PART));
        }
        while let Some(one) = self.excess(limits.budget) {
            remove(shared, one.over);
        }
        while let Some(one) = now.checked_sub(limits.age).and_then(|before| self.due(before)) {
            tracing::debug!("outputs of {:?} have been kept for long enough", one.over);
            remove(shared, one.over);
        }
        let mut missing = free.map_or(0, |free| watermark::missing(free(), limits.reserve.0));
        if missing > 0 {
            self.retire(shared, Some(now));
        }
        while missing > 0
            && let Some(one) = now.checked_sub(limits.grace).and_then(|before| self.oldest(before))
        {
            tracing::warn!("the disk is too full for more tasks: the outputs of {:?} make room", one.over);
            missing = missing.saturating_sub(one.size);
            remove(shared, one.over);
        }
        missing
    }

    /// Files that tasks of a framework share, and that no task has now, take no further one if their first began before this time.
    fn retire(&mut self, shared: &Shared, before: Option<SystemTime>) {
        let Some(before) = before else { return };
        let full = {
            let mut state = shared.lock();
            state.segments.retire_idle(before);
            state.segments.take_full()
        };
        for full in full {
            self.take(shared, full.ended, Over::Segment(full));
        }
    }

    fn take(&mut self, shared: &Shared, ended: SystemTime, over: Over) {
        let size = match &over {
            Over::LaidOut(_) => return remove(shared, over),
            Over::Directory(key) => {
                let path = shared.root.join(relative(key));
                remove_laid_out(&path);
                note_end(&path, ended);
                size_of(&path)
            }
            Over::Segment(full) => {
                let files = full.id.files().map(|file| shared.root.join(file));
                note_end(&files[2], ended);
                files.iter().map(|file| std::fs::metadata(file).map_or(0, |meta| room(&meta))).sum()
            }
        };
        self.bytes = self.bytes.saturating_add(size);
        self.tasks += over.tasks();
        let theirs = self.by_framework.entry(over.framework().clone()).or_default();
        theirs.bytes = theirs.bytes.saturating_add(size);
        theirs.tasks += over.tasks();
        let at = theirs.order.iter().rposition(|one| one.ended <= ended).map_or(0, |at| at + 1);
        theirs.order.insert(at, One { over, ended, size });
    }

    /// The oldest of whoever has most, while the rest does not fit.
    fn excess(&mut self, budget: Bytes) -> Option<One> {
        let most = if self.bytes > budget.0 {
            self.by_framework.iter().max_by_key(|(_, theirs)| theirs.bytes)
        } else if self.tasks > MOST_TASKS {
            self.by_framework.iter().max_by_key(|(_, theirs)| theirs.tasks)
        } else {
            None
        };
        let framework = most.map(|(framework, _)| framework.clone())?;
        self.oldest_of(&framework)
    }

    /// One that ended at that time or before.
    fn due(&mut self, before: SystemTime) -> Option<One> {
        let is_due = |theirs: &Theirs| theirs.order.front().is_some_and(|one| one.ended <= before);
        let framework = self.by_framework.iter().find(|(_, theirs)| is_due(theirs)).map(|(framework, _)| framework.clone())?;
        self.oldest_of(&framework)
    }

    /// The oldest of all, if it ended at that time or before.
    fn oldest(&mut self, before: SystemTime) -> Option<One> {
        let ended = |(framework, theirs): (&FrameworkId, &Theirs)| Some((theirs.order.front()?.ended, framework.clone()));
        let (at, framework) = self.by_framework.iter().filter_map(ended).min()?;
        if at <= before { self.oldest_of(&framework) } else { None }
    }

    fn oldest_of(&mut self, framework: &FrameworkId) -> Option<One> {
        let theirs = self.by_framework.get_mut(framework)?;
        let one = theirs.order.pop_front()?;
        theirs.bytes = theirs.bytes.saturating_sub(one.size);
        theirs.tasks -= one.over.tasks();
        self.bytes = self.bytes.saturating_sub(one.size);
        self.tasks -= one.over.tasks();
        if theirs.order.is_empty() {
            self.by_framework.remove(framework);
        }
        Some(one)
    }
}

/// Keeps when it ended, for a later life of the agent. Without that it is as old as its last file.
fn note_end(path: &Path, ended: SystemTime) {
    let noted = std::fs::File::open(path).and_then(|file| file.set_modified(ended));
    if let Err(e) = noted
        && e.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("cannot set the time of {}: {e}", path.display());
    }
}

/// Forgets it, and removes it.
pub(super) fn remove(shared: &Shared, over: Over) {
    let removed = match &over {
        Over::Directory(key) => {
            shared.lock().live.remove(key);
            std::fs::remove_dir_all(shared.root.join(relative(key)))
        }
        Over::LaidOut(key) => std::fs::remove_dir_all(shared.root.join(relative(key))),
        Over::Segment(full) => {
            shared.lock().forget(full);
            remove_files(&shared.root, &full.id)
        }
    };
    if let Err(e) = removed
        && e.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("cannot remove what {over:?} left: {e}");
    }
}

fn remove_files(root: &Path, id: &SegmentId) -> std::io::Result<()> {
    id.files().iter().map(|file| std::fs::remove_file(root.join(file))).fold(Ok(()), Result::and)
}

/// Removes what was only there for the guest. Inputs are hard links into the cache: when the cache had given them up to make room, nobody
/// would count them any more.
fn remove_laid_out(path: &Path) {
    for name in LAID_OUT.into_iter().flat_map(|name| [name.to_owned(), format!("{name}{}", super::ASIDE)]) {
        let path = path.join(name);
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        if let Err(e) = removed
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {e}", path.display());
        }
    }
}

fn room(meta: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    (meta.blocks() * 512).max(BLOCK)
}

/// Room that a directory takes, every entry at least a block. Does not follow links.
fn size_of(path: &Path) -> u64 {
    let mut size = BLOCK;
    let mut todo = vec![path.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            size = size.saturating_add(room(&meta));
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    size
}
