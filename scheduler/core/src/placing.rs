//! Plans what is launched on a batch of offers. A plan is a value: it says who gets how much of which offer, and nothing has
//! happened yet.
//!
//! Order: higher priority first; within a priority single tasks by age, then arrays, slot by slot in turn, beginning with the
//! array that has the fewest. Each goes first where most of what it reads lies (see [`crate::near`]). An array's slots are spread over
//! offers that are equally good.

use crate::near::{Base, Near};
use crate::spec::Constraint;
use crate::wanted::Wanted;
use smalti_types::{AgentId, Attributes, MilliCpus, Offer, PortSet, Resources};
use std::collections::{BTreeMap, VecDeque};

/// Most slots of one part: an executor's threads are not free.
pub const MAX_SLOTS_PER_PART: u32 = 4_096;
/// Single tasks that are looked at in vain before a batch of offers counts as used up.
pub const MAX_MISSES: u32 = 1_000;
/// Single tasks that let a batch of offers pass before nobody else is asked: more than misses, since others could use these offers.
pub const MAX_PASSES: usize = 4_000;

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
    /// Whether an agent will do, whatever it has.
    pub(crate) fn may_go_to(&self, agent: &AgentId, attributes: &Attributes) -> bool {
        !self.avoided.contains(agent) && self.constraints.iter().all(|c| c.holds(attributes))
    }

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
    pub(crate) wanted: &'a Wanted,
    /// It may let offers pass.
    pub(crate) patient: bool,
}

/// An array that could use slots.
pub(crate) struct WaitingArray<'a, K> {
    pub(crate) key: K,
    pub(crate) request: Request<'a>,
    pub(crate) wanted: &'a Wanted,
    /// It may let offers pass.
    pub(crate) patient: bool,
    /// How many more it may have.
    pub(crate) want: u64,
    /// How many it has.
    pub(crate) held: u32,
}

/// Somebody let an offer pass that it could have had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pass<K> {
    pub(crate) key: K,
    /// Who is waited for instead, and how many bytes it holds.
    pub(crate) best: (AgentId, u64),
    /// How many bytes more that is.
    pub(crate) gain: u64,
}

impl<K: Copy + Ord> OpenOffer<K> {
    pub(crate) fn new(offer: Offer, shunned: PortSet) -> Self {
        Self { left: offer.resources.clone(), offer, shunned, singles: Vec::new(), slots: BTreeMap::new() }
    }

    fn is_used_up(&self) -> bool {
        self.left.cpus < MilliCpus::SMALLEST || self.left.mem.0 == 0
    }

    /// What it would take.
    fn fit(&self, request: &Request<'_>, pick: Pick) -> Option<Resources> {
        if self.is_used_up() || !request.may_go_to(&self.offer.agent, &self.offer.attributes) {
            return None;
        }
        request.take_from(&self.left, (&self.shunned, pick))
    }

    fn take(&mut self, request: &Request<'_>, pick: Pick) -> Option<Resources> {
        let wanted = self.fit(request, pick)?;
        self.left = self.left.checked_sub(&wanted).ok()?;
        Some(wanted)
    }
}

/// Tasks that are alike, and what is known of where they fit. Thousands of tasks are: where one did not fit, its like does not fit either.
struct Alike<'a> {
    request: Request<'a>,
    wanted: &'a Wanted,
    /// Offers whose agents hold inputs, with bytes, the best last.
    here: Vec<(usize, u64)>,
    best: Option<(AgentId, u64)>,
    /// All offers.
    base: Base,
    /// Where in it the first one is that may have room.
    next: usize,
}

/// What became of a task.
enum Placed {
    On(usize, Resources),
    /// It lets an offer pass; the best of those that it could have had holds so many bytes.
    Passed(u64),
    Nowhere,
}

impl<'a> Alike<'a> {
    fn new<K>(task: &WaitingTask<'a, K>, near: &mut Near<'_>, offers: &[OpenOffer<K>]) -> Self {
        let base = near.base(task.wanted.bundle, offers);
        let lying = near.lying(task.wanted, &task.request);
        let here = near.best_last(&lying, &base, task.wanted.bundle, offers);
        Self { request: task.request, wanted: task.wanted, here, best: lying.best, base, next: 0 }
    }

    fn place<K: Copy + Ord>(&mut self, patient: bool, offers: &mut [OpenOffer<K>]) -> Placed {
        let request = self.request;
        let fits = |offers: &[OpenOffer<K>], i: usize, pick| offers.get(i).is_some_and(|o| o.fit(&request, pick).is_some());
        while self.here.last().is_some_and(|(i, _)| !fits(offers, *i, Pick::Good)) {
            self.here.pop();
        }
        let floor = self.best.as_ref().filter(|_| patient).map_or(0, |(_, bytes)| self.wanted.floor(*bytes));
        for (i, _) in self.here.iter().rev().filter(|(_, bytes)| *bytes >= floor) {
            if let Some(resources) = offers.get_mut(*i).and_then(|o| o.take(&request, Pick::Good)) {
                return Placed::On(*i, resources);
            }
        }
        if floor > 0 {
            while self.base.at(self.next).is_some_and(|i| !fits(offers, i, Pick::Good)) {
                self.next += 1;
            }
            let any = self.next < self.base.len() || (request.ports > 0 && (0..offers.len()).any(|i| fits(offers, i, Pick::Any)));
            return if any { Placed::Passed(self.here.last().map_or(0, |(_, bytes)| *bytes)) } else { Placed::Nowhere };
        }
        while let Some(i) = self.base.at(self.next) {
            if let Some(resources) = offers.get_mut(i).and_then(|o| o.take(&request, Pick::Good)) {
                return Placed::On(i, resources);
            }
            self.next += 1;
        }
        let any = |(i, o): (usize, &mut OpenOffer<K>)| o.take(&request, Pick::Any).map(|r| (i, r));
        let found = if request.ports > 0 { offers.iter_mut().enumerate().find_map(any) } else { None };
        found.map_or(Placed::Nowhere, |(i, resources)| Placed::On(i, resources))
    }
}

