//! A framework uses offers: each offer is consumed once, each launch is started once, each wrong launch is answered.
//!
//! A launch that is refused gets its one terminal status here (ERROR for a wrong description, DROPPED for void offers).
//! A launch under an id that is or was in use gets no status, because that status would speak of the other launch: the
//! call is refused instead.

use crate::Effects;
use crate::leases::is_exclusive;
use crate::limits::{MAX_OFFERS_PER_CALL, MAX_OPERATIONS, MAX_TASKS_PER_FRAMEWORK};
use crate::master::Master;
use crate::shares::Column;
use crate::slab::{AgentIx, FrameworkIx};
use crate::tasks::{Attempt, Task};
use crate::validate::check_operation;
use smalti_types::protocol::AgentCommand;
use smalti_types::{AgentId, Filters, FrameworkId, OfferId, Operation, Reason, Resources, Role, TaskState, Time};
use std::collections::BTreeSet;

fn attempt_of(operation: &Operation) -> Attempt {
    match operation {
        Operation::Launch(l) => (l.task.clone(), l.attempt),
        Operation::LaunchArray(a) => (a.task.clone(), a.attempt),
    }
}

fn into_command(framework: FrameworkId, role: Role, operation: Operation) -> AgentCommand {
    match operation {
        Operation::Launch(launch) => AgentCommand::Launch { framework, role, launch },
        Operation::LaunchArray(launch) => AgentCommand::LaunchArray { framework, role, launch },
    }
}

impl Master {
    /// Uses offers of one agent for operations; what is left over is free again and refused for a while.
    pub(crate) fn accept(
        &mut self,
        now: Time,
        fx: FrameworkIx,
        offers: &[OfferId],
        operations: Vec<Operation>,
        filters: Filters,
        out: &mut Effects,
    ) {
        let ax = match self.agent_of_offers(fx, offers) {
            Ok(ax) => ax,
            Err(problem) => return self.drop_all(now, fx, offers, &operations, &problem, out),
        };
        self.has_answered(fx);
        let mut left = Resources::default();
        for id in offers {
            let Some(offer) = self.end_offer(id.number) else { continue };
            left = left.checked_add(&offer.resources).expect("offers of one agent hold different parts of it");
        }
        let Some(agent) = self.agents.get(ax).map(|a| a.info.id.clone()) else { return };
        let too_many = operations.len() > MAX_OPERATIONS;
        for operation in operations {
            if too_many {
                let problem = format!("operations: more than {MAX_OPERATIONS} in one accept");
                self.reject(now, fx, &operation, Some(&agent), (TaskState::Error, Reason::InvalidTask, problem), out);
                continue;
            }
            self.launch(now, fx, ax, &agent, operation, &mut left, out);
        }
        if !left.is_empty() {
            self.refuse_for(now, fx, ax, left, filters.refuse);
        }
        self.mark_dirty(ax);
    }

    /// The agent of all these offers, if they are all this framework's, of this life of the master, and not used before.
    fn agent_of_offers(&self, fx: FrameworkIx, offers: &[OfferId]) -> Result<AgentIx, String> {
        if offers.is_empty() || offers.len() > MAX_OFFERS_PER_CALL {
            return Err(format!("offers has {} entries, but must have from 1 to {MAX_OFFERS_PER_CALL}", offers.len()));
        }
        let mut seen = BTreeSet::new();
        let mut agent = None;
        for id in offers {
            if id.epoch != self.epoch {
                return Err(format!("offer {id} is of an earlier life of the master: reconcile"));
            }
            let offer = self.offers.get(&id.number).filter(|o| o.framework == fx);
            let Some(offer) = offer else { return Err(format!("offer {id} was used, taken back or never made")) };
            if !seen.insert(id.number) {
                return Err(format!("offer {id} is named twice"));
            }
            if *agent.get_or_insert(offer.agent) != offer.agent {
                return Err(format!("offer {id} is of another agent than the first one"));
            }
        }
        agent.ok_or_else(|| "offers is empty".to_owned())
    }

    /// The accept as a whole is void: its own offers go back, its launches are dropped.
    fn drop_all(&mut self, now: Time, fx: FrameworkIx, offers: &[OfferId], operations: &[Operation], problem: &str, out: &mut Effects) {
        let current = self.epoch;
        // What an earlier life of the master did with such an accept is unknown: never a terminal state for it.
        let earlier = offers.iter().any(|id| id.epoch != current);
        let state = if earlier { TaskState::Unknown } else { TaskState::Dropped };
        for id in offers.iter().filter(|id| id.epoch == current) {
            if self.offers.get(&id.number).is_some_and(|o| o.framework == fx) {
                self.end_offer(id.number);
            }
        }
        for operation in operations {
            self.reject(now, fx, operation, None, (state, Reason::InvalidOffers, format!("offers: {problem}")), out);
        }
    }

