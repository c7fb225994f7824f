//! The connected peers as the event loop sees them. Collects what a batch decided, joins it into frames, and hands each
//! peer its frames at the end of the batch.

use crate::frames::{AgentFrame, Frame, FrameworkFrame};
use crate::outbound::{NotQueued, Queue};
use smalti_master_core::{AgentMessage, Conn, Event, Message};
use smalti_proto::v1;
use smalti_types::{DurationMs, Time};
use std::collections::{BTreeMap, BTreeSet};
use tonic::Status;

/// One connection's queue, and the frames of the current batch.
#[derive(Debug)]
struct Peer<F> {
    queue: Queue<F>,
    batch: Vec<F>,
    /// Frames sent, without heartbeats.
    sent: u64,
    /// Frames of updates received.
    received: u64,
    /// What an agent counts itself.
    counters: BTreeMap<String, u64>,
    /// What an agent said last about its executors.
    executors: v1::ExecutorReports,
}

impl<F: Frame> Peer<F> {
    fn new(queue: Queue<F>) -> Self {
        Self { queue, batch: Vec::new(), sent: 0, received: 0, counters: BTreeMap::new(), executors: v1::ExecutorReports::default() }
    }

    fn add(&mut self, frame: F) {
        let rest = match self.batch.last_mut() {
            Some(last) => last.join(frame),
            None => Some(frame),
        };
        self.batch.extend(rest);
    }

    fn flush(&mut self) -> Result<(), NotQueued> {
        for frame in self.batch.drain(..) {
            self.sent += u64::from(!frame.is_heartbeat());
            self.queue.push(frame)?;
        }
        Ok(())
    }
}

/// All peers.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    agents: BTreeMap<Conn, Peer<AgentFrame>>,
    frameworks: BTreeMap<Conn, Peer<FrameworkFrame>>,
    /// Connections with something in the current batch.
    touched: BTreeSet<Conn>,
    /// Connections that end after the current batch.
    closing: BTreeMap<Conn, String>,
    /// Connections that were ended because their peer did not read.
    too_slow: u64,
    /// How often agents are to beat.
    agents_beat: DurationMs,
}

impl Peers {
    /// Nobody yet; agents will be told to beat so often.
    pub(crate) fn new(agents_beat: DurationMs) -> Self {
        Self { agents_beat, ..Self::default() }
    }

    pub(crate) fn add_agent(&mut self, conn: Conn, queue: Queue<AgentFrame>) {
        self.agents.insert(conn, Peer::new(queue));
    }

    pub(crate) fn add_framework(&mut self, conn: Conn, queue: Queue<FrameworkFrame>) {
        self.frameworks.insert(conn, Peer::new(queue));
    }

    /// Forgets a connection; gives the event that tells the core, if the connection was there.
    pub(crate) fn remove(&mut self, conn: Conn) -> Option<Event> {
        self.end(conn, Status::unavailable("the connection ended"))
    }

    /// Ends every connection after what is queued for it: the master stops.
    pub(crate) fn end_all(&mut self, why: &str) {
        let conns: Vec<Conn> = self.agents.keys().chain(self.frameworks.keys()).copied().collect();
        for conn in conns {
            self.end(conn, Status::unavailable(why));
        }
    }

    fn end(&mut self, conn: Conn, status: Status) -> Option<Event> {
        if let Some(peer) = self.agents.remove(&conn) {
            peer.queue.end(status);
            return Some(Event::AgentDisconnected { conn });
        }
        let peer = self.frameworks.remove(&conn)?;
        peer.queue.end(status);
        Some(Event::FrameworkDisconnected { conn })
    }

    /// A frame of updates arrived from an agent.
    pub(crate) fn count_received(&mut self, conn: Conn) {
        if let Some(peer) = self.agents.get_mut(&conn) {
            peer.received += 1;
        }
    }

    pub(crate) fn set_counters(&mut self, conn: Conn, counters: BTreeMap<String, u64>) {
        if let Some(peer) = self.agents.get_mut(&conn) {
            peer.counters = counters;
        }
    }

