//! After a restart: what was not in an executor yet is prepared again, and executors that were found again say what they hold.
//!
//! Owns the comparison of what an executor holds with what the agent believes. Numbered messages come first, so what is neither held nor
//! ended by one of them never arrived, and never ran. Deliberately absent: finding executors (the shell's).

use crate::agent::{Agent, Out, task_memory};
use crate::event::{Failure, FromExecutor, HeldPart, Message, ModuleId, Run, ToExecutor};
use crate::exclusive::unstarted;
use crate::executor::Phase as ExecutorPhase;
use crate::task::{Ending, Phase, Work};
use smalti_types::{DurationMs, Effects, ExecutorId, ItemSet, Reason, Sabotage, TaskState, Time};
use std::collections::{BTreeMap, BTreeSet};

/// An executor that says what nobody should forget out of order.
const GAP: &str = "it left out a message";

impl Agent {
    /// The first step of an agent that was restored: what has to be prepared again.
    pub fn resume(&mut self, now: Time) -> Effects<crate::Record, Message> {
        let mut out = Out::default();
        self.drop_unstarted(now, &mut out);
        let again: Vec<Run> = self.tasks.iter().filter(|(_, t)| t.phase == Phase::Preparing || t.unprepared).map(|(run, _)| *run).collect();
        for run in again {
            self.prepare(run, &mut out);
            self.end_if_exhausted(now, run, &mut out);
        }
        for executor in self.pool.executors.values_mut() {
            executor.idle_since = now;
        }
        self.finish_step(now, &mut out);
        out
    }

    /// Executors of an earlier life that have to be found: each is answered with `ExecutorBack` or `ExecutorExited`.
    pub fn to_find(&self) -> impl Iterator<Item = &ExecutorId> {
        self.pool.executors.iter().filter(|(_, e)| e.phase == ExecutorPhase::Away).map(|(id, _)| id)
    }

    /// The last number of an executor's messages whose effects are kept.
    #[must_use]
    pub fn heard(&self, id: &ExecutorId) -> u64 {
        self.pool.executors.get(id).map_or(0, |e| e.heard)
    }

    pub(crate) fn executor_back(&mut self, now: Time, id: &ExecutorId, slots: u32, out: &mut Out) {
        let Some(executor) = self.pool.executors.get_mut(id).filter(|e| e.phase == ExecutorPhase::Away) else {
            self.counters.ignore_executor(1);
            return;
        };
        executor.phase = ExecutorPhase::Back;
        executor.idle_since = now;
        let had = executor.slots.len();
        if executor.recorded.as_ref().is_some_and(|r| r.stopping) {
            // It was told to end; perhaps it did not hear that.
            self.end_executor(now, id, "it was to end before the agent was restarted".into(), out);
        } else if had != slots as usize {
            self.end_executor(now, id, format!("it had {had} slots and has {slots}"), out);
        }
    }

    /// Takes note of a number. `None`: the message is a repeat, or its executor is broken.
    pub(crate) fn hear(&mut self, now: Time, id: &ExecutorId, number: u64, out: &mut Out) -> Option<()> {
        if number == 0 {
            return Some(());
        }
        let executor = self.pool.executors.get_mut(id)?;
        if number <= executor.heard {
            return None;
        }
        if number > executor.heard + 1 {
            self.end_executor(now, id, GAP.into(), out);
            return None;
        }
        executor.heard = number;
        out.persist(crate::Record::Heard { executor: id.clone(), number });
        out.send(Message::ToExecutor { executor: id.clone(), message: ToExecutor::Confirm { number } });
        Some(())
    }

    /// Compares what an executor has with what is believed of it.
    pub(crate) fn holds(&mut self, now: Time, id: &ExecutorId, message: FromExecutor, out: &mut Out) {
        let FromExecutor::Holds { modules, tasks, parts } = message else { return };
        let Some(executor) = self.pool.executors.get_mut(id).filter(|e| e.phase == ExecutorPhase::Back) else {
            self.counters.ignore_executor(1);
            return;
        };
        executor.phase = ExecutorPhase::Up;
        let known: BTreeSet<Run> = executor.slots.iter().filter_map(|s| s.run).collect();
        let bytes = executor.back(modules.len(), now);
        out.send(Message::SetExecutorMemory { executor: id.clone(), bytes });
        for module in &modules {
            out.send(Message::ToExecutor { executor: id.clone(), message: ToExecutor::UnloadModule { module: *module } });
        }
        let tasks: BTreeSet<Run> = tasks.into_iter().collect();
        let parts: BTreeMap<Run, HeldPart> = parts.into_iter().map(|p| (p.run, p)).collect();
        for run in tasks.iter().chain(parts.keys()).filter(|run| !known.contains(run)) {
            let message = ToExecutor::Kill { run: *run, grace: DurationMs(0) };
            out.send(Message::ToExecutor { executor: id.clone(), message });
        }
        for run in known {
            let Some(task) = self.tasks.get(&run) else { continue };
            match (&task.work, &task.phase) {
                (Work::Single(_), _) if tasks.contains(&run) => self.still_held(run, id, out),
                (Work::Single(_), _) => self.never_arrived(now, run, id, out),
                (Work::Part(_), Phase::Spread) => self.lane_holds(now, run, id, parts.get(&run), out),
                (Work::Part(_), _) => match parts.get(&run) {
                    Some(held) => self.part_holds(now, run, id, held, out),
                    None => self.never_arrived(now, run, id, out),
                },
            }
        }
        let executor = self.pool.executors.get(id).filter(|e| e.is_idle());
        match executor {
            // What it was started with is gone with the life that started it.
            Some(executor) if executor.kind.is_used_once() => self.discard(now, id, out),
            Some(executor) => self.to_place.extend(executor.framework.clone()),
            None => {}
        }
        self.to_place.extend(self.waiting.keys().cloned());
        self.processes.touch();
    }

