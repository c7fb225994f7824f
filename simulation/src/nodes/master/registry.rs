//! The master's registry: the tables of the real one, in its encoding. A transaction is kept as a whole, over every crash.

use smalti_master_core::{Record, Stored, StoredFramework};
use smalti_proto::registry::{self as records, RecordError};
use smalti_types::{AgentId, DurationMs, FrameworkId};
use std::collections::BTreeMap;

/// Three tables by id, the number of the last life, and how long leases last.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(crate) epoch: u64,
    agents: BTreeMap<AgentId, Vec<u8>>,
    frameworks: BTreeMap<FrameworkId, Vec<u8>>,
    removed: BTreeMap<FrameworkId, Vec<u8>>,
    lease_span: Option<DurationMs>,
}

impl Registry {
    /// One transaction.
    pub(crate) fn write(&mut self, records: Vec<Record>) {
        for record in records {
            match record {
                Record::Agent(info) => drop(self.agents.insert(info.id.clone(), records::write_agent(info))),
                Record::AgentRemoved(id) => drop(self.agents.remove(&id)),
                Record::Framework { id, info, claim, away_until } => {
                    self.removed.remove(&id);
                    self.frameworks.insert(id, records::write_framework(info, claim, away_until));
                }
                Record::FrameworkRemoved { id, at } => {
                    self.frameworks.remove(&id);
                    self.removed.insert(id, records::write_removed(at));
                }
                Record::FrameworkForgotten(id) => drop(self.removed.remove(&id)),
                Record::LeaseSpan(span) => self.lease_span = Some(span),
            }
        }
    }

    /// What a new life starts from.
    pub(crate) fn load(&self) -> Result<Stored, RecordError> {
        let mut stored = Stored { lease_span: self.lease_span, ..Stored::default() };
        for (id, bytes) in &self.agents {
            stored.agents.insert(id.clone(), records::read_agent(bytes)?);
        }
        for (id, bytes) in &self.frameworks {
            let (info, claim, away_until) = records::read_framework(bytes)?;
            stored.frameworks.insert(id.clone(), StoredFramework { info, claim, away_until });
        }
        for (id, bytes) in &self.removed {
            stored.removed.insert(id.clone(), records::read_removed(bytes)?);
        }
        Ok(stored)
    }
}
