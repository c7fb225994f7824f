//! Writes outputs into the store that a job names: one task per such job, for as long as the job lives.
//!
//! What is to be written the core says, and it is told what came of it: nothing is known here that a restart could lose. Outputs are read from
//! the agents through the master, over a connection of their own, since a store that stops taking would hold up everybody else on a shared
//! one; they are held in memory a part at a time. Owns the order of work and the pauses. Names are the core's, tries of single requests the
//! deposit's.

use crate::cluster::Cluster;
use crate::event_loop::Handle;
use bytes::Bytes;
use smalti_fetch::{Deposit, DepositError, Sources, Upload};
use smalti_proto::client::connect;
use smalti_proto::client::outputs::{OutputsError, merged_outputs};
use smalti_proto::convert::MAX_FRAME_LEN;
use smalti_proto::v1::operator_service_client::OperatorServiceClient;
use smalti_proto::v1::{OutputChunk, OutputRead, OutputStream, SandboxRead, TaskKey, read_reply, sandbox_read};
use smalti_scheduler_core::{Deliverable, Delivered, Event, JobId, output_name};
use smalti_types::{AgentId, ItemSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;

/// Items that are written before the core is told: so many are written again after a crash.
const BATCH: u64 = 512;
/// Outputs that one job has on their way at a time.
const OF_ONE_JOB: usize = 16;
/// Outputs that all jobs have on their way: each holds a part of itself in memory, mostly a small one.
const OF_ALL: usize = 64;
/// Jobs whose outputs are read at the same time.
const READERS: usize = 32;
/// Between two looks at what has ended.
const PACE: Duration = Duration::from_millis(50);
/// The pause after a failure, which doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often the last outputs of a job are tried, when another try may help: a minute and a half.
const LAST_TRIES: u32 = 8;

/// What all deliveries share.
#[derive(Debug)]
pub(crate) struct Deliveries {
    cluster: Cluster,
    sources: Arc<Sources>,
    places: Arc<Semaphore>,
    /// Agents give only so many outputs at a time.
    readers: Semaphore,
}

/// Why a pass ended early.
#[derive(Debug)]
enum Stopped {
    Store(DepositError),
    /// An agent does not give what it has.
    Agent(AgentId, String),
    /// The way to the agents.
    Way(String),
}

impl From<DepositError> for Stopped {
    fn from(error: DepositError) -> Self {
        Self::Store(error)
    }
}

impl Stopped {
    fn may_pass(&self) -> bool {
        match self {
            Self::Store(error) => error.may_pass(),
            Self::Agent(..) | Self::Way(_) => true,
        }
    }
}

/// One output, or an item's two, being written.
struct Writing {
    item: Option<u64>,
    name: String,
    attempt: u32,
    stdout: Upload,
    /// Only if there is something in it.
    stderr: Option<Upload>,
    _place: OwnedSemaphorePermit,
}

impl Deliveries {
    pub(crate) fn new(cluster: Cluster, sources: Arc<Sources>) -> Arc<Self> {
        Arc::new(Self { cluster, sources, places: Arc::new(Semaphore::new(OF_ALL)), readers: Semaphore::new(READERS) })
    }

    /// Writes what this job's store does not have, until the job is over.
    pub(crate) async fn run(self: Arc<Self>, handle: Handle, job: JobId) {
        let Ok(Some(mut watch)) = handle.watch(job).await else { return };
        let (mut failures, mut cleaned, mut was_last) = (0, false, false);
        loop {
            let Ok(work) = handle.ask(move |s| s.job(job).and_then(|j| j.deliverable(BATCH))).await else { return };
            let Some(work) = work else { return };
            if work.is_empty() {
                if watch.changed().await.is_err() {
                    return;
                }
                // While items run: what ends at about the same time goes together.
                tokio::time::sleep(PACE).await;
                continue;
            }
            // What failed while items ran is forgiven: all the tries for the last outputs are still to come.
            if work.is_last != was_last {
                (was_last, failures) = (work.is_last, 0);
            }
            let (done, stopped) = self.pass(job, &work, &mut cleaned).await;
            let made_way = done.is_some();
            if let Some(what) = done
                && handle.event(Event::Delivered { job, what }).await.is_err()
            {
                return;
            }
            failures = if made_way { 0 } else { failures };
            let Some(stopped) = stopped else { continue };
            failures += 1;
            let for_good = work.is_last && (!stopped.may_pass() || failures >= LAST_TRIES);
            if handle.event(Event::Delivered { job, what: trouble(&work, stopped, for_good) }).await.is_err() {
                return;
            }
            let pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(10)).min(LONGEST_PAUSE);
            tokio::select! {
                () = tokio::time::sleep(if for_good { Duration::ZERO } else { pause }) => {}
                // Only the end of the job is worth waking up for.
                () = ended(&handle, job, watch.clone()) => return,
            }
        }
    }

    /// Writes some outputs: what is there now, and why not everything.
    async fn pass(&self, job: JobId, work: &Deliverable, cleaned: &mut bool) -> (Option<Delivered>, Option<Stopped>) {
        // Nobody closes it.
        let _reader = self.readers.acquire().await;
        let deposit = match self.sources.deposit(&work.role, &work.store) {
            Ok(deposit) => deposit,
            Err(e) => return (None, Some(e.into())),
        };
        if !*cleaned && let Err(e) = deposit.clean(&job.to_string()).await {
            return (None, Some(e.into()));
        }
        *cleaned = true;
        match &work.task {
            Some((_, _, attempt, _)) => match self.task(job, work, &deposit).await {
                Ok(()) => (Some(Delivered::Task(*attempt)), None),
                Err(stopped) => (None, Some(stopped)),
            },
            None => {
                let (written, result) = self.items(job, work, &deposit).await;
                ((!written.is_empty()).then_some(Delivered::Items(written)), result.err())
            }
        }
    }

    async fn begin(&self, job: JobId, deposit: &Deposit, (item, name, attempt): (Option<u64>, String, u32)) -> Result<Writing, Stopped> {
        // Nobody closes it.
        let place = self.places.clone().acquire_owned().await.map_err(|e| Stopped::Way(e.to_string()))?;
        let stdout = deposit.begin(&output_name(job, &name, attempt, "stdout")).await?;
        Ok(Writing { item, name, attempt, stdout, stderr: None, _place: place })
    }

    /// The output of the one task.
    async fn task(&self, job: JobId, work: &Deliverable, deposit: &Deposit) -> Result<(), Stopped> {
        let Some((agent, task, attempt, name)) = &work.task else { return Ok(()) };
        let mut writing = self.begin(job, deposit, (None, (*name).to_owned(), *attempt)).await?;
        let way = |e: &dyn std::fmt::Display| Stopped::Way(format!("reading the output of {task} on agent {agent}: {e}"));
        let channel = connect(self.cluster.master()).await.map_err(|e| way(&e))?;
        let framework = work.framework.as_ref().map(ToString::to_string).unwrap_or_default();
        let output = OutputRead { stream: OutputStream::Both.into(), items: None, follow: false, tail_lines: None };
        let read = SandboxRead {
            task: Some(TaskKey { framework, task: task.to_string(), attempt: *attempt }),
            agent: agent.to_string(),
            what: Some(sandbox_read::What::Output(output)),
        };
        let mut operator = OperatorServiceClient::new(channel).max_decoding_message_size(MAX_FRAME_LEN);
        let mut stream = operator.read_sandbox(read).await.map_err(|e| way(&e.message()))?.into_inner();
        while let Some(reply) = stream.message().await.map_err(|e| way(&e.message()))? {
            match reply.message {
                Some(read_reply::Message::Chunk(chunk)) => writing.write(job, deposit, chunk).await?,
                Some(read_reply::Message::Error(why)) => return Err(Stopped::Agent(agent.clone(), why)),
                Some(read_reply::Message::ReadId(_)) | None => {}
            }
        }
        writing.finish().await.map(|_| ()).map_err(Stopped::Store)
    }

    /// Outputs of items: which are there now, also if not all are.
    async fn items(&self, job: JobId, work: &Deliverable, deposit: &Deposit) -> (ItemSet, Result<(), Stopped>) {
        let mut on_their_way = JoinSet::new();
        let mut written = ItemSet::default();
        let mut result = self.read_items(job, work, deposit, &mut on_their_way, &mut written).await;
        while let Some(joined) = on_their_way.join_next().await {
            let outcome = note(joined, &mut written);
            result = result.and(outcome);
        }
        (written, result)
    }

    async fn read_items(
        &self,
        job: JobId,
        work: &Deliverable,
        deposit: &Deposit,
        on_their_way: &mut JoinSet<Result<Option<u64>, DepositError>>,
        written: &mut ItemSet,
    ) -> Result<(), Stopped> {
        let Some(framework) = work.framework.clone() else { return Err(Stopped::Way("its framework is not known yet".into())) };
        let mut silent = work.items.iter().fold(ItemSet::default(), |all, source| all.union(&source.items));
        let channel = connect(self.cluster.master()).await.map_err(|e| Stopped::Way(e.to_string()))?;
        let chunks = merged_outputs(channel, framework, work.items.clone(), OutputStream::Both);
        tokio::pin!(chunks);
        let named = |item: u64| (Some(item), item.to_string(), work.attempt(item));
        let mut open: Option<Writing> = None;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|e| unread(work, &e))?;
            let Some(item) = chunk.item else { continue };
            if let Some(whole) = open.take_if(|o| o.item != Some(item)) {
                send(on_their_way, whole, written).await?;
            }
            let writing = match &mut open {
                Some(writing) => writing,
                None => {
                    silent = silent.difference(&ItemSet::range(item, item + 1));
                    open.insert(self.begin(job, deposit, named(item)).await?)
                }
            };
            writing.write(job, deposit, chunk).await?;
        }
        if let Some(whole) = open {
            send(on_their_way, whole, written).await?;
        }
        // Those that printed nothing have an empty output: that they are done can be seen in the store.
        for item in silent.iter() {
            let empty = self.begin(job, deposit, named(item)).await?;
            send(on_their_way, empty, written).await?;
        }
        Ok(())
    }
}

