//! From prepared to started: slots, executors, code.
//!
//! Owns the order of things before a guest runs. Nothing here waits for a timer: each step follows from the event that allows it.

use crate::agent::{Agent, Out, task_memory};
use crate::event::{Failure, Message, Run, ToExecutor};
use crate::executor::{self, Executor, Need};
use crate::executors::Pool;
use crate::lanes::Lanes;
use crate::parameters::ExecutorKind;
use crate::record::Record;
use crate::task::{Ending, Phase, Place, Task, Work};
use smalti_types::{Digest, DurationMs, ExecutorId, FrameworkId, ItemSet, Reason, Sabotage, TaskState, Time};

/// How long after its time limit and grace a task's executor is ended: the last resort, with room for a machine under load.
const OVERDUE_MARGIN: DurationMs = DurationMs(30_000);

impl Agent {
    pub(crate) fn prepared(&mut self, now: Time, run: Run, result: Result<Digest, Failure>, out: &mut Out) {
        // A cancelled preparation may still have answered.
        let Some(task) = self.tasks.get_mut(&run).filter(|t| t.phase == Phase::Preparing || t.unprepared) else {
            return;
        };
        if std::mem::take(&mut task.unprepared) {
            return self.prepared_again(now, run, result, out);
        }
        task.phase = Phase::Waiting;
        // What is fetched needs no word about how far it is.
        match &mut task.work {
            Work::Single(single) => single.progress = None,
            Work::Part(part) => part.fetching = None,
        }
        match result {
            Ok(digest) => {
                task.digest = Some(digest);
                if task.kind.is_used_once() {
                    return self.prepared_process(now, run, out);
                }
                let framework = task.key.framework.clone();
                self.waiting.entry(framework.clone()).or_default().push_back(run);
                self.to_place.insert(framework);
            }
            Err(failure) => {
                if let Work::Part(part) = &mut task.work {
                    part.return_queue();
                }
                self.end(now, run, Ending::not_started(failure), out);
            }
        }
    }

    /// The same for a part of class `process` that goes on after a restart. Its items run on even if no other can be started.
    fn prepared_again(&mut self, now: Time, run: Run, result: Result<Digest, Failure>, out: &mut Out) {
        let Some(task) = self.tasks.get_mut(&run) else { return };
        self.dirty.insert(run);
        match (result, &mut task.work) {
            (Ok(digest), _) => task.digest = Some(digest),
            (Err(failure), Work::Part(part)) if !part.lanes.is_busy() => {
                part.return_queue();
                return self.end(now, run, Ending::not_started(failure), out);
            }
            (Err(_), Work::Part(part)) => part.return_queue(),
            (Err(_), Work::Single(_)) => {}
        }
        self.settle_lanes(now, run, out);
    }

    /// The same for class `process`.
    fn prepared_process(&mut self, now: Time, run: Run, out: &mut Out) {
        let most = self.parameters.most_processes.max(1);
        let Some(task) = self.tasks.get_mut(&run) else { return };
        match &mut task.work {
            Work::Single(_) => task.phase = Phase::Waiting,
            Work::Part(part) => {
                let beyond = part.slots.saturating_sub(most);
                if beyond > 0 {
                    let back = part.resources(beyond);
                    part.give_back(beyond);
                    self.held = self.held.checked_sub(&back).unwrap_or_default();
                }
                part.lanes = Lanes::new(part.slots);
                // It takes items from now on; each waits for its executor.
                part.start(now);
                task.phase = Phase::Spread;
                self.dirty.insert(run);
            }
        }
        self.queue_process(run);
        self.settle_lanes(now, run, out);
    }

    /// Gives slots to those of a framework that wait, in order.
    pub(crate) fn place(&mut self, now: Time, framework: &FrameworkId, out: &mut Out) {
        while let Some((run, waiting)) = self.waiting.get(framework).and_then(|q| Some((*q.front()?, q.len()))) {
            let Some(task) = self.tasks.get(&run) else { return };
            let most = self.parameters.most_slots_per_executor.max(1);
            let (need, memory) = (task.slots_needed().min(most), task_memory(task));
            let found = match self.pool.with_free(framework, need) {
                Some(executor) => Some((executor, need)),
                None if self.pool.awaits(framework, waiting) => None,
                None if !self.losses.may_start(now, framework) => None,
                None => match self.slots_to_start(framework, need) {
                    Some(slots) => {
                        self.start_executor(now, framework, slots, memory.saturating_mul(u64::from(need)), out);
                        None
                    }
                    None => self.make_room(now, framework, out),
                },
            };
            let Some((executor, slots)) = found else { return };
            self.leave_queue(framework);
            self.reserve(now, run, &executor, slots, out);
        }
    }

    fn leave_queue(&mut self, framework: &FrameworkId) {
        if let Some(queue) = self.waiting.get_mut(framework) {
            queue.pop_front();
            if queue.is_empty() {
                self.waiting.remove(framework);
            }
        }
    }

