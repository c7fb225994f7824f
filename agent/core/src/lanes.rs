//! A part of class `process`: its slots are lanes, in which one executor after the other runs one item and goes.
//!
//! Owns which executor has which item, and the numbers of the lanes: output files belong to a lane, and its executors append to
//! them one after the other. Items themselves are the part's (see `array`).

use crate::agent::{Agent, Out};
use crate::event::{ArrayReport, Failure, Message, ModuleId, Run, ToExecutor};
use crate::queue::Batch;
use crate::record::{LaneState, LanesState};
use crate::task::{Ending, Phase, Task, Work};
use smalti_types::{ExecutorId, ItemSet, Reason, TaskState, Time, Usage};
use std::collections::{BTreeMap, BTreeSet};

/// How long an executor of one item may keep back what it has to say about it.
const REPORT_INTERVAL_US: u64 = 1_000;

/// An executor with its one item.
#[derive(Debug)]
struct Lane {
    number: u32,
    item: u64,
    /// Taken when the item is started: until then its code is being loaded.
    batch: Option<Batch>,
    /// Since when the item runs.
    began: Option<Time>,
    /// What the item has used so far, as its executor says.
    usage: Usage,
}

impl Lane {
    fn state(&self, id: &ExecutorId) -> LaneState {
        LaneState { executor: id.clone(), number: self.number, item: self.item, started: self.batch.is_none() }
    }
}

/// The lanes of one part. Invariant: each number is free or has an executor.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    free: BTreeSet<u32>,
    busy: BTreeMap<ExecutorId, Lane>,
}

impl Lanes {
    /// `n` lanes, all free.
    pub(crate) fn new(n: u32) -> Self {
        Self { free: (0..n).collect(), busy: BTreeMap::new() }
    }

    /// Free and busy ones.
    pub(crate) fn len(&self) -> usize {
        self.free.len() + self.busy.len()
    }

    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn is_busy(&self) -> bool {
        !self.busy.is_empty()
    }

    pub(crate) fn has(&self, id: &ExecutorId) -> bool {
        self.busy.contains_key(id)
    }

    pub(crate) fn executors(&self) -> impl Iterator<Item = &ExecutorId> {
        self.busy.keys()
    }

    pub(crate) fn into_executors(self) -> Vec<ExecutorId> {
        self.busy.into_keys().collect()
    }

    pub(crate) fn items(&self) -> impl Iterator<Item = u64> + '_ {
        self.busy.values().map(|lane| lane.item)
    }

    /// Takes in what an executor says that its item has used so far; the sum over all.
    pub(crate) fn note_usage(&mut self, id: &ExecutorId, usage: &Usage) -> Usage {
        if let Some(lane) = self.busy.get_mut(id) {
            lane.usage = *usage;
        }
        let mut sum = Usage::default();
        self.busy.values().for_each(|lane| sum.add(&lane.usage));
        sum
    }

    /// Since when an executor's item runs, and how much processor time it has used.
    fn used(&self, id: &ExecutorId) -> Option<(Time, u64)> {
        self.busy.get(id).and_then(|lane| Some((lane.began?, lane.usage.cpu_us)))
    }

    /// Puts an executor with an item into the lowest free lane.
    fn take(&mut self, id: ExecutorId, batch: Batch) {
        if let (Some(number), Some(item)) = (self.free.pop_first(), batch.items.first()) {
            self.busy.insert(id, Lane { number, item, batch: Some(batch), began: None, usage: Usage::default() });
        }
    }

    /// The executor is gone: the item that it had, and whether that was started.
    fn leave(&mut self, id: &ExecutorId) -> Option<(u64, bool)> {
        let lane = self.busy.remove(id)?;
        self.free.insert(lane.number);
        Some((lane.item, lane.batch.is_none()))
    }

    /// Its record; `None` while it has no lanes.
    pub(crate) fn state(&self) -> Option<LanesState> {
        let busy = self.busy.iter().map(|(id, lane)| lane.state(id));
        (self.len() > 0).then(|| LanesState { free: self.free.iter().copied().collect(), busy: busy.collect() })
    }

    /// Whether [`Self::state`] would be this.
    pub(crate) fn is_recorded(&self, state: Option<&LanesState>) -> bool {
        let Some(state) = state else { return self.len() == 0 };
        self.len() > 0
            && self.free.iter().eq(&state.free)
            && self.busy.len() == state.busy.len()
            && self.busy.iter().zip(&state.busy).all(|((id, lane), told)| {
                (lane.number, lane.item, lane.batch.is_none()) == (told.number, told.item, told.started) && *id == told.executor
            })
    }

    /// Lanes as a record describes them. Only those that were told to start are busy: the others' items are the caller's to queue.
    pub(crate) fn restore(state: Option<LanesState>) -> Self {
        let Some(LanesState { free, busy }) = state else { return Self::default() };
        let mut lanes = Self { free: free.into_iter().collect(), busy: BTreeMap::new() };
        for lane in busy {
            if lane.started {
                let item = Lane { number: lane.number, item: lane.item, batch: None, began: None, usage: Usage::default() };
                lanes.busy.insert(lane.executor, item);
            } else {
                lanes.free.insert(lane.number);
            }
        }
        lanes
    }

    /// The lane of an executor, and its item.
    pub(crate) fn lane_of(&self, id: &ExecutorId) -> Option<(u32, u64)> {
        self.busy.get(id).map(|lane| (lane.number, lane.item))
    }

    /// The item of an executor.
    pub(crate) fn item_of(&self, id: &ExecutorId) -> Option<u64> {
        self.busy.get(id).map(|lane| lane.item)
    }

    /// Free lanes that are given back.
    fn close_free(&mut self) -> u32 {
        let n = u32::try_from(self.free.len()).unwrap_or(u32::MAX);
        self.free.clear();
        n
    }
}

