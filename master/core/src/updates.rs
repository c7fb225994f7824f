//! Status updates on their way from agents to frameworks, and acknowledgements on their way back.
//!
//! The books change once per update number, however often an update arrives; it is forwarded every time, because the
//! framework may not have had it. What nobody waits for is acknowledged here, so that the agent stops sending it.

use crate::agents::Agent;
use crate::event::Conn;
use crate::master::Master;
use crate::slab::{AgentIx, FrameworkIx};
use crate::tasks::Task;
use crate::{Effects, Message};
use smalti_types::protocol::{AgentCommand, FrameworkEvent};
use smalti_types::{DurationMs, Resources, Sabotage, StatusUpdate, TaskId, TaskKey, TaskState, Time, UpdateKey};

/// What an update changes.
enum Change {
    /// Nothing: it was here before.
    Repeat,
    /// It is new; these resources are free now.
    New { freed: Resources },
    /// Nobody waits for it.
    Unwanted,
    /// Too many wait for the framework already: it stays with the agent, which sends it again.
    NoRoom,
}

/// Applies an update to its task: the state table, the sequence, the slots. `room`: whether another one may wait here.
fn apply(task: &mut Task, update: &mut StatusUpdate, room: bool) -> Change {
    if update.key.seq <= task.acknowledged {
        return Change::Unwanted; // The acknowledgement was lost on its way to the agent.
    }
    if update.key.seq <= task.seq {
        return Change::Repeat;
    }
    let next = update.state;
    if task.state.is_terminal() || matches!(next, TaskState::Unknown | TaskState::Unreachable) {
        return Change::Unwanted;
    }
    // A later one must not overtake one that was refused: its acknowledgement would count for both.
    if !room || task.refused.is_some_and(|first| update.key.seq > first) {
        task.refused = Some(task.refused.map_or(update.key.seq, |first| first.min(update.key.seq)));
        return Change::NoRoom;
    }
    task.refused = None;
    if task.state.may_become(next) {
        task.state = next;
    } else {
        update.state = task.state; // A step back, as when a report of items overtakes a kill: what it reports still counts.
    }
    task.heard = true;
    task.seq = update.key.seq;
    let mut freed = Resources::default();
    if next.is_terminal() {
        freed = std::mem::take(&mut task.held);
        task.slots = 0;
    } else if let (Some(delta), Some(slot)) = (&update.array, &task.slot) {
        task.outstanding = delta.outstanding;
        if delta.slots < task.slots {
            freed = slot.checked_mul(task.slots - delta.slots).unwrap_or_default();
            match task.held.checked_sub(&freed) {
                Ok(left) => (task.held, task.slots) = (left, delta.slots),
                Err(_) => freed = Resources::default(),
            }
        }
    }
    task.pending.push_back(update.clone());
    Change::New { freed }
}

impl Master {
    /// Updates of an agent.
    pub(crate) fn agent_updates(&mut self, now: Time, conn: Conn, updates: Vec<StatusUpdate>, out: &mut Effects) {
        let Some(ax) = self.agent_conns.get(&conn).copied() else { return };
        for update in updates {
            self.agent_update(now, conn, ax, update, out);
        }
    }

    pub(crate) fn agent_update(&mut self, _now: Time, conn: Conn, ax: AgentIx, mut update: StatusUpdate, out: &mut Effects) {
        if update.key.seq == 0 {
            return; // Number 0 belongs to the master.
        }
        let key = update.key.clone();
        let Some(agent) = self.agents.get_mut(ax) else { return };
        if let Some(held) = agent.orphans.get(&key.task) {
            if update.state.is_terminal() {
                let held = held.clone();
                agent.orphans.remove(&key.task);
                agent.ledger.give_back(&held);
                self.mark_dirty(ax);
            }
            return Self::acknowledge_myself(conn, key, out);
        }
        let id = agent.info.id.clone();
        let Some(fx) = self.frameworks.find(&key.task.framework) else { return Self::acknowledge_myself(conn, key, out) };
        let (most, most_bytes) = (self.config.pending_per_attempt, self.config.pending_bytes);
        let full = self.pending_bytes >= self.config.pending_bytes_total;
        let attempt = (key.task.task.clone(), key.task.attempt);
        let Some(framework) = self.frameworks.get_mut(fx) else { return };
        let (bytes, held_back) = (framework.pending_bytes, framework.is_held_back(&attempt));
        let Some(task) = framework.tasks.get_mut(&attempt).filter(|t| t.agent == id) else {
            return Self::acknowledge_myself(conn, key, out);
        };
        // One update of each framework always fits: it is bounded by what a frame may hold.
        let room = task.pending.len() < most && (bytes == 0 || !full && bytes.saturating_add(update.weight()) <= most_bytes);
        match apply(task, &mut update, room) {
            Change::Unwanted => return Self::acknowledge_myself(conn, key, out),
            Change::NoRoom => {
                self.refused_updates += 1;
                return self.has(ax, key.task);
            }
            Change::Repeat => {}
            Change::New { freed } => {
                if Sabotage::MasterAcknowledgesEarly.is_on() {
                    Self::acknowledge_myself(conn, key.clone(), out);
                }
                framework.pending_bytes += update.weight();
                self.pending_bytes += update.weight();
                self.release(&key.task, &id, &freed);
                self.has(ax, key.task.clone());
                if update.state.is_terminal() {
                    self.leave_agent(ax, &key.task);
                }
            }
        }
        if !held_back {
            self.tell(fx, FrameworkEvent::Updates(vec![(Some(id), update)]), out);
        }
    }

