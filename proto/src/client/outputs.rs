//! The outputs of many items, kept by many agents, as one stream in ascending order of item.
//!
//! One `ReadSandbox` stream per source, merged by item. Memory is bounded: what arrives before its turn waits here, and
//! when too much waits, the stream whose turn is furthest away is closed and read again from there later. So no stream is
//! ever left unread for long, which matters because they share one connection's flow control with the one that is needed.
//!
//! Deliberately absent: retries. Whoever reads knows whether it can begin anew.

use crate::v1::{self, operator_service_client::OperatorServiceClient, read_reply, sandbox_read};
use futures::stream::{self, Stream};
use smalti_types::task::OutputSource;
use smalti_types::{FrameworkId, ItemRange, ItemSet};
use std::collections::VecDeque;
use tokio_stream::{StreamExt, StreamMap};
use tonic::transport::Channel;

/// Most bytes that wait for their turn.
const MAX_WAITING: usize = 8 << 20;
/// Most streams open at a time.
const MAX_OPEN: usize = 64;

/// Why outputs cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OutputsError {
    /// The connection or the master failed; trying again may help.
    #[error("reading the output of {task} on agent {agent} broke: {why}")]
    Transport {
        /// The array part.
        task: String,
        /// Who keeps its output.
        agent: String,
        /// What the transport says.
        why: String,
        /// The other side lives and has not heard from the agent: what helps is to wait for it.
        late: bool,
    },
    /// The agent or the master refused: the output is gone, or was never there.
    #[error("the output of {task} on agent {agent} cannot be read: {why}")]
    Refused {
        /// The array part.
        task: String,
        /// Who should keep its output.
        agent: String,
        /// What they say.
        why: String,
    },
    /// The agent sent what was not asked for.
    #[error("agent {agent} sent a wrong output of {task}: {why}")]
    Protocol {
        /// The array part.
        task: String,
        /// The agent.
        agent: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Merges the outputs of all items of `sources` (disjoint, as [`OutputSource`] promises), lowest item first.
///
/// Chunks of one item come in order and are not interleaved with those of others; an item without output has none.
/// The stream ends with the first error. Nothing is opened before the stream is polled.
pub fn merged_outputs(
    channel: Channel,
    framework: FrameworkId,
    sources: Vec<OutputSource>,
    stream: v1::OutputStream,
) -> impl Stream<Item = Result<v1::OutputChunk, OutputsError>> + Send {
    let merge = Merge::new(channel, framework, sources, stream);
    stream::unfold(Some(merge), |merge| async move {
        let mut merge = merge?;
        match merge.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(merge))),
            Ok(None) => None,
            Err(e) => Some((Err(e), None)),
        }
    })
}

/// Where one source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not open: never was, or was closed because too much waited.
    Closed,
    Open,
    /// Everything asked for has arrived.
    Ended,
}

struct Source {
    what: OutputSource,
    phase: Phase,
    /// Arrived before its turn.
    waiting: VecDeque<(u64, v1::OutputChunk)>,
    /// Items below this one have been given out or have no output: a re-read begins here.
    resume: u64,
    /// Item of the last chunk that arrived.
    last: u64,
}

struct Merge {
    client: OperatorServiceClient<Channel>,
    framework: FrameworkId,
    kind: v1::OutputStream,
    sources: Vec<Source>,
    /// Which source gives which items, in order.
    plan: VecDeque<(ItemRange, usize)>,
    streams: StreamMap<usize, tonic::Streaming<v1::ReadReply>>,
    waiting_bytes: usize,
    /// How far into the plan sources have been opened ahead of their turn.
    opened_ahead: usize,
}

/// All ranges of all sources, lowest first.
fn plan(sources: &[OutputSource]) -> VecDeque<(ItemRange, usize)> {
    let mut plan: Vec<_> =
        sources.iter().enumerate().flat_map(|(index, s)| s.items.ranges().iter().map(move |range| (*range, index))).collect();
    plan.sort_unstable();
    plan.into()
}

impl Merge {
    fn new(channel: Channel, framework: FrameworkId, sources: Vec<OutputSource>, kind: v1::OutputStream) -> Self {
        let plan = plan(&sources);
        let source = |what| Source { what, phase: Phase::Closed, waiting: VecDeque::new(), resume: 0, last: 0 };
        Self {
            client: OperatorServiceClient::new(channel),
            framework,
            kind,
            sources: sources.into_iter().map(source).collect(),
            plan,
            streams: StreamMap::new(),
            waiting_bytes: 0,
            opened_ahead: 0,
        }
    }

    async fn next(&mut self) -> Result<Option<v1::OutputChunk>, OutputsError> {
        while let Some((range, index)) = self.plan.front().copied() {
            let source = &mut self.sources[index];
            if let Some((item, _)) = source.waiting.front() {
                if *item < range.end {
                    // `front` just said that it is there.
                    let Some((item, chunk)) = source.waiting.pop_front() else { continue };
                    source.resume = item;
                    self.waiting_bytes -= chunk.data.len();
                    return Ok(Some(chunk));
                }
                self.advance(range, index);
            } else if source.phase == Phase::Ended {
                self.advance(range, index);
            } else {
                self.read(index).await?;
            }
        }
        Ok(None)
    }

    /// The front of the plan is done.
    fn advance(&mut self, range: ItemRange, index: usize) {
        self.sources[index].resume = range.end;
        self.plan.pop_front();
        self.opened_ahead = self.opened_ahead.saturating_sub(1);
    }

