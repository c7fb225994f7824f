//! The thread that looks at the clock: it advances the epoch, ends grace periods, sends progress and reports that are due,
//! and flushes output of long items. It sleeps without a time-out while no guest runs and none did a moment ago: to wake it for each
//! of many short guests would cost as much as they do.
//!
//! Owns the count of busy slots. Nothing that a guest waits for depends on it, except being stopped.

use crate::engine::Engines;
use crate::link::Link;
use crate::runs::Runs;
use smalti_engine::EPOCH_TICK;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// Ticks without a guest after which it sleeps until there is one.
const IDLE_TICKS: u32 = 20;

/// How many slots run a guest now, and whether the process is about to end.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    busy: AtomicUsize,
    /// Whether the ticker sleeps without a time-out, or is about to.
    asleep: AtomicBool,
    quit: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Activity {
    /// A slot begins to run guests.
    pub(crate) fn begin(&self) {
        self.busy.fetch_add(1, Ordering::SeqCst);
        // It says that it sleeps before it looks whether anybody is busy.
        if self.asleep.load(Ordering::SeqCst) {
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

    /// Waits for the next tick at which a guest runs. False: quit.
    fn next_tick(&self) -> bool {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut idle = 0;
        while !self.quit.load(Ordering::SeqCst) {
            if idle < IDLE_TICKS {
                (guard, _) = self.wake.wait_timeout(guard, EPOCH_TICK).unwrap_or_else(PoisonError::into_inner);
                if self.busy.load(Ordering::SeqCst) > 0 {
                    return true;
                }
                idle += 1;
            } else {
                self.asleep.store(true, Ordering::SeqCst);
                while self.busy.load(Ordering::SeqCst) == 0 && !self.quit.load(Ordering::SeqCst) {
                    guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
                self.asleep.store(false, Ordering::SeqCst);
                idle = 0;
            }
        }
        false
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
