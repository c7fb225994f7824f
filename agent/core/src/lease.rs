//! How many items to lease to an executor, and how often it and the part report: arithmetic only.
//!
//! A lease is a small span of work: deep enough that a slot never waits for the agent, shallow enough that little is lost when the
//! executor dies and that items can still be given to another agent.

use smalti_types::{DurationMs, Time, Usage};

/// Work leased ahead of the running items, per slot.
const AHEAD_US: u64 = 30_000;
/// Items that take longer are not leased ahead: the round trip is small beside them.
const LONG_ITEM_US: u64 = 10_000;
/// No item is taken to be shorter: the guest's own time leaves out what it costs to make and drop its instance.
const SHORTEST_ITEM_US: u64 = 10;
/// Items leased at once, at most: they all are repeated when the executor dies.
const MOST_LEASED: u64 = 8_192;
/// Result values expected from the items of one lease, at most, in bytes.
const MOST_RESULT_BYTES: u64 = 4 << 20;
/// Shortest and longest time between two reports without need.
const FIRST_PACE: DurationMs = DurationMs(20);
const LAST_PACE_US: u64 = 1_000_000;

/// What is known about a part's items: newer ones count more.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Rate {
    items: u64,
    wall_us: u64,
    result_bytes: u64,
}

impl Rate {
    /// Takes in one report of `items` ended items.
    pub(crate) fn add(&mut self, items: u64, usage: &Usage, result_bytes: u64) {
        if items == 0 {
            return;
        }
        // Halving what is older lets the mean follow a change within a few reports.
        self.items = (self.items / 2).saturating_add(items);
        self.wall_us = (self.wall_us / 2).saturating_add(usage.wall_us);
        self.result_bytes = (self.result_bytes / 2).saturating_add(result_bytes);
    }

    /// How many items should be in the hands of an executor with `slots` slots for this part, the running ones included.
    pub(crate) fn target(&self, slots: u64) -> u64 {
        slots.saturating_add(self.ahead(slots))
    }

    /// How many of them ahead of the running ones.
    pub(crate) fn ahead(&self, slots: u64) -> u64 {
        let Some(mean) = self.wall_us.checked_div(self.items) else { return 0 };
        if mean > LONG_ITEM_US {
            return 0;
        }
        let per_slot = AHEAD_US / mean.max(SHORTEST_ITEM_US);
        let by_results = match self.result_bytes / self.items {
            0 => u64::MAX,
            mean => (MOST_RESULT_BYTES / mean).max(1),
        };
        per_slot.saturating_mul(slots).min(MOST_LEASED).min(by_results)
    }
}

/// How long a part that has run since `started` waits between two reports without need: short at first, then 1/200 of its age.
pub(crate) fn pace_us(now: Time, started: Time) -> u64 {
    (now.micros_since(started) / 200).clamp(FIRST_PACE.0 * 1_000, LAST_PACE_US)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(items: u64, wall_us: u64) -> Rate {
        let mut rate = Rate::default();
        rate.add(items, &Usage { wall_us, ..Usage::default() }, 0);
        rate
    }

    #[test]
    fn unknown_and_long_items_are_not_leased_ahead() {
        assert_eq!(Rate::default().target(4), 4);
        assert_eq!(rate(2, 2 * 10_001).target(4), 4);
        assert_eq!(rate(2, 2 * 10_000).target(4), 4 + 4 * 3);
    }

    #[test]
    fn short_items_are_leased_in_bounded_spans_of_time() {
        assert_eq!(rate(100, 100 * 100).target(2), 2 + 2 * 300);
        assert_eq!(rate(100, 0).target(2), 2 + 2 * 3_000);
        assert_eq!(rate(100, 0).target(1_000), 1_000 + MOST_LEASED);
    }

    #[test]
    fn large_results_bound_the_lease() {
        let mut rate = Rate::default();
        rate.add(100, &Usage::default(), 100 * 16 * 1024);
        assert_eq!(rate.ahead(2), 256);
    }

    #[test]
    fn the_pace_grows_with_the_age_of_the_part() {
        assert_eq!(pace_us(Time(0), Time(0)), 20_000);
        assert_eq!(pace_us(Time(10_000_000), Time(0)), 50_000);
        assert_eq!(pace_us(Time(u64::MAX), Time(0)), 1_000_000);
    }
}
