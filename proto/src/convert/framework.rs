//! Calls, subscriptions and events: what a framework and the master say to each other.

use super::{ConvertError, MAX_LIST, MAX_SHORT_LIST, MAX_TEXT_LEN, Problem, Result, at, duration, wire};
use crate::{v1, version};
use smalti_types::protocol::{Call, Claim, FrameworkEvent, Subscription};
use smalti_types::{AgentId, Filters, ItemBatch, MasterEpoch, StatusUpdate, TaskId};

/// How often the master says something at least, in milliseconds: a client that hears nothing for three of these
/// takes the connection for broken.
pub const HEARTBEAT_INTERVAL_MS: u64 = 5_000;

/// Does not look at the version: the receiver calls [`version::check`] first.
impl TryFrom<v1::SubscribeCall> for Subscription {
    type Error = ConvertError;
    fn try_from(m: v1::SubscribeCall) -> Result<Self> {
        Ok(Self {
            info: at("SubscribeCall", "info").get(m.info)?,
            id: at("SubscribeCall", "framework_id").optional_id(m.framework_id.as_deref())?,
            claim: Claim { life: m.life, turn: m.turn },
        })
    }
}

/// Carries this build's version.
impl From<Subscription> for v1::SubscribeCall {
    fn from(s: Subscription) -> Self {
        let Claim { life, turn } = s.claim;
        Self { version: Some(version::current()), info: Some(s.info.into()), framework_id: s.id.map(Into::into), life, turn }
    }
}

/// The first message of a stream.
impl From<Subscription> for v1::Call {
    fn from(s: Subscription) -> Self {
        Self { call: Some(v1::call::Call::Subscribe(s.into())) }
    }
}

fn filters(refuse_ms: u64) -> Filters {
    Filters { refuse: duration(refuse_ms) }
}

fn task_seq(m: v1::TaskSeq) -> Result<(TaskId, u32, u64)> {
    Ok((at("TaskSeq", "task").id(&m.task)?, m.attempt, m.seq))
}

fn task_attempt(m: v1::TaskAttempt) -> Result<(TaskId, u32, Option<AgentId>)> {
    Ok((at("TaskAttempt", "task").id(&m.task)?, m.attempt, at("TaskAttempt", "agent").optional_id(m.agent.as_deref())?))
}

impl TryFrom<v1::Call> for Call {
    type Error = ConvertError;
    fn try_from(m: v1::Call) -> Result<Self> {
        use v1::call::Call as Wire;
        Ok(match at("Call", "call").need(m.call)? {
            Wire::Subscribe(_) => return Err(at("Call", "subscribe").fail(Problem::Invalid("must be the first call, and only that"))),
            Wire::Accept(c) => Self::Accept {
                offers: at("AcceptCall", "offers").list(c.offers, MAX_LIST)?,
                operations: at("AcceptCall", "operations").list(c.operations, MAX_SHORT_LIST)?,
                filters: filters(c.refuse_ms),
            },
            Wire::Decline(c) => {
                Self::Decline { offers: at("DeclineCall", "offers").list(c.offers, MAX_LIST)?, filters: filters(c.refuse_ms) }
            }
            Wire::Revive(_) => Self::Revive,
            Wire::Suppress(_) => Self::Suppress,
            Wire::Kill(c) => Self::Kill { task: at("KillCall", "task").id(&c.task)?, attempt: c.attempt, grace: c.grace_ms.map(duration) },
            Wire::Acknowledge(c) => {
                at("AcknowledgeCall", "updates").count(c.updates.len(), MAX_LIST)?;
                Self::Acknowledge(c.updates.into_iter().map(task_seq).collect::<Result<_>>()?)
            }
            Wire::Reconcile(c) => {
                at("ReconcileCall", "tasks").count(c.tasks.len(), MAX_LIST)?;
                Self::Reconcile(c.tasks.into_iter().map(task_attempt).collect::<Result<_>>()?)
            }
            Wire::Assign(c) => Self::AssignItems {
                task: at("AssignItemsCall", "task").id(&c.task)?,
                attempt: c.attempt,
                batch: c.batch.map(ItemBatch::try_from).transpose()?.unwrap_or_default(),
                open: c.open,
            },
            Wire::ReturnItems(c) => {
                Self::ReturnItems { task: at("ReturnItemsCall", "task").id(&c.task)?, attempt: c.attempt, most: c.most }
            }
            Wire::Teardown(_) => Self::Teardown,
        })
    }
}

impl From<Call> for v1::Call {
    fn from(c: Call) -> Self {
        use v1::call::Call as Wire;
        let call = match c {
            Call::Accept { offers, operations, filters } => {
                Wire::Accept(v1::AcceptCall { offers: wire(offers), operations: wire(operations), refuse_ms: filters.refuse.0 })
            }
            Call::Decline { offers, filters } => Wire::Decline(v1::DeclineCall { offers: wire(offers), refuse_ms: filters.refuse.0 }),
            Call::Revive => Wire::Revive(v1::Empty {}),
            Call::Suppress => Wire::Suppress(v1::Empty {}),
            Call::Kill { task, attempt, grace } => Wire::Kill(v1::KillCall { task: task.into(), attempt, grace_ms: grace.map(|g| g.0) }),
            Call::Acknowledge(updates) => {
                let updates = updates.into_iter().map(|(task, attempt, seq)| v1::TaskSeq { task: task.into(), attempt, seq });
                Wire::Acknowledge(v1::AcknowledgeCall { updates: updates.collect() })
            }
            Call::Reconcile(tasks) => {
                let attempt = |(task, attempt, agent): (TaskId, u32, Option<AgentId>)| v1::TaskAttempt {
                    task: task.into(),
                    attempt,
                    agent: agent.map(Into::into),
                };
                Wire::Reconcile(v1::ReconcileCall { tasks: tasks.into_iter().map(attempt).collect() })
            }
            Call::AssignItems { task, attempt, batch, open } => {
                Wire::Assign(v1::AssignItemsCall { task: task.into(), attempt, batch: Some(batch.into()), open })
            }
            Call::ReturnItems { task, attempt, most } => Wire::ReturnItems(v1::ReturnItemsCall { task: task.into(), attempt, most }),
            Call::Teardown => Wire::Teardown(v1::Empty {}),
        };
        Self { call: Some(call) }
    }
}

