//! What must hold after every event, walked over the whole state.
//!
//! Owns the checks only; tests and the simulation call them after each step. Nothing here repairs anything.

use crate::agent::{Agent, task_memory};
use crate::executor::{self, Executor};
use crate::parameters::ExecutorKind;
use crate::task::{Phase, Task, Work};
use smalti_types::{ExecutorId, Resources};
use std::collections::BTreeMap;

impl Agent {
    /// Checks the whole state.
    ///
    /// # Errors
    /// The first thing that does not hold, in words.
    pub fn check_invariants(&self) -> Result<(), String> {
        if self.keys.len() != self.tasks.len() {
            return Err(format!("{} keys for {} attempts", self.keys.len(), self.tasks.len()));
        }
        let mut held = Resources::default();
        for (run, task) in &self.tasks {
            let context = |e: String| format!("{} ({run:?}): {e}", task.key);
            if self.keys.get(&task.key) != Some(run) {
                return Err(context("its key does not lead to it".into()));
            }
            held = held.checked_add(&task.resources()).map_err(|e| context(e.to_string()))?;
            check_task(task).map_err(context)?;
            check_recorded(task).map_err(context)?;
            let queued = self.waiting.get(&task.key.framework).map_or(0, |q| q.iter().filter(|r| *r == run).count());
            if queued != usize::from(task.phase == Phase::Waiting && !task.kind.is_used_once()) {
                return Err(context(format!("{:?} and {queued} times in the queue", task.phase)));
            }
            let queued = self.processes.places_of(*run);
            let may = matches!(task.phase, Phase::Waiting | Phase::Spread) && task.kind.is_used_once();
            if queued > usize::from(may) || (queued == 0 && may && matches!(task.work, Work::Single(_))) {
                return Err(context(format!("{:?} and {queued} times in the queue for processes", task.phase)));
            }
        }
        if held != self.held {
            return Err(format!("attempts hold {held}, counted are {}", self.held));
        }
        if !self.parameters.total.contains(&self.held) {
            return Err(format!("{} are held of {}", self.held, self.parameters.total));
        }
        if self.waiting.values().any(|q| q.is_empty() || q.iter().any(|r| !self.tasks.contains_key(r))) {
            return Err("a queue is empty or names an attempt that is not here".into());
        }
        for (id, executor) in &self.pool.executors {
            if executor.record() != executor.recorded {
                return Err(format!("{id} is {:?} and recorded as {:?}", executor.record(), executor.recorded));
            }
        }
        self.check_slots()
    }

    /// Every slot's run knows of it, and the reverse.
    fn check_slots(&self) -> Result<(), String> {
        let mut reserved = BTreeMap::new();
        for (id, executor) in &self.pool.executors {
            let mut memory = 0;
            for (i, slot) in (0_u32..).zip(&executor.slots) {
                let Some(run) = slot.run else { continue };
                let Some(task) = self.tasks.get(&run) else { return Err(format!("{id} slot {i} is held by {run:?}, which is not here")) };
                let places = task.places();
                if !places.iter().any(|(at, slots)| at == id && slots.contains(&i)) {
                    return Err(format!("{id} slot {i} is held by {run:?}, which is in {places:?}"));
                }
                if executor.framework.as_ref() != Some(&task.key.framework) {
                    return Err(format!("{id} of {:?} runs {}", executor.framework, task.key));
                }
                if executor.kind != task.kind || executor.only.is_some_and(|only| only != run) {
                    return Err(format!("{id} of kind {:?} for {:?} runs {}", executor.kind, executor.only, task.key));
                }
                memory += task_memory(task);
                *reserved.entry(run).or_insert(0_usize) += 1;
            }
            check_used_once(id, executor)?;
            if memory != executor.tasks_memory {
                return Err(format!("{id}: its tasks have {memory} bytes, counted are {}", executor.tasks_memory));
            }
        }
        for (run, task) in &self.tasks {
            let has: usize = task.places().iter().map(|(_, slots)| slots.len()).sum();
            if let (Phase::Spread, Work::Part(part)) = (&task.phase, &task.work)
                && part.lanes.len() != part.slots as usize
            {
                return Err(format!("{} holds {} slots and has {} lanes", task.key, part.slots, part.lanes.len()));
            }
            if has != reserved.get(run).copied().unwrap_or(0) {
                return Err(format!("{} thinks it has {has} slots", task.key));
            }
            if let (Some(place), Work::Part(part)) = (task.phase.place(), &task.work)
                && place.slots.len() != part.slots as usize
            {
                return Err(format!("{} holds {} slots and is in {place:?}", task.key, part.slots));
            }
        }
        let (shared, own) = (self.pool.count(false), self.pool.count(true));
        if shared > self.parameters.most_executors as usize || own > self.parameters.most_processes as usize {
            return Err(format!("{shared} shared executors, and {own} that are used once"));
        }
        let slots: usize = self.pool.executors.values().filter(|e| !e.kind.is_used_once()).map(|e| e.slots.len()).sum();
        if slots > self.parameters.most_slots as usize {
            return Err(format!("{slots} slots of shared executors, and there may be {}", self.parameters.most_slots));
        }
        if self.pool.starting_once() > self.parameters.most_starting as usize {
            return Err(format!("{} executors start at once", self.pool.starting_once()));
        }
        Ok(())
    }
}

