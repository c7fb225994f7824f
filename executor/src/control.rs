//! Stopping a run from outside: the flag that a guest may ask for, and the order that ends it wherever it is.
//!
//! Owns the stop level of one run (a task, or all items of an array part) and the moment its grace period ends. Does not
//! know about guests: [`crate::instance`] looks at the level, [`crate::ticker`] raises it when the grace is over.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Longest grace period that is kept: longer ones are cut, so that a kill always ends.
const MAX_GRACE: Duration = Duration::from_secs(24 * 3600);

const RUN: u8 = 0;
const ASKED: u8 = 1;
const STOP: u8 = 2;

/// The stop level of one run. It only rises.
#[derive(Debug, Default)]
pub(crate) struct Control {
    level: AtomicU8,
    /// Wakes guests that wait in a host call.
    stopped: Notify,
    stop_at: Mutex<Option<Instant>>,
}

impl Control {
    /// Asks the guest to stop now, and stops it after `grace`. A second kill may shorten the grace, never extend it.
    pub(crate) fn kill(&self, now: Instant, grace: Duration) {
        self.level.fetch_max(ASKED, Ordering::SeqCst);
        if grace.is_zero() {
            self.stop();
            return;
        }
        let at = now + grace.min(MAX_GRACE);
        let mut stop_at = self.stop_at.lock().unwrap_or_else(PoisonError::into_inner);
        *stop_at = Some(stop_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Ends the run without grace.
    pub(crate) fn stop(&self) {
        self.level.store(STOP, Ordering::SeqCst);
        self.stopped.notify_waiters();
    }

    /// Stops the run if its grace period is over.
    pub(crate) fn tick(&self, now: Instant) {
        if self.level.load(Ordering::Relaxed) != ASKED {
            return;
        }
        let due = self.stop_at.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at <= now);
        if due {
            self.stop();
        }
    }

    /// What `should_stop()` answers.
    pub(crate) fn is_asked(&self) -> bool {
        self.level.load(Ordering::Relaxed) != RUN
    }

    /// Whether the guest must end now.
    pub(crate) fn is_stopped(&self) -> bool {
        self.level.load(Ordering::SeqCst) == STOP
    }

    /// Returns once the run must end.
    pub(crate) async fn until_stopped(&self) {
        let notified = self.stopped.notified();
        tokio::pin!(notified);
        // Registered before the level is read: a stop between the two is not missed.
        notified.as_mut().enable();
        if self.is_stopped() {
            return;
        }
        notified.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_asks_first_and_stops_after_the_grace() {
        let control = Control::default();
        let now = Instant::now();
        assert!(!control.is_asked());
        control.kill(now, Duration::from_secs(5));
        assert!(control.is_asked() && !control.is_stopped());
        control.kill(now, Duration::from_secs(50));
        control.tick(now + Duration::from_secs(4));
        assert!(!control.is_stopped());
        control.tick(now + Duration::from_secs(5));
        assert!(control.is_stopped());
    }

    #[test]
    fn without_grace_it_stops_at_once_and_wakes_waiters() {
        let control = Control::default();
        control.kill(Instant::now(), Duration::ZERO);
        assert!(control.is_stopped());
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(control.until_stopped());
    }
}
