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
use smalti_types::{DurationMs, Resources, StatusUpdate, TaskId, TaskKey, TaskState, Time, UpdateKey};

/// What an update changes.
enum Change {
    /// Nothing: it was here before.
    Repeat,
    /// It is new; these resources are free now.
    New { freed: Resources },
    /// Nobody waits for it.
    Unwanted,
}

/// Applies an update to its task: the state table, the sequence, the slots.
fn apply(task: &mut Task, update: &mut StatusUpdate) -> Change {
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
    task.pending = Some(update.clone());
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
        let Some(task) = self.task_mut(&key.task).filter(|t| t.agent == id) else {
            return Self::acknowledge_myself(conn, key, out);
        };
        match apply(task, &mut update) {
            Change::Unwanted => return Self::acknowledge_myself(conn, key, out),
            Change::Repeat => {}
            Change::New { freed } => {
                self.release(&key.task, &id, &freed);
                if update.state.is_terminal() {
                    self.leave_agent(ax, &key.task);
                }
            }
        }
        if let Some(fx) = self.frameworks.find(&key.task.framework) {
            self.tell(fx, FrameworkEvent::Updates(vec![(Some(id), update)]), out);
        }
    }

    fn leave_agent(&mut self, ax: AgentIx, key: &TaskKey) {
        if let Some(agent) = self.agents.get_mut(ax) {
            agent.tasks.remove(key);
        }
    }

    /// The framework has these updates. The end of a task, acknowledged, is the end of its record.
    pub(crate) fn acknowledge(&mut self, fx: FrameworkIx, updates: Vec<(TaskId, u32, u64)>, out: &mut Effects) {
        for (task, attempt, seq) in updates {
            let Some(framework) = self.frameworks.get_mut(fx) else { return };
            let attempt = (task, attempt);
            let key = framework.key(&attempt);
            let Some(task) = framework.tasks.get_mut(&attempt) else { continue };
            if seq == 0 || seq > task.seq || seq <= task.acknowledged {
                continue;
            }
            task.acknowledged = seq;
            if seq == task.seq {
                let ended = task.pending.take().filter(|_| task.state.is_terminal());
                if let Some(last) = ended {
                    framework.done.remember(attempt.clone(), (last.state, last.reason));
                }
            }
            let agent = task.agent.clone();
            if task.state.is_terminal() && seq == task.seq {
                framework.tasks.remove(&attempt);
            }
            self.command(&agent, AgentCommand::Acknowledge(UpdateKey { task: key, seq }), out);
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
