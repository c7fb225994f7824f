//! The thread that looks at the clock: it advances the epoch, ends grace periods, sends progress and reports that are due,
//! and flushes output of long items. It sleeps without a time-out while no guest runs.
//!
//! Owns the count of busy slots. Nothing that a guest waits for depends on it, except being stopped.

use crate::engine::Engines;
use crate::link::Link;
use crate::runs::Runs;
use smalti_engine::EPOCH_TICK;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// How many slots run a guest now, and whether the process is about to end.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    busy: AtomicUsize,
    quit: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Activity {
    /// A slot begins to run guests.
    pub(crate) fn begin(&self) {
        if self.busy.fetch_add(1, Ordering::SeqCst) == 0 {
            self.wake();
        }
    }
    /// A slot waits again.
    pub(crate) fn end(&self) {
        self.busy.fetch_sub(1, Ordering::SeqCst);
    }
    /// Ends the ticker.
    pub(crate) fn quit(&self) {
        self.quit.store(true, Ordering::SeqCst);
        self.wake();
    }
    /// Taking the lock orders this behind a ticker that is just about to wait.
    fn wake(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_all();
    }

    /// Waits for the next tick. False: quit.
    fn next_tick(&self) -> bool {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waited = false;
        loop {
            if self.quit.load(Ordering::SeqCst) {
                return false;
            }
            if self.busy.load(Ordering::SeqCst) == 0 {
                guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
            } else if waited {
                return true;
            } else {
                (guard, _) = self.wake.wait_timeout(guard, EPOCH_TICK).unwrap_or_else(PoisonError::into_inner);
                waited = true;
            }
        }
    }
}

/// Runs until [`Activity::quit`].
pub(crate) fn run(activity: &Activity, engines: &Engines, runs: &Runs, link: &Link) {
    while activity.next_tick() {
        engines.increment_epoch();
        let now = Instant::now();
        for run in runs.all() {
            run.tick(now, link);
        }
    }
}
