//! Answers to "where is this task?", and items that are passed on to running parts of arrays.

use crate::Effects;
use crate::agents::Agent;
use crate::event::{AgentMessage, Message};
use crate::master::Master;
use crate::slab::FrameworkIx;
use crate::tasks::Attempt;
use smalti_types::protocol::{AgentCommand, FrameworkEvent};
use smalti_types::{AgentId, ArrayDelta, ItemBatch, Reason, StatusUpdate, TaskId, TaskState, Time};

impl Master {
    /// The current state of the named tasks, or of all.
    pub(crate) fn reconcile(&self, now: Time, fx: FrameworkIx, tasks: Vec<(TaskId, u32, Option<AgentId>)>, out: &mut Effects) {
        let Some(framework) = self.frameworks.get(fx) else { return };
        if tasks.is_empty() {
            for attempt in framework.tasks.keys() {
                self.answer(now, fx, attempt.clone(), None, out);
            }
        }
        for (task, attempt, agent) in tasks {
            self.answer(now, fx, (task, attempt), agent.as_ref(), out);
        }
    }

    /// What the master knows of one attempt. It says nothing while it may still learn more: after its own start, agents
    /// bring back their tasks one by one.
    pub(crate) fn answer(&self, now: Time, fx: FrameworkIx, attempt: Attempt, agent: Option<&AgentId>, out: &mut Effects) {
        let Some(framework) = self.frameworks.get(fx) else { return };
        let key = framework.key(&attempt);
        let update = |state, reason, message: &str| StatusUpdate::new(key.clone(), 0, state, reason, message, now);
        let answer = if let Some(task) = framework.tasks.get(&attempt) {
            let ended = task.pending.clone().filter(|_| task.state.is_terminal());
            let state = || update(task.state, Reason::Reconciliation, "answer to a reconciliation");
            (Some(task.agent.clone()), ended.unwrap_or_else(state))
        } else if let Some((state, reason)) = framework.done.get(&attempt) {
            let reason = if *reason == Reason::None { Reason::Reconciliation } else { *reason };
            (None, update(*state, reason, "this attempt ended earlier"))
        } else if self.knows_everything(now, framework.born_here, agent) {
            (None, update(TaskState::Unknown, Reason::Reconciliation, "no agent has this task"))
        } else {
            return;
        };
        self.tell(fx, FrameworkEvent::Updates(vec![answer]), out);
    }

    fn knows_everything(&self, now: Time, born_here: bool, agent: Option<&AgentId>) -> bool {
        let connected = |id: &AgentId| self.agents.find(id).and_then(|ax| self.agents.get(ax)).and_then(Agent::conn).is_some();
        born_here || agent.is_some_and(connected) || now >= self.started.after(self.config.agent_timeout)
    }

    /// Hands more items to a part. If its agent is away, they come straight back as returned.
    pub(crate) fn assign_items(&self, now: Time, fx: FrameworkIx, part: (TaskId, u32), batch: ItemBatch, open: bool, out: &mut Effects) {
        if let Err(problem) = crate::validate::check_batch_splits(&batch) {
            return self.refuse(fx, "assign_items", problem, out);
        }
        match self.live_part(fx, &part.0, part.1) {
            Err(problem) => self.refuse(fx, "assign_items", problem, out),
            Ok((key, _, Some(conn))) => {
                let command = AgentCommand::AssignItems { task: key, batch, open };
                out.send(Message::ToAgent { conn, message: AgentMessage::Command(command) });
            }
            Ok((key, task, None)) => {
                let why = format!("agent {} is not connected", task.agent);
                let mut update = StatusUpdate::new(key, 0, task.state, Reason::AgentDisconnected, why, now);
                update.array =
                    Some(ArrayDelta { returned: batch.items, outstanding: task.outstanding, slots: task.slots, ..ArrayDelta::default() });
                self.tell(fx, FrameworkEvent::Updates(vec![(Some(task.agent.clone()), update)]), out);
            }
        }
    }

    /// Asks a part to give back items that it has not started.
    pub(crate) fn return_items(&self, fx: FrameworkIx, part: (TaskId, u32), most: u64, out: &mut Effects) {
        match self.live_part(fx, &part.0, part.1) {
            Err(problem) => self.refuse(fx, "return_items", problem, out),
            Ok((task, _, Some(conn))) => {
                let command = AgentCommand::ReturnItems { task, most };
                out.send(Message::ToAgent { conn, message: AgentMessage::Command(command) });
            }
            Ok((_, _, None)) => {}
        }
    }
}