impl Writing {
    async fn write(&mut self, job: JobId, deposit: &Deposit, chunk: OutputChunk) -> Result<(), DepositError> {
        let is_stderr = chunk.stream() == OutputStream::Stderr;
        let data: Bytes = chunk.data;
        if data.is_empty() {
            return Ok(());
        }
        if !is_stderr {
            return self.stdout.write(data).await;
        }
        let stderr = match &mut self.stderr {
            Some(stderr) => stderr,
            None => self.stderr.insert(deposit.begin(&output_name(job, &self.name, self.attempt, "stderr")).await?),
        };
        stderr.write(data).await
    }

    /// Whoever sees a task's stdout sees its stderr, too.
    async fn finish(self) -> Result<Option<u64>, DepositError> {
        if let Some(stderr) = self.stderr {
            stderr.finish().await?;
        }
        self.stdout.finish().await?;
        Ok(self.item)
    }
}

type Joined = Result<Result<Option<u64>, DepositError>, tokio::task::JoinError>;

fn note(joined: Joined, written: &mut ItemSet) -> Result<(), Stopped> {
    match joined {
        Ok(Ok(item)) => {
            item.into_iter().for_each(|item| written.insert(item));
            Ok(())
        }
        Ok(Err(error)) => Err(error.into()),
        Err(error) => Err(Stopped::Way(format!("writing an output failed inside the scheduler (see its log): {error}"))),
    }
}

