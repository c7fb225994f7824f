//! How fast an executor may talk to the agent: beyond that its socket is read more slowly, and the executor waits.
//!
//! The event loop is shared by all tenants, and each message costs it some time. Pure: whoever asks has the clock.

use std::time::{Duration, Instant};

/// Messages of one executor per second. A task has three, and a slot runs some thousand tasks in a second.
const PER_SECOND: u32 = 50_000;
/// How much of a second may come at once.
const BURST: Duration = Duration::from_millis(100);

/// The account of one executor.
#[derive(Debug)]
pub(crate) struct Pace {
    /// When what was said so far would have been said at the allowed rate.
    even: Instant,
}

impl Pace {
    /// Nothing was said before `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Self { even: now }
    }

    /// Counts one message; how long to wait before the next is read, if it must wait.
    pub(crate) fn said(&mut self, now: Instant) -> Option<Duration> {
        self.even = self.even.max(now) + Duration::from_secs(1) / PER_SECOND;
        let ahead = self.even.saturating_duration_since(now);
        (ahead > BURST).then_some(ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_read_at_the_allowed_rate() {
        let began = Instant::now();
        let (mut pace, mut now) = (Pace::new(began), began);
        let (mut said, mut waits) = (0_u32, 0_u32);
        while now < began + Duration::from_secs(10) {
            said += 1;
            if let Some(wait) = pace.said(now) {
                now += wait;
                waits += 1;
            }
        }
        assert!((PER_SECOND * 10..PER_SECOND * 10 + PER_SECOND / 2).contains(&said), "{said}");
        assert!(waits <= 200, "it sleeps seldom and long: {waits}");
    }

    #[test]
    fn who_speaks_now_and_then_never_waits() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..10 {
            for _ in 0..PER_SECOND / 20 {
                assert_eq!(pace.said(now), None);
            }
            now += Duration::from_millis(60);
        }
    }
}
