//! What frameworks and agents say about themselves when they register.

use crate::attributes::Attributes;
use crate::id::{AgentId, Role};
use crate::resources::Resources;
use crate::time::DurationMs;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A framework's description of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameworkInfo {
    /// For people.
    pub name: String,
    /// Whom it acts for; not checked before authentication exists.
    pub principal: String,
    /// Under which role it wants offers.
    pub role: Role,
    /// How long its tasks live on when it is gone.
    pub failover_timeout: DurationMs,
    /// Addresses of services it offers, by protocol name: the batch scheduler's job API is `smalti.v1.Jobs`.
    pub services: BTreeMap<String, String>,
}

/// An agent's description of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Chosen at its first start, kept in its data directory.
    pub id: AgentId,
    /// For people.
    pub hostname: String,
    /// What it has for tasks: its own overhead is already taken off.
    pub total: Resources,
    /// What the agent, its executors and its compiler take off the top.
    pub overhead: Resources,
    /// Facts: arch, os, kernel, cpu features, and the operator's.
    pub attributes: Attributes,
    /// Which isolation layers are on, by name (`cgroup`, `pid_namespace`, …), with a word on each that is off.
    pub isolation: BTreeMap<String, String>,
    /// Changes when the machine restarts.
    pub boot_id: String,
    /// Changes whenever the agent process starts without its earlier tasks.
    pub incarnation: u64,
}
