//! The core's snapshots as wire messages for operators.

use smalti_master_core::{AgentState, AgentView, ClusterView, FrameworkState, FrameworkView};
use smalti_proto::{v1, version};
use std::collections::BTreeMap;

pub(crate) fn cluster(view: ClusterView, mut counters: BTreeMap<String, u64>) -> v1::ClusterInfo {
    counters.extend(view.counters.iter().map(|(name, n)| ((*name).to_owned(), *n)));
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    v1::ClusterInfo {
        version: Some(version::current()),
        epoch: view.epoch.0,
        agents: count(view.agents),
        frameworks: count(view.frameworks),
        services: view.services.into_iter().collect(),
        counters: counters.into_iter().collect(),
    }
}

/// `counters` are the agent's own and the master's about its connection; `executors` is what it said last on it.
pub(crate) fn agent(view: AgentView, counters: BTreeMap<String, u64>, executors: v1::ExecutorReports) -> v1::AgentStatus {
    let state = match view.state {
        AgentState::Active => "active",
        AgentState::Disconnected => "disconnected",
        AgentState::Unreachable => "unreachable",
    };
    v1::AgentStatus {
        info: Some(view.info.into()),
        state: state.to_owned(),
        used: Some(view.used.into()),
        offered: Some(view.offered.into()),
        free: Some(view.free.into()),
        registered_us: view.registered.0,
        tasks: u32::try_from(view.tasks).unwrap_or(u32::MAX),
        counters: counters.into_iter().collect(),
        executors: executors.executors,
        overhead_memory: executors.overhead_memory,
        away_since_us: view.away_since.map(|t| t.0),
        executor_losses: executors.losses,
        holdings: view
            .holdings
            .into_iter()
            .map(|(role, held)| v1::HoldingsChange {
                role: role.into(),
                added: held.into_iter().map(|k| k.0).collect(),
                removed: Vec::new(),
            })
            .collect(),
    }
}

pub(crate) fn framework(view: FrameworkView) -> v1::FrameworkStatus {
    let state = match view.state {
        FrameworkState::Active => "active",
        FrameworkState::Disconnected => "disconnected",
    };
    v1::FrameworkStatus {
        id: view.id.into(),
        info: Some(view.info.into()),
        state: state.to_owned(),
        used: Some(view.used.into()),
        offered: Some(view.offered.into()),
        dominant_share: view.dominant_share,
        tasks: u32::try_from(view.tasks).unwrap_or(u32::MAX),
        registered_us: view.registered.0,
        failover_deadline_us: view.failover_deadline.map(|t| t.0),
        pending_bytes: view.pending_bytes as u64,
    }
}
