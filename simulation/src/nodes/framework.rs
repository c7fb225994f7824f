//! A framework's process: the SDK's core and a handler above it. The handler's state is durable, as if every batch that
//! it handles were one transaction of its store; the SDK's state dies with the process.

use crate::batch::Batch;
use crate::network::ToMaster;
use crate::rng::Rng;
use crate::script::{Answers, Script};
use crate::world::{Happening, Node, Peer, World};
use smalti_framework_sdk_core::{Client, Delivery, Event, Message, Record};
use smalti_types::{DurationMs, FrameworkId, FrameworkInfo, Role, TaskId, TaskState, Time};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;

/// What sits above the SDK.
#[derive(Debug)]
enum Handler {
    Script(Script),
    Batch(Box<Batch>),
}

impl Handler {
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
    pub(crate) client: Option<Client>,
    pub(crate) life: u64,
    pub(crate) conn: Option<u64>,
    /// Durable.
    id: Option<FrameworkId>,
    /// Durable.
    handler: Handler,
    inbox: VecDeque<Delivery>,
    /// The last state delivered of each attempt, in this life.
    seen: BTreeMap<(TaskId, u32), TaskState>,
}

impl FrameworkNode {
    pub(crate) fn new(index: usize, rng: &mut Rng) -> Self {
        // Every second one is the batch scheduler.
        let handler = if index % 2 == 1 { Handler::Batch(Box::new(Batch::new())) } else { Handler::Script(Script::new(rng)) };
        Self { index, client: None, life: 0, conn: None, id: None, handler, inbox: VecDeque::new(), seen: BTreeMap::new() }
    }

    pub(crate) fn crash(&mut self) {
        self.client = None;
        self.conn = None;
        self.inbox.clear();
        self.seen.clear();
    }

    /// What keeps it from being at rest.
    pub(crate) fn unsettled(&self) -> Option<String> {
        let Some(client) = &self.client else { return Some(format!("framework {} is down", self.index)) };
        if let Some(problem) = self.handler.unsettled() {
            return Some(format!("framework {}: {problem}", self.index));
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
        node.life += 1;
        let info = FrameworkInfo {
            name: format!("framework {i}"),
            principal: "somebody".into(),
            role: Role::default(),
            failover_timeout: DurationMs(3_600_000),
            services: BTreeMap::new(),
        };
        node.client = Some(Client::new(info, node.id.clone()));
        node.handler.restarted(self.now);
        Ok(())
    }

    pub(crate) fn client_step(&mut self, i: usize, event: Event) -> Result<(), String> {
        let node = &mut self.frameworks[i];
        let Some(client) = &mut node.client else { return Ok(()) };
        let effects = client.step(self.now, event);
        client.check_invariants().map_err(|e| format!("SDK of framework {i}: {e}"))?;
        let saved = &mut node.id;
        let persist = |records: Vec<Record>| {
            for id in records.into_iter().filter_map(|r| if let Record::Subscribed(id) = r { Some(id) } else { None }) {
                *saved = Some(id);
            }
            Ok::<_, Infallible>(())
        };
        let messages = effects.commit(persist).unwrap_or_else(|never| match never {});
        for message in messages {
            let node = &mut self.frameworks[i];
            let conn = node.conn;
            match message {
                Message::Subscribe(subscription) => {
                    conn.into_iter().for_each(|c| self.say_to_master(c, ToMaster::Subscribe(subscription.clone())));
                }
                Message::ToMaster(call) => conn.into_iter().for_each(|c| self.say_to_master(c, ToMaster::Call(call.clone()))),
                Message::Deliver(delivery) => {
                    node.check(&delivery)?;
                    node.inbox.push_back(delivery);
                    if node.inbox.len() == 1 {
                        let us = self.rng.below(3_000);
                        let life = self.frameworks[i].life;
                        self.after(us, Happening::Handle(i, life));
                    }
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
        let node = &mut self.frameworks[i];
        let mut answers = Answers::default();
        for delivery in std::mem::take(&mut node.inbox) {
            node.handler.take(self.now, delivery, &mut self.rng, &mut answers);
        }
        node.handler.check().map_err(|e| format!("framework {i}: {e}"))?;
        // Durable, but nobody was told.
        if !self.calm && self.rng.chance(1) {
            self.crash(Node::Peer(Peer::Framework(i)));
            return Ok(());
        }
        self.answer(i, answers)
    }

    pub(crate) fn framework_tick(&mut self, i: usize) -> Result<(), String> {
        self.client_step(i, Event::Tick)?;
        let mut answers = Answers::default();
        let node = &mut self.frameworks[i];
        node.handler.tick(self.now, self.calm, &mut self.rng, &mut answers);
        node.handler.check().map_err(|e| format!("framework {i}: {e}"))?;
        self.answer(i, answers)
    }

    fn answer(&mut self, i: usize, answers: Answers) -> Result<(), String> {
        self.client_step(i, Event::Handled(answers.handled))?;
        answers.calls.into_iter().try_for_each(|call| self.client_step(i, Event::Call(call)))
    }
}
