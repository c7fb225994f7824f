//! A model of an executor process: loads modules, runs tasks and items for random times with random outcomes, obeys, and goes on
//! while its agent is away.
//!
//! It says what a real one says, when a real one says it. What an agent must not miss is numbered and kept until it is confirmed;
//! a new connection begins with what was not, and with a list of what is here. The ledger of its items outlives it.

mod array;

use crate::rng::Rng;
use array::Array;
use smalti_agent_core::{Failure, FromExecutor, HeldPart, ItemFailure, ModuleId, Run, ToExecutor};
use smalti_types::{BootTime, DurationMs, ExecutorId, Isolation, Reason, TaskKey, Usage};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What happens inside an executor.
#[derive(Debug)]
pub(crate) enum Inside {
    ModuleLoaded(ModuleId),
    TaskStarted(Run),
    TaskEnded(Run),
    TaskKilled(Run),
    /// The lease of an exclusive task may have run out.
    LeaseEnds(Run),
    ItemEnded {
        run: Run,
        slot: u32,
        item: u64,
        us: u64,
    },
    ReportDue {
        run: Run,
        round: u64,
    },
    ArrayKilled(Run),
}

/// What an executor does next.
#[derive(Debug)]
pub(crate) enum Action {
    /// Say something; what is numbered is in the outbox, too.
    Say(u64, FromExecutor),
    /// Let something happen after so many microseconds.
    After(u64, Inside),
    /// Let something happen when `CLOCK_BOOTTIME` shows this.
    At(BootTime, Inside),
    /// The guest of a task begins, exclusive or not: the world counts how often.
    Starts(TaskKey, bool),
    /// The guest of a task is over.
    Stops(TaskKey),
    /// An item of a part begins, in this execution of it.
    StartsItem(TaskKey, u64, u32),
}

#[derive(Debug)]
struct Single {
    slot: u32,
    key: TaskKey,
    /// Of an exclusive one: when its guest is stopped.
    until: Option<BootTime>,
}

/// A task whose start waits for its code.
#[derive(Debug)]
struct Early {
    run: Run,
    slot: u32,
    key: TaskKey,
    exclusive: bool,
    lease_until: Option<BootTime>,
    /// So long after its start it is killed.
    kill: Option<u64>,
}

/// One line of an item ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) run: Run,
    pub(crate) item: u64,
    pub(crate) attempt: u32,
    pub(crate) exit_code: Option<i32>,
    pub(crate) failed: bool,
}

/// One executor process.
#[derive(Debug)]
pub(crate) struct Executor {
    pub(crate) id: ExecutorId,
    pub(crate) slots: u32,
    /// Had the only task of its life.
    pub(crate) bound: bool,
    modules: BTreeSet<ModuleId>,
    loading: BTreeSet<ModuleId>,
    /// Tasks that were told to start before their code was there.
    early: BTreeMap<ModuleId, Vec<Early>>,
    unloaded: BTreeSet<ModuleId>,
    tasks: BTreeMap<Run, Single>,
    arrays: BTreeMap<Run, Array>,
    said: u64,
    /// Numbered and not confirmed.
    outbox: VecDeque<(u64, FromExecutor)>,
    /// Outcomes of items, in the order in which they were written.
    ledger: Vec<Entry>,
}

impl Executor {
    pub(crate) fn new(id: ExecutorId, slots: u32) -> Self {
        Self {
            id,
            slots,
            bound: false,
            modules: BTreeSet::new(),
            loading: BTreeSet::new(),
            early: BTreeMap::new(),
            unloaded: BTreeSet::new(),
            tasks: BTreeMap::new(),
            arrays: BTreeMap::new(),
            said: 0,
            outbox: VecDeque::new(),
            ledger: Vec::new(),
        }
    }

