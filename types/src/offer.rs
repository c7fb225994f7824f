//! Offers: what the master holds out to a framework, and what the framework answers.

use crate::attributes::Attributes;
use crate::holdings::HoldingKey;
use crate::id::{AgentId, FrameworkId, OfferId, Role};
use crate::resources::Resources;
use crate::task::{Launch, LaunchArray};
use crate::time::DurationMs;
use serde::{Deserialize, Serialize};

/// Resources of one agent, held for one framework until it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Used once.
    pub id: OfferId,
    /// To whom.
    pub framework: FrameworkId,
    /// Under which role.
    pub role: Role,
    /// Whose resources.
    pub agent: AgentId,
    /// The agent's host name.
    pub hostname: String,
    /// How much.
    pub resources: Resources,
    /// The agent's attributes.
    pub attributes: Attributes,
    /// Which bundles and inputs of this role are on the agent already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holdings: Vec<HoldingKey>,
}

/// What to do with accepted resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Start one task.
    Launch(Launch),
    /// Start one part of a task array.
    LaunchArray(LaunchArray),
}

impl Operation {
    /// What it takes of the offer; `None` when the sum overflows or an array asks for ports.
    #[must_use]
    pub fn resources(&self) -> Option<Resources> {
        match self {
            Self::Launch(l) => Some(l.resources.clone()),
            Self::LaunchArray(a) => a.slot_resources.ports.is_empty().then(|| a.slot_resources.checked_mul(a.slots).ok()).flatten(),
        }
    }
}

/// How long the unused part of an offer need not be offered again to the same framework.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filters {
    /// Zero: offer again at once (Mesos: `refuse_seconds`, default 5 s).
    pub refuse: DurationMs,
}

impl Default for Filters {
    fn default() -> Self {
        Self { refuse: DurationMs(5_000) }
    }
}
