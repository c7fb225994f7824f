//! A model of an executor process: loads modules, runs tasks and items for random times with random outcomes, obeys.
//!
//! It says what a real one says, when a real one says it: reports at low water, when nothing is left, when asked, and at
//! the latest after the interval that came with the lease.

use crate::rng::Rng;
use smalti_agent_core::{ArrayReport, Failure, FromExecutor, ItemFailure, ModuleId, Run, ToExecutor};
use smalti_types::{DurationMs, Isolation, Reason, TaskKey, Usage};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What happens inside an executor.
#[derive(Debug)]
pub(crate) enum Inside {
    Told(ToExecutor),
    ModuleLoaded(ModuleId),
    TaskStarted(Run),
    TaskEnded(Run),
    TaskKilled(Run),
    ItemEnded { run: Run, slot: u32, item: u64, us: u64 },
    ReportDue { run: Run, round: u64 },
    ArrayKilled(Run),
}

/// What an executor does next: say something, or let something happen after so many microseconds.
#[derive(Debug)]
pub(crate) enum Action {
    Say(FromExecutor),
    After(u64, Inside),
    /// A guest begins: the world counts how often.
    Starts(TaskKey),
}

#[derive(Debug)]
struct Array {
    /// What each slot runs.
    slots: BTreeMap<u32, Option<u64>>,
    queue: VecDeque<u64>,
    report: ArrayReport,
    report_when_left: u64,
    interval_us: u64,
    ending: bool,
    killed: bool,
    /// Counts reports: a timer of an earlier one is stale.
    round: u64,
    timer: bool,
    /// How long its items take, in microseconds.
    pace: u64,
}

/// One executor process.
#[derive(Debug)]
pub(crate) struct Executor {
    slots: u32,
    modules: BTreeSet<ModuleId>,
    /// Which slot each task runs in.
    tasks: BTreeMap<Run, u32>,
    arrays: BTreeMap<Run, Array>,
}

impl Executor {
    pub(crate) fn new(slots: u32) -> Self {
        Self { slots, modules: BTreeSet::new(), tasks: BTreeMap::new(), arrays: BTreeMap::new() }
    }

    /// Lets something happen. Errors are orders that make no sense: the agent's mistake.
    pub(crate) fn happen(&mut self, inside: Inside, rng: &mut Rng) -> Result<Vec<Action>, String> {
        let mut out = Vec::new();
        match inside {
            Inside::Told(message) => self.told(message, rng, &mut out)?,
            Inside::ModuleLoaded(module) => {
                let failure = rng.chance(3).then(|| Failure::new(Reason::MissingImport, "it imports what nobody has"));
                if failure.is_none() {
                    self.modules.insert(module);
                }
                out.push(Action::Say(FromExecutor::ModuleLoaded { module, failure }));
            }
            Inside::TaskStarted(run) if self.tasks.contains_key(&run) => out.push(Action::Say(FromExecutor::Started { run })),
            Inside::TaskEnded(run) if self.tasks.remove(&run).is_some() => {
                let (exit_code, failure) = match rng.below(20) {
                    0 => (None, Some(Failure::new(Reason::Trap, "unreachable"))),
                    1 | 2 => (Some(3), None),
                    _ => (Some(0), None),
                };
                out.push(Action::Say(outcome(run, exit_code, failure)));
            }
            Inside::TaskKilled(run) if self.tasks.remove(&run).is_some() => {
                out.push(Action::Say(outcome(run, None, Some(Failure::new(Reason::KilledByRequest, "killed")))));
            }
            Inside::TaskStarted(_) | Inside::TaskEnded(_) | Inside::TaskKilled(_) => {}
            Inside::ItemEnded { run, slot, item, us } => {
                if let Some(array) = self.arrays.get_mut(&run) {
                    array.item_ended(run, slot, item, us, rng, &mut out);
                }
            }
            Inside::ReportDue { run, round } => {
                if let Some(array) = self.arrays.get_mut(&run).filter(|a| a.round == round) {
                    array.say(run, &mut out);
                }
            }
            Inside::ArrayKilled(run) => {
                if let Some(array) = self.arrays.get_mut(&run) {
                    array.kill(run, &mut out);
                }
            }
        }
        self.arrays.retain(|_, a| !a.slots.is_empty());
        Ok(out)
    }

