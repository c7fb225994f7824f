//! A small scheduler for the simulation: some single tasks and some arrays, launched, fed, killed and retried by chance
//! until each has its outcome.

use crate::nodes::bundle;
use crate::rng::Rng;
use smalti_framework_sdk_core::{Delivery, UpdateId};
use smalti_types::protocol::Call;
use smalti_types::{
    AgentId, ArrayTemplate, BundleRef, Bytes, DurationMs, Filters, Isolation, ItemBatch, ItemSet, Launch, LaunchArray, MilliCpus, Offer,
    Operation, PortRange, Reason, Resources, StatusUpdate, TaskId, TaskSpec, TaskState,
};
use std::collections::BTreeMap;

/// Where a single task is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Wants to be launched as this attempt.
    Wanted,
    /// Launched, not ended.
    Placed(AgentId),
    Done,
}

#[derive(Debug, Clone)]
struct Single {
    resources: Resources,
    attempt: u32,
    exclusive: bool,
    phase: Phase,
}

#[derive(Debug, Clone)]
struct Part {
    agent: AgentId,
    outstanding: ItemSet,
    slots: u32,
    open: bool,
}

#[derive(Debug, Clone)]
struct Array {
    total: u64,
    slot: Resources,
    /// By the number of their next attempt.
    ready: BTreeMap<u32, ItemSet>,
    /// How often an item was started for nothing, where that is not never.
    tries: BTreeMap<u64, u32>,
    done: ItemSet,
    parts: BTreeMap<TaskId, Part>,
    next_part: u32,
}

/// What a handler says to its SDK.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) calls: Vec<Call>,
    pub(crate) handled: Vec<UpdateId>,
}

/// All that the script wants, and how far it is. Durable.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    singles: BTreeMap<TaskId, Single>,
    arrays: BTreeMap<u64, Array>,
    /// Has not said yet to this life's master what it has.
    restored: bool,
    /// The first update that cannot be.
    wrong: Option<String>,
}

/// Every fourth one in a process of its own.
fn spec(n: u64) -> TaskSpec {
    let isolation = if n.is_multiple_of(4) { Isolation::Process } else { Isolation::Instance };
    TaskSpec { isolation, ..TaskSpec::new(BundleRef { digest: bundle(n), uri: None }) }
}

fn task(text: String) -> TaskId {
    TaskId::new(text).expect("letters, digits and dashes")
}

/// Whether the task itself is not to blame.
fn try_again(update: &StatusUpdate) -> bool {
    matches!(update.state, TaskState::Dropped | TaskState::Lost | TaskState::Gone)
        || update.reason.is_infrastructure()
        || update.reason == Reason::FetchFailed
}

/// An attempt that was given up lives: it must not go on taking resources.
fn kill_stray(update: &StatusUpdate, calls: &mut Vec<Call>) {
    if !update.state.is_terminal() {
        let (task, attempt) = (update.key.task.task.clone(), update.key.task.attempt);
        calls.push(Call::Kill { task, attempt, grace: None });
    }
}

