//! The job API. Each call is a question to the event loop, an event for it, or a stream that follows a job.
//!
//! Owns no state. Streams are bounded queues: a client that does not read stops its own stream and nothing else.

mod lists;
mod output;
mod reads;
mod tail;

use crate::cluster::Cluster;
use crate::event_loop::{Full, Handle, Stopping, now};
use crate::explain::Facts;
use crate::submit;
use smalti_fetch::Sources;
use smalti_proto::v1::jobs_server::Jobs;
use smalti_proto::v1::{self, ReadReply};
use smalti_scheduler_core::{Event, Target};
use smalti_types::{DurationMs, Role};
use std::pin::Pin;
use std::sync::Arc;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers clients.
#[derive(Debug)]
pub(crate) struct JobService {
    handle: Handle,
    cluster: Cluster,
    sources: Arc<Sources>,
    role: Role,
}

impl From<Stopping> for Status {
    fn from(e: Stopping) -> Self {
        Self::unavailable(e.to_string())
    }
}

impl From<Full> for Status {
    fn from(e: Full) -> Self {
        Self::resource_exhausted(e.to_string())
    }
}

impl JobService {
    pub(crate) fn new(handle: Handle, cluster: Cluster, sources: Arc<Sources>, role: Role) -> Self {
        Self { handle, cluster, sources, role }
    }

    /// What a client named, if it exists.
    async fn target(&self, text: &str) -> Result<Target, Status> {
        find(&self.handle, text).await
    }
}

/// What a client named, if it exists.
async fn find(handle: &Handle, text: &str) -> Result<Target, Status> {
    let target: Target = text.parse().map_err(|e: smalti_scheduler_core::NameError| Status::not_found(e.to_string()))?;
    if handle.ask(move |s| s.job(target.job).is_some()).await? { Ok(target) } else { Err(no_job(&target)) }
}

fn no_job(target: &Target) -> Status {
    Status::not_found(format!("no job {}; `smalti jobs --all` lists those that are remembered", target.job))
}

#[tonic::async_trait]
impl Jobs for JobService {
    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitReply>, Status> {
        let (job, notes) = submit::job(request.into_inner(), &self.role, (&self.cluster, &self.sources)).await?;
        let id = self.handle.submit(job).await??;
        Ok(Response::new(v1::SubmitReply { job: id.to_string(), notes }))
    }

    async fn defaults(&self, _: Request<v1::Empty>) -> Result<Response<v1::JobDefaults>, Status> {
        Ok(Response::new(v1::JobDefaults { role: self.role.to_string() }))
    }

    type WatchStream = Replies<v1::JobView>;

    async fn watch(&self, request: Request<v1::JobRef>) -> Result<Response<Self::WatchStream>, Status> {
        let target = self.target(&request.into_inner().job).await?;
        let views = self.handle.watch(target.job).await?.ok_or_else(|| no_job(&target))?;
        Ok(Response::new(Box::pin(WatchStream::new(views).map(|view| Ok((*view).clone())))))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::JobList>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.handle.ask(move |s| lists::jobs(s, &request)).await?))
    }

    async fn list_tasks(&self, request: Request<v1::ListTasksRequest>) -> Result<Response<v1::TaskList>, Status> {
        let request = request.into_inner();
        if !request.job_or_task.is_empty() {
            self.target(&request.job_or_task).await?;
        }
        self.handle.ask(move |s| lists::tasks(s, &request)).await?.map(Response::new)
    }

    type OutputStream = Replies<ReadReply>;

    async fn output(&self, request: Request<v1::OutputRequest>) -> Result<Response<Self::OutputStream>, Status> {
        let request = request.into_inner();
        let target = self.target(&request.job_or_task).await?;
        let replies = output::start(self.handle.clone(), self.cluster.clone(), target, request).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }

    type SandboxStream = Replies<ReadReply>;

    async fn sandbox(&self, request: Request<v1::SandboxRequest>) -> Result<Response<Self::SandboxStream>, Status> {
        let request = request.into_inner();
        let target = self.target(&request.task).await?;
        let stream = reads::sandbox(&self.handle, &self.cluster, target, request).await?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn kill(&self, request: Request<v1::KillRequest>) -> Result<Response<v1::Empty>, Status> {
        let request = request.into_inner();
        let target = self.target(&request.job_or_task).await?;
        // A part of a job that is stopped stops the job: its items would only be handed out again.
        self.handle.event(Event::Kill { job: target.job, grace: request.grace_ms.map(DurationMs) }).await?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainReply>, Status> {
        let target = self.target(&request.into_inner().job_or_task).await?;
        let facts = self.handle.ask(move |s| s.job(target.job).map(|job| Facts::of(job, now()))).await?.ok_or_else(|| no_job(&target))?;
        let (text, json) = facts.explain(&self.cluster).await;
        Ok(Response::new(v1::ExplainReply { text, json }))
    }
}
