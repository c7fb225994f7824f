//! From a request to a job: checked, everything in it resolved, and seen to fit somewhere.

use crate::cluster::Cluster;
use crate::explain::{Needs, name};
use crate::resolve::{ResolveError, Resolver};
use smalti_fetch::{DepositError, SourceError, Sources};
use smalti_proto::v1::{self, map_job, submit_request};
use smalti_scheduler_core::{Constraint, JobId, JobSpec, MapSpec, Policy, ReduceSpec, Request, SingleSpec, Work};
use smalti_types::{ArrayTemplate, Input, Resources, Role, Stdin, TaskSpec};
use std::sync::Arc;
use tonic::Status;

/// Longest name of a job in bytes.
const MAX_NAME: usize = 256;
/// Longest request id in bytes.
const MAX_REQUEST_ID: usize = 128;
/// Most constraints of a job.
const MAX_CONSTRAINTS: usize = 64;
/// Bytes of a split when the client names none.
const DEFAULT_SPLIT: u64 = 4 << 20;
/// Agents named in a refusal.
const MOST_AGENTS: usize = 20;

/// What the client asked for, as a job without an id, and what the client should know about it.
pub(crate) async fn job(
    request: v1::SubmitRequest,
    default_role: &Role,
    (cluster, sources): (&Cluster, &Arc<Sources>),
) -> Result<(JobSpec, Vec<String>), Status> {
    if request.name.len() > MAX_NAME || request.request_id.len() > MAX_REQUEST_ID {
        return Err(Status::invalid_argument(format!("a job's name has at most {MAX_NAME} bytes, a request id {MAX_REQUEST_ID}")));
    }
    let role = if request.role.is_empty() { default_role.clone() } else { Role::new(&request.role).map_err(invalid)? };
    let resolver = Resolver::new(cluster.clone(), sources.clone(), role.clone());
    let mut notes = Vec::new();
    let (policy, work) = match request.kind {
        None => return Err(Status::invalid_argument("neither a single task nor a map is asked for")),
        Some(submit_request::Kind::Single(single)) => (policy(single.policy.clone())?, self::single(single, &resolver).await?),
        Some(submit_request::Kind::Map(map)) => (policy(map.policy.clone())?, self::map(map, &resolver, &mut notes).await?),
    };
    let output_store = request.output_store.filter(|s| !s.is_empty());
    if let Some(store) = &output_store {
        // Told at once, and not when there is something to write.
        sources.deposit(&role, store).map_err(|e| match &e {
            DepositError::Refused { .. } => Status::permission_denied(e.to_string()),
            DepositError::Uri { .. } => Status::invalid_argument(e.to_string()),
            DepositError::Failed { .. } => Status::failed_precondition(e.to_string()),
        })?;
    }
    let id = JobId::new(0, 0);
    let spec = JobSpec { id, request: request.request_id, name: request.name, role, policy, work, output_store };
    spec.check().map_err(invalid)?;
    fits_somewhere(&spec, cluster).await?;
    Ok((spec, notes))
}

