//! The clocks of a machine: one that people set, and one that counts from its boot. Both drift, within what operators are promised.
//!
//! Owns the arithmetic. True time is the world's; no core ever sees it.

use crate::rng::Rng;
use smalti_types::{BootTime, Time};

/// No clock runs faster or slower than this, in millionths. Two machines then differ by less than the drift bound that the master
/// reckons with (5 %).
const MOST_DRIFT_PPM: u64 = 20_000;
/// A wall clock is off by up to this, in microseconds.
const MOST_OFFSET_US: u64 = 400_000;

/// The clocks of one machine.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    /// Wall time at true time zero.
    offset_us: u64,
    /// Speed in millionths of true speed.
    speed: u64,
    /// When the machine booted, in true time.
    pub(crate) booted: Time,
}

impl Clock {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let speed = 1_000_000 - MOST_DRIFT_PPM + rng.below(2 * MOST_DRIFT_PPM);
        // Far from the beginning: a machine that booted long ago.
        Self { offset_us: 1_000_000_000 + rng.below(MOST_OFFSET_US), speed, booted: Time(0) }
    }

    fn passed(&self, since: Time, now: Time) -> u64 {
        let us = u128::from(now.micros_since(since)) * u128::from(self.speed) / 1_000_000;
        u64::try_from(us).unwrap_or(u64::MAX)
    }

    /// What the wall clock shows.
    pub(crate) fn wall(&self, now: Time) -> Time {
        Time(self.offset_us + self.passed(Time(0), now))
    }

    /// What `CLOCK_BOOTTIME` shows.
    pub(crate) fn boot(&self, now: Time) -> BootTime {
        BootTime(self.passed(self.booted, now))
    }

    /// The first true time at which `CLOCK_BOOTTIME` shows at least `at`.
    pub(crate) fn when(&self, at: BootTime) -> Time {
        let us = (u128::from(at.0) * 1_000_000).div_ceil(u128::from(self.speed));
        Time(self.booted.0.saturating_add(u64::try_from(us).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_of_the_boot_clock_is_found_again_in_true_time() {
        let mut rng = Rng::new(3);
        for _ in 0..1_000 {
            let mut clock = Clock::new(&mut rng);
            clock.booted = Time(rng.below(1_000_000));
            let at = BootTime(rng.below(100_000_000));
            let when = clock.when(at);
            assert!(clock.boot(when) >= at);
            assert!(clock.boot(Time(when.0.saturating_sub(2))) <= at);
            assert!(clock.wall(Time(when.0 + 10)) > clock.wall(when));
        }
    }
}
