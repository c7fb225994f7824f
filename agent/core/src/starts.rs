//! How much processor time starting executors of class `process` may take.
//!
//! Starts are nobody's share: without a bound, somebody whose tasks end at once would have the whole machine start executors. Owns what
//! is left of the bound and what a start costs. Deliberately absent: who gets an executor (`process`), and clocks.

use smalti_types::{MilliCpus, Time};

/// Cost of a start in microseconds of processor time, until one was measured.
const FIRST_ESTIMATE_US: u64 = 15_000;
/// What is not used is kept for this long: the pool is filled at once, and a few tasks may come together.
const KEPT_US: u64 = 1_000_000;
/// A new figure counts for this part of the estimate.
const WEIGHT: u64 = 8;

/// The account of all starts.
#[derive(Debug)]
pub(crate) struct Starts {
    /// Cpus for starts.
    rate: MilliCpus,
    /// Microseconds of processor time that may be used; below zero after a start that cost more than was left.
    left: i64,
    /// Up to when `left` was filled.
    at: Time,
    estimate: u64,
}

impl Starts {
    /// With so many cpus for starts.
    pub(crate) const fn new(rate: MilliCpus) -> Self {
        Self { rate, left: 0, at: Time(0), estimate: FIRST_ESTIMATE_US }
    }

    /// Whether one may begin.
    pub(crate) fn may_begin(&mut self, now: Time) -> bool {
        let most = signed(KEPT_US.saturating_mul(self.rate.0) / 1_000);
        let passed = now.micros_since(self.at);
        let earned = signed(passed.saturating_mul(self.rate.0) / 1_000);
        // Only what makes a whole microsecond has been counted.
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(most);
            self.at = now;
        }
        self.left > 0
    }

    /// What one is taken to cost.
    pub(crate) const fn estimate(&self) -> u64 {
        self.estimate
    }

    /// One begins: what it is taken to cost.
    pub(crate) fn begin(&mut self) -> u64 {
        self.left = self.left.saturating_sub(signed(self.estimate));
        self.estimate
    }

    /// One that was taken to cost `charged` has begun, and cost this.
    pub(crate) fn begun(&mut self, charged: u64, cost: u64) {
        self.left = self.left.saturating_add(signed(charged)).saturating_sub(signed(cost));
        self.estimate = (self.estimate * (WEIGHT - 1) + cost.min(KEPT_US)) / WEIGHT;
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many starts of `cost` begin in `seconds`, by somebody who always wants one.
    fn flood(starts: &mut Starts, from: u64, seconds: u64, cost: u64) -> u64 {
        let mut n = 0;
        for ms in 0..seconds * 1_000 {
            while starts.may_begin(Time(from + ms * 1_000)) {
                let charged = starts.begin();
                starts.begun(charged, cost);
                n += 1;
            }
        }
        n
    }

    #[test]
    fn starts_take_no_more_than_their_share_of_time_whatever_one_costs() {
        for cost in [3_000, 15_000, 60_000] {
            let mut starts = Starts::new(MilliCpus(500));
            flood(&mut starts, 1_000_000_000, 2, cost);
            let began = flood(&mut starts, 1_002_000_000, 20, cost);
            assert!((20 * 500_000 / cost).abs_diff(began) <= 1, "{cost}: {began}");
        }
    }

    #[test]
    fn what_was_not_used_is_kept_for_a_second() {
        let mut starts = Starts::new(MilliCpus(100));
        assert!((10..=11).contains(&flood(&mut starts, 1_000_000_000, 0, 10_000)) || starts.may_begin(Time(1_000_000_000)));
        flood(&mut starts, 1_000_000_000, 5, 10_000);
        let mut n = 0;
        while starts.may_begin(Time(1_100_000_000)) {
            let charged = starts.begin();
            starts.begun(charged, 10_000);
            n += 1;
        }
        assert_eq!(n, 10);
    }

    #[test]
    fn small_steps_of_the_clock_lose_nothing() {
        let mut starts = Starts::new(MilliCpus(10));
        flood(&mut starts, 1_000_000_000, 5, 10_000);
        let mut began = 0;
        for step in 0..1_000_000 {
            if starts.may_begin(Time(1_005_000_000 + step * 10)) {
                let charged = starts.begin();
                starts.begun(charged, 10_000);
                began += 1;
            }
        }
        assert!((9..=11).contains(&began), "a hundred milliseconds in ten seconds: {began}");
    }
}
