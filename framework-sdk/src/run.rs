//! The loop that owns the core: takes in calls, acknowledgements and the master's events, gives out what the core decides.
//!
//! Everything that waits at the same time is one batch, and with a store one transaction: what must be durable is, then
//! messages leave. That an update was taken without a transaction waits for the next one, and not long.
//! Bounds: while the handler is behind, the master is not read; while the master is behind, calls wait at the handle.

use crate::batch::{Batch, Keeper};
use crate::error::Error;
use crate::events::{Ack, Acks, Event, Events, Update};
use crate::handle::Handle;
use crate::link::{Link, LinkEvent};
use crate::options::Options;
use crate::transaction::Commit;
use smalti_framework_sdk_core::{Client, Delivery, Event as CoreEvent, Message};
use smalti_proto::v1;
use smalti_types::Time;
use smalti_types::protocol::{Call, FrameworkEvent};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot};

/// Events that the handler has not taken yet, in its channel.
const EVENT_QUEUE: usize = 4096;
/// Events beyond the channel before the master is not read any more.
const MOST_DELIVERIES: usize = 16_384;
/// Batches of calls that wait for the loop.
const CALL_QUEUE: usize = 256;
/// Transactions that wait for the loop; all that do become one.
const COMMIT_QUEUE: usize = 256;
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
        let (ready, started) = oneshot::channel();
        let framework = Self::begin(options, Some(ready))?;
        started.await.map_err(|_| Error::Closed)??;
        Ok(framework)
    }

    /// As [`Framework::connect`], but does not wait for a subscription: transactions are possible at once, and the first
    /// event tells how it went. Waits for a master that is not there.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn start(options: Options) -> Result<(Handle, Events), Error> {
        Self::begin(Options { wait_for_master: true, ..options }, None)
    }

    fn begin(options: Options, ready: Option<oneshot::Sender<Result<(), Error>>>) -> Result<(Handle, Events), Error> {
        let (calls, call_queue) = mpsc::channel(CALL_QUEUE);
        let (commits, commit_queue) = mpsc::channel(COMMIT_QUEUE);
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let (client, keeper) = Keeper::open(&options)?;
        let run = Loop {
            client,
            keeper,
            batch: Batch::default(),
            link: Link::new(options.master.clone()),
            calls: call_queue,
            commits: commit_queue,
            events,
            acks: Arc::default(),
            deliveries: VecDeque::new(),
            outgoing: VecDeque::new(),
            ready,
            wait_for_master: options.wait_for_master,
            master: options.master,
            over: false,
        };
        tokio::spawn(run.run());
        Ok((Handle { calls, commits }, Events { receiver }))
    }
}

struct Loop {
    client: Client,
    keeper: Keeper,
    /// What was decided since the last wake, until it is durable.
    batch: Batch,
    link: Link,
    calls: mpsc::Receiver<Vec<Call>>,
    commits: mpsc::Receiver<Commit>,
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
    Commits(Vec<Commit>),
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
                Wake::Commits(commits) => {
                    // What was asked before goes out before the disk is waited for.
                    if self.take_waiting_calls() {
                        self.finish_batch();
                        self.say().await;
                    }
                    self.take_commits(commits);
                }
                Wake::HandleGone => handles = false,
                Wake::Tick => self.step(CoreEvent::Tick),
                Wake::Acks | Wake::Delivered | Wake::Sent => {}
                Wake::HandlerGone => break,
            }
            self.take_acks();
            self.finish_batch();
            self.say().await;
        }
        self.keeper.hurry();
        self.finish_batch();
        self.flush();
        if self.link.calls().is_some() {
            self.link.finish(LAST_WORDS).await;
        }
        let Self { client, keeper, commits, calls, events, acks, .. } = self;
        drop((calls, events));
        keeper.serve(client, commits, &acks).await;
    }

    async fn wait(&mut self, ticks: &mut tokio::time::Interval, handles: bool) -> Wake {
        let listening = self.deliveries.len() < MOST_DELIVERIES && !self.over;
        let taking = handles && self.outgoing.len() < MOST_OUTGOING && !self.over;
        let sender = self.link.calls().filter(|_| !self.outgoing.is_empty()).cloned();
        let (mut batches, mut commits) = (Vec::new(), Vec::new());
        tokio::select! {
            n = self.commits.recv_many(&mut commits, COMMIT_QUEUE), if taking => if n == 0 { Wake::HandleGone } else { Wake::Commits(commits) },
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

    /// Takes in what was called already. False: nothing was.
    fn take_waiting_calls(&mut self) -> bool {
        let mut any = false;
        while self.outgoing.len() < MOST_OUTGOING
            && let Ok(calls) = self.calls.try_recv()
        {
            any = true;
            self.take_calls(vec![calls]);
        }
        any
    }

    fn take_commits(&mut self, commits: Vec<Commit>) {
        // What the handler said before, in its order.
        self.take_acks();
        for commit in commits {
            self.batch.take(&mut self.client, now(), commit);
        }
    }

    fn take_acks(&mut self) {
        let said = self.acks.take();
        if !said.not_handled.is_empty() {
            self.step(CoreEvent::NotHandled(said.not_handled));
        }
        if !said.handled.is_empty() {
            self.keeper.take(now(), self.client.step(now(), CoreEvent::Handled(said.handled)));
        }
    }

    fn step(&mut self, event: CoreEvent) {
        self.batch.effects.merge(self.client.step(now(), event));
    }

    /// What was decided becomes durable, then it is told. A store that fails ends everything: what cannot be kept must not
    /// be done.
    fn finish_batch(&mut self) {
        match self.keeper.commit(std::mem::take(&mut self.batch), now()) {
            Ok(messages) => messages.into_iter().for_each(|message| self.act(message)),
            Err(reason) => {
                tracing::error!(reason, "the framework ends: what cannot be kept must not be told");
                self.link.lose();
                self.deliver(Delivery::Error(reason));
            }
        }
    }

    fn act(&mut self, message: Message) {
        match message {
            Message::Subscribe(subscription) => self.link.open(subscription.into()),
            Message::ToMaster(call) => {
                let last = matches!(call, Call::Teardown);
                self.outgoing.push_back(call.into());
                self.over |= last;
            }
            Message::Reconnect => {
                self.link.lose();
                self.outgoing.clear();
            }
            Message::Deliver(delivery) => self.deliver(delivery),
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

    /// As [`Self::flush`], and lets the connection send it before anything else is done here: it may have no other thread than this one,
    /// which waits for the disk. Acknowledgements are in no hurry: whoever waits for what
    /// they are about comes first.
    async fn say(&mut self) {
        let can_wait = |call: &v1::Call| matches!(call.call, Some(v1::call::Call::Acknowledge(_) | v1::call::Call::Suppress(_)));
        if !self.outgoing.is_empty() && self.outgoing.iter().all(can_wait) {
            tokio::task::yield_now().await;
        }
        let waiting = self.outgoing.len();
        self.flush();
        if self.outgoing.len() < waiting {
            tokio::task::yield_now().await;
        }
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
