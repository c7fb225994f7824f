//! What the handler asks: launches are checked and remembered, kills and items kept until they took effect.

use crate::attempts::{Attempt, Key, Kill};
use crate::client::{Client, Link, Out};
use crate::event::{Delivery, Message};
use crate::part::Part;
use smalti_types::protocol::Call;
use smalti_types::{AgentId, DurationMs, Filters, ItemBatch, OfferId, Operation, Reason, TaskState, Time};

fn key_of(operation: &Operation) -> Key {
    match operation {
        Operation::Launch(l) => (l.task.clone(), l.attempt),
        Operation::LaunchArray(l) => (l.task.clone(), l.attempt),
    }
}

fn refused(call: &str, message: impl Into<String>) -> Message {
    Message::Deliver(Delivery::Refused { call: call.into(), message: message.into() })
}

impl Client {
    pub(crate) fn call(&mut self, now: Time, call: Call, out: &mut Out) {
        match call {
            Call::Accept { offers, operations, filters } => self.accept(now, offers, operations, filters, out),
            Call::Decline { mut offers, filters } => {
                offers.retain(|o| self.offers.remove(o).is_some());
                if !offers.is_empty() {
                    out.send(Message::ToMaster(Call::Decline { offers, filters }));
                }
            }
            Call::Revive => {
                self.suppressed = false;
                self.pass_on(Call::Revive, out);
            }
            Call::Suppress => {
                self.suppressed = true;
                self.pass_on(Call::Suppress, out);
            }
            Call::Kill { task, attempt, grace } => {
                let known = self.known((task.clone(), attempt), None);
                if known.is_ended() {
                    return;
                }
                known.kill = Some(Kill::new(grace, now));
                let key = (task.clone(), attempt);
                self.keep(&key, out);
                self.kills.insert(key);
                self.pass_on(Call::Kill { task, attempt, grace }, out);
            }
            Call::AssignItems { task, attempt, batch, open } => self.assign(now, (task, attempt), batch, open, out),
            Call::Reconcile(tasks) => {
                for (task, attempt, agent) in &tasks {
                    self.known((task.clone(), *attempt), agent.clone());
                }
                self.pass_on(Call::Reconcile(tasks), out);
            }
            // The client acknowledges by itself; a handler that does so too names what it has handled.
            call @ (Call::Acknowledge(_) | Call::ReturnItems { .. }) => self.pass_on(call, out),
            Call::Teardown => {
                self.teardown = true;
                if self.link == Link::Up {
                    out.send(Message::ToMaster(Call::Teardown));
                    self.offers.clear();
                    self.link = Link::Closed;
                }
            }
        }
    }

    fn pass_on(&self, call: Call, out: &mut Out) {
        if self.link == Link::Up {
            out.send(Message::ToMaster(call));
        }
    }

    /// An attempt that the handler speaks of. It may know it from an earlier life: then its state is in doubt.
    fn known(&mut self, key: Key, agent: Option<AgentId>) -> &mut Attempt {
        if !self.attempts.contains_key(&key) {
            self.doubt.insert(key.clone());
        }
        self.attempts.entry(key).or_insert_with(|| Attempt::adopted(agent))
    }

    fn assign(&mut self, now: Time, key: Key, mut batch: ItemBatch, open: bool, out: &mut Out) {
        let attempt = self.known(key.clone(), None);
        // Items for a part that has ended are as lost as those it had: the terminal update tells the handler.
        if attempt.is_ended() {
            return;
        }
        let part = attempt.part.get_or_insert_with(|| Part::adopted(now));
        part.without_ended(&mut batch);
        part.assign(batch.clone(), open, now);
        self.parts.insert(key.clone());
        if !open {
            // The handler may have done with the part, and never speak of it again.
            self.keep(&key, out);
        }
        self.pass_on(Call::AssignItems { task: key.0, attempt: key.1, batch, open }, out);
    }

    fn accept(&mut self, now: Time, offers: Vec<OfferId>, mut operations: Vec<Operation>, filters: Filters, out: &mut Out) {
        if self.id.is_none() {
            out.send(refused("accept", "there is no subscription yet"));
            return;
        }
        let held: Vec<(OfferId, AgentId)> = offers.iter().filter_map(|o| self.offers.remove_entry(o)).collect();
        let valid = held.len() == offers.len() && !offers.is_empty() && held.windows(2).all(|w| w[0].1 == w[1].1);
        let agent = held.first().map(|(_, agent)| agent.clone());
        let mut launched = Vec::new();
        operations.retain(|operation| {
            let key = key_of(operation);
            let earlier = match self.may_launch(&key) {
                Ok(earlier) => earlier,
                Err(message) => {
                    out.send(refused("accept", message));
                    return false;
                }
            };
            let part = match operation {
                Operation::LaunchArray(l) if earlier.is_none() => Some(Part::new(l.batch.clone(), l.open, now)),
                _ => None,
            };
            if part.is_some() {
                self.parts.insert(key.clone());
            }
            self.attempts.insert(key.clone(), Attempt::launched(agent.clone(), part));
            // Also when it does not leave: the handler's own record may say that it did.
            self.keep(&key, out);
            match earlier {
                None => launched.push(key),
                Some(other) => {
                    let why = format!("attempt {other} of it lives, whatever was said before: the launch was not sent");
                    self.end_locally(now, &key, TaskState::Dropped, Reason::LaunchFailed, &why, out);
                    return false;
                }
            }
            true
        });
        if valid {
            launched.into_iter().for_each(|key| self.doubt.expect(key, now));
            out.send(Message::ToMaster(Call::Accept { offers, operations, filters }));
            return;
        }
        // It never left this process, so nobody can have started it.
        for key in launched {
            self.end_locally(now, &key, TaskState::Dropped, Reason::InvalidOffers, "its offers are void: the launch was not sent", out);
        }
        if !held.is_empty() {
            let offers = held.into_iter().map(|(id, _)| id).collect();
            self.pass_on(Call::Decline { offers, filters: Filters { refuse: DurationMs(0) } }, out);
        }
    }

    /// An id starts again only as a higher attempt; `Err` says that this one is not. `Some` names an earlier one that still
    /// runs where it can be reached: an agent brought it back after its end was told in an earlier life of this process.
    fn may_launch(&self, key: &Key) -> Result<Option<u32>, String> {
        let (task, attempt) = key;
        let mut alive = None;
        for ((_, other), a) in self.attempts.range((task.clone(), 0)..=(task.clone(), u32::MAX)) {
            if *other >= *attempt {
                return Err(format!("{task}#{attempt} comes after {task}#{other}, which was launched before: use a higher attempt"));
            }
            if !a.is_ended() && a.state != Some(TaskState::Unreachable) {
                alive = Some(*other);
            }
        }
        Ok(alive)
    }
}