fn agent_update(m: v1::AgentUpdate) -> Result<(Option<AgentId>, StatusUpdate)> {
    Ok((at("AgentUpdate", "agent").optional_id(m.agent.as_deref())?, at("AgentUpdate", "update").get(m.update)?))
}

/// A heartbeat is not an event: whoever reads the stream looks for it first.
impl TryFrom<v1::Event> for FrameworkEvent {
    type Error = ConvertError;
    fn try_from(m: v1::Event) -> Result<Self> {
        use v1::event::Event as Wire;
        Ok(match at("Event", "event").need(m.event)? {
            Wire::Subscribed(e) => {
                Self::Subscribed { framework: at("SubscribedEvent", "framework_id").id(&e.framework_id)?, epoch: MasterEpoch(e.epoch) }
            }
            Wire::Offers(e) => Self::Offers(at("OffersEvent", "offers").list(e.offers, MAX_LIST)?),
            Wire::Rescind(e) => Self::Rescind(at("RescindEvent", "offers").list(e.offers, MAX_LIST)?),
            Wire::Updates(e) => {
                at("UpdatesEvent", "updates").count(e.updates.len(), MAX_LIST)?;
                Self::Updates(e.updates.into_iter().map(agent_update).collect::<Result<_>>()?)
            }
            Wire::Error(e) => {
                let message = at("ErrorEvent", "message").text(e.message, MAX_TEXT_LEN)?;
                e.fenced_by.map_or_else(|| Self::Error(message.clone()), |life| Self::Fenced { life, message: message.clone() })
            }
            Wire::Heartbeat(_) => return Err(at("Event", "heartbeat").fail(Problem::Invalid("is not an event"))),
            Wire::AgentLost(e) => Self::AgentLost {
                agent: at("AgentLostEvent", "agent").id(&e.agent)?,
                reason: at("AgentLostEvent", "reason").text(e.reason, MAX_TEXT_LEN)?,
            },
            Wire::Refused(e) => Self::Refused {
                call: at("RefusedEvent", "call").text(e.call, MAX_TEXT_LEN)?,
                message: at("RefusedEvent", "message").text(e.message, MAX_TEXT_LEN)?,
            },
        })
    }
}

impl From<FrameworkEvent> for v1::Event {
    fn from(e: FrameworkEvent) -> Self {
        use v1::event::Event as Wire;
        let event = match e {
            FrameworkEvent::Subscribed { framework, epoch } => Wire::Subscribed(v1::SubscribedEvent {
                version: Some(version::current()),
                framework_id: framework.into(),
                epoch: epoch.0,
                heartbeat_interval_ms: HEARTBEAT_INTERVAL_MS,
            }),
            FrameworkEvent::Offers(offers) => Wire::Offers(v1::OffersEvent { offers: wire(offers) }),
            FrameworkEvent::Rescind(offers) => Wire::Rescind(v1::RescindEvent { offers: wire(offers) }),
            FrameworkEvent::Updates(updates) => {
                let update = |(agent, update): (Option<AgentId>, StatusUpdate)| v1::AgentUpdate {
                    agent: agent.map(Into::into),
                    update: Some(update.into()),
                };
                Wire::Updates(v1::UpdatesEvent { updates: updates.into_iter().map(update).collect() })
            }
            FrameworkEvent::AgentLost { agent, reason } => Wire::AgentLost(v1::AgentLostEvent { agent: agent.into(), reason }),
            FrameworkEvent::Refused { call, message } => Wire::Refused(v1::RefusedEvent { call, message }),
            FrameworkEvent::Error(message) => Wire::Error(v1::ErrorEvent { message, fenced_by: None }),
            FrameworkEvent::Fenced { life, message } => Wire::Error(v1::ErrorEvent { message, fenced_by: Some(life) }),
        };
        Self { event: Some(event) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::strategies::{call, framework_event, subscription};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_sent_is_what_arrives(s in subscription(), c in call(), e in framework_event()) {
            prop_assert_eq!(Subscription::try_from(v1::SubscribeCall::from(s.clone())), Ok(s));
            prop_assert_eq!(Call::try_from(v1::Call::from(c.clone())), Ok(c));
            prop_assert_eq!(FrameworkEvent::try_from(v1::Event::from(e.clone())), Ok(e));
        }

        #[test]
        fn any_bytes_are_refused_or_understood_but_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            use prost::Message;
            if let Ok(m) = v1::Call::decode(bytes.as_slice()) {
                let _ = Call::try_from(m);
            }
            if let Ok(m) = v1::Event::decode(bytes.as_slice()) {
                let _ = FrameworkEvent::try_from(m);
            }
        }
    }

    #[test]
    fn a_second_subscription_and_a_heartbeat_are_no_calls_and_no_events() {
        let call = v1::Call { call: Some(v1::call::Call::Subscribe(v1::SubscribeCall::default())) };
        assert!(Call::try_from(call).is_err());
        let event = v1::Event { event: Some(v1::event::Event::Heartbeat(v1::Heartbeat::default())) };
        assert!(FrameworkEvent::try_from(event).is_err());
    }
}
