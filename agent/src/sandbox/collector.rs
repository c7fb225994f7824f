//! What becomes of the directories of tasks that have ended: counted, kept up to a budget, used again.
//!
//! Owns the order in which they go: the oldest of the framework that takes most room. Works on a thread that may block. Deliberately
//! absent: how a directory is used again (see `spare`), and who reads.

use super::{ASIDE, Kind, OUTPUTS, State, There, lock, relative, remove, spare};
use crate::prepare::LAID_OUT;
use smalti_types::{Bytes, TaskKey};
use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// Least room that a file or directory is counted with.
pub(super) const BLOCK: u64 = 4096;

/// Ended sandboxes of one framework.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// Oldest first, with their sizes.
    pub(super) order: VecDeque<(TaskKey, u64)>,
    total: u64,
}

/// One that has to make room.
#[derive(Debug)]
struct Gone {
    key: TaskKey,
    there: There,
    /// Whether the next task may have its directory.
    reusable: bool,
}

/// Counts what has ended, takes what has nothing in it for others, and removes the oldest beyond the budget.
#[derive(Debug, Clone)]
pub(super) struct Collector {
    pub(super) root: PathBuf,
    pub(super) base: Arc<File>,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) budget: Bytes,
}

impl Collector {
    /// Begins with `keys`, which ended before the agent was started.
    pub(super) async fn run(self, mut keys: Vec<TaskKey>, mut inbox: mpsc::Receiver<TaskKey>) {
        while !keys.is_empty() || inbox.recv_many(&mut keys, 256).await > 0 {
            let (this, batch) = (self.clone(), std::mem::take(&mut keys));
            let work = move || {
                batch.into_iter().for_each(|key| this.take_in(key));
                let excess = take_excess(&mut lock(&this.state), this.budget);
                excess.into_iter().for_each(|gone| this.make_room(&gone));
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
        let theirs = state.ended.entry(key.framework.clone()).or_default();
        theirs.total = theirs.total.saturating_add(size);
        theirs.order.push_back((key, size));
    }

    /// Removes one, or leaves its directory to others of its framework.
    fn make_room(&self, gone: &Gone) {
        let path = self.root.join(relative(&gone.key));
        if gone.reusable && self.put_emptied(&gone.key, &path) {
            return;
        }
        if let Err(e) = remove(&path, gone.there) {
            tracing::warn!("cannot remove the sandbox {}: {e}", path.display());
        }
    }

    /// False: its directory is still there.
    fn put_emptied(&self, key: &TaskKey, path: &Path) -> bool {
        if spare::written(path).is_none() {
            return false;
        }
        let Some(number) = lock(&self.state).spares.reserve(&key.framework) else { return false };
        let put = spare::put_emptied(&*self.base, &key.framework, &relative(key), number);
        if put.is_ok() {
            lock(&self.state).spares.put(&key.framework, number);
        }
        put.is_ok()
    }

    /// Whether a task has left nothing, in a directory that others of its framework may have.
    fn is_nothing(&self, key: &TaskKey, path: &Path) -> bool {
        let may = lock(&self.state).live.get(key).is_some_and(|entry| entry.kind == Kind::Single && entry.there != There::Nothing);
        may && spare::written(path) == Some(0)
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

/// The oldest ended ones of whoever has most, until the rest fits.
fn take_excess(state: &mut State, budget: Bytes) -> Vec<Gone> {
    let mut excess = Vec::new();
    while state.total > budget.0 {
        let most = state.ended.iter_mut().max_by_key(|(_, theirs)| theirs.total);
        let Some((framework, theirs)) = most.map(|(framework, theirs)| (framework.clone(), theirs)) else { break };
        if let Some((key, size)) = theirs.order.pop_front() {
            theirs.total = theirs.total.saturating_sub(size);
            state.total = state.total.saturating_sub(size);
            let entry = state.live.remove(&key);
            let there = entry.as_ref().map_or(There::Directory, |entry| entry.there);
            // Nobody reads there, and nobody finds it any more.
            let free = entry.is_some_and(|entry| entry.kind == Kind::Single && entry.ended.receiver_count() == 0);
            excess.push(Gone { key, there, reusable: free && there != There::Nothing });
        }
        if state.ended.get(&framework).is_some_and(|theirs| theirs.order.is_empty()) {
            state.ended.remove(&framework);
        }
    }
    excess
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
