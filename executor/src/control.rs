//! Stopping a run from outside: the flag that a guest may ask for, the order that ends it wherever it is, and the end of its lease.
//!
//! Owns the stop level of one run (a task, or all items of an array part), the moment its grace period ends, and until when it may run
//! if it is exclusive. Does not know about guests: [`crate::instance`] looks at the level, [`crate::ticker`] raises it when the grace is
//! over, [`crate::leases`] when the lease is.

use crate::clock::boot_us;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Longest grace period that is kept: longer ones are cut, so that a kill always ends.
const MAX_GRACE: Duration = Duration::from_secs(24 * 3600);

const RUN: u8 = 0;
const ASKED: u8 = 1;
const STOP: u8 = 2;

/// No lease: it may run as long as it likes.
const FOR_EVER: u64 = u64::MAX;

/// The stop level of one run. It only rises.
#[derive(Debug)]
pub(crate) struct Control {
    level: AtomicU8,
    /// By the clock of [`boot_us`].
    lease_until_us: AtomicU64,
    /// Whether it is the lease that ended it.
    expired: AtomicBool,
    /// Wakes guests that wait in a host call.
    stopped: Notify,
    stop_at: Mutex<Option<Instant>>,
}

impl Default for Control {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Control {
    /// Of a run that may go on until then, if that is not for ever.
    pub(crate) fn new(lease_until_us: Option<u64>) -> Self {
        let until = lease_until_us.map_or(FOR_EVER, |until| until.min(FOR_EVER - 1));
        Self {
            level: AtomicU8::new(RUN),
            lease_until_us: AtomicU64::new(until),
            expired: AtomicBool::new(false),
            stopped: Notify::new(),
            stop_at: Mutex::default(),
        }
    }

    /// When its lease ends, if it has one.
    pub(crate) fn lease_until(&self) -> Option<u64> {
        Some(self.lease_until_us.load(Ordering::SeqCst)).filter(|until| *until != FOR_EVER)
    }

    /// Whether it has a lease and that has run out.
    pub(crate) fn lease_is_over(&self) -> bool {
        self.lease_until().is_some_and(|until| boot_us() >= until)
    }

    /// Prolongs its lease, unless it has run out or lasts longer.
    pub(crate) fn renew_lease(&self, until_us: u64) {
        if self.lease_until().is_some() && !self.lease_is_over() {
            self.lease_until_us.fetch_max(until_us.min(FOR_EVER - 1), Ordering::SeqCst);
        }
    }

    /// Ends the run because its lease has run out.
    pub(crate) fn expire(&self) {
        // One that was asked to stop before was killed, whatever cut its grace short.
        if self.level.load(Ordering::SeqCst) == RUN {
            self.expired.store(true, Ordering::SeqCst);
        }
        self.stop();
    }

    /// Whether that is what ended it.
    pub(crate) fn is_expired(&self) -> bool {
        self.expired.load(Ordering::SeqCst)
    }

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
    fn a_lease_ends_a_run_once_and_is_not_renewed_afterwards() {
        let hour = 3_600_000_000;
        let control = Control::default();
        control.renew_lease(1);
        assert!(control.lease_until().is_none() && !control.lease_is_over(), "it has none");
        let control = Control::new(Some(boot_us() + hour));
        assert!(!control.lease_is_over());
        control.renew_lease(boot_us());
        assert!(!control.lease_is_over(), "never shortened");
        control.renew_lease(u64::MAX);
        assert!(control.lease_until().is_some(), "nor turned into none");
        let control = Control::new(Some(boot_us()));
        control.renew_lease(boot_us() + hour);
        assert!(control.lease_is_over(), "it had run out before");
        control.expire();
        assert!(control.is_stopped() && control.is_expired());
        let killed = Control::new(Some(boot_us()));
        killed.kill(Instant::now(), Duration::from_secs(1));
        killed.expire();
        assert!(killed.is_stopped() && !killed.is_expired(), "it was killed before");
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
