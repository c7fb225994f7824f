//! A framework's process: the SDK's core and a handler above it. What the handler makes of a batch, what it has taken of the SDK's
//! updates and what it asks of the master are one transaction of the SDK's store. A crash before it is as if the handler had not run. A
//! store that cannot be written ends the process; nothing of that transaction is told.

mod fenced;

use crate::batch::Batch;
use crate::faults::{WriteCrash, write_crash};
use crate::machine::Machine;
use crate::network::{ToMaster, Way};
use crate::rng::Rng;
use crate::script::{Answers, Script};
use crate::world::{Happening, Node, Peer, World};
use fenced::Fenced;
use smalti_framework_sdk_core::{Client, Delivery, Event, Message, Record, UpdateId};
use smalti_types::{DurationMs, Effects, FrameworkInfo, Role, TaskId, TaskState, Time};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;

/// Of so many subscriptions, one is long on its way and its process dies meanwhile: the next life may be heard before it.
const SUBSCRIPTIONS_PER_DEATH: u64 = 15;

/// What sits above the SDK.
#[derive(Debug)]
enum Handler {
    Script(Script),
    Batch(Box<Batch>),
}

impl Handler {
    /// What is durable of it.
    fn copy(&self) -> Self {
        match self {
            Self::Script(script) => Self::Script(script.clone()),
            Self::Batch(batch) => Self::Batch(Box::new(batch.copy())),
        }
    }

    fn restarted(&mut self, now: Time) {
        match self {
            Self::Script(script) => script.restarted(),
            Self::Batch(batch) => batch.restarted(now),
        }
    }

    fn unsettled(&self) -> Option<String> {
        match self {
            Self::Script(script) => script.unsettled(),
            Self::Batch(batch) => batch.unsettled(),
        }
    }

    fn take(&mut self, now: Time, delivery: Delivery, rng: &mut Rng, answers: &mut Answers) {
        match self {
            Self::Script(script) => script.take(delivery, rng, answers),
            Self::Batch(batch) => batch.take(now, delivery, rng, answers),
        }
    }

    fn tick(&mut self, now: Time, calm: bool, rng: &mut Rng, answers: &mut Answers) {
        match self {
            Self::Script(script) => script.tick(calm, rng, answers),
            Self::Batch(batch) => batch.tick(now, calm, rng, answers),
        }
    }

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Script(script) => script.check(),
            Self::Batch(batch) => batch.check().map_err(|e| format!("scheduler: {e}")),
        }
    }
}

/// A framework, or the place where it was.
#[derive(Debug)]
pub(crate) struct FrameworkNode {
    index: usize,
    pub(crate) machine: Machine,
    pub(crate) client: Option<Client>,
    pub(crate) life: u64,
    pub(crate) conn: Option<u64>,
    /// The SDK's store, and with it in every transaction …
    store: BTreeMap<Vec<u8>, Vec<u8>>,
    /// … what the handler keeps.
    handler: Handler,
    inbox: VecDeque<Delivery>,
    /// The last state delivered of each attempt, in this life.
    seen: BTreeMap<(TaskId, u32), TaskState>,
    /// Schedulers under the same id that another one has taken over from.
    fenced: Vec<Fenced>,
}

impl FrameworkNode {
    pub(crate) fn new(index: usize, rng: &mut Rng) -> Self {
        // Every second one is the batch scheduler.
        let handler = if index % 2 == 1 { Handler::Batch(Box::new(Batch::new())) } else { Handler::Script(Script::new(rng)) };
        let machine = Machine::new(rng);
        Self {
            index,
            machine,
            client: None,
            life: 0,
            conn: None,
            store: BTreeMap::new(),
            handler,
            inbox: VecDeque::new(),
            seen: BTreeMap::new(),
            fenced: Vec::new(),
        }
    }

    pub(crate) fn crash(&mut self) {
        self.client = None;
        self.conn = None;
        self.inbox.clear();
        self.seen.clear();
        // Whoever looks after them ends those, too.
        self.fenced.clear();
    }

    /// What keeps it from being at rest.
    pub(crate) fn unsettled(&self) -> Option<String> {
        let Some(client) = &self.client else { return Some(format!("framework {} is down", self.index)) };
        if let Some(problem) = self.handler.unsettled() {
            return Some(format!("framework {}: {problem}", self.index));
        }
        if let Some(fenced) = self.fenced.first() {
            return Some(format!("framework {}: the scheduler that was taken over goes on: {fenced:?}", self.index));
        }
        let open = client.open_attempts();
        (open > 0).then(|| format!("framework {}: the SDK waits for {open} attempts", self.index))
    }