    /// How many slots another executor of a framework gets, if there may be one with at least `need`.
    fn slots_to_start(&self, framework: &FrameworkId, need: u32) -> Option<u32> {
        let (all, own) = self.pool.slots(framework);
        let wanted = self.parameters.slots_per_executor.max(own.min(self.parameters.grown_slots)).max(need).max(1);
        let slots = wanted.min(self.parameters.most_slots.saturating_sub(all));
        (self.pool.count(false) < self.parameters.most_executors as usize && slots >= need.max(1)).then_some(slots)
    }

    fn start_executor(&mut self, now: Time, framework: &FrameworkId, slots: u32, memory: u64, out: &mut Out) {
        let (kind, framework) = (ExecutorKind::Shared, Some(framework.clone()));
        let starting = Executor::new(kind, framework.clone(), slots, memory, now);
        let memory = starting.limit();
        if let Some(executor) = self.pool.add(starting) {
            out.persist(self.numbers());
            out.send(Message::StartExecutor { executor, kind, framework, grant: None, slots, memory });
        }
    }

    /// The record of what is never given twice.
    pub(crate) const fn numbers(&self) -> Record {
        Record::Numbers { runs: self.next_run, executors: self.pool.started }
    }

    /// There may be no more executors: a part takes fewer slots, or somebody's idle executor has to go.
    fn make_room(&mut self, now: Time, framework: &FrameworkId, out: &mut Out) -> Option<(ExecutorId, u32)> {
        if let Some(found) = self.pool.with_most_free(framework) {
            return Some(found);
        }
        if let Some(executor) = self.pool.any_idle() {
            self.pool.stop(&executor, now);
            out.send(Message::StopExecutor { executor });
        }
        None
    }

    /// Takes the slots and sees to the code.
    fn reserve(&mut self, now: Time, run: Run, id: &ExecutorId, slots: u32, out: &mut Out) {
        let (Some(task), Some(executor)) = (self.tasks.get_mut(&run), self.pool.executors.get_mut(id)) else { return };
        let Some(digest) = task.digest else { return };
        let taken = executor.reserve(run, slots);
        if let Work::Part(part) = &mut task.work
            && part.slots > slots
        {
            let back = part.resources(part.slots - slots);
            part.give_back(part.slots - slots);
            self.held = self.held.checked_sub(&back).unwrap_or_default();
            self.dirty.insert(run);
        }
        let memory = task_memory(task) * u64::from(slots);
        let mut raised = executor.add_memory(memory, now);
        let fuel = task.fuel();
        let need = executor.need((digest, fuel), run);
        raised = executor.add_memory(0, now).or(raised);
        task.phase = Phase::Loading(Place { executor: id.clone(), slots: taken });
        if let Some(bytes) = raised {
            out.send(Message::SetExecutorMemory { executor: id.clone(), bytes });
        }
        let mut tell = |message| out.send(Message::ToExecutor { executor: id.clone(), message });
        match need {
            Need::Loaded(module) => self.start(now, run, module, out),
            Need::Wait => {}
            Need::Load(module, unload) => {
                self.pool.touched.insert(id.clone());
                if let Some(module) = unload {
                    tell(ToExecutor::UnloadModule { module });
                }
                tell(ToExecutor::LoadModule { module, run, fuel });
            }
        }
    }

    /// Its code is there: starts it.
    pub(crate) fn start(&mut self, now: Time, run: Run, module: crate::event::ModuleId, out: &mut Out) {
        let Some(task) = self.tasks.get(&run) else { return };
        let Phase::Loading(place) = &task.phase else { return };
        let place = place.clone();
        let lease_until = if task.is_exclusive() {
            let until = self.lease_for(now, run);
            if until.is_none() {
                return;
            }
            until
        } else {
            None
        };
        let Some(task) = self.tasks.get_mut(&run) else { return };
        let Some(executor) = self.pool.executors.get_mut(&place.executor) else { return };
        let cpus = task.cpus();
        for slot in &place.slots {
            if executor.set_cpus(*slot, cpus) {
                out.send(Message::SetSlotCpus { executor: place.executor.clone(), slot: *slot, cpus });
            }
        }
        let key = task.key.clone();
        let message = match &mut task.work {
            Work::Single(single) => {
                let limits = &single.launch.spec.limits;
                task.overdue = limits.timeout.map(|t| now.after(t).after(limits.grace).after(OVERDUE_MARGIN));
                single.began = Some(now);
                task.phase = Phase::Starting(place.clone());
                let slot = place.slots.first().copied().unwrap_or_default();
                ToExecutor::StartTask { run, slot, module, key, launch: single.launch.clone(), lease_until }
            }
            Work::Part(part) => {
                part.start(now);
                task.phase = Phase::Running(place.clone());
                let (slots, segments) = (place.slots.clone(), place.slots.clone());
                ToExecutor::StartArray { run, slots, segments, module, key, launch: part.launch.clone() }
            }
        };
        out.send(Message::ToExecutor { executor: place.executor, message });
        self.dirty.insert(run);
        self.feed(now, run, out);
        self.end_if_exhausted(now, run, out);
    }

