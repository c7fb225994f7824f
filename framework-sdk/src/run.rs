//! The loop that owns the core: takes in calls, acknowledgements and the master's events, gives out what the core decides.
//!
//! Everything that waits at the same time is one step's batch: acknowledgements of a batch leave as one call.
//! Bounds: while the handler is behind, the master is not read; while the master is behind, calls wait at the handle.

use crate::error::Error;
use crate::events::{Ack, Acks, Event, Events, Update};
use crate::handle::Handle;
use crate::link::{Link, LinkEvent};
use crate::options::Options;
use smalti_framework_sdk_core::{Client, Delivery, Event as CoreEvent, Message};
use smalti_proto::v1;
use smalti_types::protocol::{Call, FrameworkEvent};
use smalti_types::{Effects, Time};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot};

/// Events that the handler has not taken yet, in its channel.
const EVENT_QUEUE: usize = 4096;
/// Events beyond the channel before the master is not read any more.
const MOST_DELIVERIES: usize = 16_384;
/// Batches of calls that wait for the loop.
const CALL_QUEUE: usize = 256;
/// Calls that wait for the connection before no more are taken from the handler.
const MOST_OUTGOING: usize = 4096;
/// How long the connection may take to carry the last calls and acknowledgements after the end.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often the core looks at its time-outs.
const TICK: Duration = Duration::from_millis(100);

/// Entry point.
#[derive(Debug)]
pub struct Framework;

impl Framework {
    /// Connects and subscribes. Returns once the subscription stands; reconnects by itself from then on.
    ///
    /// # Errors
    /// When there is no master (unless [`Options::wait_for_master`]), or it refuses this framework.
    pub async fn connect(options: Options) -> Result<(Handle, Events), Error> {
        let (calls, call_queue) = mpsc::channel(CALL_QUEUE);
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let (ready, started) = oneshot::channel();
        let run = Loop {
            client: Client::new(options.info, options.id),
            link: Link::new(options.master.clone()),
            calls: call_queue,
            events,
            acks: Arc::default(),
            deliveries: VecDeque::new(),
            outgoing: VecDeque::new(),
            ready: Some(ready),
            wait_for_master: options.wait_for_master,
            master: options.master,
            over: false,
        };
        tokio::spawn(run.run());
        started.await.map_err(|_| Error::Closed)??;
        Ok((Handle { calls }, Events { receiver }))
    }
}

struct Loop {
    client: Client,
    link: Link,
    calls: mpsc::Receiver<Vec<Call>>,
    events: mpsc::Sender<Event>,
    acks: Arc<Acks>,
    /// Decided, and not yet in the handler's channel.
    deliveries: VecDeque<Event>,
    /// Decided, and not yet in the connection.
    outgoing: VecDeque<v1::Call>,
    /// Until the first subscription stands or fails.
    ready: Option<oneshot::Sender<Result<(), Error>>>,
    wait_for_master: bool,
    master: String,
    /// Nothing more will come: deliver what is left and end.
    over: bool,
}

/// What woke the loop.
enum Wake {
    Link(LinkEvent),
    Calls(Vec<Vec<Call>>),
    HandleGone,
    Acks,
    Delivered,
    Sent,
    Tick,
    HandlerGone,
}

impl Loop {
    async fn run(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut handles = true;
        while !(self.over && self.deliveries.is_empty() && self.outgoing.is_empty()) {
            match self.wait(&mut ticks, handles).await {
                Wake::Link(event) => self.link_event(event),
                Wake::Calls(batches) => self.take_calls(batches),
                Wake::HandleGone => handles = false,
                Wake::Tick => self.step(CoreEvent::Tick),
                Wake::Acks | Wake::Delivered | Wake::Sent => {}
                Wake::HandlerGone => break,
            }
            self.take_acks();
            self.flush();
        }
        if self.link.calls().is_some() {
            self.link.finish(LAST_WORDS).await;
        }
    }

    async fn wait(&mut self, ticks: &mut tokio::time::Interval, handles: bool) -> Wake {
        let listening = self.deliveries.len() < MOST_DELIVERIES && !self.over;
        let taking = handles && self.outgoing.len() < MOST_OUTGOING && !self.over;
        let sender = self.link.calls().filter(|_| !self.outgoing.is_empty()).cloned();
        let mut batches = Vec::new();
        tokio::select! {
            n = self.calls.recv_many(&mut batches, CALL_QUEUE), if taking => if n == 0 { Wake::HandleGone } else { Wake::Calls(batches) },
            () = self.acks.wait() => Wake::Acks,
            event = self.link.next(), if listening => Wake::Link(event),
            permit = self.events.reserve(), if !self.deliveries.is_empty() => match permit {
                Ok(permit) => {
                    if let Some(event) = self.deliveries.pop_front() {
                        permit.send(event);
                    }
                    Wake::Delivered
                }
                Err(_) => Wake::HandlerGone,
            },
            room = async { if let Some(s) = &sender { s.reserve().await.is_ok() } else { std::future::pending().await } } => {
                if !room {
                    // The connection is gone: so is what would have been said on it. The link reports the loss.
                    self.outgoing.clear();
                }
                Wake::Sent
            }
            _ = ticks.tick() => Wake::Tick,
            () = self.events.closed() => Wake::HandlerGone,
        }
    }