/// An executor that is used once has one slot, and after its use nothing but its end.
fn check_used_once(id: &ExecutorId, executor: &Executor) -> Result<(), String> {
    if !executor.kind.is_used_once() {
        return Ok(());
    }
    let idle = executor.is_idle();
    if executor.slots.len() != 1 {
        return Err(format!("{id} is for one task and has {} slots", executor.slots.len()));
    }
    // What was lost on its way is not known before it has said what it holds.
    if matches!(executor.phase, executor::Phase::Away | executor::Phase::Back) {
        return Ok(());
    }
    if !executor.used && (!idle || (executor.kind == ExecutorKind::Pooled && executor.framework.is_some())) {
        return Err(format!("{id} is nobody's yet, and is {executor:?}"));
    }
    if executor.used && idle && !matches!(executor.phase, executor::Phase::Stopping(_)) {
        return Err(format!("{id} was used and does not end: {:?}", executor.phase));
    }
    Ok(())
}

/// Whatever a later life must know is in a record.
fn check_recorded(task: &Task) -> Result<(), String> {
    let same = task.phase == Phase::Ended || task.attempt_state() == task.recorded;
    if same != task.is_recorded() {
        return Err(format!("{:?} and {:?} are compared wrongly", task.attempt_state(), task.recorded));
    }
    if !same || !task.stream.is_recorded() {
        return Err(format!("{:?} is recorded as {:?}", task.attempt_state(), task.recorded));
    }
    Ok(())
}

/// One attempt by itself.
fn check_task(task: &Task) -> Result<(), String> {
    let numbers: Vec<u64> = task.stream.numbers().collect();
    if !numbers.is_sorted() || numbers.last().is_some_and(|last| *last >= task.stream.next_seq()) {
        return Err(format!("updates {numbers:?} before {}", task.stream.next_seq()));
    }
    let terminal = task.stream.last().is_some_and(|u| u.state.is_terminal());
    // The last update may be acknowledged before an earlier one.
    if (task.phase != Phase::Ended && terminal) || (task.phase == Phase::Ended && numbers.is_empty()) {
        return Err(format!("{:?}, but its last update is {:?}", task.phase, task.stream.last().map(|u| u.state)));
    }
    match &task.work {
        Work::Part(part) => {
            part.check_invariants()?;
            if task.phase == Phase::Ended && (part.outstanding() > 0 || part.chunks() > 0) {
                return Err(format!("ended with {} items and {} deltas not told", part.outstanding(), part.chunks()));
            }
            Ok(())
        }
        Work::Single(_) if numbers.len() > 4 => Err(format!("a single task has {} updates in flight", numbers.len())),
        Work::Single(_) => Ok(()),
    }
}