    /// Answers an operation that does not start.
    fn reject(
        &mut self,
        now: Time,
        fx: FrameworkIx,
        operation: &Operation,
        agent: Option<&AgentId>,
        verdict: (TaskState, Reason, String),
        out: &mut Effects,
    ) {
        let attempt = attempt_of(operation);
        let Some(framework) = self.frameworks.get(fx) else { return };
        let key = framework.key(&attempt);
        if framework.tasks.contains_key(&attempt) || framework.done.contains(&attempt) {
            let message = format!("operations: {key} was launched before; this second launch is ignored ({})", verdict.2);
            return self.refuse(fx, "accept", message, out);
        }
        if verdict.0.is_terminal() {
            self.remember_end(fx, attempt, verdict.0, verdict.1);
        }
        self.report(now, &key, agent, verdict, out);
    }

    /// Starts one operation on what is left of the offers.
    #[expect(clippy::too_many_arguments, reason = "one row of the accept: whose, where, what, out of what, and where the answers go")]
    fn launch(
        &mut self,
        now: Time,
        fx: FrameworkIx,
        ax: AgentIx,
        agent: &AgentId,
        operation: Operation,
        left: &mut Resources,
        out: &mut Effects,
    ) {
        let attempt = attempt_of(&operation);
        let Some(framework) = self.frameworks.get(fx) else { return };
        let key = framework.key(&attempt);
        if framework.tasks.contains_key(&attempt) || framework.done.contains(&attempt) {
            let verdict = (TaskState::Error, Reason::InvalidTask, "an id is used once".to_owned());
            return self.reject(now, fx, &operation, Some(agent), verdict, out);
        }
        if self.agents.get(ax).is_some_and(|a| a.orphans.contains_key(&key)) {
            let message = format!("operations: {key} ended earlier and is still being killed on agent {agent}; an id is used once");
            return self.refuse(fx, "accept", message, out);
        }
        let exclusive = is_exclusive(&operation);
        let running = framework.tasks.range((attempt.0.clone(), 0)..=(attempt.0.clone(), u32::MAX)).find(|(_, t)| !t.state.is_terminal());
        if let Some(((_, other), _)) = running.filter(|(_, t)| exclusive || t.exclusive) {
            let problem = format!("exclusive: attempt {other} of this task has not ended; start another after its terminal status");
            let verdict = (TaskState::Error, Reason::InvalidTask, problem);
            return self.reject(now, fx, &operation, Some(agent), verdict, out);
        }
        let known = framework.tasks.len();
        let fits = check_operation(&operation).and_then(|()| {
            if known >= MAX_TASKS_PER_FRAMEWORK {
                return Err(format!("the framework has {known} attempts that run or wait for its acknowledgement, the most allowed"));
            }
            let wanted = operation.resources().ok_or("resources: the sum is too large")?;
            let rest = left.checked_sub(&wanted).map_err(|e| format!("resources: more than the rest of the offers: {e}"))?;
            Ok((wanted, rest))
        });
        let (wanted, rest) = match fits {
            Ok(fits) => fits,
            Err(problem) => {
                let verdict = (TaskState::Error, Reason::InvalidTask, problem);
                return self.reject(now, fx, &operation, Some(agent), verdict, out);
            }
        };
        *left = rest;
        let (slot, slots) = match &operation {
            Operation::Launch(_) => (None, 0),
            Operation::LaunchArray(a) => (Some(a.slot_resources.clone()), a.slots),
        };
        self.shares.add(fx, Column::Used, &wanted);
        if let Some(books) = self.agents.get_mut(ax) {
            books.ledger.take(&wanted);
            books.tasks.insert(key.clone());
            if exclusive {
                // The agent will ask for its first lease as soon as this launch arrives.
                books.lease_granted = books.lease_granted.max(now);
            }
        }
        let Some(framework) = self.frameworks.get_mut(fx) else { return };
        framework.tasks.insert(attempt, Task { exclusive, ..Task::staging(agent.clone(), wanted, slot, slots) });
        let role = framework.info.role.clone();
        self.command(agent, into_command(key.framework, role, operation), out);
    }
}