impl Script {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let singles = (0..rng.between(5, 25)).map(|n| {
            let mut resources = Resources::new(MilliCpus(rng.between(1, 15) * 100), Bytes::mib(rng.between(16, 1024)));
            if rng.chance(10) {
                let first = u16::try_from(rng.between(31_000, 31_009)).unwrap_or(31_000);
                resources.ports = vec![PortRange { first, last: first + 1 }].into();
            }
            (task(format!("single-{n}")), Single { resources, attempt: 0, exclusive: rng.chance(25), phase: Phase::Wanted })
        });
        let singles = singles.collect();
        let arrays = (0..rng.between(1, 3)).map(|n| {
            let total = rng.between(1, 300);
            let slot = Resources::new(MilliCpus(rng.between(1, 10) * 100), Bytes::mib(rng.between(16, 256)));
            let ready = BTreeMap::from([(0, ItemSet::range(0, total))]);
            (n, Array { total, slot, ready, tries: BTreeMap::new(), done: ItemSet::default(), parts: BTreeMap::new(), next_part: 0 })
        });
        let arrays = arrays.collect();
        Self { singles, arrays, restored: false, wrong: None }
    }

    /// The process starts again from its store.
    pub(crate) fn restarted(&mut self) {
        self.restored = true;
    }

    /// What has no outcome yet.
    pub(crate) fn unsettled(&self) -> Option<String> {
        if let Some((id, single)) = self.singles.iter().find(|(_, s)| s.phase != Phase::Done) {
            return Some(format!("{id} is {:?} as attempt {}", single.phase, single.attempt));
        }
        let array = self.arrays.iter().find(|(_, a)| a.done.len() < a.total || !a.parts.is_empty());
        array.map(|(n, a)| format!("array {n} has {} of {} items and parts {:?}", a.done.len(), a.total, a.parts))
    }

    /// Each item is in one place.
    pub(crate) fn check(&self) -> Result<(), String> {
        if let Some(wrong) = &self.wrong {
            return Err(wrong.clone());
        }
        for (n, a) in &self.arrays {
            let out: u64 = a.parts.values().map(|p| p.outstanding.len()).sum();
            let ready: u64 = a.ready.values().map(ItemSet::len).sum();
            if ready + a.done.len() + out != a.total {
                return Err(format!("array {n}: {ready} ready, {} done and {out} handed out of {}", a.done.len(), a.total));
            }
        }
        Ok(())
    }

    /// Something was delivered.
    pub(crate) fn take(&mut self, delivery: Delivery, rng: &mut Rng, answers: &mut Answers) {
        let calls = &mut answers.calls;
        match delivery {
            Delivery::Subscribed { .. } if std::mem::take(&mut self.restored) => self.resume(calls),
            Delivery::Offers(offers) => offers.into_iter().for_each(|o| self.offered(&o, rng, calls)),
            Delivery::Update { update, .. } => {
                let before = self.wants();
                self.updated(&update, rng, calls);
                if self.wants() && !before {
                    calls.push(Call::Revive);
                }
            }
            _ => {}
        }
    }

    /// Time passes.
    pub(crate) fn tick(&mut self, calm: bool, rng: &mut Rng, answers: &mut Answers) {
        let calls = &mut answers.calls;
        if self.wants() && rng.chance(5) {
            calls.push(Call::Revive);
        }
        for n in self.arrays.keys().copied().collect::<Vec<_>>() {
            self.feed(n, rng, calls);
        }
        if !calm && rng.chance(2) {
            let mut victims: Vec<(TaskId, u32)> =
                self.singles.iter().filter(|(_, s)| matches!(s.phase, Phase::Placed(_))).map(|(id, s)| (id.clone(), s.attempt)).collect();
            victims.extend(self.arrays.values().flat_map(|a| a.parts.keys().map(|id| (id.clone(), 0))));
            if !victims.is_empty() {
                let (task, attempt) = victims[rng.index(victims.len())].clone();
                calls.push(Call::Kill { task, attempt, grace: rng.chance(50).then_some(DurationMs(10)) });
            }
        }
    }

    fn wants(&self) -> bool {
        self.singles.values().any(|s| s.phase == Phase::Wanted) || self.arrays.values().any(|a| !a.ready.is_empty())
    }

    /// Says again what may not have been heard: the store knows it, the SDK of this life does not.
    fn resume(&self, calls: &mut Vec<Call>) {
        let mut known = Vec::new();
        for (id, single) in &self.singles {
            if let Phase::Placed(agent) = &single.phase {
                known.push((id.clone(), single.attempt, Some(agent.clone())));
            }
        }
        let mut again = Vec::new();
        for (array, (id, part)) in self.arrays.values().flat_map(|a| a.parts.iter().map(move |p| (a, p))) {
            known.push((id.clone(), 0, Some(part.agent.clone())));
            for (attempt, items) in array.by_attempt(&part.outstanding) {
                let batch = ItemBatch { items, attempt, ..ItemBatch::default() };
                again.push(Call::AssignItems { task: id.clone(), attempt: 0, batch, open: true });
            }
            if !part.open {
                again.push(Call::AssignItems { task: id.clone(), attempt: 0, batch: ItemBatch::default(), open: false });
            }
        }
        if !known.is_empty() {
            calls.push(Call::Reconcile(known));
        }
        calls.extend(again);
    }

    fn offered(&mut self, offer: &Offer, rng: &mut Rng, calls: &mut Vec<Call>) {
        let mut left = offer.resources.clone();
        let mut operations = Vec::new();
        if !rng.chance(15) {
            self.launch_singles(offer, &mut left, rng, &mut operations);
            self.launch_parts(offer, &mut left, rng, &mut operations);
        }
        let filters = Filters { refuse: DurationMs(rng.below(1_500)) };
        let offers = vec![offer.id];
        calls.push(if operations.is_empty() { Call::Decline { offers, filters } } else { Call::Accept { offers, operations, filters } });
    }

    fn launch_singles(&mut self, offer: &Offer, left: &mut Resources, rng: &mut Rng, operations: &mut Vec<Operation>) {
        for (id, single) in self.singles.iter_mut().filter(|(_, s)| s.phase == Phase::Wanted) {
            let Ok(rest) = left.checked_sub(&single.resources) else { continue };
            if rng.chance(40) {
                continue;
            }
            *left = rest;
            single.phase = Phase::Placed(offer.agent.clone());
            operations.push(Operation::Launch(Launch {
                task: id.clone(),
                attempt: single.attempt,
                resources: single.resources.clone(),
                spec: TaskSpec { exclusive: single.exclusive, ..spec(rng.below(5)) },
            }));
        }
    }

    fn launch_parts(&mut self, offer: &Offer, left: &mut Resources, rng: &mut Rng, operations: &mut Vec<Operation>) {
        for (n, array) in &mut self.arrays {
            let slots = left.times(&array.slot, 4);
            if slots == 0 || array.ready.is_empty() || rng.chance(30) {
                continue;
            }
            let Some(rest) = array.slot.checked_mul(slots).ok().and_then(|r| left.checked_sub(&r).ok()) else { continue };
            *left = rest;
            let (attempt, items) = take_first(&mut array.ready, rng.between(1, u64::from(slots) * 4));
            let open = rng.chance(80);
            let id = task(format!("array-{n}-part-{}", array.next_part));
            array.next_part += 1;
            let part = Part { agent: offer.agent.clone(), outstanding: items.clone(), slots, open };
            array.parts.insert(id.clone(), part);
            operations.push(Operation::LaunchArray(LaunchArray {
                task: id,
                attempt: 0,
                slot_resources: array.slot.clone(),
                slots,
                template: ArrayTemplate { spec: spec(*n), total_items: array.total, split_inputs: Vec::new() },
                batch: ItemBatch { items, attempt, ..ItemBatch::default() },
                open,
            }));
        }
    }

    fn updated(&mut self, update: &StatusUpdate, rng: &mut Rng, calls: &mut Vec<Call>) {
        let (id, attempt) = (&update.key.task.task, update.key.task.attempt);
        if let Some(single) = self.singles.get_mut(id) {
            if single.attempt != attempt || !matches!(single.phase, Phase::Placed(_)) {
                return kill_stray(update, calls);
            }
            if update.state.is_terminal() {
                single.phase = if try_again(update) { Phase::Wanted } else { Phase::Done };
                single.attempt += u32::from(single.phase == Phase::Wanted);
            }
            return;
        }
        let Some(n) = self.arrays.iter().find(|(_, a)| a.parts.contains_key(id)).map(|(n, _)| *n) else {
            return kill_stray(update, calls);
        };
        if let Some(array) = self.arrays.get_mut(&n)
            && let Err(problem) = array.updated(id, update)
        {
            self.wrong.get_or_insert(problem);
        }
        self.feed(n, rng, calls);
    }

    /// Hands out what is ready, closes what will get no more, and sometimes asks for something back.
    fn feed(&mut self, n: u64, rng: &mut Rng, calls: &mut Vec<Call>) {
        let Some(array) = self.arrays.get_mut(&n) else { return };
        for (id, part) in array.parts.iter_mut().filter(|(_, p)| p.open) {
            let assign = |items, attempt, open| Call::AssignItems {
                task: id.clone(),
                attempt: 0,
                batch: ItemBatch { items, attempt, ..ItemBatch::default() },
                open,
            };
            if !array.ready.is_empty() && part.outstanding.len() <= u64::from(part.slots) {
                let (attempt, items) = take_first(&mut array.ready, rng.between(1, u64::from(part.slots.max(1)) * 3));
                part.outstanding.extend(&items);
                part.open = rng.chance(95);
                calls.push(assign(items, attempt, part.open));
            } else if array.ready.is_empty() && rng.chance(30) {
                part.open = false;
                calls.push(assign(ItemSet::default(), 0, false));
            } else if rng.chance(5) {
                calls.push(Call::ReturnItems { task: id.clone(), attempt: 0, most: rng.between(1, 5) });
            }
        }
    }
}

