//! Answers to "where is this task?", and items that are passed on to running parts of arrays.

use crate::Effects;
use crate::event::{AgentMessage, Message};
use crate::master::Master;
use crate::slab::FrameworkIx;
use crate::tasks::{Attempt, Verdict};
use smalti_types::protocol::{AgentCommand, FrameworkEvent};
use smalti_types::{AgentId, ItemBatch, Reason, StatusUpdate, TaskId, TaskState, Time};

impl Master {
    /// The current state of the named tasks, or of all: of all, as many at a time as a framework can take.
    pub(crate) fn reconcile(&mut self, now: Time, fx: FrameworkIx, tasks: Vec<(TaskId, u32, Option<AgentId>)>, out: &mut Effects) {
        if tasks.is_empty() {
            let Some(framework) = self.frameworks.get_mut(fx) else { return };
            framework.recite = framework.tasks.keys().next().cloned();
            self.recite(now, fx, out);
        }
        for (task, attempt, agent) in tasks {
            self.answer(now, fx, (task, attempt), agent.as_ref(), out);
        }
    }

    /// Goes on with the answers to a reconciliation of everything.
    pub(crate) fn recite(&mut self, now: Time, fx: FrameworkIx, out: &mut Effects) {
        let Some(framework) = self.frameworks.get_mut(fx) else { return };
        let Some(from) = framework.recite.take() else { return };
        let mut attempts: Vec<Attempt> =
            framework.tasks.range(from..).map(|(a, _)| a).take(self.config.resend_window + 1).cloned().collect();
        if attempts.len() > self.config.resend_window {
            framework.recite = attempts.pop();
        }
        for attempt in attempts {
            self.answer(now, fx, attempt, None, out);
        }
        self.note_owed(fx);
    }

    /// What the master knows of one attempt. It says nothing while it may still learn more: after its own start, agents
    /// bring back their tasks one by one.
    pub(crate) fn answer(&self, now: Time, fx: FrameworkIx, attempt: Attempt, agent: Option<&AgentId>, out: &mut Effects) {
        let Some(framework) = self.frameworks.get(fx) else { return };
        let key = framework.key(&attempt);
        let update = |state, reason, message: String| StatusUpdate::new(key.clone(), 0, state, reason, message, now);
        let answers = if let Some(task) = framework.tasks.get(&attempt) {
            // What waits for an acknowledgement comes first, in its order: the end of a task is only the last of it.
            let mut answers: Vec<StatusUpdate> = task.pending.iter().cloned().collect();
            if !task.state.is_terminal() {
                answers.push(update(task.state, Reason::Reconciliation, "answer to a reconciliation".to_owned()));
            }
            answers.into_iter().map(|u| (Some(task.agent.clone()), u)).collect()
        } else if let Some((state, reason)) = framework.done.get(&attempt) {
            let reason = if *reason == Reason::None { Reason::Reconciliation } else { *reason };
            vec![(None, update(*state, reason, "this attempt ended earlier".to_owned()))]
        } else if let Some((state, reason, message)) = self.verdict_of_unknown(now, framework.born_here, agent) {
            vec![(agent.cloned(), update(state, reason, message))]
        } else {
            return;
        };
        self.tell(fx, FrameworkEvent::Updates(answers), out);
    }

    /// What to say of a task of which this life of the master knows nothing; `None` while an agent may still bring it back, or
    /// while it may still run under the lease of an agent that was lost.
    fn verdict_of_unknown(&self, now: Time, born_here: bool, agent: Option<&AgentId>) -> Option<Verdict> {
        let nobody = |words: &str| Some((TaskState::Unknown, Reason::Reconciliation, words.to_owned()));
        if born_here {
            return nobody("no agent has this task");
        }
        let waited = now >= self.started.after(self.config.agent_timeout.max(self.config.lease_span())).max(self.earlier_leases);
        match agent.map(|id| (id, self.agents.find(id).and_then(|ax| self.agents.get(ax)))) {
            Some((_, Some(agent))) if agent.heard && now < agent.strays_until => None,
            Some((id, Some(agent))) if agent.heard && agent.rebooted => {
                Some((TaskState::Gone, Reason::AgentRestarted, format!("the machine of agent {id} restarted")))
            }
            Some((id, Some(agent))) if agent.heard => nobody(&format!("agent {id} does not have this task")),
            _ if !waited => None,
            // Whatever leases an earlier life of the master gave are over by now: an exclusive task has ended.
            Some((id, Some(_))) => {
                let why = format!("agent {id} has not been heard of since this master started; leases that it had are over");
                Some((TaskState::Unreachable, Reason::LeaseExpired, why))
            }
            Some((id, None)) => nobody(&format!("there is no agent {id}, and no other has this task")),
            None if self.unheard > 0 => {
                let why =
                    format!("{} agents have not been heard of since this master started; leases that they had are over", self.unheard);
                Some((TaskState::Unreachable, Reason::LeaseExpired, why))
            }
            None => nobody("no agent has this task"),
        }
    }

    /// Hands more items to a part. While its agent is away nothing happens: the framework's client says it again.
    pub(crate) fn assign_items(&self, fx: FrameworkIx, part: (TaskId, u32), batch: ItemBatch, open: bool, out: &mut Effects) {
        if let Err(problem) = crate::validate::check_batch_splits(&batch) {
            return self.refuse(fx, "assign_items", problem, out);
        }
        match self.live_part(fx, &part.0, part.1) {
            Err(problem) => self.refuse(fx, "assign_items", problem, out),
            Ok((key, _, Some(conn))) => {
                let command = AgentCommand::AssignItems { task: key, batch, open };
                out.send(Message::ToAgent { conn, message: AgentMessage::Command(command) });
            }
            // It may be a repeat of what the part has: nobody can say here that these items were not started.
            Ok((_, _, None)) => {}
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