impl Agent {
    /// Gives an executor the part's next item. False when there is none.
    pub(crate) fn take_lane(&mut self, run: Run, id: &ExecutorId) -> bool {
        let Some(Task { phase: Phase::Spread, work: Work::Part(part), .. }) = self.tasks.get_mut(&run) else { return false };
        if part.lanes.free() == 0 {
            return false;
        }
        let Some(batch) = part.lease_one() else { return false };
        part.lanes.take(id.clone(), batch);
        true
    }

    /// The code of an item is there: starts it.
    pub(crate) fn start_lane(&mut self, now: Time, run: Run, id: &ExecutorId, module: ModuleId, out: &mut Out) {
        self.dirty.insert(run);
        let Some(task) = self.tasks.get_mut(&run) else { return };
        let (cpus, key) = (task.cpus(), task.key.clone());
        let Work::Part(part) = &mut task.work else { return };
        let Some(lane) = part.lanes.busy.get_mut(id) else { return };
        let Some(batch) = lane.batch.take() else { return };
        lane.began = Some(now);
        let segments = vec![lane.number];
        let launch = part.launch.clone();
        if self.pool.executors.get_mut(id).is_some_and(|e| e.set_cpus(0, cpus)) {
            out.send(Message::SetSlotCpus { executor: id.clone(), slot: 0, cpus });
        }
        let mut tell = |message| out.send(Message::ToExecutor { executor: id.clone(), message });
        tell(ToExecutor::StartArray { run, slots: vec![0], segments, module, key, launch });
        let splits = batch.hand_out.splits_of(&batch.items);
        tell(ToExecutor::Lease {
            run,
            items: batch.items,
            attempt: batch.hand_out.attempt,
            splits,
            report_when_left: 0,
            report_interval_us: REPORT_INTERVAL_US,
        });
    }

    /// What the executor of an item says about it. About others it has nothing to say.
    pub(crate) fn lane_report(&mut self, now: Time, id: &ExecutorId, run: Run, mut report: ArrayReport, out: &mut Out) {
        let Some(task) = self.tasks.get_mut(&run) else { return };
        let killing = task.kill.is_some();
        let Work::Part(part) = &mut task.work else { return };
        let Some(lane) = part.lanes.busy.get_mut(id) else { return };
        lane.usage.cpu_us = lane.usage.cpu_us.max(report.usage.cpu_us);
        let (item, started) = (lane.item, lane.batch.is_none());
        let stated = report.finished.len().saturating_add(report.failed.len() as u64).saturating_add(report.returned.len());
        let only = if started { ItemSet::range(item, item + 1) } else { ItemSet::default() };
        report.finished = report.finished.intersection(&only);
        report.failed.retain(|f| only.contains(f.item));
        report.returned = report.returned.intersection(&only);
        report.results.retain(|(i, _)| only.contains(*i));
        let kept = report.finished.len() + report.failed.len() as u64 + report.returned.len();
        let (finished, ignored) = part.report(report, killing);
        let over = !part.is_leased(item);
        self.counters.items_finished = self.counters.items_finished.saturating_add(finished);
        self.counters.ignore_executor(ignored.saturating_add(stated - kept));
        self.dirty.insert(run);
        if over {
            self.leave_lane(now, run, id, out);
            self.settle_lanes(now, run, out);
        }
    }

