//! A job's output as one stream: a single task's, a map's in item order, or with a reduce the reduce's stdout.
//!
//! Items are sent as soon as all items before them have ended. What was sent is never taken back, so a stream that is opened
//! again gives the same bytes in the same order, per stream.

use super::no_job;
use super::reads::{Location, locate};
use super::tail::Tail;
use crate::cluster::Cluster;
use crate::event_loop::Handle;
use crate::watchers::Watch;
use smalti_proto::client::outputs::{OutputsError, merged_outputs};
use smalti_proto::v1::{self, OutputRead, OutputStream, ReadReply, read_reply, sandbox_read};
use smalti_scheduler_core::{ItemOutput, Job, OutputPlan, Target, TaskName};
use smalti_types::task::OutputSource;
use smalti_types::{FrameworkId, ItemSet, TaskState};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::Status;

/// Chunks on their way to one client.
const QUEUE: usize = 16;

type Replies = mpsc::Sender<Result<ReadReply, Status>>;
/// `Ok(false)`: the client has gone.
type Sent = Result<bool, Status>;

/// Starts sending; ends by itself when everything is sent or the client goes.
pub(super) async fn start(
    handle: Handle,
    cluster: Cluster,
    target: Target,
    request: v1::OutputRequest,
) -> Result<mpsc::Receiver<Result<ReadReply, Status>>, Status> {
    let watch = handle.watch(target.job).await?.ok_or_else(|| no_job(&target))?;
    let (replies, receiver) = mpsc::channel(QUEUE);
    let tail = request.tail_lines.map(Tail::new);
    let mut sender = Sender { handle, cluster, target, stream: request.stream(), request, watch, replies, tail };
    tokio::spawn(async move {
        if let Err(status) = sender.run().await {
            // The client may have gone.
            let _ = sender.replies.send(Err(status)).await;
        }
    });
    Ok(receiver)
}

struct Sender {
    handle: Handle,
    cluster: Cluster,
    target: Target,
    stream: OutputStream,
    request: v1::OutputRequest,
    /// Changes of the job; closed after its end.
    watch: Watch,
    replies: Replies,
    /// Of items, until their last lines have been sent.
    tail: Option<Tail>,
}

/// Of a job, what decides which outputs there are.
#[derive(Clone, Copy)]
struct Shape {
    is_map: bool,
    has_reduce: bool,
    last_round: bool,
    over: bool,
}

impl Shape {
    fn of(job: &Job) -> Self {
        let map = job.spec.map();
        Self {
            is_map: map.is_some(),
            has_reduce: map.is_some_and(|m| m.reduce.is_some()),
            last_round: map.is_none_or(|m| job.state.round + 1 >= m.rounds),
            over: job.state.outcome.is_some(),
        }
    }
}

impl Sender {
    async fn run(&mut self) -> Result<(), Status> {
        if let Some(item) = self.request.item {
            self.one_item(item).await?;
            return Ok(());
        }
        let shape = self.ask(Shape::of).await?;
        if !shape.is_map || matches!(self.target.task, Some(TaskName::Reduce { .. })) {
            self.task().await?;
            return Ok(());
        }
        if !shape.has_reduce {
            self.items(self.stream).await?;
            return Ok(());
        }
        // The reduce's stdout is the job's; what items say on stderr is of interest all the same.
        if self.stream != OutputStream::Stdout && !self.items(OutputStream::Stderr).await? {
            return Ok(());
        }
        self.task().await?;
        Ok(())
    }

