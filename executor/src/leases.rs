//! Ends exclusive tasks whose lease has run out: by the clock that goes on while the machine sleeps, and whatever the agent does.
//!
//! Owns the timer, its thread (made for the first such task), and which runs have a lease. A guest that waits is woken, one that computes
//! is stopped at its next look at the epoch; [`crate::instance`] looks at the clock itself before each call out of the guest, so that one
//! which stood still together with this process does nothing more when both go on. Deliberately absent: who grants leases, and when.

use crate::control::Control;
use crate::engine::Engines;
use rustix::fd::OwnedFd;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Runs that have a lease.
#[derive(Debug)]
pub(crate) struct Leases {
    engines: Arc<Engines>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    timer: Option<Arc<OwnedFd>>,
    held: BTreeMap<u64, Arc<Control>>,
    quit: bool,
    thread: Option<JoinHandle<()>>,
}

impl Leases {
    pub(crate) fn new(engines: Arc<Engines>) -> Self {
        Self { engines, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends `run` when the lease in its control runs out, until [`Leases::forget`].
    ///
    /// # Errors
    /// When there can be no timer: then it must not run.
    pub(crate) fn hold(self: &Arc<Self>, run: u64, control: &Arc<Control>) -> io::Result<()> {
        let mut state = self.lock();
        if state.timer.is_none() {
            let timer = Arc::new(timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)?);
            let (leases, own) = (self.clone(), timer.clone());
            let thread = thread::Builder::new().name("leases".to_owned()).spawn(move || leases.run(&own))?;
            (state.timer, state.thread) = (Some(timer), Some(thread));
        }
        state.held.insert(run, control.clone());
        state.arm()
    }

    /// A lease was prolonged; runs without one are not concerned.
    pub(crate) fn renew(&self, run: u64, until_us: u64) {
        let state = self.lock();
        if let Some(control) = state.held.get(&run) {
            control.renew_lease(until_us);
            // One that had run out already: the thread, or the guest's next step, finds that out. An earlier alarm does no harm.
            if let Err(e) = state.arm() {
                eprintln!("smalti-executor: stopping run {run}, whose lease cannot be watched any more: {e}");
                control.expire();
            }
        }
    }

    /// The run is over.
    pub(crate) fn forget(&self, run: u64) {
        self.lock().held.remove(&run);
    }

    /// Ends the thread.
    pub(crate) fn quit(&self) {
        let mut state = self.lock();
        state.quit = true;
        let _ = state.arm();
        let thread = state.thread.take();
        drop(state);
        let _ = thread.map(JoinHandle::join);
    }

    fn run(&self, timer: &OwnedFd) {
        let mut expirations = [0; 8];
        loop {
            if rustix::io::read(timer, &mut expirations).is_err_and(|e| e != rustix::io::Errno::INTR) {
                // Without an alarm nothing may go on: as if all had run out.
                self.lock().held.values().for_each(|control| control.expire());
                self.engines.increment_epoch();
                return;
            }
            let mut state = self.lock();
            if state.quit {
                return;
            }
            state.held.retain(|_, control| {
                let over = control.lease_is_over();
                if over {
                    control.expire();
                }
                !over
            });
            if let Err(e) = state.arm() {
                eprintln!("smalti-executor: stopping all runs with a lease: {e}");
                state.held.values().for_each(|control| control.expire());
            }
            drop(state);
            // A guest that computes looks now.
            self.engines.increment_epoch();
        }
    }
}

impl State {
    /// Sets the timer to the earliest end of all, or to none.
    fn arm(&self) -> io::Result<()> {
        let Some(timer) = &self.timer else { return Ok(()) };
        let earliest = self.held.values().filter_map(|control| control.lease_until()).min();
        let at = if self.quit {
            // Long past.
            Timespec { tv_sec: 0, tv_nsec: 1 }
        } else {
            earliest.map_or(Timespec { tv_sec: 0, tv_nsec: 0 }, |us| {
                // Zero would turn the timer off.
                let us = us.max(1);
                let seconds = i64::try_from(us / 1_000_000).unwrap_or(i64::MAX);
                Timespec { tv_sec: seconds, tv_nsec: i64::try_from(us % 1_000_000 * 1_000).unwrap_or(0) }
            })
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
        timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &once)?;
        Ok(())
    }
}
