//! The master's core: a cluster of any size, one change of it, one task.

use super::{spec, told};
use anyhow::{Context, Result};
use smalti_master_core::{Config, Conn, Event, Master};
use smalti_types::protocol::{Call, Claim, Registration, Subscription};
use smalti_types::{
    AgentId, AgentInfo, Attributes, Bytes, DurationMs, Filters, FrameworkId, FrameworkInfo, Launch, MasterEpoch, MilliCpus, Offer,
    Operation, Reason, Resources, Role, StatusUpdate, TaskId, TaskKey, TaskState, Time,
};
use std::collections::BTreeMap;

/// Connections of agents have this and the agent's number.
const AGENTS_FROM: u64 = 1_000_000;

/// A cluster of this size, before its first allocation.
///
/// # Errors
/// None that a name can have.
pub fn cluster(agents: u64, frameworks: u64) -> Result<(Master, Time)> {
    let now = Time(1_000_000);
    let mut master = Master::new(Config::default(), MasterEpoch(1), now);
    for n in 0..frameworks {
        let info = FrameworkInfo {
            name: format!("f{n}"),
            principal: String::new(),
            role: Role::new(format!("r{}", n % 3))?,
            failover_timeout: DurationMs(60_000),
            services: BTreeMap::new(),
        };
        let fresh = FrameworkId::new(format!("F1-{n}"))?;
        let subscription = Subscription { info, id: None, claim: Claim::default() };
        let _ = master.step(now, Event::FrameworkSubscribed { conn: Conn(n), subscription, fresh });
    }
    for n in 0..agents {
        let info = AgentInfo {
            id: AgentId::new(format!("a{n}"))?,
            hostname: format!("a{n}"),
            total: Resources::new(MilliCpus(4_000), Bytes::gib(4)),
            overhead: Resources::default(),
            attributes: Attributes::default(),
            isolation: BTreeMap::new(),
            boot_id: "boot".into(),
            incarnation: 1,
        };
        let registration = Registration { info, tasks: vec![], unacknowledged: vec![] };
        let _ = master.step(now, Event::AgentRegistered { conn: Conn(AGENTS_FROM + n), registration });
    }
    Ok((master, now))
}

/// The connection of a framework of [`cluster`].
///
/// # Errors
/// One that is not of it.
pub fn conn(framework: &FrameworkId) -> Result<Conn> {
    let number = framework.as_str().rsplit_once('-').context("a framework without a number")?.1;
    Ok(Conn(number.parse()?))
}

fn first_offer(master: &Master) -> Result<Offer> {
    master.offer_views().next().context("no offers")
}

pub(super) fn change(rounds: u64) -> Result<u64> {
    let (mut master, now) = cluster(1_000, 100)?;
    let _ = master.step(now, Event::BatchEnd);
    let mut said = 0;
    for _ in 0..rounds {
        let offer = first_offer(&master)?;
        let call = Call::Decline { offers: vec![offer.id], filters: Filters { refuse: DurationMs(0) } };
        let _ = master.step(now, Event::FrameworkCall { conn: conn(&offer.framework)?, call });
        said += told(master.step(now, Event::BatchEnd)).len() as u64;
    }
    Ok(said)
}

pub(super) fn task(rounds: u64) -> Result<u64> {
    let (mut master, now) = cluster(1_000, 100)?;
    let _ = master.step(now, Event::BatchEnd);
    let mut said = 0;
    for n in 0..rounds {
        let offer = first_offer(&master)?;
        let (framework, agent) = (conn(&offer.framework)?, AGENTS_FROM + offer.agent.as_str().trim_start_matches('a').parse::<u64>()?);
        let key = TaskKey { framework: offer.framework.clone(), task: TaskId::new(format!("t{n}"))?, attempt: 0 };
        let resources = Resources::new(MilliCpus(100), Bytes::mib(16));
        let launch = Launch { task: key.task.clone(), attempt: 0, resources, spec: spec() };
        let filters = Filters { refuse: DurationMs(0) };
        let call = Call::Accept { offers: vec![offer.id], operations: vec![Operation::Launch(launch)], filters };
        said += told(master.step(now, Event::FrameworkCall { conn: framework, call })).len() as u64;
        said += told(master.step(now, Event::BatchEnd)).len() as u64;
        for (seq, state) in [(1, TaskState::Running), (2, TaskState::Finished)] {
            let updates = vec![StatusUpdate::new(key.clone(), seq, state, Reason::None, "", now)];
            said += told(master.step(now, Event::AgentUpdates { conn: Conn(agent), updates })).len() as u64;
            let call = Call::Acknowledge(vec![(key.task.clone(), 0, seq)]);
            said += told(master.step(now, Event::FrameworkCall { conn: framework, call })).len() as u64;
        }
        said += told(master.step(now, Event::BatchEnd)).len() as u64;
    }
    Ok(said)
}
