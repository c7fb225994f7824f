//! Groups of executors that are over, for executors of one slot that start: on v1, where groups can be renamed.
//!
//! Making and removing six directories in four hierarchies cost more than all else that an agent does for a start. Owns the groups that
//! nobody uses, under the names of executors that have ended: what finds leftovers of an earlier life removes them by these. A group is
//! used again only if nothing of its executor is left in it: no process, not more memory than the kernel keeps in hand, and no kill for
//! memory, which could not be told from the next one's. Its counters begin anew, and its quotas are lifted until a task
//! gets it: what is written then begins with a whole period. Deliberately absent: limits, which are set as for a new one.

use super::tree::{Controller, slot_dir};
use super::{Error, Shared, cpu, files, memory};
use smalti_types::{Bytes, ExecutorId};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most groups that wait for an executor.
const MOST: usize = 8;
/// More memory than this, and it is an executor's: pages of files that it has written. The kernel takes memory from a group's account in
/// pieces of 64 pages for each processor and gives such a piece back when it likes.
const MOST_MEMORY: Bytes = Bytes::mib(2);

/// Executors whose groups wait, the one that ended last at the end.
#[derive(Debug, Default)]
pub(super) struct Spares(Mutex<Vec<ExecutorId>>);

impl Spares {
    fn lock(&self) -> MutexGuard<'_, Vec<ExecutorId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an executor's groups, unless there are enough.
    pub(super) fn keep(&self, id: &ExecutorId) -> bool {
        let mut all = self.lock();
        let room = all.len() < MOST;
        if room {
            all.push(id.clone());
        }
        room
    }

    /// All of them, to be removed.
    pub(super) fn take_all(&self) -> Vec<ExecutorId> {
        std::mem::take(&mut self.lock())
    }
}

/// Gives an executor's groups another name; false: there are none that can be used. The one that ended first is the one that most surely has
/// nothing left.
pub(super) fn reuse(shared: &Arc<Shared>, id: &ExecutorId) -> Result<bool, Error> {
    let spare = {
        let mut all = shared.spares.lock();
        let at = all.iter().position(|spare| is_empty(shared, spare).unwrap_or(false));
        at.map(|at| all.remove(at))
    };
    let Some(spare) = spare else { return Ok(false) };
    if is_clean(shared, &spare).unwrap_or(false) && reset(shared, &spare).and_then(|()| rename(shared, &spare, id)).is_ok() {
        return Ok(true);
    }
    // Parts of it may have its new name.
    for id in [&spare, id] {
        super::ExecutorGroup::existing(shared.clone(), id.clone()).try_remove()?;
    }
    Ok(false)
}

/// Whether nothing lives in it, or has died and is not forgotten yet.
fn is_empty(shared: &Shared, id: &ExecutorId) -> Result<bool, Error> {
    let Some(dir) = shared.tree.executor_dir(Controller::Pids, id) else { return Ok(false) };
    files::read_number(&dir.join("pids.current")).map(|n| n == 0)
}

fn is_clean(shared: &Shared, id: &ExecutorId) -> Result<bool, Error> {
    let Some(dir) = shared.tree.executor_dir(Controller::Memory, id) else { return Ok(true) };
    Ok(memory::usage(&dir, false)? <= MOST_MEMORY && memory::oom_kills(&dir, false)? == 0)
}

/// Counters and quotas as if it were new.
fn reset(shared: &Shared, id: &ExecutorId) -> Result<(), Error> {
    if let Some(dir) = shared.tree.executor_dir(Controller::Memory, id) {
        memory::forget_peak(&dir)?;
    }
    if let Some(dir) = shared.tree.executor_dir(Controller::CpuAcct, id) {
        cpu::forget_usage(&dir)?;
        cpu::forget_usage(&slot_dir(&dir, 0))?;
    }
    let Some(dir) = shared.tree.executor_dir(Controller::Cpu, id) else { return Ok(()) };
    cpu::lift_quota(&slot_dir(&dir, 0))?;
    cpu::lift_quota(&dir)
}

fn rename(shared: &Shared, from: &ExecutorId, to: &ExecutorId) -> Result<(), Error> {
    for (old, new) in shared.tree.executor_dirs(from).into_iter().zip(shared.tree.executor_dirs(to)) {
        std::fs::rename(&old, &new).map_err(files::error("renaming", &old))?;
    }
    Ok(())
}
