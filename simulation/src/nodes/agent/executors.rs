//! The executors of an agent's machine: started, found, told, heard and ended, whether or not the agent is there.

use crate::executor::{Action, Executor, Inside};
use crate::world::{Happening, Node, Peer, World};
use smalti_agent_core::{ArrayReport, Event, Failure, FromExecutor, ItemFailure, Run, ToExecutor};
use smalti_types::{ExecutorId, Reason, TaskKey};
use std::collections::BTreeMap;

/// What the way through a socket takes, in microseconds: always the same, so that its order is kept.
const SOCKET_US: u64 = 20;

impl World {
    pub(crate) fn start_executor(&mut self, i: usize, life: u64, executor: ExecutorId, slots: u32) {
        let us = self.rng.between(500, 50_000);
        let event = if self.rng.chance(5) {
            Event::ExecutorFailed { executor, failure: Failure::new(Reason::LaunchFailed, "no memory") }
        } else {
            let node = &mut self.agents[i];
            node.processes += 1;
            node.executors.insert(node.processes, Executor::new(executor.clone(), slots));
            node.links.insert(executor.clone(), node.processes);
            node.names.insert(node.processes, executor.clone());
            Event::ExecutorStarted { executor, slots, cpu_us: Some(self.rng.between(1_000, 50_000)) }
        };
        self.after(us, Happening::Agent(i, life, event));
    }

    /// A new life of the agent looks for the executors of the last one. What it does not know it ends.
    pub(super) fn find_executors(&mut self, i: usize, wanted: &[ExecutorId]) {
        let node = &self.agents[i];
        let life = node.life;
        let stray: Vec<u64> = node.executors.iter().filter(|(_, e)| !wanted.contains(&e.id)).map(|(p, _)| *p).collect();
        stray.into_iter().for_each(|process| self.executor_dies(i, process));
        for id in wanted {
            let us = self.rng.between(100, 30_000);
            self.after(us, Happening::Find(i, life, id.clone()));
        }
        self.agents[i].ledgers.retain(|id, _| wanted.contains(id));
    }

    /// An executor of the last life is found, or not.
    pub(crate) fn find_executor(&mut self, i: usize, life: u64, id: ExecutorId) -> Result<(), String> {
        if self.life(Node::Peer(Peer::Agent(i))) != Some(life) {
            return Ok(());
        }
        let node = &mut self.agents[i];
        let Some((process, executor)) = node.executors.iter_mut().find(|(_, e)| e.id == id) else {
            return self.executor_not_found(i, life, id);
        };
        let (process, slots) = (*process, executor.slots);
        node.links.insert(id.clone(), process);
        node.names.insert(process, id.clone());
        executor.confirm(node.core.as_ref().map_or(0, |core| core.heard(&id)));
        let mut says: Vec<(u64, FromExecutor)> = executor.unconfirmed().cloned().collect();
        says.push((0, executor.holds()));
        for (number, message) in says {
            self.after(SOCKET_US, Happening::Said(i, life, process, number, message));
        }
        self.agent_event(i, life, Event::ExecutorBack { executor: id, slots })
    }

    /// It has died meanwhile: what its ledger says of items counts.
    fn executor_not_found(&mut self, i: usize, life: u64, id: ExecutorId) -> Result<(), String> {
        let mut reports: BTreeMap<Run, ArrayReport> = BTreeMap::new();
        for entry in self.agents[i].ledgers.remove(&id).unwrap_or_default() {
            let report = reports.entry(entry.run).or_default();
            if entry.failed {
                report.failed.push(ItemFailure { item: entry.item, exit_code: entry.exit_code, failure: None });
            } else {
                report.finished.insert(entry.item);
            }
        }
        for (run, report) in reports {
            let message = FromExecutor::Report { run, report };
            self.agent_event(i, life, Event::Executor { executor: id.clone(), number: 0, message })?;
        }
        self.agent_event(i, life, Event::ExecutorExited { executor: id, cause: "signal 9".into(), out_of_memory: false })
    }

    pub(crate) fn bind_executor(&mut self, i: usize, executor: &ExecutorId, key: &TaskKey) -> Result<(), String> {
        let node = &mut self.agents[i];
        let Some(process) = node.links.get(executor).and_then(|p| node.executors.get_mut(p)) else { return Ok(()) };
        if std::mem::replace(&mut process.bound, true) {
            return Err(format!("executor {executor} had its only task, and gets {key}"));
        }
        Ok(())
    }

