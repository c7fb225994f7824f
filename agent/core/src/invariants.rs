//! What must hold after every event, walked over the whole state.
//!
//! Owns the checks only; tests and the simulation call them after each step. Nothing here repairs anything.

use crate::agent::{Agent, task_memory};
use crate::task::{Phase, Task, Work};
use smalti_types::Resources;
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
            let queued = self.waiting.get(&task.key.framework).map_or(0, |q| q.iter().filter(|r| *r == run).count());
            if queued != usize::from(task.phase == Phase::Waiting) {
                return Err(context(format!("{:?} and {queued} times in the queue", task.phase)));
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
                let place = task.phase.place().ok_or_else(|| format!("{id} slot {i} is held by {run:?}, which has no place"))?;
                if place.executor != *id || !place.slots.contains(&i) {
                    return Err(format!("{id} slot {i} is held by {run:?}, which is in {place:?}"));
                }
                if task.key.framework != executor.framework {
                    return Err(format!("{id} of {} runs {}", executor.framework, task.key));
                }
                memory += task_memory(task);
                *reserved.entry(run).or_insert(0_usize) += 1;
            }
            if memory != executor.tasks_memory {
                return Err(format!("{id}: its tasks have {memory} bytes, counted are {}", executor.tasks_memory));
            }
        }
        for (run, task) in &self.tasks {
            let has = task.phase.place().map_or(0, |p| p.slots.len());
            if has != reserved.get(run).copied().unwrap_or(0) {
                return Err(format!("{} thinks it has {has} slots", task.key));
            }
            if let (Some(place), Work::Part(part)) = (task.phase.place(), &task.work)
                && place.slots.len() != part.slots as usize
            {
                return Err(format!("{} holds {} slots and is in {place:?}", task.key, part.slots));
            }
        }
        if self.pool.executors.len() > self.parameters.most_executors as usize {
            return Err(format!("{} executors", self.pool.executors.len()));
        }
        Ok(())
    }
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
