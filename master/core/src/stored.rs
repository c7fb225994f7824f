//! What the master's records add up to: all that survives its restart. The registry keeps it, [`Master::recover`] starts from it.
//!
//! Tasks and offers are deliberately not in it: agents bring their tasks back, and offers of an earlier life are void.

use crate::Record;
#[cfg(doc)]
use crate::{Config, Master};
use smalti_types::protocol::Claim;
use smalti_types::{AgentId, AgentInfo, DurationMs, FrameworkId, FrameworkInfo, Time};
use std::collections::BTreeMap;

/// A framework as it was last written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFramework {
    /// Its description.
    pub info: FrameworkInfo,
    /// Which of its schedulers subscribed last.
    pub claim: Claim,
    /// When it is removed unless its scheduler comes back; `None`: its scheduler was connected.
    pub away_until: Option<Time>,
}

/// All that a master remembers over its restarts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    /// Agents of the cluster.
    pub agents: BTreeMap<AgentId, AgentInfo>,
    /// Frameworks that were not removed.
    pub frameworks: BTreeMap<FrameworkId, StoredFramework>,
    /// Frameworks that were removed, and when.
    pub removed: BTreeMap<FrameworkId, Time>,
    /// How long leases of earlier lives may last; `None`: as long as those of [`Config::default`].
    pub lease_span: Option<DurationMs>,
}

impl Stored {
    /// Adds a record. Order matters; repeating the last one does not.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Agent(info) => drop(self.agents.insert(info.id.clone(), info)),
            Record::AgentRemoved(id) => drop(self.agents.remove(&id)),
            Record::Framework { id, info, claim, away_until } => {
                self.removed.remove(&id);
                self.frameworks.insert(id, StoredFramework { info, claim, away_until });
            }
            Record::FrameworkRemoved { id, at } => {
                self.frameworks.remove(&id);
                self.removed.insert(id, at);
            }
            Record::FrameworkForgotten(id) => drop(self.removed.remove(&id)),
            Record::LeaseSpan(span) => self.lease_span = Some(span),
        }
    }
}