/// Places single tasks of one priority, in order. Returns who let offers pass.
pub(crate) fn place_tasks<'a, K: Copy + Ord>(
    offers: &mut [OpenOffer<K>],
    near: &mut Near<'_>,
    tasks: impl Iterator<Item = WaitingTask<'a, K>>,
) -> Vec<Pass<K>> {
    let (mut misses, mut passes) = (0, Vec::new());
    let mut last: Option<Alike<'a>> = None;
    for task in tasks {
        let same = last.filter(|l| l.request == task.request && (near.is_blank() || l.wanted == task.wanted));
        let mut alike = same.unwrap_or_else(|| Alike::new(&task, near, offers));
        match alike.place(task.patient, offers) {
            Placed::On(i, resources) => {
                if let Some(offer) = offers.get_mut(i) {
                    offer.singles.push((task.key, resources));
                }
            }
            Placed::Passed(bytes) => {
                passes.extend(alike.best.clone().map(|best| Pass { key: task.key, gain: best.1 - bytes.min(best.1), best }));
                if passes.len() >= MAX_PASSES {
                    return passes;
                }
            }
            Placed::Nowhere => {
                misses += 1;
                if misses > MAX_MISSES || offers.iter().all(OpenOffer::is_used_up) {
                    return passes;
                }
            }
        }
        last = Some(alike);
    }
    passes
}

/// An array and the offers that it could have slots on.
struct Spread<'a, K> {
    array: WaitingArray<'a, K>,
    /// Offers with what their agents hold, the best first.
    order: VecDeque<(u64, usize)>,
    /// Those that are equally good, in turn.
    ring: VecDeque<usize>,
    /// Those that it lets pass, with the bytes that they hold.
    below: Vec<(usize, u64)>,
    best: Option<(AgentId, u64)>,
}

impl<'a, K: Copy + Ord> Spread<'a, K> {
    fn new(array: WaitingArray<'a, K>, near: &mut Near<'_>, offers: &[OpenOffer<K>]) -> Self {
        if near.is_blank() {
            return Self { array, order: VecDeque::new(), ring: (0..offers.len()).collect(), below: Vec::new(), best: None };
        }
        let lying = near.lying(array.wanted, &array.request);
        let floor = lying.best.as_ref().filter(|_| array.patient).map_or(0, |(_, bytes)| array.wanted.floor(*bytes));
        let held = |i: usize| lying.here.get(&i).copied().unwrap_or(0);
        let (good, below): (Vec<usize>, Vec<usize>) = (0..offers.len()).partition(|i| held(*i) >= floor);
        let mut order: Vec<(u64, usize)> =
            good.into_iter().map(|i| (near.weight(held(i), array.wanted.bundle, offers.get(i)), i)).collect();
        order.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
        let below = below.into_iter().map(|i| (i, held(i))).collect();
        Self { array, order: order.into(), ring: VecDeque::new(), below, best: lying.best }
    }

    /// Takes one slot, if there is room for one.
    fn take(&mut self, offers: &mut [OpenOffer<K>]) -> bool {
        while self.array.want > 0 {
            while let Some(i) = self.ring.pop_front() {
                let Some(offer) = offers.get_mut(i) else { continue };
                let full = offer.slots.get(&self.array.key).is_some_and(|s| *s >= MAX_SLOTS_PER_PART);
                if !full && offer.take(&self.array.request, Pick::Good).is_some() {
                    self.array.want -= 1;
                    *offer.slots.entry(self.array.key).or_default() += 1;
                    self.ring.push_back(i);
                    return true;
                }
            }
            let Some((weight, _)) = self.order.front().copied() else { return false };
            while let Some((_, i)) = self.order.pop_front_if(|(w, _)| *w == weight) {
                self.ring.push_back(i);
            }
        }
        false
    }

    /// Whether it let an offer pass that it could have had.
    fn pass(self, offers: &[OpenOffer<K>]) -> Option<Pass<K>> {
        let best = self.best.filter(|_| self.array.want > 0)?;
        let fits = |i: usize| offers.get(i).is_some_and(|o| o.fit(&self.array.request, Pick::Good).is_some());
        let bytes = self.below.iter().filter(|(i, _)| fits(*i)).map(|(_, bytes)| *bytes).max()?;
        Some(Pass { key: self.array.key, gain: best.1 - bytes.min(best.1), best })
    }
}

/// Gives slots to arrays of one priority in turn. Returns who let offers pass.
pub(crate) fn place_arrays<K: Copy + Ord>(
    offers: &mut [OpenOffer<K>],
    near: &mut Near<'_>,
    mut arrays: Vec<WaitingArray<'_, K>>,
) -> Vec<Pass<K>> {
    if arrays.is_empty() {
        return Vec::new();
    }
    arrays.sort_by_key(|a| (a.held, a.key));
    let mut spreads: Vec<Spread<'_, K>> = arrays.into_iter().map(|a| Spread::new(a, near, offers)).collect();
    let mut placed = true;
    while placed {
        placed = false;
        for spread in &mut spreads {
            placed |= spread.take(offers);
        }
    }
    spreads.into_iter().filter_map(|s| s.pass(offers)).collect()
}
