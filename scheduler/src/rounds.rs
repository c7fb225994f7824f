//! Between two rounds: copies the stdout of a reduce from its agent into the cluster's store, where every agent finds it.

use crate::cluster::Cluster;
use crate::event_loop::Handle;
use bytes::{Bytes, BytesMut};
use smalti_framework_sdk::push_bytes;
use smalti_proto::v1::{OutputRead, OutputStream, SandboxRead, TaskKey, read_reply, sandbox_read};
use smalti_scheduler_core::{Event, JobId};
use smalti_types::{AgentId, FrameworkId, Input, Role, TaskId};
use std::time::Duration;

/// Largest state handed from one round to the next, in bytes.
const MAX_STATE: usize = 256 << 20;
/// The master or agent may be away for a moment.
const TRIES: u32 = 5;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// Which output.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) job: JobId,
    /// The job's: agents fetch the copy in it.
    pub(crate) role: Role,
    pub(crate) round: u32,
    pub(crate) framework: Option<FrameworkId>,
    pub(crate) agent: AgentId,
    pub(crate) task: TaskId,
    pub(crate) attempt: u32,
}

/// Copies, and tells the event loop how it went.
pub(crate) async fn store_output(cluster: Cluster, handle: Handle, source: Source) {
    let mut result = Err(String::from("not tried"));
    for _ in 0..TRIES {
        result = copy(&cluster, &source).await;
        if result.is_ok() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    // A loop that is gone has nothing to be told.
    let _ = handle.event(Event::OutputStored { job: source.job, round: source.round, result }).await;
}

async fn copy(cluster: &Cluster, source: &Source) -> Result<Input, String> {
    let bytes = read(cluster, source).await?;
    let length = bytes.len() as u64;
    let name = format!("{} round {}", source.job, source.round);
    let stored = push_bytes(cluster.master(), &source.role, &name, bytes.into()).await.map_err(|e| e.to_string())?;
    Ok(Input { guest_path: None, uri: None, digest: Some(stored.digest), length, etag: None, packing: None })
}

async fn read(cluster: &Cluster, source: &Source) -> Result<Bytes, String> {
    let framework = source.framework.as_ref().map(ToString::to_string).unwrap_or_default();
    let key = TaskKey { framework, task: source.task.to_string(), attempt: source.attempt };
    let output = OutputRead { stream: OutputStream::Stdout.into(), items: None, follow: false, tail_lines: None };
    let read = SandboxRead { task: Some(key), agent: source.agent.to_string(), what: Some(sandbox_read::What::Output(output)) };
    let mut operator = cluster.operator().await.map_err(|s| s.message().to_owned())?;
    let mut stream = operator.read_sandbox(read).await.map_err(|s| s.message().to_owned())?.into_inner();
    let mut bytes = BytesMut::new();
    while let Some(reply) = stream.message().await.map_err(|s| s.message().to_owned())? {
        match reply.message {
            Some(read_reply::Message::Chunk(chunk)) => bytes.extend_from_slice(&chunk.data),
            Some(read_reply::Message::Error(text)) => return Err(text),
            Some(read_reply::Message::ReadId(_)) | None => {}
        }
        if bytes.len() > MAX_STATE {
            return Err(format!("the result is larger than {MAX_STATE} bytes"));
        }
    }
    Ok(bytes.freeze())
}
