//! Lending: unused cpu time goes to whoever wants it, and comes back when its owner does. By weight, without quotas of slots.
//!
//! An executor weighs what its busy slots were given, a slot what its task was given. While processors are contended each gets
//! at least that part of them; a slot that has nothing to run weighs nothing. [`Weights`] decides (pure). Weights count only
//! where threads wait for the same processors, so all of the node's must be advertised: see [`check`].

use smalti_types::MilliCpus;
use std::collections::BTreeSet;

/// Why an agent cannot lend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There are no groups.
    #[error("--lend-cpu works by weights of control groups, and there are none for cpu time here")]
    NoGroups,
    /// Some processors are not for tasks.
    #[error(
        "--lend-cpu works by weights, which only count while processors are contended: advertise all {cores} of them (--cpus {cores}, \
         not {cpus}), or leave it off"
    )]
    NotAll {
        /// Processors of the node.
        cores: usize,
        /// What is advertised.
        cpus: MilliCpus,
    },
}

/// Whether lending keeps its promise on a node with so many processors.
///
/// # Errors
/// [`Error::NotAll`].
pub fn check(cpus: MilliCpus, cores: usize) -> Result<(), Error> {
    if cpus.0 >= cores as u64 * 1000 { Ok(()) } else { Err(Error::NotAll { cores, cpus }) }
}

/// Weights in one executor's groups, as amounts of cpu.
#[derive(Debug, Default)]
pub(super) struct Weights {
    slots: Vec<MilliCpus>,
    busy: BTreeSet<u32>,
    written: Option<MilliCpus>,
}

impl Weights {
    pub(super) fn set_slots(&mut self, n: usize) {
        self.slots.resize(n.max(self.slots.len()), MilliCpus(0));
    }

    /// A slot's task was given so much; the executor's new weight, if that changes it.
    pub(super) fn set(&mut self, slot: u32, cpus: MilliCpus) -> Option<MilliCpus> {
        if let Some(have) = self.slots.get_mut(slot as usize) {
            *have = cpus;
        }
        self.change()
    }

    /// Slots begin or end to run something; the executor's new weight, if that changes it.
    pub(super) fn set_busy(&mut self, slots: &[u32], busy: bool) -> Option<MilliCpus> {
        for slot in slots.iter().filter(|s| (**s as usize) < self.slots.len()) {
            if busy {
                self.busy.insert(*slot)
            } else {
                self.busy.remove(slot)
            };
        }
        self.change()
    }

    /// The executor's weight is in force.
    pub(super) fn record(&mut self, weight: MilliCpus) {
        self.written = Some(weight);
    }

    fn change(&self) -> Option<MilliCpus> {
        let sum = self.busy.iter().filter_map(|s| self.slots.get(*s as usize)).fold(0_u64, |sum, c| sum.saturating_add(c.0));
        (self.written != Some(MilliCpus(sum))).then_some(MilliCpus(sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executor_weighs_what_its_busy_slots_were_given() {
        let mut weights = Weights::default();
        weights.set_slots(3);
        assert_eq!(weights.set(0, MilliCpus(250)), Some(MilliCpus(0)), "nothing was written yet");
        weights.record(MilliCpus(0));
        assert_eq!(weights.set(1, MilliCpus(500)), None);
        assert_eq!(weights.set_busy(&[0, 1, 7], true), Some(MilliCpus(750)));
        weights.record(MilliCpus(750));
        assert_eq!(weights.set(1, MilliCpus(100)), Some(MilliCpus(350)));
        assert_eq!(weights.set_busy(&[0], false), Some(MilliCpus(100)));
        weights.record(MilliCpus(100));
        assert_eq!(weights.set_busy(&[0], false), None);
    }

    #[test]
    fn lending_needs_all_processors() {
        assert_eq!(check(MilliCpus(2000), 2), Ok(()));
        let error = check(MilliCpus(1500), 2).unwrap_err().to_string();
        assert!(error.contains("--cpus 2, not 1.5"), "{error}");
    }
}