    /// A run goes on in its executor: what may have been lost on its way is said again.
    fn still_held(&mut self, run: Run, id: &ExecutorId, out: &mut Out) {
        let mut tell = |message| out.send(Message::ToExecutor { executor: id.clone(), message });
        if let Some(message) = self.renew(run) {
            tell(message);
        }
        let Some(task) = self.tasks.get_mut(&run) else { return };
        if let Some(kill) = task.kill {
            tell(ToExecutor::Kill { run, grace: kill.grace });
        }
        self.dirty.insert(run);
    }

    /// An attempt that its executor has not got: it is placed again, unless it had begun.
    fn never_arrived(&mut self, now: Time, run: Run, id: &ExecutorId, out: &mut Out) {
        let Some(task) = self.tasks.get_mut(&run).filter(|_| !Sabotage::AgentAwaitsWhatNeverArrived.is_on()) else { return };
        let begun = matches!((&task.phase, &task.work), (Phase::Running(_), Work::Single(_)));
        if task.is_exclusive() && !begun && task.kill.is_none() {
            return self.end(now, run, unstarted(), out);
        }
        if task.kill.is_some() {
            if let Work::Part(part) = &mut task.work {
                part.reset();
                part.return_queue();
            }
            return self.end(now, run, Ending::killed(), out);
        }
        if begun {
            self.counters.ignore_executor(1);
            let failure = Failure::new(Reason::ExecutorTerminated, "its executor said that it runs, and does not have it");
            return self.end(now, run, Ending::new(TaskState::Failed, failure.reason, failure.message), out);
        }
        let memory = task_memory(task);
        if task.kind.is_used_once() {
            task.phase = Phase::Preparing;
            self.discard(now, id, out);
        } else if let Phase::Starting(place) | Phase::Running(place) = std::mem::replace(&mut task.phase, Phase::Preparing)
            && let Some(executor) = self.pool.executors.get_mut(id)
        {
            executor.release(&place.slots, memory.saturating_mul(place.slots.len() as u64), now);
        }
        let Some(task) = self.tasks.get_mut(&run) else { return };
        task.overdue = None;
        match &mut task.work {
            Work::Single(single) => single.began = None,
            Work::Part(part) => part.reset(),
        }
        self.dirty.insert(run);
        self.prepare(run, out);
        self.end_if_exhausted(now, run, out);
    }

    /// A part of a shared executor: leases that never arrived are made again.
    fn part_holds(&mut self, now: Time, run: Run, id: &ExecutorId, held: &HeldPart, out: &mut Out) {
        let Some(task) = self.tasks.get_mut(&run) else { return };
        let killing = task.kill.is_some();
        let Work::Part(part) = &mut task.work else { return };
        let leased = part.leased_items();
        let lost = if Sabotage::AgentForgetsHeldItems.is_on() { leased.clone() } else { leased.difference(&held.items) };
        let foreign = held.items.difference(&leased).len();
        part.requeue(&lost);
        let ended = part.ending.then(|| match &task.phase {
            Phase::Running(place) => place.slots.clone(),
            _ => Vec::new(),
        });
        if killing {
            part.return_queue();
        } else if part.ending && !part.queue.is_empty() {
            // It cannot take them any more.
            part.return_queue();
        }
        self.counters.ignore_executor(foreign);
        self.still_held(run, id, out);
        if let Some(slots) = ended.filter(|_| !killing) {
            let message = ToExecutor::EndArray { run, slots };
            out.send(Message::ToExecutor { executor: id.clone(), message });
        }
        self.feed(now, run, out);
    }

    /// The executor of one item: it has the item, or the item is somebody else's.
    fn lane_holds(&mut self, now: Time, run: Run, id: &ExecutorId, held: Option<&HeldPart>, out: &mut Out) {
        let Some(Work::Part(part)) = self.tasks.get_mut(&run).map(|t| &mut t.work) else { return };
        let Some(item) = part.lanes.item_of(id) else { return };
        if held.is_some_and(|h| h.items.contains(item)) {
            return self.still_held(run, id, out);
        }
        part.requeue(&ItemSet::range(item, item + 1));
        // Nobody may start it again, or nobody can: its code could not be prepared once more.
        let is_over = self.tasks.get(&run).is_some_and(|t| t.kill.is_some() || (t.digest.is_none() && !t.unprepared));
        self.leave_lane(now, run, id, out);
        if is_over && let Some(Work::Part(part)) = self.tasks.get_mut(&run).map(|t| &mut t.work) {
            part.return_queue();
        }
        self.dirty.insert(run);
        self.settle_lanes(now, run, out);
    }

    /// Code of an earlier life that was on its way.
    pub(crate) fn forgotten_module(&mut self, id: &ExecutorId, module: ModuleId, loaded: bool, out: &mut Out) -> bool {
        let forgotten = self.pool.executors.get(id).is_some_and(|e| module.0 <= e.forgotten);
        if forgotten && loaded {
            out.send(Message::ToExecutor { executor: id.clone(), message: ToExecutor::UnloadModule { module } });
        }
        forgotten
    }
}