/// Finishes an output while the next is read.
async fn send(on_their_way: &mut JoinSet<Result<Option<u64>, DepositError>>, whole: Writing, written: &mut ItemSet) -> Result<(), Stopped> {
    on_their_way.spawn(whole.finish());
    while on_their_way.len() >= OF_ONE_JOB {
        let Some(joined) = on_their_way.join_next().await else { break };
        note(joined, written)?;
    }
    while let Some(joined) = on_their_way.try_join_next() {
        note(joined, written)?;
    }
    Ok(())
}

/// What an error of reading means.
fn unread(work: &Deliverable, error: &OutputsError) -> Stopped {
    let (OutputsError::Transport { agent, .. } | OutputsError::Refused { agent, .. } | OutputsError::Protocol { agent, .. }) = error;
    let named = work.items.iter().map(|source| &source.agent).find(|a| a.as_str() == agent);
    match (named, error) {
        (Some(agent), OutputsError::Refused { .. } | OutputsError::Protocol { .. }) => Stopped::Agent(agent.clone(), error.to_string()),
        _ => Stopped::Way(error.to_string()),
    }
}

/// What the core is told.
fn trouble(work: &Deliverable, stopped: Stopped, for_good: bool) -> Delivered {
    let (agent, why) = match stopped {
        Stopped::Store(error) => (None, format!("its output cannot be stored: {error}")),
        Stopped::Agent(agent, why) => (Some(agent), format!("its output cannot be read for {}: {why}", smalti_fetch::shown(&work.store))),
        Stopped::Way(why) => (None, format!("its output cannot be read for {}: {why}", smalti_fetch::shown(&work.store))),
    };
    Delivered::Trouble { why, for_good, agent }
}

/// Completes when the job is over.
async fn ended(handle: &Handle, job: JobId, mut watch: crate::watchers::Watch) {
    loop {
        let over = handle.ask(move |s| s.job(job).is_none_or(|j| j.state.outcome.is_some())).await;
        if over.unwrap_or(true) || watch.changed().await.is_err() {
            return;
        }
    }
}