    /// One terminal status per attempt, and no step that the table of states does not have.
    fn check(&mut self, delivery: &Delivery) -> Result<(), String> {
        match delivery {
            Delivery::Update { update, .. } if update.state == TaskState::Unknown => Ok(()),
            Delivery::Update { update, .. } => {
                let key = (update.key.task.task.clone(), update.key.task.attempt);
                match self.seen.insert(key, update.state) {
                    Some(before) if !before.may_become(update.state) => {
                        Err(format!("{} was delivered as {before} and then as {}", update.key.task, update.state))
                    }
                    _ => Ok(()),
                }
            }
            Delivery::Refused { call, message } if call == "accept" => Err(format!("a launch was refused: {message}")),
            Delivery::Error(message) => Err(format!("the subscription of framework {} ended: {message}", self.index)),
            _ => Ok(()),
        }
    }
}

impl World {
    pub(crate) fn start_framework(&mut self, i: usize) -> Result<(), String> {
        let node = &mut self.frameworks[i];
        let now = node.machine.clock.wall(self.now);
        node.life += 1;
        let info = FrameworkInfo {
            name: format!("framework {i}"),
            principal: "somebody".into(),
            role: Role::default(),
            failover_timeout: DurationMs(3_600_000),
            services: BTreeMap::new(),
        };
        let records: Result<Vec<Record>, _> = node.store.iter().map(|(key, value)| Record::decode(key, value)).collect();
        node.client = Some(Client::restore(info, records.map_err(|e| format!("the store of framework {i}: {e}"))?));
        node.handler.restarted(now);
        Ok(())
    }

    /// One event for the SDK's core, its records in a transaction of their own.
    pub(crate) fn client_step(&mut self, i: usize, event: Event) -> Result<(), String> {
        let effects = self.client_decides(i, event)?;
        if effects.has_records() && self.store_fails(i) {
            return Ok(());
        }
        // The store is transactional: all of it is kept, or nothing.
        let store = &mut self.frameworks[i].store;
        let persist = |records: Vec<Record>| {
            write_crash(records.len(), self.calm, &mut self.rng)?;
            keep(store, &records);
            Ok::<_, WriteCrash>(())
        };
        let Ok(messages) = effects.commit(persist) else {
            self.faults += 1;
            self.crash(Node::Peer(Peer::Framework(i)), false);
            return Ok(());
        };
        self.client_sends(i, messages)
    }

    /// Ends the process if its disk is full.
    fn store_fails(&mut self, i: usize) -> bool {
        let full = self.frameworks[i].machine.disk.borrow().full;
        if full {
            self.note(format_args!("framework {i} cannot write its store"));
            self.crash(Node::Peer(Peer::Framework(i)), false);
        }
        full
    }

    fn client_decides(&mut self, i: usize, event: Event) -> Result<Effects<Record, Message>, String> {
        let node = &mut self.frameworks[i];
        let now = node.machine.clock.wall(self.now);
        let Some(client) = &mut node.client else { return Ok(Effects::default()) };
        let effects = client.step(now, event);
        client.check_invariants().map_err(|e| format!("SDK of framework {i}: {e}"))?;
        Ok(effects)
    }

    fn client_sends(&mut self, i: usize, messages: Vec<Message>) -> Result<(), String> {
        let crash = self.send_crash(messages.len());
        for message in messages.into_iter().take(crash.unwrap_or(usize::MAX)) {
            self.client_says(i, message)?;
        }
        if crash.is_some() {
            self.crash(Node::Peer(Peer::Framework(i)), false);
        }
        Ok(())
    }

