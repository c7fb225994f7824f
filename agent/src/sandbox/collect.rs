//! Which outputs go when they take too much room: the oldest that have ended of the framework that has most, so that a flood of one
//! framework's costs nobody else's; never those of running tasks.
//!
//! Owns the sizes of what has ended, and removing it, on threads that may block.

use super::segments::{Full, SegmentId};
use super::{Shared, relative};
use crate::prepare::LAID_OUT;
use smalti_types::{Bytes, FrameworkId, TaskKey};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use tokio::sync::mpsc;

/// Least room that a file or directory is counted with.
const BLOCK: u64 = 4096;
/// Ended attempts whose outputs are kept, however little room they take: each is remembered.
const MOST_TASKS: usize = 200_000;

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

/// What has ended of one framework.
#[derive(Debug, Default)]
struct Theirs {
    /// Oldest first, with their sizes.
    order: VecDeque<(Over, u64)>,
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

/// Counts what has ended and removes the oldest beyond the budget, beginning with what ended before the agent was started.
pub(super) async fn collect(shared: Shared, mut over: Vec<Over>, mut inbox: mpsc::Receiver<Over>, budget: Bytes) {
    let mut kept = Kept::default();
    while !over.is_empty() || inbox.recv_many(&mut over, 256).await > 0 {
        let shared = shared.clone();
        let batch = std::mem::take(&mut over);
        let work = move || {
            for one in batch {
                take(&shared, &mut kept, one);
            }
            while let Some(one) = kept.excess(budget) {
                remove(&shared, one);
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
    }
}

fn take(shared: &Shared, kept: &mut Kept, over: Over) {
    let size = match &over {
        Over::LaidOut(_) => return remove(shared, over),
        Over::Directory(key) => {
            let path = shared.root.join(relative(key));
            remove_laid_out(&path);
            size_of(&path)
        }
        Over::Segment(full) => {
            full.id.files().iter().map(|file| std::fs::metadata(shared.root.join(file)).map_or(0, |meta| room(&meta))).sum()
        }
    };
    kept.bytes = kept.bytes.saturating_add(size);
    kept.tasks += over.tasks();
    let theirs = kept.by_framework.entry(over.framework().clone()).or_default();
    theirs.bytes = theirs.bytes.saturating_add(size);
    theirs.tasks += over.tasks();
    theirs.order.push_back((over, size));
}

impl Kept {
    /// The oldest of whoever has most, while the rest does not fit.
    fn excess(&mut self, budget: Bytes) -> Option<Over> {
        let most = if self.bytes > budget.0 {
            self.by_framework.iter_mut().max_by_key(|(_, theirs)| theirs.bytes)
        } else if self.tasks > MOST_TASKS {
            self.by_framework.iter_mut().max_by_key(|(_, theirs)| theirs.tasks)
        } else {
            None
        };
        let (framework, theirs) = most.map(|(framework, theirs)| (framework.clone(), theirs))?;
        let (over, size) = theirs.order.pop_front()?;
        theirs.bytes = theirs.bytes.saturating_sub(size);
        theirs.tasks -= over.tasks();
        self.bytes = self.bytes.saturating_sub(size);
        self.tasks -= over.tasks();
        if theirs.order.is_empty() {
            self.by_framework.remove(&framework);
        }
        Some(over)
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
