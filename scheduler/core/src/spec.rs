//! What is to be done: a job as it was submitted, with everything resolved (digests known, inputs pinned, splits computed).
//! A specification never changes after its submission.

use crate::id::JobId;
use serde::{Deserialize, Serialize};
use smalti_types::grants::GrantsError;
use smalti_types::{ArrayTemplate, Attributes, Input, Resources, ResourcesError, Role, Split, Stdin, TaskSpec};

/// Most items of one array: item numbers and their sum stay far from the end of 64 bits, and a progress bar still moves.
pub const MAX_ITEMS: u64 = 1_000_000_000;
/// Most splits of one array: they are listed one by one (24 bytes each), unlike items without splits.
pub const MAX_SPLITS: usize = 2_000_000;
/// Most rounds of one job.
pub const MAX_ROUNDS: u32 = 10_000;
/// Most retries that may be asked for.
pub const MAX_RETRIES: u32 = 1_000;
/// Most ports of one task.
pub const MAX_PORTS: u32 = 1_000;

/// A job as submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Given by the scheduler.
    pub id: JobId,
    /// Chosen by the client; empty: none. A repeat returns the same job.
    pub request: String,
    /// For people.
    pub name: String,
    /// Under which role it runs: one framework per role.
    pub role: Role,
    /// Retries, parallelism, priority, constraints.
    pub policy: Policy,
    /// What to run.
    pub work: Work,
    /// Where its outputs are written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_store: Option<String>,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// One task.
    Single(Box<SingleSpec>),
    /// An array, perhaps with a reduce, perhaps in rounds.
    Map(Box<MapSpec>),
}

/// One task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SingleSpec {
    /// What it runs.
    pub spec: TaskSpec,
    /// What it takes, without the ports that are chosen from the offer.
    pub resources: Resources,
    /// How many ports of the offer it gets.
    pub ports: u32,
}

/// An array of items.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapSpec {
    /// What the items share.
    pub template: ArrayTemplate,
    /// One per item, in item order, when items read splits; else empty.
    pub splits: Vec<Split>,
    /// What one slot takes.
    pub slot_resources: Resources,
    /// Runs after the items of a round, over their outputs.
    pub reduce: Option<ReduceSpec>,
    /// How often map and reduce run, at least 1.
    pub rounds: u32,
    /// `/smalti/state` of the first round.
    pub initial_state: Option<Input>,
}

/// The last task of a round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReduceSpec {
    /// What it runs; its stdin is set by the scheduler.
    pub spec: TaskSpec,
    /// What it takes.
    pub resources: Resources,
}

/// How a job is to be treated.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Policy {
    /// How often a failed task or item is tried again. Failures of the infrastructure do not count.
    pub retries: u32,
    /// Most slots of an array at one time.
    pub max_parallel: Option<u32>,
    /// One failed item ends the job.
    pub fail_fast: bool,
    /// All must hold on the agent.
    pub constraints: Vec<Constraint>,
    /// Higher goes first.
    pub priority: i32,
}

/// An agent's attribute must have this value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    /// Name of the attribute.
    pub attribute: String,
    /// Its value.
    pub value: String,
}

impl Constraint {
    /// Whether an agent with these attributes will do.
    #[must_use]
    pub fn holds(&self, attributes: &Attributes) -> bool {
        attributes.0.get(&self.attribute).is_some_and(|v| *v == self.value)
    }
}

/// Why a job is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The resources of a task or slot.
    #[error("{of}: {cause}")]
    Resources {
        /// Whose.
        of: &'static str,
        /// What is wrong.
        cause: ResourcesError,
    },
    /// What a task or item asks for beside cpu and memory.
    #[error("{of}: {cause}")]
    Grants {
        /// Whose.
        of: &'static str,
        /// What is wrong.
        cause: GrantsError,
    },
    /// Items share their slot, so they cannot listen.
    #[error("an array's slots cannot have ports")]
    ArrayPorts,
    /// Items run at least once.
    #[error("exclusive: items of an array may run more than once when an executor is lost; only single tasks can be exclusive")]
    ExclusiveArray,
    /// A number above its limit.
    #[error("{what}: {value} is above the limit of {limit}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        value: u64,
        /// How many may be.
        limit: u64,
    },
    /// A state for the next round comes from a reduce.
    #[error("{0} rounds need a reduce: its stdout is the state of the next round")]
    RoundsWithoutReduce(u32),
    /// The list of splits is not one per item in item order over the array's inputs.
    #[error("split {0} does not belong to item {0} or names an input that is not there")]
    Split(u64),
}

impl JobSpec {
    /// Items of one round; 1 for a single task.
    #[must_use]
    pub fn items(&self) -> u64 {
        match &self.work {
            Work::Single(_) => 1,
            Work::Map(map) => map.template.total_items,
        }
    }

    /// The array, if it is one.
    #[must_use]
    pub fn map(&self) -> Option<&MapSpec> {
        match &self.work {
            Work::Single(_) => None,
            Work::Map(map) => Some(map),
        }
    }

    /// Whether its one task, or its reduce, may run once at most.
    #[must_use]
    pub fn is_exclusive(&self) -> bool {
        match &self.work {
            Work::Single(single) => single.spec.exclusive,
            Work::Map(map) => map.reduce.as_ref().is_some_and(|r| r.spec.exclusive),
        }
    }

    /// Checks everything that does not depend on the cluster.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), SpecError> {
        below("retries", self.policy.retries.into(), MAX_RETRIES.into())?;
        match &self.work {
            Work::Single(single) => {
                below("ports", single.ports.into(), MAX_PORTS.into())?;
                check_step("task", &single.spec, &single.resources)
            }
            Work::Map(map) => map.check(),
        }
    }
}

impl MapSpec {
    fn check(&self) -> Result<(), SpecError> {
        check_step("slot", &self.template.spec, &self.slot_resources)?;
        if !self.slot_resources.ports.is_empty() {
            return Err(SpecError::ArrayPorts);
        }
        if self.template.spec.exclusive {
            return Err(SpecError::ExclusiveArray);
        }
        if let Some(reduce) = &self.reduce {
            check_step("reduce", &reduce.spec, &reduce.resources)?;
        }
        below("items", self.template.total_items, MAX_ITEMS)?;
        below("splits", self.splits.len() as u64, MAX_SPLITS as u64)?;
        below("rounds", self.rounds.into(), MAX_ROUNDS.into())?;
        if self.rounds > 1 && self.reduce.is_none() {
            return Err(SpecError::RoundsWithoutReduce(self.rounds));
        }
        let inputs = self.template.split_inputs.len();
        let expected = if self.template.spec.stdin == Stdin::Split { self.template.total_items } else { 0 };
        let wrong = self.splits.iter().enumerate().find(|(i, s)| s.item != *i as u64 || s.input as usize >= inputs);
        match wrong {
            Some((i, _)) => Err(SpecError::Split(i as u64)),
            None if self.splits.len() as u64 != expected => Err(SpecError::Split(expected.min(self.splits.len() as u64))),
            None => Ok(()),
        }
    }
}

fn check_step(of: &'static str, spec: &TaskSpec, resources: &Resources) -> Result<(), SpecError> {
    resources.check_request().map_err(|cause| SpecError::Resources { of, cause })?;
    spec.check_grants(resources).map_err(|cause| SpecError::Grants { of, cause })
}

fn below(what: &'static str, value: u64, limit: u64) -> Result<(), SpecError> {
    if value > limit { Err(SpecError::TooMany { what, value, limit }) } else { Ok(()) }
}