    fn client_says(&mut self, i: usize, message: Message) -> Result<(), String> {
        let node = &mut self.frameworks[i];
        let conn = node.conn;
        match message {
            Message::Subscribe(subscription) => {
                let Some(conn) = conn else { return Ok(()) };
                let dies = !self.calm && subscription.id.is_some() && self.rng.below(SUBSCRIPTIONS_PER_DEATH) == 0;
                if dies {
                    let us = self.rng.between(100_000, 4_000_000);
                    self.network.hold_up(conn, Way::ToMaster, Time(self.now.0 + us));
                }
                self.say_to_master(conn, ToMaster::Subscribe(subscription));
                if dies {
                    self.note(format_args!("framework {i} dies while its subscription is on a long way"));
                    self.faults += 1;
                    self.crash(Node::Peer(Peer::Framework(i)), false);
                }
            }
            Message::ToMaster(call) => conn.into_iter().for_each(|c| self.say_to_master(c, ToMaster::Call(call.clone()))),
            Message::Reconnect => {
                let life = node.life;
                node.conn = None;
                if let Some(conn) = conn {
                    self.network.close(conn, Way::ToMaster);
                    self.network.close(conn, Way::ToPeer);
                }
                let us = self.rng.between(5_000, 50_000);
                self.after(us, Happening::Connect(Peer::Framework(i), life));
            }
            Message::Deliver(delivery) => {
                node.check(&delivery)?;
                match &delivery {
                    Delivery::Subscribed { .. } => self.subscription_stands(i),
                    // The process ends with the reason, and somebody starts it again.
                    Delivery::Error(_) => {
                        self.crash(Node::Peer(Peer::Framework(i)), false);
                        return Ok(());
                    }
                    _ => {}
                }
                let node = &mut self.frameworks[i];
                node.inbox.push_back(delivery);
                if node.inbox.len() == 1 {
                    let us = self.rng.below(3_000);
                    let life = self.frameworks[i].life;
                    self.after(us, Happening::Handle(i, life));
                }
            }
        }
        Ok(())
    }

    /// The handler takes everything that waits, as one transaction.
    pub(crate) fn handle(&mut self, i: usize, life: u64) -> Result<(), String> {
        if self.life(Node::Peer(Peer::Framework(i))) != Some(life) {
            return Ok(());
        }
        // Before the transaction is committed: then the handler might as well not have run.
        if self.store_fails(i) {
            return Ok(());
        }
        if write_crash(1, self.calm, &mut self.rng).is_err() {
            self.faults += 1;
            self.crash(Node::Peer(Peer::Framework(i)), false);
            return Ok(());
        }
        let node = &mut self.frameworks[i];
        let now = node.machine.clock.wall(self.now);
        let mut answers = Answers::default();
        // What is said again after a subscription must leave before what waits is taken: it may speak of the same items.
        let most = node.inbox.iter().position(|d| matches!(d, Delivery::Subscribed { .. })).map_or(node.inbox.len(), |at| at + 1);
        let batch: Vec<Delivery> = node.inbox.drain(..most).collect();
        if !node.inbox.is_empty() {
            self.after(0, Happening::Handle(i, life));
        }
        let node = &mut self.frameworks[i];
        for delivery in batch {
            if let Delivery::Update { update, .. } = &delivery {
                self.checks.commit(update)?;
                answers.handled.push(UpdateId::of(update));
            }
            node.handler.take(now, delivery, &mut self.rng, &mut answers);
        }
        node.handler.check().map_err(|e| format!("framework {i}: {e}"))?;
        self.answer(i, answers)
    }

    pub(crate) fn framework_tick(&mut self, i: usize) -> Result<(), String> {
        self.client_step(i, Event::Tick)?;
        if self.frameworks[i].client.is_none() || self.store_fails(i) {
            return Ok(());
        }
        let node = &mut self.frameworks[i];
        let now = node.machine.clock.wall(self.now);
        let mut answers = Answers::default();
        node.handler.tick(now, self.calm, &mut self.rng, &mut answers);
        node.handler.check().map_err(|e| format!("framework {i}: {e}"))?;
        self.answer(i, answers)
    }

    /// What the handler has made of it, what it has taken, and what it asks: one transaction.
    fn answer(&mut self, i: usize, answers: Answers) -> Result<(), String> {
        // An acknowledgement comes before what is asked because of what it is for.
        let mut all = self.client_decides(i, Event::Handled(answers.handled))?;
        for call in answers.calls {
            all.merge(self.client_decides(i, Event::Call(call))?);
        }
        let store = &mut self.frameworks[i].store;
        let persist = |records: Vec<Record>| {
            keep(store, &records);
            Ok::<_, Infallible>(())
        };
        let messages = all.commit(persist).unwrap_or_else(|never| match never {});
        self.client_sends(i, messages)
    }
}

/// Makes records durable, as the store's bytes.
fn keep(store: &mut BTreeMap<Vec<u8>, Vec<u8>>, records: &[Record]) {
    for (key, value) in records.iter().map(Record::encode) {
        match value {
            Some(value) => drop(store.insert(key, value)),
            None => drop(store.remove(&key)),
        }
    }
}
