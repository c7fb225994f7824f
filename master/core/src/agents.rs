//! What the master knows of one agent, and the ways an agent leaves: disconnected, away too long, removed.
//! Arriving is in `registration`.

use crate::Effects;
use crate::event::{AgentMessage, Conn, Message, Record};
use crate::holdings::Holdings;
use crate::ledger::Ledger;
use crate::limits::MAX_NAME;
use crate::master::Master;
use crate::slab::AgentIx;
use crate::tasks::Task;
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
        /// When something about its absence is to be done next.
        due: Time,
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
    /// Whether it has registered in this life of the master: if not, nothing is known of its tasks.
    pub(crate) heard: bool,
    /// When it was last allowed to run exclusive tasks. Of an agent that is new here, since now: an earlier life of the master, or this
    /// one before it removed the agent, may have allowed it.
    pub(crate) lease_granted: Time,
    /// Until when exclusive tasks of an earlier incarnation of it, of which it knows nothing, may run on its machine.
    pub(crate) strays_until: Time,
    /// Its machine restarted between an earlier life of the master and this one.
    pub(crate) rebooted: bool,
    /// Attempts that hold resources here and have a framework that waits for them.
    pub(crate) tasks: BTreeSet<TaskKey>,
    /// Attempts that hold resources here although nobody waits for them any more (their framework was removed, or they
    /// were reported as ended): killed, accounted for until the agent says that they ended, never forwarded.
    pub(crate) orphans: BTreeMap<TaskKey, Resources>,
    /// Numbers of the offers that hold resources here.
    pub(crate) offers: BTreeSet<u64>,
    /// What its caches hold, as far as it has told on this connection.
    pub(crate) holdings: Holdings,
}

impl Agent {
    /// An agent without tasks.
    pub(crate) fn new(info: AgentInfo, link: AgentLink, ledger: Ledger, now: Time) -> Self {
        Self {
            info,
            link,
            ledger,
            registered: now,
            heard: matches!(link, AgentLink::Connected(_)),
            lease_granted: now,
            strays_until: Time::default(),
            rebooted: false,
            tasks: BTreeSet::new(),
            orphans: BTreeMap::new(),
            offers: BTreeSet::new(),
            holdings: Holdings::default(),
        }
    }

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
        self.agent_shares_no_more(ax, out);
        self.set_away(ax, now, false);
        self.mark_dirty(ax);
    }

    /// Notes that an agent is away, and when something is to be done about it next.
    pub(crate) fn set_away(&mut self, ax: AgentIx, since: Time, reported: bool) {
        self.end_absence(ax);
        let Some(agent) = self.agents.get(ax) else { return };
        let mut due = since.after(self.config.agent_removal);
        if !reported {
            due = due.min(since.after(self.config.agent_timeout));
        }
        if agent.tasks.iter().any(|key| self.task(key).is_some_and(|t| t.exclusive)) {
            due = due.min(self.lease_end(agent));
        }
        self.away.insert((due, ax));
        if let Some(agent) = self.agents.get_mut(ax) {
            agent.link = AgentLink::Away { since, due, reported };
        }
    }

    /// The agent is back, or removed: nothing about its absence is due any more.
    pub(crate) fn end_absence(&mut self, ax: AgentIx) {
        if let Some(AgentLink::Away { due, .. }) = self.agents.get(ax).map(|a| a.link) {
            self.away.remove(&(due, ax));
        }
    }

    /// Does what is due about agents that are away: leases end, tasks are reported UNREACHABLE, and in the end the agent is removed.
    pub(crate) fn look_for_agents(&mut self, now: Time, out: &mut Effects) {
        while let Some((due, ax)) = self.away.first().copied().filter(|(due, _)| *due <= now) {
            let Some(AgentLink::Away { since, reported, .. }) = self.agents.get(ax).map(|a| a.link) else {
                self.away.remove(&(due, ax)); // Cannot be: a defect must not become an endless loop.
                continue;
            };
            if now >= since.after(self.config.agent_removal) {
                let why = format!("it has not been heard of for {} h", self.config.agent_removal.0 / 3_600_000);
                self.agent_removed(now, ax, &why, out);
                continue;
            }
            self.end_exclusive_of(now, ax, out);
            let late = now >= since.after(self.config.agent_timeout);
            if late && !reported {
                self.report_unreachable(now, ax, out);
            }
            self.set_away(ax, since, reported || late);
        }
    }

    /// Reports the tasks of an agent that has been away too long. They keep their resources: they may still run.
    fn report_unreachable(&mut self, now: Time, ax: AgentIx, out: &mut Effects) {
        let Some(agent) = self.agents.get(ax) else { return };
        let id = agent.info.id.clone();
        for key in agent.tasks.clone() {
            let may = |t: &&mut Task| !t.exclusive && t.state != TaskState::Unreachable && t.state.may_become(TaskState::Unreachable);
            let Some(task) = self.task_mut(&key).filter(may) else { continue };
            task.state = TaskState::Unreachable;
            let message = format!("agent {id} has not been heard of for {} s", self.config.agent_timeout.0 / 1_000);
            self.report(now, &key, Some(&id), (TaskState::Unreachable, Reason::AgentDisconnected, message), out);
        }
    }

    /// An agent leaves for good: whatever it still had is GONE.
    pub(crate) fn agent_removed(&mut self, now: Time, ax: AgentIx, reason: &str, out: &mut Effects) {
        let mut reason = reason.to_owned();
        truncate(&mut reason, MAX_NAME);
        self.rescind_agent(ax, out);
        self.agent_shares_no_more(ax, out);
        let Some(agent) = self.agents.get(ax) else { return };
        let (id, conn, tasks) = (agent.info.id.clone(), agent.conn(), agent.tasks.clone());
        for key in &tasks {
            let why = format!("agent {id} was removed: {reason}");
            self.end_or_await_lease(now, ax, key, (TaskState::Gone, Reason::AgentRemoved, why), out);
        }
        if let Some(conn) = conn {
            self.agent_conns.remove(&conn);
            out.send(Message::Close { conn, reason: format!("agent {id} was removed: {reason}") });
        }
        self.end_absence(ax);
        let Some(agent) = self.agents.remove(&id) else { return };
        self.shares.sub_total(agent.ledger.total());
        self.unheard -= usize::from(!agent.heard);
        self.dirty.remove(&ax);
        self.offerable.remove(&ax);
        self.forget_refusals_of(ax);
        out.persist(Record::AgentRemoved(id.clone()));
        for fx in self.frameworks.indexes() {
            self.tell(fx, FrameworkEvent::AgentLost { agent: id.clone(), reason: reason.clone() }, out);
        }
    }
}
