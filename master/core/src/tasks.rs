//! One attempt of a task or array part as the master sees it, and the only two ways it ends: by a terminal update of its
//! agent (`updates`), or by the master's own word (here).

use crate::master::Master;
use crate::slab::FrameworkIx;
use crate::{Effects, shares::Column};
use smalti_types::protocol::FrameworkEvent;
use smalti_types::{AgentId, DurationMs, Reason, Resources, StatusUpdate, TaskId, TaskKey, TaskState, Time};
use std::collections::VecDeque;

/// Names an attempt within its framework.
pub(crate) type Attempt = (TaskId, u32);

/// What a status says beside its task: state, reason, words.
pub(crate) type Verdict = (TaskState, Reason, String);

/// One attempt.
#[derive(Debug)]
pub(crate) struct Task {
    /// Where it is bound.
    pub(crate) agent: AgentId,
    pub(crate) state: TaskState,
    /// What it holds of its agent now; nothing once it is terminal.
    pub(crate) held: Resources,
    /// For array parts, what one slot holds.
    pub(crate) slot: Option<Resources>,
    /// For array parts, how many slots it still holds.
    pub(crate) slots: u32,
    /// For array parts, items that the agent last said it has.
    pub(crate) outstanding: u64,
    /// The highest update number that changed the books.
    pub(crate) seq: u64,
    /// The highest that the framework acknowledged.
    pub(crate) acknowledged: u64,
    /// Whether the agent has ever spoken of it: if not, it may never have arrived there.
    pub(crate) heard: bool,
    /// Updates that wait for the framework's acknowledgement, in order: sent again when it reconnects or reconciles.
    pub(crate) pending: VecDeque<StatusUpdate>,
    /// The first update that was not taken because too many wait: nothing after it is taken before it, or it would be lost.
    pub(crate) refused: Option<u64>,
    /// It runs under a lease: it must be known to have ended before it may start again.
    pub(crate) exclusive: bool,
    /// An exclusive task whose agent cannot be asked any more: the end it gets when its lease is over.
    pub(crate) fate: Option<(Time, Verdict)>,
    /// A kill that was asked for, with its grace period: repeated when the agent comes back.
    pub(crate) kill: Option<Option<DurationMs>>,
}

impl Task {
    /// A launch that was just accepted.
    pub(crate) fn staging(agent: AgentId, held: Resources, slot: Option<Resources>, slots: u32) -> Self {
        Self {
            agent,
            state: TaskState::Staging,
            held,
            slot,
            slots,
            outstanding: 0,
            seq: 0,
            acknowledged: 0,
            heard: false,
            pending: VecDeque::new(),
            refused: None,
            exclusive: false,
            fate: None,
            kill: None,
        }
    }
}

impl Master {
    pub(crate) fn task(&self, key: &TaskKey) -> Option<&Task> {
        let framework = self.frameworks.get(self.frameworks.find(&key.framework)?)?;
        framework.tasks.get(&(key.task.clone(), key.attempt))
    }

    pub(crate) fn task_mut(&mut self, key: &TaskKey) -> Option<&mut Task> {
        let fx = self.frameworks.find(&key.framework)?;
        self.frameworks.get_mut(fx)?.tasks.get_mut(&(key.task.clone(), key.attempt))
    }

    /// Whether this attempt ended earlier, or its framework is gone.
    pub(crate) fn is_over(&self, key: &TaskKey) -> bool {
        match self.frameworks.find(&key.framework).and_then(|fx| self.frameworks.get(fx)) {
            Some(framework) => framework.done.contains(&(key.task.clone(), key.attempt)),
            None => self.removed.contains(&key.framework),
        }
    }

    /// Tells a framework something, when it is connected.
    pub(crate) fn tell(&self, fx: FrameworkIx, event: FrameworkEvent, out: &mut Effects) {
        if let Some(conn) = self.frameworks.get(fx).and_then(|f| f.conn()) {
            out.send(crate::Message::ToFramework { conn, event });
        }
    }

    /// Tells a framework about one of its attempts in the master's own words: number 0, not acknowledged.
    pub(crate) fn report(&self, now: Time, key: &TaskKey, agent: Option<&AgentId>, verdict: Verdict, out: &mut Effects) {
        let Some(fx) = self.frameworks.find(&key.framework) else { return };
        let (state, reason, message) = verdict;
        let update = StatusUpdate::new(key.clone(), 0, state, reason, message, now);
        self.tell(fx, FrameworkEvent::Updates(vec![(agent.cloned(), update)]), out);
    }

    /// Remembers that an attempt has ended, in the memory of its framework.
    pub(crate) fn remember_end(&mut self, fx: FrameworkIx, attempt: Attempt, state: TaskState, reason: Reason) {
        let limit = self.config.remembered_of(self.frameworks.len());
        if let Some(framework) = self.frameworks.get_mut(fx) {
            framework.done.set_limit(limit);
            framework.done.remember(attempt, (state, reason));
        }
    }

    /// Takes an attempt out of its framework, with the updates that wait.
    pub(crate) fn forget_task(&mut self, fx: FrameworkIx, attempt: &Attempt) -> Option<Task> {
        let framework = self.frameworks.get_mut(fx)?;
        let task = framework.tasks.remove(attempt)?;
        let bytes: usize = task.pending.iter().map(StatusUpdate::weight).sum();
        framework.pending_bytes -= bytes;
        self.pending_bytes -= bytes;
        Some(task)
    }

    /// Gives back part of what an attempt holds of its agent.
    pub(crate) fn release(&mut self, key: &TaskKey, agent: &AgentId, part: &Resources) {
        if part.is_empty() {
            return;
        }
        if let Some(fx) = self.frameworks.find(&key.framework) {
            self.shares.sub(fx, Column::Used, part);
        }
        let Some(ax) = self.agents.find(agent) else { return };
        if let Some(agent) = self.agents.get_mut(ax) {
            agent.ledger.give_back(part);
        }
        self.mark_dirty(ax);
    }

    /// Ends an attempt by the master's word. An attempt that has ended already keeps its own end.
    pub(crate) fn end_task(&mut self, now: Time, key: &TaskKey, verdict: Verdict, out: &mut Effects) {
        let Some(fx) = self.frameworks.find(&key.framework) else { return };
        let attempt = (key.task.clone(), key.attempt);
        if self.task(key).is_none_or(|task| task.state.is_terminal()) {
            return;
        }
        let Some(task) = self.forget_task(fx, &attempt) else { return };
        if let Some((at, _)) = task.fate {
            self.fated.remove(&(at, key.clone()));
        }
        self.remember_end(fx, attempt, verdict.0, verdict.1);
        if let Some(agent) = self.agents.find(&task.agent).and_then(|ax| self.agents.get_mut(ax)) {
            agent.tasks.remove(key);
        }
        self.release(key, &task.agent, &task.held);
        self.report(now, key, Some(&task.agent), verdict, out);
    }
}
