//! Read-only snapshots for operators: what the master knows, as plain values. Nothing here changes a decision.

use crate::agents::{Agent, AgentLink};
use crate::event::Conn;
use crate::frameworks::{Framework, FrameworkLink};
use crate::master::Master;
use crate::slab::FrameworkIx;
use smalti_types::{
    AgentId, AgentInfo, FrameworkId, FrameworkInfo, HoldingKey, MasterEpoch, Offer, OfferId, Resources, Role, TaskKey, Time,
};
use std::collections::BTreeMap;

/// Whether an agent can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentState {
    /// Connected.
    Active,
    /// Not connected; its tasks may still run.
    Disconnected,
    /// Not connected for so long that its tasks were reported UNREACHABLE.
    Unreachable,
}

/// One agent.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentView {
    /// What it says about itself.
    pub info: AgentInfo,
    /// Whether it can be reached.
    pub state: AgentState,
    /// Held by tasks.
    pub used: Resources,
    /// Held by offers.
    pub offered: Resources,
    /// Neither.
    pub free: Resources,
    /// When it registered last.
    pub registered: Time,
    /// Attempts that hold resources here.
    pub tasks: usize,
    /// Since when it is not connected.
    pub away_since: Option<Time>,
    /// What its caches hold, by role.
    pub holdings: BTreeMap<Role, Vec<HoldingKey>>,
}

/// Whether a framework's scheduler is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameworkState {
    /// Connected.
    Active,
    /// Not connected; its tasks live on for its fail-over time.
    Disconnected,
}

/// One framework.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameworkView {
    /// Its id.
    pub id: FrameworkId,
    /// What it says about itself.
    pub info: FrameworkInfo,
    /// Whether its scheduler is there.
    pub state: FrameworkState,
    /// Held by its tasks, without ports.
    pub used: Resources,
    /// Held by offers to it, without ports.
    pub offered: Resources,
    /// The greatest part of one kind of resource that it has, used and offered; 1 is all of it.
    pub dominant_share: f64,
    /// Attempts that have not ended.
    pub tasks: usize,
    /// When it registered first in this life of the master.
    pub registered: Time,
    /// When it is removed unless its scheduler comes back; `None` while its scheduler is there.
    pub failover_deadline: Option<Time>,
    /// Updates that wait for its acknowledgement, in bytes.
    pub pending_bytes: usize,
}

/// The cluster in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterView {
    /// This life of the master.
    pub epoch: MasterEpoch,
    /// Agents, connected or not.
    pub agents: usize,
    /// Frameworks, connected or not.
    pub frameworks: usize,
    /// Addresses that connected frameworks announce, by protocol; of equal names, the newest subscription's.
    pub services: BTreeMap<String, String>,
    /// What the bounds made this life of the master do, by name: see `docs/bounds.md`.
    pub counters: BTreeMap<&'static str, u64>,
}

impl Master {
    /// The cluster in one line.
    #[must_use]
    pub fn cluster_view(&self) -> ClusterView {
        let mut connected: Vec<&Framework> = self.frameworks.iter().map(|(_, _, f)| f).filter(|f| f.conn().is_some()).collect();
        connected.sort_by_key(|f| f.subscription);
        let services = connected.into_iter().flat_map(|f| f.info.services.clone()).collect();
        ClusterView { epoch: self.epoch, agents: self.agents.len(), frameworks: self.frameworks.len(), services, counters: self.counters() }
    }

    fn counters(&self) -> BTreeMap<&'static str, u64> {
        let pending = u64::try_from(self.pending_bytes).unwrap_or(u64::MAX);
        BTreeMap::from([
            ("refused_updates", self.refused_updates),
            ("forgotten_refusals", self.forgotten_refusals),
            ("pending_update_bytes", pending),
        ])
    }

    /// When the first refusal ends.
    #[must_use]
    pub fn first_refusal_end(&self) -> Option<Time> {
        self.refusal_ends.first().map(|(until, _, _)| *until)
    }

    /// Every agent, by id.
    pub fn agent_views(&self) -> impl Iterator<Item = AgentView> {
        self.agents.iter().map(|(_, _, agent)| view_agent(agent))
    }

    /// Every framework, by id.
    pub fn framework_views(&self) -> impl Iterator<Item = FrameworkView> {
        self.frameworks.iter().map(|(_, fx, framework)| self.view_framework(fx, framework))
    }

    /// Every offer that is out, the oldest first.
    pub fn offer_views(&self) -> impl Iterator<Item = Offer> {
        self.offers.iter().filter_map(|(number, offer)| {
            let (agent, framework) = (self.agents.get(offer.agent)?, self.frameworks.get(offer.framework)?);
            Some(Offer {
                id: OfferId { epoch: self.epoch, number: *number },
                framework: framework.id.clone(),
                role: framework.info.role.clone(),
                agent: agent.info.id.clone(),
                hostname: agent.info.hostname.clone(),
                resources: offer.resources.clone(),
                attributes: agent.info.attributes.clone(),
                holdings: agent.holdings.of(&framework.info.role),
            })
        })
    }

    /// The connection of an agent: where to send what is not the core's business (reads of sandboxes).
    /// `None` when it is unknown or disconnected.
    #[must_use]
    pub fn agent_connection(&self, agent: &AgentId) -> Option<Conn> {
        self.agents.get(self.agents.find(agent)?)?.conn()
    }

    /// The agent to which a task is bound, while the task is remembered.
    #[must_use]
    pub fn agent_of_task(&self, task: &TaskKey) -> Option<AgentId> {
        self.task(task).map(|t| t.agent.clone())
    }

    /// Whether the agent is registered, connected or not.
    #[must_use]
    pub fn knows_agent(&self, agent: &AgentId) -> bool {
        self.agents.find(agent).is_some()
    }

    fn view_framework(&self, fx: FrameworkIx, framework: &Framework) -> FrameworkView {
        let holding = self.shares.of(fx);
        FrameworkView {
            id: framework.id.clone(),
            info: framework.info.clone(),
            state: match framework.link {
                FrameworkLink::Connected(_) => FrameworkState::Active,
                FrameworkLink::Away { .. } => FrameworkState::Disconnected,
            },
            used: holding.map(|h| h.used.to_resources()).unwrap_or_default(),
            offered: holding.map(|h| h.offered.to_resources()).unwrap_or_default(),
            dominant_share: self.shares.share_of(fx).to_f64(),
            tasks: framework.tasks.values().filter(|t| !t.state.is_terminal()).count(),
            registered: framework.registered,
            failover_deadline: match framework.link {
                FrameworkLink::Connected(_) => None,
                FrameworkLink::Away { until } => Some(until),
            },
            pending_bytes: framework.pending_bytes,
        }
    }
}

fn view_agent(agent: &Agent) -> AgentView {
    AgentView {
        info: agent.info.clone(),
        state: match agent.link {
            AgentLink::Connected(_) => AgentState::Active,
            AgentLink::Away { reported: false, .. } => AgentState::Disconnected,
            AgentLink::Away { reported: true, .. } => AgentState::Unreachable,
        },
        used: agent.ledger.used().clone(),
        offered: agent.ledger.offered().clone(),
        free: agent.ledger.free().clone(),
        registered: agent.registered,
        tasks: agent.tasks.len() + agent.orphans.len(),
        holdings: agent.holdings.by_role().iter().map(|(role, keys)| (role.clone(), keys.iter().copied().collect())).collect(),
        away_since: match agent.link {
            AgentLink::Connected(_) => None,
            AgentLink::Away { since, .. } => Some(since),
        },
    }
}