    fn link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Connected => self.step(CoreEvent::Connected),
            LinkEvent::Events(events) => {
                for event in events {
                    if !self.take_event(event) {
                        break;
                    }
                }
            }
            LinkEvent::Lost(error) => {
                tracing::debug!(%error, "connection to the master lost");
                self.outgoing.clear();
                self.step(CoreEvent::Disconnected);
                if !self.wait_for_master
                    && let Some(ready) = self.ready.take()
                {
                    let _ = ready.send(Err(error));
                    self.over = true;
                }
            }
        }
    }

    /// False when the rest of the batch must not be looked at.
    fn take_event(&mut self, event: v1::Event) -> bool {
        match &event.event {
            Some(v1::event::Event::Heartbeat(_)) => return true,
            Some(v1::event::Event::Subscribed(s)) => {
                if let Err(reason) = smalti_proto::version::check(s.version.clone().unwrap_or_default()) {
                    self.step(CoreEvent::FromMaster(FrameworkEvent::Error(reason)));
                    return false;
                }
            }
            _ => {}
        }
        match FrameworkEvent::try_from(event) {
            Ok(event) => self.step(CoreEvent::FromMaster(event)),
            Err(error) => {
                tracing::warn!(%error, "the master said something that cannot be understood; connecting again");
                self.link.lose();
                self.outgoing.clear();
                self.step(CoreEvent::Disconnected);
                return false;
            }
        }
        true
    }

    fn take_calls(&mut self, batches: Vec<Vec<Call>>) {
        for call in batches.into_iter().flatten() {
            self.step(CoreEvent::Call(call));
        }
    }

    fn take_acks(&mut self) {
        let said = self.acks.take();
        if !said.handled.is_empty() {
            self.step(CoreEvent::Handled(said.handled));
        }
        if !said.not_handled.is_empty() {
            self.step(CoreEvent::NotHandled(said.not_handled));
        }
    }

    fn step(&mut self, event: CoreEvent) {
        let effects: Effects<_, _> = self.client.step(now(), event);
        // Records become durable here once there is a store to keep them in.
        let messages = effects.commit(|_records| Ok::<_, Infallible>(())).unwrap_or_else(|never| match never {});
        for message in messages {
            match message {
                Message::Subscribe(subscription) => self.link.open(subscription.into()),
                Message::ToMaster(call) => {
                    let last = matches!(call, Call::Teardown);
                    self.outgoing.push_back(call.into());
                    self.over |= last;
                }
                Message::Deliver(delivery) => self.deliver(delivery),
            }
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        let event = match delivery {
            Delivery::Subscribed { framework, epoch } => {
                if let Some(ready) = self.ready.take() {
                    let _ = ready.send(Ok(()));
                }
                Event::Subscribed { framework, epoch }
            }
            Delivery::Disconnected => Event::Disconnected,
            Delivery::Offers(offers) => Event::Offers(offers),
            Delivery::Rescind(offers) => Event::Rescind(offers),
            Delivery::Update { agent, update } => Event::Update(Update { agent, ack: Ack::new(&update, &self.acks), update }),
            Delivery::AgentLost { agent, reason } => Event::AgentLost { agent, reason },
            Delivery::Refused { call, message } => Event::Refused { call, message },
            Delivery::Error(reason) => {
                self.over = true;
                self.outgoing.clear();
                if let Some(ready) = self.ready.take() {
                    let _ = ready.send(Err(Error::Refused { master: self.master.clone(), reason: reason.clone() }));
                }
                Event::Error(reason)
            }
        };
        self.deliveries.push_back(event);
    }

    /// Moves on what can move without waiting.
    fn flush(&mut self) {
        while !self.deliveries.is_empty()
            && let Ok(permit) = self.events.try_reserve()
        {
            if let Some(event) = self.deliveries.pop_front() {
                permit.send(event);
            }
        }
        let Some(sender) = self.link.calls() else {
            self.outgoing.clear();
            return;
        };
        while !self.outgoing.is_empty()
            && let Ok(permit) = sender.try_reserve()
        {
            if let Some(call) = self.outgoing.pop_front() {
                permit.send(call);
            }
        }
    }
}

fn now() -> Time {
    SystemTime::now().into()
}