    fn told(&mut self, message: ToExecutor, rng: &mut Rng, out: &mut Vec<Action>) -> Result<(), String> {
        match message {
            ToExecutor::LoadModule { module, .. } => out.push(Action::After(rng.between(200, 20_000), Inside::ModuleLoaded(module))),
            ToExecutor::UnloadModule { module } => {
                if !self.modules.remove(&module) {
                    return Err(format!("{module:?} is to be unloaded and is not loaded"));
                }
            }
            ToExecutor::StartTask { run, slot, module, key, .. } => {
                self.check(module, &[slot])?;
                self.tasks.insert(run, slot);
                out.push(Action::Starts(key));
                out.push(Action::After(rng.between(10, 500), Inside::TaskStarted(run)));
                let long = if rng.chance(10) { 5_000_000 } else { 300_000 };
                out.push(Action::After(rng.between(600, long), Inside::TaskEnded(run)));
            }
            ToExecutor::StartArray { run, slots, module, key, launch, .. } => {
                self.check(module, &slots)?;
                // In class `process` each item's executor is told.
                if launch.template.spec.isolation == Isolation::Instance {
                    out.push(Action::Starts(key));
                }
                let pace = if rng.chance(30) { 200_000 } else { 5_000 };
                self.arrays.insert(run, Array::new(slots, pace));
            }
            ToExecutor::Lease { run, items, report_when_left, report_interval_us, .. } => {
                if let Some(array) = self.arrays.get_mut(&run) {
                    array.queue.extend(items.iter());
                    (array.report_when_left, array.interval_us) = (report_when_left, report_interval_us);
                    array.fill_slots(run, rng, out);
                }
            }
            ToExecutor::Unlease { run, most } => {
                if let Some(array) = self.arrays.get_mut(&run) {
                    for _ in 0..most {
                        let Some(item) = array.queue.pop_back() else { break };
                        array.report.returned.insert(item);
                    }
                    array.say(run, out);
                }
            }
            ToExecutor::EndArray { run, .. } => {
                if let Some(array) = self.arrays.get_mut(&run) {
                    array.ending = true;
                    array.leave(run, out);
                }
            }
            // It numbers nothing and runs nothing exclusive.
            ToExecutor::Confirm { .. } | ToExecutor::Renew { .. } => {}
            ToExecutor::Kill { run, grace } => {
                let after = rng.below(DurationMs(grace.0.min(300)).0 * 1_000 + 100);
                let what = if self.arrays.contains_key(&run) { Inside::ArrayKilled(run) } else { Inside::TaskKilled(run) };
                out.push(Action::After(after, what));
            }
        }
        Ok(())
    }

    fn check(&self, module: ModuleId, slots: &[u32]) -> Result<(), String> {
        if !self.modules.contains(&module) {
            return Err(format!("{module:?} is to run and is not loaded"));
        }
        let taken = |s: &u32| self.tasks.values().any(|t| t == s) || self.arrays.values().any(|a| a.slots.contains_key(s));
        if slots.iter().any(|s| *s >= self.slots || taken(s)) {
            return Err(format!("slots {slots:?} of {} are to run and do not exist or are taken", self.slots));
        }
        Ok(())
    }
}

fn outcome(run: Run, exit_code: Option<i32>, failure: Option<Failure>) -> FromExecutor {
    let usage = Usage { cpu_us: 10, wall_us: 20, ..Usage::default() };
    FromExecutor::Outcome { run, exit_code, failure, usage, result: None }
}

impl Array {
    fn new(slots: Vec<u32>, pace: u64) -> Self {
        Self {
            slots: slots.into_iter().map(|s| (s, None)).collect(),
            queue: VecDeque::new(),
            report: ArrayReport::default(),
            report_when_left: 0,
            interval_us: 0,
            ending: false,
            killed: false,
            round: 0,
            timer: false,
            pace,
        }
    }

    fn fill_slots(&mut self, run: Run, rng: &mut Rng, out: &mut Vec<Action>) {
        for (slot, runs) in &mut self.slots {
            if runs.is_none() && !self.killed {
                let Some(item) = self.queue.pop_front() else { break };
                *runs = Some(item);
                let us = rng.between(50, self.pace);
                out.push(Action::After(us, Inside::ItemEnded { run, slot: *slot, item, us }));
            }
        }
        self.leave(run, out);
    }

    fn item_ended(&mut self, run: Run, slot: u32, item: u64, us: u64, rng: &mut Rng, out: &mut Vec<Action>) {
        let Some(runs) = self.slots.get_mut(&slot).filter(|s| **s == Some(item)) else { return };
        *runs = None;
        if rng.chance(4) {
            self.report.failed.push(ItemFailure { item, exit_code: Some(1), failure: None });
        } else {
            self.report.finished.insert(item);
        }
        self.report.usage.add(&Usage { cpu_us: us, wall_us: us, ..Usage::default() });
        self.fill_slots(run, rng, out);
        let left = self.queue.len() as u64;
        if left == 0 || left <= self.report_when_left {
            self.say(run, out);
        } else if !self.timer {
            self.timer = true;
            out.push(Action::After(self.interval_us, Inside::ReportDue { run, round: self.round }));
        }
    }

    fn say(&mut self, run: Run, out: &mut Vec<Action>) {
        let mut report = std::mem::take(&mut self.report);
        report.unstarted = self.queue.len() as u64;
        report.busy = u32::try_from(self.slots.values().flatten().count()).unwrap_or(u32::MAX);
        self.round += 1;
        self.timer = false;
        out.push(Action::Say(FromExecutor::Report { run, report }));
    }

    /// Slots that find nothing after the end was announced are free, once everything about their items is said.
    fn leave(&mut self, run: Run, out: &mut Vec<Action>) {
        let idle: Vec<u32> = self.slots.iter().filter(|(_, item)| item.is_none()).map(|(slot, _)| *slot).collect();
        if !self.ending || !self.queue.is_empty() || idle.is_empty() {
            return;
        }
        self.say(run, out);
        self.slots.retain(|_, item| item.is_some());
        out.push(Action::Say(FromExecutor::Ended { run, slots: idle }));
    }

    fn kill(&mut self, run: Run, out: &mut Vec<Action>) {
        self.killed = true;
        self.ending = true;
        let waiting: Vec<u64> = self.queue.drain(..).collect();
        waiting.into_iter().for_each(|item| self.report.returned.insert(item));
        for item in self.slots.values_mut().filter_map(Option::take) {
            let failure = Some(Failure::new(Reason::KilledByRequest, "killed"));
            self.report.failed.push(ItemFailure { item, exit_code: None, failure });
        }
        self.leave(run, out);
    }
}
