//! What frameworks have used beyond their share in class `process`, and pay back before they go on.
//!
//! The kernel counts a quota in periods, and each executor begins with a whole one. A task or item that ends within a period is never
//! held back, so one after the other would use more than their slot was given. What one used beyond its share while it ran is its
//! framework's debt; it is paid by what the framework holds while it waits for its next executor. Owns the debts. Deliberately absent:
//! who waits (`process`), and the quota itself (the shell's).

use smalti_types::{FrameworkId, MilliCpus, Time};
use std::collections::BTreeMap;

/// So much may be used ahead, as with the kernel's quota: one period.
const PERIOD_US: u64 = 100_000;

/// Debts of frameworks.
#[derive(Debug, Default)]
pub(crate) struct Debts {
    /// In thousandths of a microsecond of processor time. Nothing stands for zero.
    of: BTreeMap<FrameworkId, u64>,
    /// What each of them held while it waited, since `at`.
    waiting: BTreeMap<FrameworkId, MilliCpus>,
    at: Time,
}

impl Debts {
    /// Somebody used `used_us` in `wall_us` of a slot with `cpus`. A slot is one thread: what claims to be more is not believed.
    pub(crate) fn add(&mut self, framework: &FrameworkId, cpus: MilliCpus, wall_us: u64, used_us: u64) {
        let share = wall_us.saturating_mul(cpus.0);
        let beyond = used_us.min(wall_us).saturating_mul(1_000).saturating_sub(share);
        if beyond > 0 {
            let debt = self.of.entry(framework.clone()).or_default();
            *debt = debt.saturating_add(beyond);
        }
    }

    /// Those who waited have paid, and those who were away next to nothing; from now on these wait, each for something with so many cpus.
    pub(crate) fn pay<'a>(&mut self, now: Time, waiting: impl Iterator<Item = (&'a FrameworkId, MilliCpus)>) {
        let passed = now.micros_since(self.at);
        let waited = std::mem::take(&mut self.waiting);
        for (framework, debt) in &mut self.of {
            let cpus = waited.get(framework).copied().unwrap_or_default().max(MilliCpus::SMALLEST);
            *debt = debt.saturating_sub(passed.saturating_mul(cpus.0));
        }
        self.of.retain(|_, debt| *debt > 0);
        self.at = now;
        if !self.of.is_empty() {
            for (framework, cpus) in waiting {
                let sum = self.waiting.entry(framework.clone()).or_default();
                *sum = MilliCpus(sum.0.saturating_add(cpus.0));
            }
        }
    }

    /// Whether a framework has to wait, as of the last [`Self::pay`].
    pub(crate) fn holds_back(&self, framework: &FrameworkId) -> bool {
        let ahead = self.waiting.get(framework).map_or(0, |cpus| cpus.0.saturating_mul(PERIOD_US));
        self.of.get(framework).is_some_and(|debt| *debt > ahead)
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

    /// Processor time that somebody gets in ten seconds, who runs items of so many milliseconds of work one after the other as fast as
    /// they are let, when there is somebody to ask every `every_ms`.
    fn used(cpus: u64, item_ms: u64, every_ms: u64) -> u64 {
        let (mut debts, f, cpus) = (Debts::default(), framework(1), MilliCpus(cpus));
        let (mut used, mut until) = (0, None);
        for ms in 0..10_000 {
            let now = Time(1_000_000_000 + ms * 1_000);
            if until == Some(ms) {
                used += item_ms;
                debts.add(&f, cpus, item_ms * 1_000, item_ms * 1_000);
                until = None;
                debts.pay(now, [(&f, cpus)].into_iter());
            }
            if until.is_none() && ms % every_ms == 0 {
                debts.pay(now, [(&f, cpus)].into_iter());
            }
            if until.is_none() && !debts.holds_back(&f) {
                until = Some(ms + item_ms);
                debts.pay(now, std::iter::empty());
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
    fn who_keeps_to_its_share_never_waits_and_others_debts_are_not_ones_own() {
        let mut debts = Debts::default();
        debts.add(&framework(1), MilliCpus(500), 1_000_000, 500_000);
        assert!(!debts.holds_back(&framework(1)));
        debts.add(&framework(1), MilliCpus(500), 1_000_000, 900_000);
        debts.pay(Time(0), [(&framework(1), MilliCpus(500)), (&framework(2), MilliCpus(500))].into_iter());
        assert!(debts.holds_back(&framework(1)) && !debts.holds_back(&framework(2)) && debts.holds_anybody_back());
        debts.pay(Time(699_000), [(&framework(1), MilliCpus(500))].into_iter());
        assert!(debts.holds_back(&framework(1)), "50 of 400 ms may stay, and 349.5 are paid");
        debts.pay(Time(700_000), [(&framework(1), MilliCpus(500))].into_iter());
        assert!(!debts.holds_anybody_back());
    }

    #[test]
    fn who_is_away_pays_little_and_is_forgotten_in_the_end() {
        let mut debts = Debts::default();
        debts.add(&framework(1), MilliCpus(100), 10_000, 10_000);
        debts.pay(Time(0), std::iter::empty());
        debts.pay(Time(300_000), [(&framework(1), MilliCpus(50))].into_iter());
        assert!(debts.holds_back(&framework(1)), "3 of 9 ms are paid, and 5 may stay");
        debts.pay(Time(300_000), std::iter::empty());
        debts.pay(Time(1_300_000), std::iter::empty());
        assert!(debts.of.is_empty());
    }
}