fn invalid(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

fn resolved(error: ResolveError) -> Status {
    match error {
        ResolveError::NotFound { .. } => Status::not_found(error.to_string()),
        ResolveError::Source(SourceError::NotFound { .. }) => Status::not_found(error.to_string()),
        ResolveError::Source(SourceError::Refused { .. }) => Status::permission_denied(error.to_string()),
        ResolveError::Master(status) => status,
        other => Status::failed_precondition(other.to_string()),
    }
}

fn policy(wire: Option<v1::Policy>) -> Result<Policy, Status> {
    let wire = wire.unwrap_or_default();
    if wire.constraints.len() > MAX_CONSTRAINTS {
        return Err(Status::invalid_argument(format!("more than {MAX_CONSTRAINTS} constraints")));
    }
    if wire.max_parallel == Some(0) {
        return Err(Status::invalid_argument("max_parallel must be at least 1"));
    }
    Ok(Policy {
        retries: wire.retries,
        max_parallel: wire.max_parallel,
        fail_fast: wire.fail_fast,
        constraints: wire.constraints.into_iter().map(|c| Constraint { attribute: c.attribute, value: c.value }).collect(),
        priority: wire.priority,
    })
}

fn resources(wire: Option<v1::Resources>) -> Result<Resources, Status> {
    let resources = Resources::try_from(wire.unwrap_or_default()).map_err(invalid)?;
    resources.check_request().map_err(invalid)?;
    Ok(resources)
}

async fn single(wire: v1::SingleJob, resolver: &Resolver) -> Result<Work, Status> {
    let spec = self::spec(wire.spec, resolver).await?;
    if matches!(spec.stdin, Stdin::Split | Stdin::Outputs(_)) {
        return Err(Status::invalid_argument("a single task reads no split and no outputs on stdin"));
    }
    Ok(Work::Single(Box::new(SingleSpec { spec, resources: resources(wire.resources)?, ports: wire.ports })))
}

async fn map(wire: v1::MapJob, resolver: &Resolver, notes: &mut Vec<String>) -> Result<Work, Status> {
    let slot_resources = resources(wire.resources)?;
    let mut spec = self::spec(wire.spec, resolver).await?;
    let (total_items, split_inputs, splits) = match wire.items {
        None => return Err(Status::invalid_argument("a map needs a number of items, or inputs")),
        Some(map_job::Items::Count(0)) => return Err(Status::invalid_argument("a map needs at least one item")),
        Some(map_job::Items::Count(n)) => {
            if matches!(spec.stdin, Stdin::Split | Stdin::Outputs(_)) {
                return Err(Status::invalid_argument("items without inputs have no split to read on stdin"));
            }
            (n, Vec::new(), Vec::new())
        }
        Some(map_job::Items::Inputs(list)) => {
            spec.stdin = Stdin::Split;
            let inputs = inputs(list.inputs)?;
            let found = resolver.expand(inputs).await.map_err(resolved)?;
            let cut = resolver.splits(found, Some(wire.split_bytes.unwrap_or(DEFAULT_SPLIT))).await.map_err(resolved)?;
            notes.extend(cut.notes);
            (cut.splits.len() as u64, cut.inputs, cut.splits)
        }
    };
    let reduce = match wire.reduce {
        None => None,
        Some(step) => Some(ReduceSpec { spec: self::spec(step.spec, resolver).await?, resources: resources(step.resources)? }),
    };
    let initial_state = match wire.initial_state {
        None => None,
        Some(input) => Some(resolver.pin(Input::try_from(input).map_err(invalid)?).await.map_err(resolved)?),
    };
    let template = ArrayTemplate { spec, total_items, split_inputs };
    Ok(Work::Map(Box::new(MapSpec { template, splits, slot_resources, reduce, rounds: wire.rounds.max(1), initial_state })))
}

fn inputs(wire: Vec<v1::Input>) -> Result<Vec<Input>, Status> {
    wire.into_iter().map(|i| Input::try_from(i).map_err(invalid)).collect()
}

/// A task's description with every digest and length known.
async fn spec(wire: Option<v1::TaskSpec>, resolver: &Resolver) -> Result<TaskSpec, Status> {
    let mut spec = TaskSpec::try_from(wire.unwrap_or_default()).map_err(invalid)?;
    spec.bundle = resolver.bundle(spec.bundle).await.map_err(resolved)?;
    for input in &mut spec.inputs {
        if input.guest_path.is_none() {
            return Err(Status::invalid_argument("an input file without a path in the guest"));
        }
        *input = resolver.pin(input.clone()).await.map_err(resolved)?;
    }
    if let Stdin::Object(input) = spec.stdin {
        spec.stdin = Stdin::Object(resolver.pin(input).await.map_err(resolved)?);
    }
    Ok(spec)
}

/// A cluster that can never run the job says so at once. One without agents may get some.
async fn fits_somewhere(spec: &JobSpec, cluster: &Cluster) -> Result<(), Status> {
    let constraints = spec.policy.constraints.as_slice();
    let request = |resources, ports| Needs::of(&Request { resources, ports, constraints, avoided: &[] });
    let needs = match &spec.work {
        Work::Single(single) => vec![("the task", request(&single.resources, single.ports))],
        Work::Map(map) => {
            let reduce = map.reduce.as_ref().map(|r| ("the reduce", request(&r.resources, 0)));
            std::iter::once(("a slot", request(&map.slot_resources, 0))).chain(reduce).collect()
        }
    };
    let fits = |agents: &[v1::AgentStatus]| needs.iter().find(|(_, n)| !agents.iter().any(|a| n.never(a).is_none()));
    if cluster.recent_agents().await.is_some_and(|agents| !agents.is_empty() && fits(&agents).is_none()) {
        return Ok(());
    }
    let agents = match cluster.agents().await {
        Ok(agents) => agents,
        // The framework waits for the master, and the job with it.
        Err(status) => {
            tracing::warn!(error = status.message(), "cannot ask for agents; taking the job unseen");
            return Ok(());
        }
    };
    let Some((what, needs)) = fits(&agents).filter(|_| !agents.is_empty()) else { return Ok(()) };
    let mut text = format!("no agent can ever run {what}, which needs {}", needs.resources);
    for agent in agents.iter().take(MOST_AGENTS) {
        text.push_str(&format!("\n  {}: {}", name(agent), needs.never(agent).unwrap_or_default()));
    }
    if agents.len() > MOST_AGENTS {
        text.push_str(&format!("\n  and {} more agents", agents.len() - MOST_AGENTS));
    }
    Err(Status::failed_precondition(text))
}
