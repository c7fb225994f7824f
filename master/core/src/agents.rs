//! What the master knows of one agent, and the ways an agent leaves: disconnected, away too long, removed.
//! Arriving is in `registration`.

use crate::event::{AgentMessage, Conn, Message, Record};
use crate::ledger::Ledger;
use crate::limits::MAX_NAME;
use crate::master::Master;
use crate::slab::AgentIx;
use crate::{Config, Effects};
use smalti_types::protocol::{AgentCommand, FrameworkEvent};
use smalti_types::status::truncate;
use smalti_types::{AgentId, AgentInfo, MilliCpus, Reason, Resources, TaskKey, TaskState, Time, UpdateKey};
use std::collections::{BTreeMap, BTreeSet};

/// Whether an agent can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AgentLink {
    /// It has a connection.
    Connected(Conn),
    /// It has none since then; its tasks may still run.
    Away {
        /// Since when.
        since: Time,
        /// Whether its tasks were reported UNREACHABLE.
        reported: bool,
    },
}

/// One agent.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) info: AgentInfo,
    pub(crate) link: AgentLink,
    pub(crate) ledger: Ledger,
    pub(crate) registered: Time,
    /// Attempts that hold resources here and have a framework that waits for them.
    pub(crate) tasks: BTreeSet<TaskKey>,
    /// Attempts that hold resources here although nobody waits for them any more (their framework was removed, or they
    /// were reported as ended): killed, accounted for until the agent says that they ended, never forwarded.
    pub(crate) orphans: BTreeMap<TaskKey, Resources>,
    /// Numbers of the offers that hold resources here.
    pub(crate) offers: BTreeSet<u64>,
}

impl Agent {
    pub(crate) fn conn(&self) -> Option<Conn> {
        match self.link {
            AgentLink::Connected(conn) => Some(conn),
            AgentLink::Away { .. } => None,
        }
    }

    /// Whether what is free here is worth an offer: nothing can start without some cpu and some memory.
    pub(crate) fn is_offerable(&self) -> bool {
        let free = self.ledger.free();
        self.conn().is_some() && free.cpus >= MilliCpus::SMALLEST && free.mem.0 > 0
    }
}

impl Master {
    /// Sends a command when the agent is connected.
    pub(crate) fn command(&self, agent: &AgentId, command: AgentCommand, out: &mut Effects) -> bool {
        let conn = self.agents.find(agent).and_then(|ax| self.agents.get(ax)).and_then(Agent::conn);
        if let Some(conn) = conn {
            out.send(Message::ToAgent { conn, message: AgentMessage::Command(command) });
        }
        conn.is_some()
    }

    /// Tells the agent that an update has been dealt with, without asking a framework.
    pub(crate) fn acknowledge_myself(conn: Conn, key: UpdateKey, out: &mut Effects) {
        if key.seq > 0 {
            out.send(Message::ToAgent { conn, message: AgentMessage::Command(AgentCommand::Acknowledge(key)) });
        }
    }

    /// Something of this agent became free: consider it in the next allocation.
    pub(crate) fn mark_dirty(&mut self, ax: AgentIx) {
        if self.agents.get(ax).is_some_and(Agent::is_offerable) {
            self.dirty.insert(ax);
            self.offerable.insert(ax);
        } else {
            self.dirty.remove(&ax);
            self.offerable.remove(&ax);
        }
    }

    /// The connection ended. Tasks stay, offers do not.
    pub(crate) fn agent_disconnected(&mut self, now: Time, conn: Conn, out: &mut Effects) {
        let Some(ax) = self.agent_conns.remove(&conn) else { return };
        self.rescind_agent(ax, out);
        let Some(agent) = self.agents.get_mut(ax) else { return };
        agent.link = AgentLink::Away { since: now, reported: false };
        self.away.insert(ax);
        self.mark_dirty(ax);
    }

    /// Reports the tasks of agents that have been away too long. They keep their resources: they may still run.
    pub(crate) fn report_unreachable(&mut self, now: Time, out: &mut Effects) {
        let Config { agent_timeout, .. } = self.config;
        for ax in self.away.iter().copied().collect::<Vec<_>>() {
            let Some(agent) = self.agents.get_mut(ax) else { continue };
            let AgentLink::Away { since, reported: false } = agent.link else { continue };
            if now < since.after(agent_timeout) {
                continue;
            }
            agent.link = AgentLink::Away { since, reported: true };
            let id = agent.info.id.clone();
            for key in agent.tasks.iter().cloned().collect::<Vec<_>>() {
                let Some(task) = self.task_mut(&key).filter(|t| t.state.may_become(TaskState::Unreachable)) else { continue };
                task.state = TaskState::Unreachable;
                let message = format!("agent {id} has not been heard of for {} s", agent_timeout.0 / 1_000);
                self.report(now, &key, Some(&id), (TaskState::Unreachable, Reason::AgentDisconnected, message), out);
            }
        }
    }

    /// An agent leaves for good: whatever it still had is GONE.
    pub(crate) fn agent_removed(&mut self, now: Time, ax: AgentIx, reason: &str, out: &mut Effects) {
        let mut reason = reason.to_owned();
        truncate(&mut reason, MAX_NAME);
        self.rescind_agent(ax, out);
        let Some(agent) = self.agents.get(ax) else { return };
        let (id, conn, tasks) = (agent.info.id.clone(), agent.conn(), agent.tasks.clone());
        for key in &tasks {
            let why = format!("agent {id} was removed: {reason}");
            self.end_task(now, key, (TaskState::Gone, Reason::AgentRemoved, why), out);
        }
        if let Some(conn) = conn {
            self.agent_conns.remove(&conn);
            out.send(Message::Close { conn, reason: format!("agent {id} was removed: {reason}") });
        }
        let Some(agent) = self.agents.remove(&id) else { return };
        self.shares.sub_total(agent.ledger.total());
        self.away.remove(&ax);
        self.dirty.remove(&ax);
        self.offerable.remove(&ax);
        self.forget_refusals_of(ax);
        out.persist(Record::AgentRemoved(id.clone()));
        for fx in self.frameworks.indexes() {
            self.tell(fx, FrameworkEvent::AgentLost { agent: id.clone(), reason: reason.clone() }, out);
        }
    }
}