    pub(crate) fn set_executors(&mut self, conn: Conn, reports: v1::ExecutorReports) {
        if let Some(peer) = self.agents.get_mut(&conn) {
            peer.executors = reports;
        }
    }

    /// What an agent said last about its executors.
    pub(crate) fn executors(&self, conn: Conn) -> v1::ExecutorReports {
        self.agents.get(&conn).map(|peer| peer.executors.clone()).unwrap_or_default()
    }

    /// An agent's own counters, and what the master counts on its connection.
    pub(crate) fn counters(&self, conn: Conn) -> BTreeMap<String, u64> {
        let Some(peer) = self.agents.get(&conn) else { return BTreeMap::new() };
        let mut counters = peer.counters.clone();
        counters.insert("master_frames_sent".to_owned(), peer.sent);
        counters.insert("master_frames_received".to_owned(), peer.received);
        counters
    }

    /// What bounds made the master do to its peers.
    pub(crate) fn cluster_counters(&self) -> BTreeMap<String, u64> {
        BTreeMap::from([("slow_readers_disconnected".to_owned(), self.too_slow)])
    }

    pub(crate) fn read(&mut self, conn: Conn, request: v1::ReadRequest) -> bool {
        let Some(peer) = self.agents.get_mut(&conn) else { return false };
        peer.add(AgentFrame::Read(request));
        self.touched.insert(conn);
        true
    }

    pub(crate) fn heartbeat(&mut self, now: Time) {
        for (conn, peer) in &mut self.agents {
            peer.add(AgentFrame::Heartbeat(now));
            self.touched.insert(*conn);
        }
        for (conn, peer) in &mut self.frameworks {
            peer.add(FrameworkFrame::Heartbeat(now));
            self.touched.insert(*conn);
        }
    }

    pub(crate) fn add(&mut self, message: Message) {
        match message {
            Message::ToAgent { conn, message } => {
                let Some(peer) = self.agents.get_mut(&conn) else { return };
                peer.add(match message {
                    AgentMessage::Registered { epoch } => AgentFrame::Registered(epoch, self.agents_beat),
                    AgentMessage::Refused(reason) => AgentFrame::Refused(reason),
                    AgentMessage::Command(command) => AgentFrame::command(command),
                    AgentMessage::Located { ticket, from } => AgentFrame::Located(ticket, from),
                });
                self.touched.insert(conn);
            }
            Message::ToFramework { conn, event } => {
                let Some(peer) = self.frameworks.get_mut(&conn) else { return };
                peer.add(FrameworkFrame::event(event));
                self.touched.insert(conn);
            }
            Message::Close { conn, reason } => {
                self.touched.insert(conn);
                self.closing.insert(conn, reason);
            }
        }
    }

    /// Hands out the batch. Gives the events of connections that could not take it: the core must hear of them.
    pub(crate) fn flush(&mut self) -> Vec<Event> {
        let mut lost = Vec::new();
        for conn in std::mem::take(&mut self.touched) {
            let agent = self.agents.get_mut(&conn).map(Peer::flush);
            let Some(flushed) = agent.or_else(|| self.frameworks.get_mut(&conn).map(Peer::flush)) else { continue };
            let status = match (flushed, self.closing.remove(&conn)) {
                (Err(NotQueued::TooSlow), _) => {
                    self.too_slow += 1;
                    tracing::warn!(%conn, "peer does not read what it is sent; its connection is ended");
                    Status::resource_exhausted("you do not read fast enough; connect again")
                }
                (Err(NotQueued::Gone), _) => Status::unavailable("the connection ended"),
                (Ok(()), Some(reason)) => {
                    tracing::info!(%conn, reason, "connection ended by the master");
                    Status::aborted(reason)
                }
                (Ok(()), None) => continue,
            };
            lost.extend(self.end(conn, status));
        }
        self.closing.clear();
        lost
    }
}
