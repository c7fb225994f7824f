//! Sums of resources over many agents. Ports are left out (the same number exists on every agent), and sums are 128 bits
//! wide, so that no number of agents overflows them.

use smalti_types::{Bytes, MilliCpus, MilliUnits, Resources};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Scalars of many agents or tasks added up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Sum {
    cpus: u128,
    mem: u128,
    disk: u128,
    /// Invariant: no entry is zero.
    custom: BTreeMap<Arc<str>, u128>,
}

/// A part of the whole in units of 2^-40: fixed point, so that equal books give equal orders on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Share(u64);

impl Share {
    const ONE: u128 = 1 << 40;

    fn of(part: u128, whole: u128) -> Self {
        if part == 0 {
            return Self(0);
        }
        let scaled = part.saturating_mul(Self::ONE).checked_div(whole).unwrap_or(u128::from(u64::MAX));
        Self(u64::try_from(scaled).unwrap_or(u64::MAX))
    }

    /// For people.
    #[expect(clippy::cast_precision_loss, reason = "display only")]
    pub(crate) fn to_f64(self) -> f64 {
        self.0 as f64 / Self::ONE as f64
    }
}

impl Sum {
    pub(crate) fn add(&mut self, part: &Resources) {
        self.cpus += u128::from(part.cpus.0);
        self.mem += u128::from(part.mem.0);
        self.disk += u128::from(part.disk.0);
        for (name, amount) in &part.custom {
            *self.custom.entry(name.clone()).or_default() += u128::from(amount.0);
        }
    }

    /// Takes away what was added before.
    pub(crate) fn sub(&mut self, part: &Resources) {
        let less = |have: u128, part: u64| have.checked_sub(u128::from(part)).expect("only what was added is taken away");
        self.cpus = less(self.cpus, part.cpus.0);
        self.mem = less(self.mem, part.mem.0);
        self.disk = less(self.disk, part.disk.0);
        for (name, amount) in &part.custom {
            let left = less(self.custom.get(name).copied().unwrap_or(0), amount.0);
            if left == 0 {
                self.custom.remove(name);
            } else {
                self.custom.insert(name.clone(), left);
            }
        }
    }

    pub(crate) fn add_sum(&mut self, other: &Self) {
        self.cpus += other.cpus;
        self.mem += other.mem;
        self.disk += other.disk;
        for (name, amount) in &other.custom {
            *self.custom.entry(name.clone()).or_default() += amount;
        }
    }

    /// Takes away a part that was added before.
    pub(crate) fn sub_sum(&mut self, other: &Self) {
        let less = |have: u128, part: u128| have.checked_sub(part).expect("only what was added is taken away");
        self.cpus = less(self.cpus, other.cpus);
        self.mem = less(self.mem, other.mem);
        self.disk = less(self.disk, other.disk);
        for (name, amount) in &other.custom {
            let have = self.custom.entry(name.clone()).or_default();
            *have = less(*have, *amount);
        }
        self.custom.retain(|_, n| *n > 0);
    }

    /// The greatest of this sum's parts of `whole`, over all kinds of resources; `plus` counts as part of this.
    pub(crate) fn dominant_share(&self, plus: &Self, whole: &Self) -> Share {
        let custom = self.custom.keys().chain(plus.custom.keys()).map(|name| {
            let part = self.custom.get(name).unwrap_or(&0) + plus.custom.get(name).unwrap_or(&0);
            Share::of(part, whole.custom.get(name).copied().unwrap_or(0))
        });
        [
            Share::of(self.cpus + plus.cpus, whole.cpus),
            Share::of(self.mem + plus.mem, whole.mem),
            Share::of(self.disk + plus.disk, whole.disk),
        ]
        .into_iter()
        .chain(custom)
        .max()
        .unwrap_or_default()
    }

    /// As resources without ports, each amount cut at 64 bits: for display.
    pub(crate) fn to_resources(&self) -> Resources {
        let cut = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
        Resources {
            cpus: MilliCpus(cut(self.cpus)),
            mem: Bytes(cut(self.mem)),
            disk: Bytes(cut(self.disk)),
            custom: self.custom.iter().map(|(name, n)| (name.clone(), MilliUnits(cut(*n)))).collect(),
            ..Resources::default()
        }
    }
}