    async fn ask<T: Send + 'static>(&self, question: impl FnOnce(&Job) -> T + Send + 'static) -> Result<T, Status> {
        let target = self.target;
        self.handle.ask(move |s| s.job(target.job).map(question)).await?.ok_or_else(|| no_job(&target))
    }

    /// Waits until something changes; `false` once nothing can, or the client has gone.
    async fn changed(&mut self) -> bool {
        tokio::select! {
            changed = self.watch.changed() => changed.is_ok(),
            () = self.replies.closed() => false,
        }
    }

    fn read(&self, items: Option<ItemSet>, stream: OutputStream) -> sandbox_read::What {
        let tail_lines = self.request.tail_lines.filter(|_| items.is_none());
        let output = OutputRead { stream: stream.into(), items: items.map(Into::into), follow: self.request.follow, tail_lines };
        sandbox_read::What::Output(output)
    }

    /// The single task's output, or the reduce's: live when followed, over all attempts.
    async fn task(&mut self) -> Sent {
        let mut sent_attempt = None;
        loop {
            let (plan, framework, begun, unstarted) = self
                .ask(|job| {
                    let run = job.state.run.as_ref();
                    let begun = run.is_some_and(|r| r.started.is_some() || r.state.is_terminal());
                    let unstarted = run.is_some_and(|r| r.started.is_none() && r.state.is_terminal() && r.state != TaskState::Finished);
                    (job.output(true), job.state.framework.clone(), begun, unstarted)
                })
                .await?;
            let over = match plan {
                OutputPlan::Task { agent, task, attempt, over } if begun && sent_attempt != Some(attempt) => {
                    sent_attempt = Some(attempt);
                    let location = Location { framework, agent, task, attempt };
                    match self.relay(&location, unstarted).await {
                        Ok(true) => {}
                        Err(_) if unstarted => {}
                        other => return other,
                    }
                    // A follower may have been told more than the plan knew: look again.
                    if over { return Ok(true) } else { false }
                }
                OutputPlan::Task { over, .. } | OutputPlan::Nothing { over } => over,
                OutputPlan::Items(_) => true,
            };
            if over {
                return Ok(true);
            }
            if !self.request.follow {
                return if sent_attempt.is_some() { Ok(true) } else { Err(self.not_yet()) };
            }
            if !self.changed().await {
                if self.replies.is_closed() {
                    return Ok(false);
                }
                // Nothing will change any more: one last look.
                self.request.follow = false;
            }
        }
    }

    fn not_yet(&self) -> Status {
        Status::failed_precondition(format!("{} has not begun to run; follow it to wait", self.request.job_or_task))
    }

    /// `unstarted`: a task that could not even start has written nothing, and that there is nothing is no error.
    async fn relay(&self, location: &Location, unstarted: bool) -> Sent {
        let mut stream = location.read(&self.cluster, self.read(None, self.stream)).await?;
        while let Some(mut reply) = stream.message().await? {
            match &mut reply.message {
                Some(read_reply::Message::ReadId(_)) | None => continue,
                Some(read_reply::Message::Error(_)) if unstarted => return Ok(true),
                Some(read_reply::Message::Chunk(chunk)) => chunk.attempt = location.attempt,
                Some(read_reply::Message::Error(_)) => {}
            }
            if self.replies.send(Ok(reply)).await.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// All items' output in item order; when followed, as far as items have ended.
    async fn items(&mut self, stream: OutputStream) -> Sent {
        let part = match self.target.task {
            Some(TaskName::Part { .. }) => Some(self.request.job_or_task.clone()),
            _ => None,
        };
        let mut shown = 0;
        loop {
            let (output, framework, shape, stored) =
                self.ask(|job| (job.item_output(), job.state.framework.clone(), Shape::of(job), job.only_stored())).await?;
            let output = output.unwrap_or(ItemOutput { sources: Vec::new(), done_below: 0, over: shape.over });
            let complete = (output.over && shape.last_round) || shape.over;
            let until = if complete { u64::MAX } else { output.done_below };
            // Rounds before the last are not shown: the next one replaces their items.
            if shape.last_round && until > shown && (self.request.follow || complete) {
                let window = ItemSet::range(shown, until);
                shown = until;
                let wanted = |s: &OutputSource| part.as_ref().is_none_or(|p| s.task.as_str() == p);
                let sources = output.sources.into_iter().filter(wanted).map(|s| OutputSource { items: s.items.intersection(&window), ..s });
                let sources = sources.filter(|s| !s.items.is_empty()).collect();
                if !self.merged(framework, sources, stream).await? {
                    return Ok(false);
                }
                if let Some(item) = stored.intersection(&window).first() {
                    let what = format!(
                        "the outputs of item {item} and perhaps of others are gone with their agent; the job's output store has them"
                    );
                    let _ = self.replies.send(Ok(ReadReply { message: Some(read_reply::Message::Error(what)) })).await;
                    return Ok(false);
                }
            }
            // What comes later is new, and all of it is sent.
            if !self.send_tail().await {
                return Ok(false);
            }
            if complete {
                return Ok(true);
            }
            if !self.request.follow {
                return Err(Status::failed_precondition(format!(
                    "{} still runs: its output is complete when it ends; follow it, or name an item",
                    self.request.job_or_task
                )));
            }
            if !self.changed().await && self.replies.is_closed() {
                return Ok(false);
            }
        }
    }

    /// Hands on a reply about items, or keeps it for their last lines; `false`: the client has gone.
    async fn give(&mut self, reply: ReadReply) -> bool {
        match (&mut self.tail, reply.message) {
            (Some(tail), Some(read_reply::Message::Chunk(chunk))) => {
                tail.take(chunk);
                true
            }
            (_, message) => self.replies.send(Ok(ReadReply { message })).await.is_ok(),
        }
    }

    /// The last lines of what there is; `false`: the client has gone.
    async fn send_tail(&mut self) -> bool {
        for chunk in self.tail.take().map(Tail::into_chunks).unwrap_or_default() {
            if self.replies.send(Ok(ReadReply { message: Some(read_reply::Message::Chunk(chunk)) })).await.is_err() {
                return false;
            }
        }
        true
    }

    async fn merged(&mut self, framework: Option<FrameworkId>, sources: Vec<OutputSource>, stream: OutputStream) -> Sent {
        let (Some(framework), false) = (framework, sources.is_empty()) else { return Ok(true) };
        let channel = self.cluster.channel().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let chunks = merged_outputs(channel, framework, sources, stream);
        tokio::pin!(chunks);
        while let Some(chunk) = chunks.next().await {
            let message = match chunk {
                Ok(chunk) => read_reply::Message::Chunk(chunk),
                Err(e @ OutputsError::Transport { late: true, .. }) => return Err(Status::deadline_exceeded(e.to_string())),
                Err(e @ OutputsError::Transport { .. }) => return Err(Status::unavailable(e.to_string())),
                Err(e) => read_reply::Message::Error(e.to_string()),
            };
            let last = matches!(message, read_reply::Message::Error(_));
            if !self.give(ReadReply { message: Some(message) }).await || last {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One item's output, once it has ended.
    async fn one_item(&mut self, item: u64) -> Sent {
        loop {
            let (known, ended, over) = self
                .ask(move |job| {
                    let ended = job.items(item, 1).first().is_some_and(|t| t.state.is_terminal());
                    (item < job.spec.items(), ended, job.state.outcome.is_some())
                })
                .await?;
            if !known {
                return Err(Status::not_found(format!("{} has no item {item}", self.request.job_or_task)));
            }
            if ended || over || !self.request.follow {
                break;
            }
            if !self.changed().await && self.replies.is_closed() {
                return Ok(false);
            }
        }
        let Some(location) = locate(&self.handle, self.target, Some(item)).await? else {
            return if self.request.follow {
                Ok(true)
            } else {
                Err(Status::failed_precondition(format!("item {item} has not been handed out")))
            };
        };
        let mut stream = location.read(&self.cluster, self.read(Some(ItemSet::range(item, item + 1)), self.stream)).await?;
        while let Some(reply) = stream.message().await? {
            if !self.give(reply).await {
                return Ok(false);
            }
        }
        Ok(self.send_tail().await)
    }
}