    /// The agent speaks of a task: it has it, whatever it said before.
    fn has(&mut self, ax: AgentIx, key: TaskKey) {
        self.clear_fate(&key);
        if let Some(agent) = self.agents.get_mut(ax) {
            agent.tasks.insert(key);
        }
    }

    fn leave_agent(&mut self, ax: AgentIx, key: &TaskKey) {
        if let Some(agent) = self.agents.get_mut(ax) {
            agent.tasks.remove(key);
        }
    }

    /// The framework has these updates, and with each all before it: it takes them in order. The end of a task, acknowledged, is the
    /// end of its record.
    pub(crate) fn acknowledge(&mut self, fx: FrameworkIx, updates: Vec<(TaskId, u32, u64)>, out: &mut Effects) {
        let named = updates.len();
        for (task, attempt, seq) in updates {
            let Some(framework) = self.frameworks.get_mut(fx) else { return };
            let attempt = (task, attempt);
            let key = framework.key(&attempt);
            let Some(task) = framework.tasks.get_mut(&attempt) else { continue };
            if seq == 0 || seq > task.seq || seq <= task.acknowledged {
                continue;
            }
            task.acknowledged = seq;
            let mut last = None;
            while task.pending.front().is_some_and(|u| u.key.seq <= seq) {
                last = task.pending.pop_front();
                let bytes = last.as_ref().map_or(0, StatusUpdate::weight);
                framework.pending_bytes -= bytes;
                self.pending_bytes -= bytes;
            }
            let agent = task.agent.clone();
            if let Some(last) = last.filter(|_| task.state.is_terminal() && task.pending.is_empty()) {
                self.forget_task(fx, &attempt);
                self.remember_end(fx, attempt, last.state, last.reason);
            }
            self.command(&agent, AgentCommand::Acknowledge(UpdateKey { task: key, seq }), out);
        }
        if self.frameworks.get(fx).is_some_and(|f| f.resend.is_some()) {
            self.send_pending_again(fx, named, out);
        }
    }

    /// A framework wants an attempt to end.
    pub(crate) fn kill(&mut self, now: Time, fx: FrameworkIx, task: TaskId, attempt: u32, grace: Option<DurationMs>, out: &mut Effects) {
        let Some(framework) = self.frameworks.get_mut(fx) else { return };
        let attempt = (task, attempt);
        let key = framework.key(&attempt);
        match framework.tasks.get_mut(&attempt) {
            Some(task) if !task.state.is_terminal() => {
                task.kill = Some(grace);
                let agent = task.agent.clone();
                self.command(&agent, AgentCommand::Kill { task: key, grace }, out);
            }
            _ => self.answer(now, fx, attempt, None, out),
        }
    }

    /// Something about a running part, to be passed on. `Err` says why it cannot be.
    pub(crate) fn live_part(&self, fx: FrameworkIx, task: &TaskId, attempt: u32) -> Result<(TaskKey, &Task, Option<Conn>), String> {
        let framework = self.frameworks.get(fx).ok_or("the framework is gone")?;
        let attempt = (task.clone(), attempt);
        let key = framework.key(&attempt);
        let task = framework.tasks.get(&attempt).filter(|t| !t.state.is_terminal()).ok_or(format!("{key} is not running"))?;
        if task.slot.is_none() {
            return Err(format!("{key} is not a part of a task array"));
        }
        let conn = self.agents.find(&task.agent).and_then(|ax| self.agents.get(ax)).and_then(Agent::conn);
        Ok((key, task, conn))
    }

    /// Refuses one call; the subscription goes on.
    pub(crate) fn refuse(&self, fx: FrameworkIx, call: &str, message: String, out: &mut Effects) {
        let Some(conn) = self.frameworks.get(fx).and_then(|f| f.conn()) else { return };
        out.send(Message::ToFramework { conn, event: FrameworkEvent::Refused { call: call.to_owned(), message } });
    }
}
