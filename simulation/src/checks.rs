//! What must hold of the world as a whole, beyond the invariants of each core.

use crate::world::World;
use smalti_types::{AgentId, OfferId, TaskKey};
use std::collections::{BTreeMap, BTreeSet};

/// What has happened once and may not happen again.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    consumed: BTreeSet<OfferId>,
    started: BTreeMap<TaskKey, AgentId>,
}

impl Checks {
    /// Offers were used for launches.
    pub(crate) fn consume(&mut self, offers: &[OfferId]) -> Result<(), String> {
        match offers.iter().find(|o| !self.consumed.insert(**o)) {
            Some(offer) => Err(format!("offer {offer} was used twice")),
            None => Ok(()),
        }
    }

    /// An executor begins with an attempt.
    pub(crate) fn start(&mut self, key: TaskKey, agent: AgentId) -> Result<(), String> {
        match self.started.insert(key.clone(), agent.clone()) {
            Some(before) => Err(format!("{key} started on {before} and again on {agent}")),
            None => Ok(()),
        }
    }

    /// How many attempts started.
    pub(crate) fn starts(&self) -> u64 {
        self.started.len() as u64
    }
}

impl World {
    /// The first thing that is not at rest.
    pub(crate) fn unsettled(&self) -> Option<String> {
        let Some(master) = &self.master.core else { return Some("the master is down".into()) };
        for framework in &self.frameworks {
            if let Some(problem) = framework.unsettled() {
                return Some(problem);
            }
        }
        for agent in &self.agents {
            if let Some(problem) = agent.unsettled() {
                return Some(problem);
            }
        }
        let mut registered = 0;
        for view in master.agent_views() {
            registered += 1;
            if view.state != smalti_master_core::AgentState::Active {
                return Some(format!("the master has no connection of {}", view.info.id));
            }
            if !view.used.is_empty() || view.tasks > 0 {
                return Some(format!("the master has {} attempts on {} that hold {}", view.tasks, view.info.id, view.used));
            }
        }
        if registered != self.agents.len() {
            return Some(format!("the master knows {registered} of {} agents", self.agents.len()));
        }
        let busy = master.framework_views().find(|f| f.tasks > 0 || !f.used.is_empty());
        busy.map(|f| format!("the master has {} attempts of {} that hold {}", f.tasks, f.id, f.used))
    }
}