    /// Whether it runs nothing.
    pub(crate) fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.early.is_empty() && self.arrays.is_empty()
    }

    /// The guests that run, for when it dies.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &TaskKey> {
        self.tasks.values().map(|t| &t.key)
    }

    /// What became of items, as its ledgers say.
    pub(crate) fn ledger(&self) -> &[Entry] {
        &self.ledger
    }

    /// What is said up to this number has taken effect.
    pub(crate) fn confirm(&mut self, number: u64) {
        while self.outbox.front().is_some_and(|(n, _)| *n <= number) {
            self.outbox.pop_front();
        }
    }

    /// What a new connection begins with.
    pub(crate) fn unconfirmed(&self) -> impl Iterator<Item = &(u64, FromExecutor)> {
        self.outbox.iter()
    }

    /// What it has, exact against everything that it has said.
    pub(crate) fn holds(&self) -> FromExecutor {
        let parts = self.arrays.iter().map(|(run, a)| HeldPart { run: *run, items: a.unreported(), slots: a.slots() });
        FromExecutor::Holds {
            modules: self.modules.iter().copied().collect(),
            // One connection is read to its end before the next: by then, what waits for its code would have begun.
            tasks: self.tasks.keys().copied().chain(self.early.values().flatten().map(|task| task.run)).collect(),
            parts: parts.collect(),
        }
    }

    fn say(&mut self, message: FromExecutor, out: &mut Vec<Action>) {
        self.said += 1;
        self.outbox.push_back((self.said, message.clone()));
        out.push(Action::Say(self.said, message));
    }

    /// Lets something happen.
    pub(crate) fn happen(&mut self, now: BootTime, inside: Inside, rng: &mut Rng) -> Vec<Action> {
        let mut out = Vec::new();
        match inside {
            Inside::ModuleLoaded(module) => {
                let failure = rng.chance(3).then(|| Failure::new(Reason::MissingImport, "it imports what nobody has"));
                self.loading.remove(&module);
                let loaded = failure.is_none();
                if loaded {
                    self.modules.insert(module);
                }
                self.say(FromExecutor::ModuleLoaded { module, failure }, &mut out);
                for task in self.early.remove(&module).unwrap_or_default() {
                    if loaded {
                        self.start_task(now, task, rng, &mut out);
                    } else {
                        self.refuse(task.run, Failure::new(Reason::LaunchFailed, "its code is not loaded"), &mut out);
                    }
                }
            }
            Inside::TaskStarted(run) if self.tasks.contains_key(&run) => self.say(FromExecutor::Started { run }, &mut out),
            Inside::TaskEnded(run) => {
                let (exit_code, failure) = match rng.below(20) {
                    0 => (None, Some(Failure::new(Reason::Trap, "unreachable"))),
                    1 | 2 => (Some(3), None),
                    _ => (Some(0), None),
                };
                self.end_task(run, exit_code, failure, &mut out);
            }
            Inside::TaskKilled(run) => {
                self.end_task(run, None, Some(Failure::new(Reason::KilledByRequest, "killed")), &mut out);
            }
            Inside::LeaseEnds(run) => self.lease_ends(now, run, &mut out),
            Inside::TaskStarted(_) => {}
            Inside::ItemEnded { run, slot, item, us } => self.item_ended(run, slot, item, us, rng, &mut out),
            Inside::ReportDue { run, round } => {
                if self.arrays.get(&run).is_some_and(|a| a.is_round(round)) {
                    self.report(run, &mut out);
                }
            }
            Inside::ArrayKilled(run) => {
                if let Some(array) = self.arrays.get_mut(&run) {
                    array.kill();
                    self.leave(run, &mut out);
                }
            }
        }
        out
    }

    fn end_task(&mut self, run: Run, exit_code: Option<i32>, failure: Option<Failure>, out: &mut Vec<Action>) {
        if let Some(single) = self.tasks.remove(&run) {
            out.push(Action::Stops(single.key));
            let usage = Usage { cpu_us: 10, wall_us: 20, ..Usage::default() };
            self.say(FromExecutor::Outcome { run, exit_code, failure, usage, result: None }, out);
        }
    }

    fn lease_ends(&mut self, now: BootTime, run: Run, out: &mut Vec<Action>) {
        match self.tasks.get(&run).and_then(|t| t.until) {
            Some(until) if until <= now => {
                let failure = Failure::new(Reason::LeaseExpired, "its lease ran out");
                self.end_task(run, None, Some(failure), out);
            }
            Some(until) => out.push(Action::At(until, Inside::LeaseEnds(run))),
            None => {}
        }
    }

    /// Takes an order. Errors are orders that make no sense: the agent's mistake.
    pub(crate) fn told(&mut self, now: BootTime, message: ToExecutor, rng: &mut Rng) -> Result<Vec<Action>, String> {
        let mut out = Vec::new();
        match message {
            ToExecutor::LoadModule { module, .. } => {
                self.loading.insert(module);
                out.push(Action::After(rng.between(200, 20_000), Inside::ModuleLoaded(module)));
            }
            ToExecutor::UnloadModule { module } => {
                // An agent that comes back hears of a module twice, and unloads it twice.
                if !self.modules.remove(&module) && !self.unloaded.contains(&module) {
                    return Err(format!("{module:?} is to be unloaded and is not loaded"));
                }
                self.unloaded.insert(module);
            }
            ToExecutor::StartTask { run, slot, module, key, launch, lease_until } => {
                self.check(module, &[slot])?;
                if launch.spec.exclusive && lease_until.is_none() {
                    return Err(format!("{key} is exclusive and is to start without a lease"));
                }
                let task = Early { run, slot, key, exclusive: launch.spec.exclusive, lease_until, kill: None };
                if self.loading.contains(&module) {
                    self.early.entry(module).or_default().push(task);
                } else {
                    self.start_task(now, task, rng, &mut out);
                }
            }
            ToExecutor::StartArray { run, slots, module, key, launch, .. } => {
                self.check(module, &slots)?;
                // In class `process` each item's executor is told.
                if launch.template.spec.isolation == Isolation::Instance {
                    out.push(Action::Starts(key.clone(), false));
                }
                let pace = if rng.chance(30) { 200_000 } else { 5_000 };
                self.arrays.insert(run, Array::new(key, slots, pace));
            }
            ToExecutor::Lease { run, items, attempt, report_when_left, report_interval_us, .. } => {
                if let Some(array) = self.arrays.get_mut(&run) {
                    array.lease(&items, attempt, report_when_left, report_interval_us);
                    array.fill_slots(run, rng, &mut out);
                    self.leave(run, &mut out);
                }
            }
            ToExecutor::Unlease { run, most } => {
                if let Some(array) = self.arrays.get_mut(&run) {
                    array.unlease(most);
                    self.report(run, &mut out);
                }
            }
            ToExecutor::EndArray { run, .. } => {
                if let Some(array) = self.arrays.get_mut(&run) {
                    array.ending = true;
                    self.leave(run, &mut out);
                }
            }
            ToExecutor::Renew { run, until } => {
                if let Some(single) = self.tasks.get_mut(&run) {
                    single.until = single.until.max(Some(until));
                } else if let Some(early) = self.early_of(run) {
                    early.lease_until = early.lease_until.max(Some(until));
                }
            }
            ToExecutor::Confirm { number } => self.confirm(number),
            ToExecutor::Kill { run, grace } => {
                let after = rng.below(DurationMs(grace.0.min(300)).0 * 1_000 + 100);
                if let Some(early) = self.early_of(run) {
                    early.kill = Some(after);
                    return Ok(out);
                }
                let what = if self.arrays.contains_key(&run) { Inside::ArrayKilled(run) } else { Inside::TaskKilled(run) };
                out.push(Action::After(after, what));
            }
        }
        Ok(out)
    }

    /// One that waits for its code.
    fn early_of(&mut self, run: Run) -> Option<&mut Early> {
        self.early.values_mut().flatten().find(|task| task.run == run)
    }

    fn start_task(&mut self, now: BootTime, task: Early, rng: &mut Rng, out: &mut Vec<Action>) {
        let Early { run, slot, key, exclusive, lease_until, kill } = task;
        if lease_until.is_some_and(|until| until <= now) {
            return self.refuse(run, Failure::new(Reason::LeaseExpired, "its lease has run out"), out);
        }
        self.tasks.insert(run, Single { slot, key: key.clone(), until: lease_until });
        out.push(Action::Starts(key, exclusive));
        if let Some(until) = lease_until {
            out.push(Action::At(until, Inside::LeaseEnds(run)));
        }
        out.push(Action::After(rng.between(10, 500), Inside::TaskStarted(run)));
        let long = if exclusive { 8_000_000 } else { 300_000 };
        let long = if rng.chance(10) { 5_000_000 } else { long };
        out.push(Action::After(rng.between(600, long), Inside::TaskEnded(run)));
        out.extend(kill.map(|after| Action::After(after, Inside::TaskKilled(run))));
    }

    fn refuse(&mut self, run: Run, failure: Failure, out: &mut Vec<Action>) {
        let (failure, usage) = (Some(failure), Usage::default());
        self.say(FromExecutor::Outcome { run, exit_code: None, failure, usage, result: None }, out);
    }

    fn check(&self, module: ModuleId, slots: &[u32]) -> Result<(), String> {
        if !self.modules.contains(&module) && !self.loading.contains(&module) {
            return Err(format!("{module:?} is to run and is not loaded"));
        }
        let early = |s: &u32| self.early.values().flatten().any(|t| t.slot == *s);
        let taken = |s: &u32| self.tasks.values().any(|t| t.slot == *s) || early(s) || self.arrays.values().any(|a| a.has_slot(*s));
        if slots.iter().any(|s| *s >= self.slots || taken(s)) {
            return Err(format!("slots {slots:?} of {} are to run and do not exist or are taken", self.slots));
        }
        Ok(())
    }

    fn item_ended(&mut self, run: Run, slot: u32, item: u64, us: u64, rng: &mut Rng, out: &mut Vec<Action>) {
        let Some(array) = self.arrays.get_mut(&run) else { return };
        let Some(attempt) = array.take_out(slot, item) else { return };
        let failed = rng.chance(4);
        // The ledger is written before anybody is told.
        self.ledger.push(Entry { run, item, attempt, exit_code: Some(i32::from(failed)), failed });
        if failed {
            array.report.failed.push(ItemFailure { item, exit_code: Some(1), failure: None });
        } else {
            array.report.finished.insert(item);
        }
        array.report.usage.add(&Usage { cpu_us: us, wall_us: us, ..Usage::default() });
        array.fill_slots(run, rng, out);
        self.leave(run, out);
        let Some(array) = self.arrays.get_mut(&run) else { return };
        if array.should_report() {
            self.report(run, out);
        } else {
            array.set_timer(run, out);
        }
    }

    fn report(&mut self, run: Run, out: &mut Vec<Action>) {
        if let Some(array) = self.arrays.get_mut(&run) {
            let report = array.take_report();
            self.say(FromExecutor::Report { run, report }, out);
        }
    }

    /// Slots that find nothing after the end was announced are free, once everything about their items is said.
    fn leave(&mut self, run: Run, out: &mut Vec<Action>) {
        let Some(array) = self.arrays.get_mut(&run) else { return };
        let Some(slots) = array.leave() else { return };
        let report = array.take_report();
        if array.slots().is_empty() {
            self.arrays.remove(&run);
        }
        self.say(FromExecutor::Report { run, report }, out);
        self.say(FromExecutor::Ended { run, slots }, out);
    }
}
