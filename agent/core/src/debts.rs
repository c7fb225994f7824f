//! What frameworks have used beyond what they are due in class `process`, and pay back before they go on.
//!
//! A debt is processor time. It is paid by time that goes by, at a rate that follows from what the framework holds, and a little may be
//! used ahead. Owns the debts of one kind. There are two: of what tasks used beyond their share, and of what starting their executors
//! took. Deliberately absent: who holds what, and who waits (`process`).

use smalti_types::{FrameworkId, MilliCpus, Time};
use std::collections::BTreeMap;

/// Debts of frameworks.
#[derive(Debug)]
pub(crate) struct Debts {
    /// In thousandths of a microsecond of processor time. Nothing stands for zero.
    of: BTreeMap<FrameworkId, u64>,
    /// What each of them has paid since `at`.
    rates: BTreeMap<FrameworkId, MilliCpus>,
    at: Time,
    /// What is paid in so many microseconds may be used ahead.
    ahead_us: u64,
    /// The lowest rate: of those who hold nothing, too, so that every debt comes to an end.
    least: MilliCpus,
}

impl Debts {
    /// Nobody has any.
    pub(crate) const fn new(ahead_us: u64, least: MilliCpus) -> Self {
        Self { of: BTreeMap::new(), rates: BTreeMap::new(), at: Time(0), ahead_us, least }
    }

    /// A framework used so many microseconds of processor time.
    pub(crate) fn add(&mut self, framework: &FrameworkId, used_us: u64) {
        self.add_fine(framework, used_us.saturating_mul(1_000));
    }

    /// A framework used `used_us` in `wall_us` of a slot with `cpus`: what is more than its share becomes its debt. A slot is one thread:
    /// what claims to have used more time than went by is not believed.
    pub(crate) fn add_beyond(&mut self, framework: &FrameworkId, cpus: MilliCpus, wall_us: u64, used_us: u64) {
        let used = used_us.min(wall_us).saturating_mul(1_000);
        self.add_fine(framework, used.saturating_sub(wall_us.saturating_mul(cpus.0)));
    }

    fn add_fine(&mut self, framework: &FrameworkId, debt: u64) {
        if debt > 0 {
            let sum = self.of.entry(framework.clone()).or_default();
            *sum = sum.saturating_add(debt);
        }
    }

    /// Whether there is anything to pay.
    pub(crate) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// Time has gone by, and from now on these are the rates. They need not be said while there are no debts and none is made.
    pub(crate) fn pay(&mut self, now: Time, rates: BTreeMap<FrameworkId, MilliCpus>) {
        let passed = now.micros_since(self.at);
        for (framework, debt) in &mut self.of {
            let rate = self.rates.get(framework).copied().unwrap_or_default().max(self.least);
            *debt = debt.saturating_sub(passed.saturating_mul(rate.0));
        }
        self.of.retain(|_, debt| *debt > 0);
        self.at = now;
        self.rates = rates;
    }

    /// Whether a framework has to wait, as of the last [`Self::pay`].
    pub(crate) fn holds_back(&self, framework: &FrameworkId) -> bool {
        let Some(debt) = self.of.get(framework) else { return false };
        let rate = self.rates.get(framework).copied().unwrap_or_default().max(self.least);
        *debt > rate.0.saturating_mul(self.ahead_us)
    }