    /// Waits until something arrives, from whichever open stream; the one of `needed` is opened if it is not.
    async fn read(&mut self, needed: usize) -> Result<(), OutputsError> {
        if self.sources[needed].phase == Phase::Closed {
            self.open(needed).await?;
        }
        self.open_ahead().await?;
        match self.streams.next().await {
            Some((index, Ok(reply))) => self.arrived(index, reply)?,
            Some((index, Err(status))) => return Err(self.broken(index, &status)),
            None => {}
        }
        // Streams that ended have left the map.
        for (index, source) in self.sources.iter_mut().enumerate() {
            if source.phase == Phase::Open && !self.streams.contains_key(&index) {
                source.phase = Phase::Ended;
            }
        }
        self.relieve(needed);
        Ok(())
    }

    /// Opens sources in the order of their turns, so that they are on their way when it comes.
    async fn open_ahead(&mut self) -> Result<(), OutputsError> {
        while self.streams.len() < MAX_OPEN && self.waiting_bytes < MAX_WAITING / 2 {
            let Some((_, index)) = self.plan.get(self.opened_ahead).copied() else { break };
            self.opened_ahead += 1;
            // Only such as have never been open: one that was closed for lack of room waits for its turn.
            if self.sources[index].phase == Phase::Closed && self.sources[index].last == 0 && self.sources[index].resume == 0 {
                self.open(index).await?;
            }
        }
        Ok(())
    }

    async fn open(&mut self, index: usize) -> Result<(), OutputsError> {
        let source = &self.sources[index];
        let items = source.what.items.difference(&ItemSet::range(0, source.resume));
        if items.is_empty() {
            self.sources[index].phase = Phase::Ended;
            return Ok(());
        }
        let ranges = items.ranges().iter().map(|r| v1::ItemRange { first: r.first, end: r.end }).collect();
        let what = &source.what;
        let request = v1::SandboxRead {
            task: Some(v1::TaskKey { framework: self.framework.to_string(), task: what.task.to_string(), attempt: what.attempt }),
            agent: what.agent.to_string(),
            what: Some(sandbox_read::What::Output(v1::OutputRead {
                stream: self.kind.into(),
                items: Some(v1::ItemSet { ranges }),
                follow: false,
                tail_lines: None,
            })),
        };
        match self.client.read_sandbox(request).await {
            Ok(response) => {
                self.sources[index].phase = Phase::Open;
                self.sources[index].last = self.sources[index].resume;
                self.streams.insert(index, response.into_inner());
                Ok(())
            }
            Err(status) => Err(self.broken(index, &status)),
        }
    }

    fn arrived(&mut self, index: usize, reply: v1::ReadReply) -> Result<(), OutputsError> {
        let chunk = match reply.message {
            Some(read_reply::Message::Chunk(chunk)) => chunk,
            Some(read_reply::Message::Error(why)) => {
                let (task, agent) = self.names(index);
                return Err(OutputsError::Refused { task, agent, why });
            }
            // The first message of an agent's answer, should a master pass it on.
            Some(read_reply::Message::ReadId(_)) | None => return Ok(()),
        };
        let source = &mut self.sources[index];
        let why = match chunk.item {
            None => "a chunk without an item".to_owned(),
            Some(item) if item < source.last => format!("item {item} after item {}", source.last),
            Some(item) if !source.what.items.contains(item) => format!("item {item} was not asked for"),
            Some(item) => {
                source.last = item;
                if !chunk.data.is_empty() {
                    self.waiting_bytes += chunk.data.len();
                    source.waiting.push_back((item, chunk));
                }
                return Ok(());
            }
        };
        let (task, agent) = self.names(index);
        Err(OutputsError::Protocol { task, agent, why })
    }

    /// Closes streams, the one whose turn is furthest away first, until no more waits than may.
    fn relieve(&mut self, needed: usize) {
        while self.waiting_bytes > MAX_WAITING {
            let furthest = (0..self.sources.len())
                .filter(|i| *i != needed && !self.sources[*i].waiting.is_empty())
                .max_by_key(|i| self.sources[*i].waiting.front().map(|(item, _)| *item));
            let Some(index) = furthest else { break };
            let source = &mut self.sources[index];
            // The first that waits was not given out, so reading again from its item loses and repeats nothing: chunks of
            // an item are only given out in its turn, and `needed` is the source whose turn it is.
            source.resume = source.waiting.front().map_or(source.resume, |(item, _)| *item);
            source.phase = Phase::Closed;
            self.waiting_bytes -= source.waiting.drain(..).map(|(_, chunk)| chunk.data.len()).sum::<usize>();
            self.streams.remove(&index);
        }
    }

    fn names(&self, index: usize) -> (String, String) {
        let what = &self.sources[index].what;
        (what.task.to_string(), what.agent.to_string())
    }

    fn broken(&self, index: usize, status: &tonic::Status) -> OutputsError {
        let (task, agent) = self.names(index);
        let why = format!("{} ({:?})", status.message(), status.code());
        match status.code() {
            tonic::Code::NotFound | tonic::Code::InvalidArgument | tonic::Code::PermissionDenied | tonic::Code::FailedPrecondition => {
                OutputsError::Refused { task, agent, why }
            }
            code => OutputsError::Transport { task, agent, why, late: code == tonic::Code::DeadlineExceeded },
        }
    }
}
