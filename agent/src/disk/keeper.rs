//! Lends disks and takes them back.
//!
//! Owns the backend and the pool. Making and ending a file system may take tens of milliseconds: [`Disks::lend`] is for threads that may
//! block, and what is given back is looked at on a thread of its own. Deliberately absent: how disks are made.

use super::BLOCK;
use super::backend::{self, Backend, Choice, Found};
use super::mount::{Error, Mounted};
use super::pool::{KEPT_FOR, Pool};
use smalti_types::{Bytes, FrameworkId};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Disks of this agent. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Disks {
    backend: Found,
    pool: Arc<Mutex<Pool<Mounted>>>,
    back: Sender<Returned>,
}

/// One that comes back.
#[derive(Debug)]
struct Returned {
    framework: FrameworkId,
    size: Bytes,
    disk: Mounted,
}

/// A disk that a task has. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Lent {
    returned: Option<Returned>,
    back: Sender<Returned>,
}

impl Disks {
    /// Finds out where disks come from, and says so.
    ///
    /// # Errors
    /// A backend that was asked for by name and does not work.
    pub(crate) fn open(choice: Choice, data_dir: &Path) -> Result<Self, Error> {
        let backend = backend::open(choice, data_dir)?;
        let pool = Arc::new(Mutex::new(Pool::new(Bytes(0))));
        let (back, inbox) = channel();
        let kept = pool.clone();
        let thread = std::thread::Builder::new().name("disks".into()).spawn(move || take_back(&kept, &inbox));
        thread.map_err(|e| Error::new("starting", "the thread that takes disks back", e))?;
        let disks = Self { backend, pool, back };
        if disks.works() {
            tracing::info!(backend = %disks.state(), "disks of tasks");
        } else if choice != Choice::None {
            tracing::warn!("NO DISK FOR TASKS: {}", disks.state());
        }
        Ok(disks)
    }

    /// What all disks may take together.
    pub(crate) fn set_limit(&self, limit: Bytes) {
        *lock(&self.pool) = Pool::new(limit);
    }

    /// Whether there are disks at all.
    pub(crate) const fn works(&self) -> bool {
        self.backend.is_ok()
    }

    /// Whether they take memory.
    pub(crate) fn in_memory(&self) -> bool {
        self.backend.as_ref().is_ok_and(|b| b.in_memory())
    }

    /// `on (…)` or `off: why`, as layers of isolation are shown.
    pub(crate) fn state(&self) -> String {
        match &self.backend {
            Ok(backend) => format!("on ({})", backend.name()),
            Err(why) => format!("off: {why}"),
        }
    }

    /// Lends `count` disks of `size`. Blocks.
    ///
    /// # Errors
    /// Why there are none, for the task's status.
    pub(crate) fn lend(&self, framework: &FrameworkId, size: Bytes, count: u32) -> Result<Vec<Lent>, String> {
        let backend = self.backend.as_ref().map_err(|why| format!("this agent has no disk for tasks: {why}"))?;
        if size.0 < BLOCK {
            return Err(format!("a disk of {size} is too small: at least {BLOCK} bytes"));
        }
        (0..count).map(|_| self.lend_one(&**backend, framework, size)).collect()
    }

    fn lend_one(&self, backend: &dyn Backend, framework: &FrameworkId, size: Bytes) -> Result<Lent, String> {
        let (kept, gone) = lock(&self.pool).lend(framework, size);
        // Their room is needed by the one that is made now.
        drop(gone);
        // Nobody should have had it meanwhile; that is cheap to check.
        let kept = kept.filter(Mounted::is_like_new);
        let disk = kept.map_or_else(|| backend.make(Bytes(size.0 / BLOCK * BLOCK)), Ok).map_err(|e| {
            lock(&self.pool).lost(size);
            format!("its disk of {size} cannot be made ({}): {e}", backend.name())
        })?;
        Ok(Lent { returned: Some(Returned { framework: framework.clone(), size, disk }), back: self.back.clone() })
    }
}

impl Lent {
    /// Hands it to the user of an executor and gives the directory to pass on.
    ///
    /// # Errors
    /// When its owner cannot be changed.
    pub(crate) fn give_to(&self, uid: u32, gid: u32) -> Result<Arc<OwnedFd>, Error> {
        let gone = || Error::new("handing over", "a disk", std::io::Error::other("it was given back"));
        let disk = &self.returned.as_ref().ok_or_else(gone)?.disk;
        disk.give_to(uid, gid)?;
        Ok(disk.descriptor())
    }
}

impl Lent {
    /// Whether the kernel counts as much free room as when it was new.
    pub(crate) fn is_like_new(&self) -> bool {
        self.returned.as_ref().is_some_and(|r| r.disk.is_like_new())
    }

    /// Whose it is, and its size.
    pub(crate) fn whose(&self) -> Option<(FrameworkId, Bytes)> {
        self.returned.as_ref().map(|r| (r.framework.clone(), r.size))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(returned) = self.returned.take() {
            // At the agent's end nobody takes it: then the kernel does.
            let _ = self.back.send(returned);
        }
    }
}

/// Keeps what is like new, ends what is not. Ends with the last sender.
fn take_back(pool: &Mutex<Pool<Mounted>>, inbox: &Receiver<Returned>) {
    loop {
        let idle = !lock(pool).is_idle_empty();
        let next = if idle { inbox.recv_timeout(KEPT_FOR) } else { inbox.recv().map_err(|_| RecvTimeoutError::Disconnected) };
        let now = Instant::now();
        let mut gone = match next {
            Ok(Returned { framework, size, disk }) if disk.is_like_new() => lock(pool).keep(framework, size, disk, now),
            Ok(Returned { size, disk, .. }) => {
                drop(disk);
                lock(pool).lost(size);
                Vec::new()
            }
            Err(RecvTimeoutError::Timeout) => Vec::new(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        gone.extend(lock(pool).expire(now));
    }
}

fn lock<T>(pool: &Mutex<Pool<T>>) -> MutexGuard<'_, Pool<T>> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}
