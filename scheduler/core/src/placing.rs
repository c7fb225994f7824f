//! Plans what is launched on a batch of offers. A plan is a value: it says who gets how much of which offer, and nothing has
//! happened yet.
//!
//! Order: higher priority first; within a priority single tasks by age, then arrays, slot by slot in turn, beginning with the
//! array that holds the fewest. An array's slots are spread over the offers of the batch.

use crate::spec::Constraint;
use smalti_types::{AgentId, Attributes, MilliCpus, Offer, PortSet, Resources};
use std::collections::BTreeMap;

/// Most slots of one part: an executor's threads are not free.
pub const MAX_SLOTS_PER_PART: u32 = 4_096;
/// Single tasks that are looked at in vain before a batch of offers counts as used up.
pub const MAX_MISSES: u32 = 1_000;

/// What a task or slot needs of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// Scalars (and ports by number, which nobody asks for now).
    pub resources: &'a Resources,
    /// How many ports.
    pub ports: u32,
    /// All must hold.
    pub constraints: &'a [Constraint],
    /// Agents that it must not go to now.
    pub avoided: &'a [AgentId],
}

impl Request<'_> {
    /// What it takes of `have`, with the lowest ports chosen; `None` when it does not fit. `shunned`: ports that it should not get,
    /// and whether it may have some of them where others are not enough.
    #[must_use]
    pub fn take_from(&self, have: &Resources, shunned: (&PortSet, Pick)) -> Option<Resources> {
        if !have.contains(self.resources) {
            return None;
        }
        let mut wanted = self.resources.clone();
        if self.ports > 0 {
            let free = have.ports.difference(&wanted.ports);
            let good = free.difference(shunned.0);
            let chosen = match (good.take(self.ports), shunned.1) {
                (Some(chosen), _) => chosen,
                (None, Pick::Good) => return None,
                (None, Pick::Any) => free.intersection(shunned.0).take(self.ports - good.len())?.union(&good),
            };
            wanted.ports = wanted.ports.union(&chosen);
        }
        Some(wanted)
    }

    /// Why an agent with this much cannot take it; `None` when it can.
    #[must_use]
    pub fn why_not(&self, have: &Resources, attributes: &Attributes) -> Option<String> {
        if let Some(c) = self.constraints.iter().find(|c| !c.holds(attributes)) {
            let is = attributes.0.get(&c.attribute).map_or_else(|| "not set".into(), |v| format!("`{v}`"));
            return Some(format!("constraint {}={} does not hold: it is {is}", c.attribute, c.value));
        }
        if let Some(lack) = have.first_lack(self.resources) {
            return Some(lack.to_string());
        }
        (have.ports.len() < self.ports).then(|| format!("ports: {} wanted, {} there", self.ports, have.ports.len()))
    }
}

/// Whether a task may get ports that others could not listen on lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// No: rather not be placed.
    Good,
    /// As many as are missing.
    Any,
}

/// One offer and what is planned on it.
#[derive(Debug)]
pub(crate) struct OpenOffer<K> {
    pub(crate) offer: Offer,
    pub(crate) left: Resources,
    /// Ports of its agent that other programs had lately.
    pub(crate) shunned: PortSet,
    pub(crate) singles: Vec<(K, Resources)>,
    pub(crate) slots: BTreeMap<K, u32>,
}

/// A single task that waits.
pub(crate) struct WaitingTask<'a, K> {
    pub(crate) key: K,
    pub(crate) request: Request<'a>,
}

/// An array that could use slots.
pub(crate) struct WaitingArray<'a, K> {
    pub(crate) key: K,
    pub(crate) request: Request<'a>,
    /// How many more it may have.
    pub(crate) want: u64,
    /// How many it has.
    pub(crate) held: u32,
}

impl<K: Copy + Ord> OpenOffer<K> {
    pub(crate) fn new(offer: Offer, shunned: PortSet) -> Self {
        Self { left: offer.resources.clone(), offer, shunned, singles: Vec::new(), slots: BTreeMap::new() }
    }

    fn is_used_up(&self) -> bool {
        self.left.cpus < MilliCpus::SMALLEST || self.left.mem.0 == 0
    }

    fn take(&mut self, request: &Request<'_>, pick: Pick) -> Option<Resources> {
        if self.is_used_up()
            || request.avoided.contains(&self.offer.agent)
            || !request.constraints.iter().all(|c| c.holds(&self.offer.attributes))
        {
            return None;
        }
        let wanted = request.take_from(&self.left, (&self.shunned, pick))?;
        self.left = self.left.checked_sub(&wanted).ok()?;
        Some(wanted)
    }
}

/// Places single tasks of one priority, in order.
pub(crate) fn place_tasks<'a, K: Copy + Ord>(offers: &mut [OpenOffer<K>], tasks: impl Iterator<Item = WaitingTask<'a, K>>) {
    let mut misses = 0;
    // Thousands of tasks are alike: where the last one did not fit, its like does not fit either.
    let mut last: Option<(Request<'a>, usize)> = None;
    for task in tasks {
        let from = last.as_ref().filter(|(r, _)| *r == task.request).map_or(0, |(_, i)| *i);
        let mut first =
            |from, pick| (from..offers.len()).find_map(|i| offers.get_mut(i).and_then(|o| o.take(&task.request, pick)).map(|r| (i, r)));
        let found = match first(from, Pick::Good) {
            None if task.request.ports > 0 => first(0, Pick::Any),
            found => found,
        };
        match found {
            Some((i, resources)) => {
                if let Some(offer) = offers.get_mut(i) {
                    offer.singles.push((task.key, resources));
                }
                last = Some((task.request, i));
            }
            None => {
                misses += 1;
                last = Some((task.request, offers.len()));
                if misses > MAX_MISSES || offers.iter().all(OpenOffer::is_used_up) {
                    return;
                }
            }
        }
    }
}

/// Gives slots to arrays of one priority: first evenly over the offers, then whatever still fits.
pub(crate) fn place_arrays<K: Copy + Ord>(offers: &mut [OpenOffer<K>], mut arrays: Vec<WaitingArray<'_, K>>) {
    arrays.sort_by_key(|a| (a.held, a.key));
    let n = offers.len();
    for spread in [true, false] {
        for (i, offer) in offers.iter_mut().enumerate() {
            let share = |want: u64| if spread { want.div_ceil((n - i) as u64) } else { want };
            let mut allowed: Vec<u64> = arrays.iter().map(|a| share(a.want)).collect();
            loop {
                let mut placed = false;
                for (array, allowed) in arrays.iter_mut().zip(&mut allowed) {
                    let full = offer.slots.get(&array.key).is_some_and(|s| *s >= MAX_SLOTS_PER_PART);
                    if *allowed > 0 && !full && offer.take(&array.request, Pick::Good).is_some() {
                        *allowed -= 1;
                        array.want -= 1;
                        *offer.slots.entry(array.key).or_default() += 1;
                        placed = true;
                    }
                }
                if !placed {
                    break;
                }
            }
        }
    }
}