    /// Lets the splits of a part's next items be fetched, and gives up those of items that have ended.
    /// Called before items are leased, because some need no fetch, and at the end of a step, because some have been.
    pub(crate) fn see_to_splits(pool: &Pool, run: Run, task: &mut Task, out: &mut Out) {
        let Work::Part(part) = &mut task.work else { return };
        if part.pieces.ready().is_none() {
            return;
        }
        let goes_on = match &task.phase {
            // Before it has said what it holds, it may have ended.
            Phase::Running(place) => !pool.executors.get(&place.executor).is_some_and(Executor::is_coming_back),
            Phase::Spread => !task.unprepared,
            _ => false,
        };
        if !goes_on {
            return;
        }
        let items = part.take_gone_splits();
        if !items.is_empty() {
            out.send(Message::DropSplits { run, items });
        }
        let wanted = part.take_wanted_splits();
        if !wanted.is_empty() {
            out.send(Message::FetchSplits { run, key: task.key.clone(), role: task.role.clone(), wanted });
        }
    }

    pub(crate) fn splits_there(&mut self, now: Time, run: Run, items: &ItemSet, out: &mut Out) {
        let Some(Work::Part(part)) = self.tasks.get_mut(&run).map(|t| &mut t.work) else { return };
        part.pieces.arrived(items);
        self.dirty.insert(run);
        self.feed(now, run, out);
    }

    /// Leases items to a running part's executor, and tells it when none will follow.
    pub(crate) fn feed(&mut self, now: Time, run: Run, out: &mut Out) {
        let Some(task) = self.tasks.get_mut(&run) else { return };
        Self::see_to_splits(&self.pool, run, task, out);
        if task.phase == Phase::Spread {
            return self.queue_process(run);
        }
        let Phase::Running(place) = &task.phase else { return };
        // What it holds was counted before it gets another lease, and would be compared with what is leased after that.
        if self.pool.executors.get(&place.executor).is_some_and(Executor::is_coming_back) && !Sabotage::AgentLeasesBeforeHolds.is_on() {
            return;
        }
        let Work::Part(part) = &mut task.work else { return };
        let mut tell = |message| out.send(Message::ToExecutor { executor: place.executor.clone(), message });
        for lease in part.take_leases(now) {
            let splits = lease.batch.hand_out.splits_of(&lease.batch.items);
            tell(ToExecutor::Lease {
                run,
                items: lease.batch.items,
                attempt: lease.batch.hand_out.attempt,
                splits,
                report_when_left: lease.report_when_left,
                report_interval_us: lease.report_interval_us,
            });
        }
        if part.is_drained() && !part.ending {
            part.ending = true;
            tell(ToExecutor::EndArray { run, slots: place.slots.clone() });
        }
    }

    /// A part that has nothing left ends at once, if no executor has begun with it.
    pub(crate) fn end_if_exhausted(&mut self, now: Time, run: Run, out: &mut Out) {
        let Some(task) = self.tasks.get(&run) else { return };
        if task.phase == Phase::Spread {
            return self.settle_lanes(now, run, out);
        }
        let Work::Part(part) = &task.work else { return };
        if !part.is_exhausted() {
            return;
        }
        if matches!(task.phase, Phase::Preparing | Phase::Waiting | Phase::Loading(_)) {
            self.end(now, run, Ending::new(TaskState::Finished, Reason::None, ""), out);
        }
    }

    pub(crate) fn executor_started(&mut self, now: Time, id: &ExecutorId, slots: u32, cpu_us: Option<u64>, out: &mut Out) {
        let Some(executor) = self.pool.executors.get_mut(id).filter(|e| e.phase == executor::Phase::Starting) else {
            self.counters.ignore_executor(1);
            return;
        };
        executor.phase = executor::Phase::Up;
        executor.idle_since = now;
        self.pool.touched.insert(id.clone());
        let asked = executor.slots.len();
        match &executor.framework {
            Some(framework) if executor.kind == ExecutorKind::Shared => drop(self.to_place.insert(framework.clone())),
            _ => self.process_started(cpu_us),
        }
        if asked != slots as usize {
            self.end_executor(now, id, format!("it was asked for {asked} slots and has {slots}"), out);
        }
    }

    pub(crate) fn executor_failed(&mut self, now: Time, id: &ExecutorId, why: Failure, out: &mut Out) {
        if self.pool.executors.get(id).is_some_and(|e| e.phase != executor::Phase::Starting) {
            return self.executor_exited(now, id, &why.message, false, out);
        }
        let Some(executor) = self.pool.executors.remove(id) else { return };
        if executor.kind.is_used_once() {
            return self.process_failed(now, &executor, why, out);
        }
        let waiting = executor.framework.as_ref().and_then(|f| self.waiting.get(f)).cloned().unwrap_or_default();
        for run in waiting {
            let failure = Failure::new(Reason::LaunchFailed, format!("its executor could not be started: {}", why.message));
            if let Some(Work::Part(part)) = self.tasks.get_mut(&run).map(|t| &mut t.work) {
                part.return_queue();
            }
            self.end(now, run, Ending::not_started(failure), out);
        }
        self.to_place.extend(self.waiting.keys().cloned());
    }
}