    pub(crate) fn tell_executor(&mut self, i: usize, executor: &ExecutorId, message: ToExecutor) {
        // One that is not there has died, and the news is on its way.
        if let Some(process) = self.agents[i].links.get(executor) {
            let happening = Happening::Told(i, *process, message);
            self.after(SOCKET_US, happening);
        }
    }

    /// An agent ends one of its executors.
    pub(crate) fn end_executor(&mut self, i: usize, executor: &ExecutorId, cause: &str) {
        if let Some(process) = self.agents[i].links.get(executor).copied() {
            self.lose_executor(i, process, cause);
        }
    }

    /// A fault: an executor dies with everything in it.
    pub(crate) fn kill_any_executor(&mut self, i: usize) -> Result<(), String> {
        let all: Vec<u64> = self.agents[i].executors.keys().copied().collect();
        if !all.is_empty() {
            let process = all[self.rng.index(all.len())];
            self.note(format_args!("executor process {process} of agent {i} dies"));
            self.lose_executor(i, process, "signal 9");
        }
        Ok(())
    }

    /// An executor ends, and its agent hears of it, if there is one.
    fn lose_executor(&mut self, i: usize, process: u64, cause: &str) {
        let Some(id) = self.agents[i].executors.get(&process).map(|e| e.id.clone()) else { return };
        self.executor_dies(i, process);
        let out_of_memory = self.rng.chance(20);
        let us = self.rng.between(100, 5_000);
        if let Some(life) = self.life(Node::Peer(Peer::Agent(i))) {
            self.after(us, Happening::Agent(i, life, Event::ExecutorExited { executor: id, cause: cause.into(), out_of_memory }));
        }
    }

    /// An executor process and its guests are gone.
    pub(crate) fn executor_dies(&mut self, i: usize, process: u64) {
        let node = &mut self.agents[i];
        if let Some(executor) = node.executors.remove(&process) {
            executor.keys().for_each(|key| self.checks.stop(key));
            if !executor.ledger().is_empty() {
                node.ledgers.insert(executor.id.clone(), executor.ledger().to_vec());
            }
        }
    }

    pub(crate) fn executor_told(&mut self, i: usize, process: u64, message: ToExecutor) -> Result<(), String> {
        let node = &mut self.agents[i];
        let now = node.machine.clock.boot(self.now);
        let Some(executor) = node.executors.get_mut(&process) else { return Ok(()) };
        let actions = executor.told(now, message, &mut self.rng).map_err(|e| format!("executor {}: {e}", executor.id))?;
        self.executor_acts(i, process, actions)
    }

    pub(crate) fn executor_happens(&mut self, i: usize, process: u64, inside: Inside) -> Result<(), String> {
        let node = &mut self.agents[i];
        let now = node.machine.clock.boot(self.now);
        let Some(executor) = node.executors.get_mut(&process) else { return Ok(()) };
        let actions = executor.happen(now, inside, &mut self.rng);
        self.executor_acts(i, process, actions)
    }

    fn executor_acts(&mut self, i: usize, process: u64, actions: Vec<Action>) -> Result<(), String> {
        let life = self.life(Node::Peer(Peer::Agent(i)));
        for action in actions {
            match action {
                Action::Say(number, message) => {
                    if let Some(life) = life.filter(|_| self.agents[i].names.contains_key(&process)) {
                        self.after(SOCKET_US, Happening::Said(i, life, process, number, message));
                    }
                }
                Action::After(us, inside) => self.after(us, Happening::Inside(i, process, inside)),
                Action::At(boot, inside) => {
                    let at = self.agents[i].machine.clock.when(boot);
                    self.at(at, Happening::Inside(i, process, inside));
                }
                Action::Starts(key, exclusive) => {
                    let agent = self.agents[i].id();
                    self.checks.start(&key, exclusive, &agent)?;
                }
                Action::Stops(key) => self.checks.stop(&key),
                Action::StartsItem(key, item, attempt) => self.checks.start_item(key, item, attempt)?,
            }
        }
        Ok(())
    }

    /// The agent hears what one of its executors said.
    pub(crate) fn executor_said(&mut self, i: usize, life: u64, process: u64, number: u64, message: FromExecutor) -> Result<(), String> {
        let Some(executor) = self.agents[i].names.get(&process).cloned() else { return Ok(()) };
        self.agent_event(i, life, Event::Executor { executor, number, message })
    }
}