    /// The executor of an item is gone, or has to go, before it said what became of the item.
    pub(crate) fn lane_failed(&mut self, now: Time, run: Run, id: &ExecutorId, failure: &Failure, out: &mut Out) {
        let Some(task) = self.tasks.get(&run) else { return };
        let state = if task.kill.is_some() { TaskState::Killed } else { TaskState::Failed };
        if let Some((item, _)) = self.leave_lane(now, run, id, out)
            && let Some(Work::Part(part)) = self.tasks.get_mut(&run).map(|t| &mut t.work)
        {
            part.abandon_one(item, state, failure);
        }
        self.dirty.insert(run);
        self.settle_lanes(now, run, out);
    }

    /// The code of an item cannot be loaded, or no executor can be started: that is so for all items of the part.
    pub(crate) fn lanes_cannot_start(&mut self, now: Time, run: Run, failure: Failure, out: &mut Out) {
        self.close_lanes(now, run, out);
        let Some(Work::Part(part)) = self.tasks.get_mut(&run).map(|t| &mut t.work) else { return };
        part.abandon(TaskState::Failed, &failure);
        self.end(now, run, Ending::not_started(failure), out);
    }

    /// Gives back lanes that nothing will run in, and ends the part with the last of them.
    pub(crate) fn settle_lanes(&mut self, now: Time, run: Run, out: &mut Out) {
        let Some(task) = self.tasks.get_mut(&run).filter(|t| t.phase == Phase::Spread) else { return };
        let killing = task.kill.is_some();
        let Work::Part(part) = &mut task.work else { return };
        self.processes.touch();
        if !killing && (part.open || !part.queue.is_empty()) {
            return self.feed(now, run, out);
        }
        if part.lanes.is_busy() {
            let n = part.lanes.close_free();
            if n > 0 {
                let back = part.resources(n);
                part.give_back(n);
                self.held = self.held.checked_sub(&back).unwrap_or_default();
                self.dirty.insert(run);
            }
            return;
        }
        let ending = if killing { Ending::killed() } else { Ending::new(TaskState::Finished, Reason::None, "") };
        self.end(now, run, ending, out);
    }

    /// Executors that have not begun go at once, and their items back; the others are told. The part ends with the last of them.
    pub(crate) fn kill_lanes(&mut self, now: Time, run: Run, grace: smalti_types::DurationMs, out: &mut Out) {
        let Some(Task { work: Work::Part(part), .. }) = self.tasks.get_mut(&run) else { return };
        let lanes = part.lanes.busy.iter();
        let (begun, not): (Vec<_>, Vec<_>) = lanes.map(|(id, lane)| (id.clone(), lane.batch.is_none())).partition(|(_, begun)| *begun);
        for (id, _) in not {
            if let Some((item, _)) = self.leave_lane(now, run, &id, out)
                && let Some(Work::Part(part)) = self.tasks.get_mut(&run).map(|t| &mut t.work)
            {
                part.return_one(item);
            }
        }
        for (executor, _) in begun {
            out.send(Message::ToExecutor { executor, message: ToExecutor::Kill { run, grace } });
        }
        self.settle_lanes(now, run, out);
    }

    /// Ends the executors of all lanes. Items that were not started go back; what the others did is not known.
    pub(crate) fn close_lanes(&mut self, now: Time, run: Run, out: &mut Out) {
        let Some(Task { work: Work::Part(part), .. }) = self.tasks.get_mut(&run) else { return };
        let ids: Vec<ExecutorId> = part.lanes.executors().cloned().collect();
        for id in ids {
            if let Some((item, false)) = self.leave_lane(now, run, &id, out)
                && let Some(Work::Part(part)) = self.tasks.get_mut(&run).map(|t| &mut t.work)
            {
                part.return_one(item);
            }
        }
        if let Some(Work::Part(part)) = self.tasks.get_mut(&run).map(|t| &mut t.work) {
            part.return_queue();
        }
    }

    /// An executor leaves its lane, and ends if it has not: it is used.
    pub(crate) fn leave_lane(&mut self, now: Time, run: Run, id: &ExecutorId, out: &mut Out) -> Option<(u64, bool)> {
        let Some(Task { work: Work::Part(part), .. }) = self.tasks.get_mut(&run) else { return None };
        let used = part.lanes.used(id);
        let left = part.lanes.leave(id)?;
        if let Some((began, cpu_us)) = used {
            self.process_used(now, run, began, cpu_us);
        }
        self.dirty.insert(run);
        self.discard(now, id, out);
        Some(left)
    }
}