    /// Whether anybody has to.
    pub(crate) fn holds_anybody_back(&self) -> bool {
        self.of.keys().any(|framework| self.holds_back(framework))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framework(n: u32) -> FrameworkId {
        FrameworkId::new(format!("F{n}")).unwrap()
    }

    fn rates(all: &[(u32, u64)]) -> BTreeMap<FrameworkId, MilliCpus> {
        all.iter().map(|(f, cpus)| (framework(*f), MilliCpus(*cpus))).collect()
    }

    /// Processor time that somebody gets in ten seconds, who runs items of so many milliseconds of work one after the other as fast as
    /// they are let, when there is somebody to ask every `every_ms`.
    fn used(cpus: u64, item_ms: u64, every_ms: u64) -> u64 {
        let (mut debts, f) = (Debts::new(100_000, MilliCpus(10)), framework(1));
        let (mut used, mut until) = (0, None);
        for ms in 0..10_000 {
            let now = Time(1_000_000_000 + ms * 1_000);
            if until == Some(ms) {
                used += item_ms;
                debts.add_beyond(&f, MilliCpus(cpus), item_ms * 1_000, item_ms * 1_000);
                until = None;
                debts.pay(now, rates(&[(1, cpus)]));
            }
            if until.is_none() && ms % every_ms == 0 {
                debts.pay(now, rates(&[(1, cpus)]));
            }
            if until.is_none() && !debts.holds_back(&f) {
                until = Some(ms + item_ms);
                debts.pay(now, BTreeMap::new());
            }
        }
        used
    }

    #[test]
    fn items_one_after_the_other_get_what_their_slot_was_given() {
        for (cpus, item_ms) in [(400, 20), (400, 3), (50, 5), (900, 70), (10, 1)] {
            for every_ms in [1, 100] {
                let (got, share) = (used(cpus, item_ms, every_ms), 10 * cpus);
                assert!(got.abs_diff(share) <= share / 20 + 2 * item_ms, "{cpus} {item_ms} {every_ms}: {got} of {share}");
            }
        }
    }

    #[test]
    fn starts_follow_their_cost_and_what_is_held_and_no_other_framework() {
        for cost_ms in [3, 15, 60] {
            let (mut debts, mut began) = (Debts::new(500_000, MilliCpus(50)), [0_u64; 3]);
            for ms in 0..20_000 {
                debts.pay(Time(1_000_000_000 + ms * 1_000), rates(&[(0, 250), (1, 100)]));
                for f in 0..3 {
                    while !debts.holds_back(&framework(f)) {
                        debts.add(&framework(f), cost_ms * 1_000);
                        began[f as usize] += 1;
                    }
                }
            }
            for (began, rate) in began.into_iter().zip([250, 100, 50]) {
                let due = rate * 41 / 2 / cost_ms;
                assert!(began.abs_diff(due) <= 1 + due / 50, "{cost_ms} {rate}: {began} of {due}");
            }
        }
    }

    #[test]
    fn who_keeps_to_its_share_never_waits_and_others_debts_are_not_ones_own() {
        let mut debts = Debts::new(100_000, MilliCpus(10));
        debts.add_beyond(&framework(1), MilliCpus(500), 1_000_000, 500_000);
        assert!(debts.is_empty());
        debts.add_beyond(&framework(1), MilliCpus(500), 1_000_000, 900_000);
        debts.pay(Time(0), rates(&[(1, 500), (2, 500)]));
        assert!(debts.holds_back(&framework(1)) && !debts.holds_back(&framework(2)) && debts.holds_anybody_back());
        debts.pay(Time(699_000), rates(&[(1, 500)]));
        assert!(debts.holds_back(&framework(1)), "50 of 400 ms may stay, and 349.5 are paid");
        debts.pay(Time(700_000), rates(&[(1, 500)]));
        assert!(!debts.holds_anybody_back());
    }

    #[test]
    fn more_time_than_went_by_is_not_believed() {
        let mut debts = Debts::new(0, MilliCpus(10));
        debts.add_beyond(&framework(1), MilliCpus(500), 1_000, u64::MAX);
        debts.pay(Time(0), rates(&[(1, 500)]));
        debts.pay(Time(1_000), BTreeMap::new());
        assert!(debts.is_empty());
    }

    #[test]
    fn who_is_away_pays_little_and_is_forgotten_in_the_end() {
        let mut debts = Debts::new(100_000, MilliCpus(10));
        debts.add(&framework(1), 9_000);
        debts.pay(Time(0), BTreeMap::new());
        debts.pay(Time(300_000), rates(&[(1, 50)]));
        assert!(debts.holds_back(&framework(1)), "3 of 9 ms are paid, and 5 may stay");
        debts.pay(Time(300_000), BTreeMap::new());
        debts.pay(Time(1_300_000), BTreeMap::new());
        assert!(debts.is_empty());
    }
}
