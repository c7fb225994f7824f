//! Exclusive tasks: at most one attempt of such a task runs at a time, whatever fails.
//!
//! An agent may run them only as long as the lease that it asked for last; its executors enforce that by themselves. The master
//! knows when it granted the last one, and from that when the task must have ended even if nobody can be asked: lease, what the
//! clocks may differ, and a margin later. Until then it says nothing that would let anybody start the task again.

use crate::agents::Agent;
use crate::event::{AgentMessage, Conn, Message, Record};
use crate::master::Master;
use crate::slab::AgentIx;
use crate::tasks::Verdict;
use crate::{Effects, shares::Column};
use smalti_types::protocol::AgentCommand;
use smalti_types::{BootTime, DurationMs, Operation, Reason, Sabotage, TaskKey, TaskState, Time};

/// Whether the operation asks for a lease.
pub(crate) fn is_exclusive(operation: &Operation) -> bool {
    matches!(operation, Operation::Launch(launch) if launch.spec.exclusive)
}

impl Master {
    /// When everything exclusive on this agent must have ended unless it gets another lease.
    pub(crate) fn lease_end(&self, agent: &Agent) -> Time {
        let span = if Sabotage::MasterIgnoresLeases.is_on() { DurationMs(0) } else { self.config.lease_span() };
        let earlier = if Sabotage::MasterIgnoresLeases.is_on() { Time(0) } else { self.earlier_leases };
        agent.lease_granted.after(span).max(earlier)
    }

    /// Once the leases of earlier lives are over, those of this one are what the next must wait for.
    pub(crate) fn shorten_lease_span(&mut self, now: Time, out: &mut Effects) {
        let span = self.config.lease_span();
        if self.lease_span > span && now >= self.earlier_leases {
            self.lease_span = span;
            out.persist(Record::LeaseSpan(span));
        }
    }

    /// An agent asks for its lease: granted, as long as it is connected.
    pub(crate) fn agent_lease(&mut self, now: Time, conn: Conn, asked: BootTime, out: &mut Effects) {
        let Some(agent) = self.agent_conns.get(&conn).and_then(|ax| self.agents.get_mut(*ax)) else { return };
        agent.lease_granted = agent.lease_granted.max(now);
        let command = AgentCommand::Lease { asked, lease: self.config.lease };
        out.send(Message::ToAgent { conn, message: AgentMessage::Command(command) });
    }

    /// Exclusive tasks of an agent that is away and whose lease is over: they have ended, whatever became of the agent.
    pub(crate) fn end_exclusive_of(&mut self, now: Time, ax: AgentIx, out: &mut Effects) {
        let Some(agent) = self.agents.get(ax).filter(|agent| now >= self.lease_end(agent)) else { return };
        let id = agent.info.id.clone();
        for key in agent.tasks.clone() {
            if self.task(&key).is_some_and(|t| t.exclusive) {
                let why = format!("agent {id} is away, and the lease of its exclusive tasks is over");
                self.end_task(now, &key, (TaskState::Lost, Reason::LeaseExpired, why), out);
            }
        }
    }

    /// Ends a task of an agent that cannot be asked about it any more: at once, or, if it may run on under its lease, after that.
    pub(crate) fn end_or_await_lease(&mut self, now: Time, ax: AgentIx, key: &TaskKey, verdict: Verdict, out: &mut Effects) {
        let until = self.agents.get(ax).map(|agent| self.lease_end(agent)).filter(|until| now < *until);
        let Some(until) = until.filter(|_| self.task(key).is_some_and(|t| t.exclusive && !t.state.is_terminal())) else {
            return self.end_task(now, key, verdict, out);
        };
        let Some(agent) = self.agents.get_mut(ax) else { return };
        let was_here = agent.tasks.remove(key);
        let Some(task) = self.task_mut(key) else { return };
        let held = std::mem::take(&mut task.held);
        task.fate = Some((until, verdict));
        self.fated.insert((until, key.clone()));
        if !was_here {
            return;
        }
        if let Some(agent) = self.agents.get_mut(ax) {
            agent.ledger.give_back(&held);
        }
        if let Some(fx) = self.frameworks.find(&key.framework) {
            self.shares.sub(fx, Column::Used, &held);
        }
        self.mark_dirty(ax);
    }

    /// Its agent speaks of it again: its end is not decided any more.
    pub(crate) fn clear_fate(&mut self, key: &TaskKey) {
        if let Some((at, _)) = self.task_mut(key).and_then(|t| t.fate.take()) {
            self.fated.remove(&(at, key.clone()));
        }
    }

    /// Ends exclusive tasks whose last lease is over by now.
    pub(crate) fn end_fated(&mut self, now: Time, out: &mut Effects) {
        while let Some((at, key)) = self.fated.first().cloned().filter(|(at, _)| *at <= now) {
            self.fated.remove(&(at, key.clone()));
            if let Some((_, verdict)) = self.task_mut(&key).and_then(|t| t.fate.take()) {
                self.end_task(now, &key, verdict, out);
            }
        }
    }
}
