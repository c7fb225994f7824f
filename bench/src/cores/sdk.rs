//! The framework SDK's core: launches, updates, acknowledgements.

use super::{spec, told};
use anyhow::{Result, ensure};
use smalti_framework_sdk_core::{Client, Delivery, Event, Message, UpdateId};
use smalti_types::protocol::{Call, FrameworkEvent};
use smalti_types::{
    AgentId, Attributes, Bytes, DurationMs, Filters, FrameworkId, FrameworkInfo, Launch, MasterEpoch, MilliCpus, Offer, OfferId, Operation,
    Reason, Resources, Role, StatusUpdate, TaskId, TaskKey, TaskState, Time,
};
use std::collections::BTreeMap;

pub(super) fn task(rounds: u64) -> Result<u64> {
    let info = FrameworkInfo {
        name: "f".into(),
        principal: String::new(),
        role: Role::default(),
        failover_timeout: DurationMs(60_000),
        services: BTreeMap::new(),
    };
    let (mut client, framework, agent) = (Client::new(info, None), FrameworkId::new("F1-0")?, AgentId::new("a")?);
    let mut now = Time(1_000_000);
    let _ = client.step(now, Event::Connected);
    let subscribed = FrameworkEvent::Subscribed { framework: framework.clone(), epoch: MasterEpoch(1) };
    let _ = client.step(now, Event::FromMaster(subscribed));
    let (mut delivered, mut acknowledged) = (0_u64, 0_u64);
    for n in 0..rounds {
        now = Time(now.0 + 1_000);
        let resources = Resources::new(MilliCpus(100), Bytes::mib(16));
        let id = OfferId { epoch: MasterEpoch(1), number: n + 1 };
        let offer = Offer {
            id,
            framework: framework.clone(),
            role: Role::default(),
            agent: agent.clone(),
            hostname: "a".into(),
            resources: resources.clone(),
            attributes: Attributes::default(),
            holdings: Vec::new(),
        };
        let _ = client.step(now, Event::FromMaster(FrameworkEvent::Offers(vec![offer])));
        let key = TaskKey { framework: framework.clone(), task: TaskId::new(format!("t{n}"))?, attempt: 0 };
        let launch = Launch { task: key.task.clone(), attempt: 0, resources, spec: spec() };
        let call = Call::Accept { offers: vec![id], operations: vec![Operation::Launch(launch)], filters: Filters::default() };
        let _ = client.step(now, Event::Call(call));
        for (seq, state) in [(1, TaskState::Running), (2, TaskState::Finished)] {
            let update = StatusUpdate::new(key.clone(), seq, state, Reason::None, "", now);
            let updates = FrameworkEvent::Updates(vec![(Some(agent.clone()), update)]);
            for message in told(client.step(now, Event::FromMaster(updates))) {
                let Message::Deliver(Delivery::Update { update, .. }) = message else { continue };
                delivered += 1;
                let taken = told(client.step(now, Event::Handled(vec![UpdateId::of(&update)])));
                acknowledged += taken.iter().filter(|m| matches!(m, Message::ToMaster(Call::Acknowledge(_)))).count() as u64;
            }
        }
    }
    ensure!((delivered, acknowledged) == (2 * rounds, 2 * rounds), "{delivered} delivered, {acknowledged} acknowledged");
    Ok(acknowledged)
}