/// Up to `n` items that have the same number of attempts behind them, the most tried ones first.
fn take_first(ready: &mut BTreeMap<u32, ItemSet>, n: u64) -> (u32, ItemSet) {
    let Some(mut last) = ready.last_entry() else { return (0, ItemSet::default()) };
    let taken = (*last.key(), last.get_mut().take_first(n));
    if last.get().is_empty() {
        last.remove();
    }
    taken
}

impl Array {
    /// Items by the number of their attempt.
    fn by_attempt(&self, items: &ItemSet) -> BTreeMap<u32, ItemSet> {
        let mut classes: BTreeMap<u32, ItemSet> = BTreeMap::new();
        for item in items.iter() {
            classes.entry(self.tries.get(&item).copied().unwrap_or(0)).or_default().insert(item);
        }
        classes
    }

    /// Items that are to be handed out again; `started`: each may have run.
    fn again(&mut self, items: &ItemSet, started: bool) {
        for item in items.iter().filter(|_| started) {
            *self.tries.entry(item).or_default() += 1;
        }
        for (attempt, items) in self.by_attempt(items) {
            self.ready.entry(attempt).or_default().extend(&items);
        }
    }

    fn updated(&mut self, id: &TaskId, update: &StatusUpdate) -> Result<(), String> {
        let Some(part) = self.parts.get_mut(id) else { return Ok(()) };
        if let Some(delta) = &update.array {
            let lost: ItemSet = delta.failed.iter().filter(|f| f.reason.is_infrastructure()).map(|f| f.item).collect();
            let failed: ItemSet = delta.failed.iter().filter(|f| !f.reason.is_infrastructure()).map(|f| f.item).collect();
            let ended = failed.union(&delta.finished);
            let all = ended.union(&lost).union(&delta.returned);
            if !part.outstanding.contains_all(&all) {
                let what = all.difference(&part.outstanding);
                return Err(format!("{}: of items {what} something is said that was said before", update.key.task));
            }
            part.outstanding = part.outstanding.difference(&all);
            part.slots = part.slots.min(delta.slots);
            self.done.extend(&ended);
            self.again(&lost, true);
            self.again(&delta.returned, false);
        }
        if update.state.is_terminal()
            && let Some(part) = self.parts.remove(id)
        {
            self.again(&part.outstanding, true);
        }
        Ok(())
    }
}
