//! Reads from sandboxes: the scheduler says where something lies, the master fetches it from the agent.

use super::no_job;
use crate::cluster::Cluster;
use crate::event_loop::Handle;
use smalti_proto::v1::{self, ReadReply, SandboxRead, TaskKey, sandbox_read, sandbox_request};
use smalti_scheduler_core::Target;
use smalti_types::{AgentId, FrameworkId, TaskId};
use tonic::{Status, Streaming};

/// A task on its agent.
#[derive(Debug, Clone)]
pub(super) struct Location {
    pub(super) framework: Option<FrameworkId>,
    pub(super) agent: AgentId,
    pub(super) task: TaskId,
    pub(super) attempt: u32,
}

impl Location {
    /// Asks the master to read there.
    pub(super) async fn read(&self, cluster: &Cluster, what: sandbox_read::What) -> Result<Streaming<ReadReply>, Status> {
        let framework = self.framework.as_ref().map(ToString::to_string).unwrap_or_default();
        let key = TaskKey { framework, task: self.task.to_string(), attempt: self.attempt };
        let read = SandboxRead { task: Some(key), agent: self.agent.to_string(), what: Some(what) };
        Ok(cluster.operator().await?.read_sandbox(read).await?.into_inner())
    }
}

/// Where a task or item is or was.
pub(super) async fn locate(handle: &Handle, target: Target, item: Option<u64>) -> Result<Option<Location>, Status> {
    let found = handle.ask(move |s| {
        s.job(target.job).map(|job| {
            let framework = job.state.framework.clone();
            job.locate(target.task, item).map(|(agent, task, attempt)| Location { framework, agent, task, attempt })
        })
    });
    found.await?.ok_or_else(|| no_job(&target))
}

/// Files of a task's sandbox.
pub(super) async fn sandbox(
    handle: &Handle,
    cluster: &Cluster,
    target: Target,
    request: v1::SandboxRequest,
) -> Result<Streaming<ReadReply>, Status> {
    let what = match request.what {
        Some(sandbox_request::What::File(path)) => sandbox_read::What::File(path),
        Some(sandbox_request::What::List(path)) => sandbox_read::What::List(path),
        None => return Err(Status::invalid_argument("neither a file nor a directory is named")),
    };
    let location = locate(handle, target, request.item).await?;
    let location = location.ok_or_else(|| {
        Status::failed_precondition(format!(
            "{} has no sandbox yet, or is an array: name an item of it with --item, or a part like {}.m0.0",
            request.task, target.job
        ))
    })?;
    location.read(cluster, what).await
}
