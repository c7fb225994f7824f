//! The connection to the master: made, lost and made again. Owns the back-off; decides nothing about what is said on it.

use crate::error::Error;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use smalti_proto::client;
use smalti_proto::convert::MAX_FRAME_LEN;
use smalti_proto::v1;
use smalti_proto::v1::framework_service_client::FrameworkServiceClient;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// Calls on their way into the connection; behind it, HTTP/2 flow control holds.
const CALLS_IN_FLIGHT: usize = 1024;
/// Events taken from the stream at once, so that a batch is one step.
const MOST_EVENTS_AT_ONCE: usize = 256;
/// First wait before connecting again.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
/// The wait doubles up to this.
const LAST_BACKOFF: Duration = Duration::from_secs(5);
/// Silence of this many heartbeat intervals is taken for a broken connection.
const MISSED_HEARTBEATS: u32 = 3;

/// What the link reports.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// A connection stands: give the first call to [`Link::open`].
    Connected,
    /// The master said these.
    Events(Vec<v1::Event>),
    /// The connection is gone or could not be made; the next attempt is under way.
    Lost(Error),
}

enum State {
    /// Until then, nothing.
    Waiting(Instant),
    Connecting(BoxFuture<'static, client::Result<Channel>>),
    Connected(Channel),
    Opening(BoxFuture<'static, Result<Streaming<v1::Event>, tonic::Status>>),
    Open(Box<Streaming<v1::Event>>),
}

/// One master, one connection at a time.
pub(crate) struct Link {
    master: String,
    state: State,
    backoff: Duration,
    calls: Option<mpsc::Sender<v1::Call>>,
    heartbeat: Option<Duration>,
    /// When silence becomes too long.
    deadline: Option<Instant>,
}

impl Link {
    pub(crate) fn new(master: String) -> Self {
        Self { master, state: State::Waiting(Instant::now()), backoff: FIRST_BACKOFF, calls: None, heartbeat: None, deadline: None }
    }

    /// Where calls go, while there is a connection on which the first call was said.
    pub(crate) const fn calls(&self) -> Option<&mpsc::Sender<v1::Call>> {
        self.calls.as_ref()
    }

    /// Begins the stream with `first`, after [`LinkEvent::Connected`].
    pub(crate) fn open(&mut self, first: v1::Call) {
        let State::Connected(channel) = &self.state else { return };
        let mut client =
            FrameworkServiceClient::new(channel.clone()).max_decoding_message_size(MAX_FRAME_LEN).max_encoding_message_size(MAX_FRAME_LEN);
        let (sender, receiver) = mpsc::channel(CALLS_IN_FLIGHT);
        // The channel is new and has room for one.
        let _ = sender.try_send(first);
        self.calls = Some(sender);
        self.state =
            State::Opening(async move { client.subscribe(ReceiverStream::new(receiver)).await.map(tonic::Response::into_inner) }.boxed());
    }

    /// Drops the connection now, to make it again after a back-off.
    pub(crate) fn lose(&mut self) {
        self.calls = None;
        self.heartbeat = None;
        self.deadline = None;
        // Half to all of the back-off: schedulers that lost the same master do not all come back at once.
        let jitter = RandomState::new().build_hasher().finish() % 512;
        let wait = self.backoff / 2 + self.backoff.mul_f64(jitter_fraction(jitter) / 2.0);
        self.state = State::Waiting(Instant::now() + wait);
        self.backoff = (self.backoff * 2).min(LAST_BACKOFF);
    }

    /// Says nothing more and waits until the master has read everything and closed its side, or `most` has gone by.
    pub(crate) async fn finish(mut self, most: Duration) {
        self.calls = None;
        let closed = async { while !matches!(self.next().await, LinkEvent::Lost(_)) {} };
        // Late is as good as never: the process ends, and the connection with it.
        let _ = tokio::time::timeout(most, closed).await;
    }

    fn lost(&mut self, error: Error) -> LinkEvent {
        self.lose();
        LinkEvent::Lost(error)
    }

    fn broken(&self, reason: impl Into<String>) -> Error {
        Error::Lost { master: self.master.clone(), reason: reason.into() }
    }

    /// The next thing that happens. Can be dropped and called again at any time without losing anything.
    pub(crate) async fn next(&mut self) -> LinkEvent {
        loop {
            match &mut self.state {
                State::Waiting(until) => {
                    tokio::time::sleep_until(*until).await;
                    let master = self.master.clone();
                    self.state = State::Connecting(async move { client::connect(&master).await }.boxed());
                }
                State::Connecting(connecting) => match connecting.await {
                    Ok(channel) => {
                        self.state = State::Connected(channel);
                        return LinkEvent::Connected;
                    }
                    Err(e) => return self.lost(e.into()),
                },
                State::Connected(_) => futures::future::pending().await,
                State::Opening(opening) => match opening.await {
                    Ok(stream) => self.state = State::Open(Box::new(stream)),
                    Err(status) => {
                        let error = self.broken(status.message());
                        return self.lost(error);
                    }
                },
                State::Open(stream) => {
                    // A point in time, not a span: this future is dropped and made again many times a second.
                    let next = match self.deadline {
                        Some(deadline) => tokio::time::timeout_at(deadline, stream.next()).await,
                        None => Ok(stream.next().await),
                    };
                    let problem = match next {
                        Ok(Some(Ok(first))) => {
                            let mut events = vec![first];
                            while events.len() < MOST_EVENTS_AT_ONCE
                                && let Some(Some(Ok(event))) = stream.next().now_or_never()
                            {
                                events.push(event);
                            }
                            self.listen(&events);
                            return LinkEvent::Events(events);
                        }
                        Ok(Some(Err(status))) => self.broken(status.message()),
                        Ok(None) => self.broken("it closed the connection"),
                        Err(_) => self.broken("it went silent"),
                    };
                    return self.lost(problem);
                }
            }
        }
    }

    /// What the subscription says about the connection itself.
    fn listen(&mut self, events: &[v1::Event]) {
        for event in events {
            if let Some(v1::event::Event::Subscribed(s)) = &event.event {
                self.backoff = FIRST_BACKOFF;
                self.heartbeat = (s.heartbeat_interval_ms > 0).then(|| Duration::from_millis(s.heartbeat_interval_ms.min(3_600_000)));
            }
        }
        self.deadline = self.heartbeat.map(|interval| Instant::now() + interval * MISSED_HEARTBEATS);
    }
}

/// 0 to 512 as 0 to 1.
fn jitter_fraction(jitter: u64) -> f64 {
    f64::from(u32::try_from(jitter).unwrap_or(0)) / 512.0
}
