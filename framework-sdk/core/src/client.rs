//! The client: subscription, delivery and acknowledgement. What calls and reconciliation do is in `calls` and `doubt`.

use crate::attempts::{Attempt, Key, Kill, Verdict};
use crate::doubt::Doubt;
use crate::event::{Delivery, Event, Message, UpdateId};
use crate::part::Part;
use crate::record::Record;
use smalti_types::protocol::{Call, Claim, FrameworkEvent, Subscription};
use smalti_types::{
    AgentId, Effects, FrameworkId, FrameworkInfo, MasterEpoch, OfferId, Reason, Sabotage, StatusUpdate, TaskId, TaskKey, TaskState, Time,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Ended attempts remembered so that repeats of their last update are dropped. An agent repeats for seconds, and
/// at 10,000 tasks a second this is ten of them; later repeats reach the handler again.
const KEEP_ENDED: usize = 100_000;
/// Attempts known at once, over which updates of attempts that this client did not launch are not taken.
const MOST_ATTEMPTS: usize = 4_000_000;

pub(crate) type Out = Effects<Record, Message>;

/// Where the subscription is.
///
/// | from | to |
/// |---|---|
/// | Down | Subscribing (connected) |
/// | Subscribing | Up (subscribed), Down (disconnected; fenced before its first subscription stood), Closed (error, fenced) |
/// | Up | Down (disconnected), Closed (error, teardown) |
/// | Closed | nothing |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// No connection.
    Down,
    /// A connection; the subscription is not answered yet.
    Subscribing,
    /// Subscribed.
    Up,
    /// Over for good.
    Closed,
}

/// The decisions of one framework's client.
#[derive(Debug)]
pub struct Client {
    pub(crate) info: FrameworkInfo,
    pub(crate) id: Option<FrameworkId>,
    /// With which the last subscription was asked for.
    claim: Claim,
    /// A subscription of this life stood once: its number is that of no other scheduler.
    has_stood: bool,
    epoch: Option<MasterEpoch>,
    pub(crate) link: Link,
    /// Offers that the handler may use, with their agents. Empty unless the link is up.
    pub(crate) offers: BTreeMap<OfferId, AgentId>,
    /// Every attempt that is not ended, and the last ended ones.
    pub(crate) attempts: BTreeMap<Key, Attempt>,
    /// Array parts that are not ended.
    pub(crate) parts: BTreeSet<Key>,
    /// Attempts with a kill that has not taken effect.
    pub(crate) kills: BTreeSet<Key>,
    /// Ended attempts, oldest first.
    ended: VecDeque<Key>,
    pub(crate) doubt: Doubt,
    /// Acknowledgements that found no connection.
    unsent: Vec<UpdateId>,
    pub(crate) suppressed: bool,
    /// The handler wants the framework removed.
    pub(crate) teardown: bool,
}

impl Client {
    /// A client that has not connected yet. `id`: the framework's id from an earlier life.
    #[must_use]
    pub fn new(info: FrameworkInfo, id: Option<FrameworkId>) -> Self {
        Self {
            info,
            id,
            claim: Claim::default(),
            has_stood: false,
            epoch: None,
            link: Link::Down,
            offers: BTreeMap::new(),
            attempts: BTreeMap::new(),
            parts: BTreeSet::new(),
            kills: BTreeSet::new(),
            ended: VecDeque::new(),
            doubt: Doubt::default(),
            unsent: Vec::new(),
            suppressed: false,
            teardown: false,
        }
    }

    /// A client that goes on where an earlier life left off: `records` has the latest of each key.
    #[must_use]
    pub fn restore(info: FrameworkInfo, records: impl IntoIterator<Item = Record>) -> Self {
        let mut client = Self::new(info, None);
        for record in records {
            match record {
                Record::Subscribed(id) => client.id = Some(id),
                Record::Life(number) => client.claim.life = number,
                Record::Forgotten { .. } => {}
                Record::Attempt(record) => {
                    let key = (record.task.clone(), record.attempt);
                    let attempt = Attempt::restored(record);
                    if attempt.is_ended() {
                        client.ended.push_back(key.clone());
                    } else if attempt.kill.is_some() {
                        client.kills.insert(key.clone());
                    }
                    if attempt.part.is_some() {
                        client.parts.insert(key.clone());
                    }
                    client.attempts.insert(key, attempt);
                }
            }
        }
        client
    }

    /// Whether the handler may take these updates for good while it leaves others that were delivered before them.
    ///
    /// # Errors
    /// In words, which update must be taken first.
    pub fn in_order(&self, updates: &[UpdateId]) -> Result<(), String> {
        let mut by_attempt: BTreeMap<(&TaskId, u32), Vec<u64>> = BTreeMap::new();
        for u in updates {
            by_attempt.entry((&u.task, u.attempt)).or_default().push(u.seq);
        }
        for ((task, attempt), seqs) in by_attempt {
            let Some(known) = self.attempts.get(&(task.clone(), attempt)) else { continue };
            known.in_order(&seqs).map_err(|missing| {
                format!(
                    "update {missing} of {task}#{attempt} was delivered before and is not taken yet: take updates of one attempt in order"
                )
            })?;
        }
        Ok(())
    }

    /// Keeps what is known of an attempt.
    pub(crate) fn keep(&self, key: &Key, out: &mut Out) {
        if let Some(attempt) = self.attempts.get(key) {
            out.persist(Record::Attempt(attempt.record(key)));
        }
    }

    /// The framework's id, once it has one.
    #[must_use]
    pub const fn framework(&self) -> Option<&FrameworkId> {
        self.id.as_ref()
    }

    /// Whether a subscription of this life stood once. From then on it gives way to a later one; before, it takes over.
    #[must_use]
    pub const fn has_stood(&self) -> bool {
        self.has_stood
    }

    /// Attempts whose terminal update was not delivered yet.
    #[must_use]
    pub fn open_attempts(&self) -> usize {
        self.attempts.len() - self.ended.len()
    }

    /// Takes one event in and says what is to be done.
    pub fn step(&mut self, now: Time, event: Event) -> Effects<Record, Message> {
        let mut out = Effects::default();
        // What the handler takes is still kept.
        let from_handler = matches!(event, Event::Call(_) | Event::Handled(_) | Event::NotHandled(_));
        if self.link == Link::Closed && !from_handler {
            return out;
        }
        match event {
            Event::Connected => {
                self.disconnected(&mut out);
                self.link = Link::Subscribing;
                let claim = self.next_claim(&mut out);
                out.send(Message::Subscribe(Subscription { info: self.info.clone(), id: self.id.clone(), claim }));
            }
            Event::Disconnected => self.disconnected(&mut out),
            Event::FromMaster(event) => self.take_event(now, event, &mut out),
            Event::Handled(updates) => self.handled(updates, &mut out),
            Event::NotHandled(updates) => {
                for u in updates {
                    if let Some(attempt) = self.attempts.get_mut(&(u.task, u.attempt)) {
                        attempt.not_handled(u.seq);
                    }
                }
            }
            Event::Call(call) => self.call(now, call, &mut out),
            Event::Tick => self.tick(now, &mut out),
        }
        out
    }

    /// Until a subscription stands, each has a number of its own: whoever had the last one may be another scheduler. It is durable before it
    /// is said, so that no later life says it again. From then on the number is this life's, and its connections are counted.
    fn next_claim(&mut self, out: &mut Out) -> Claim {
        if self.has_stood {
            self.claim.turn += 1;
        } else {
            self.claim = Claim { life: self.claim.life.saturating_add(1), turn: 0 };
            out.persist(Record::Life(self.claim.life));
        }
        self.claim
    }

    fn disconnected(&mut self, out: &mut Out) {
        if self.link == Link::Down {
            return;
        }
        let void: Vec<_> = std::mem::take(&mut self.offers).into_keys().collect();
        if !void.is_empty() {
            out.send(Message::Deliver(Delivery::Rescind(void)));
        }
        if self.link == Link::Up {
            out.send(Message::Deliver(Delivery::Disconnected));
        }
        self.link = Link::Down;
    }

    fn take_event(&mut self, now: Time, event: FrameworkEvent, out: &mut Out) {
        match event {
            FrameworkEvent::Subscribed { framework, epoch } if self.link == Link::Subscribing => {
                self.subscribed(now, framework, epoch, out);
            }
            // It was just started, beside or after one of which its store does not know: it is meant to take over.
            FrameworkEvent::Fenced { life, .. } if self.link == Link::Subscribing && !self.has_stood => {
                self.claim.life = self.claim.life.max(life);
                self.link = Link::Down;
                out.send(Message::Reconnect);
            }
            FrameworkEvent::Error(message) | FrameworkEvent::Fenced { message, .. } => {
                self.disconnected(out);
                self.link = Link::Closed;
                out.send(Message::Deliver(Delivery::Error(message)));
            }
            // Left over from a connection that is gone, or out of turn.
            _ if self.link != Link::Up => {}
            FrameworkEvent::Subscribed { .. } => {}
            FrameworkEvent::Offers(mut offers) => {
                offers.retain(|o| self.id.as_ref() == Some(&o.framework) && self.offers.insert(o.id, o.agent.clone()).is_none());
                out.send(Message::Deliver(Delivery::Offers(offers)));
            }
            FrameworkEvent::Rescind(mut offers) => {
                offers.retain(|id| self.offers.remove(id).is_some());
                if !offers.is_empty() {
                    out.send(Message::Deliver(Delivery::Rescind(offers)));
                }
            }
            FrameworkEvent::Updates(updates) => {
                let mut repeats = Vec::new();
                for (agent, update) in updates {
                    self.update(now, agent, update, &mut repeats, out);
                }
                self.acknowledge(repeats, out);
            }
            FrameworkEvent::AgentLost { agent, reason } => {
                self.doubt_agent(&agent);
                out.send(Message::Deliver(Delivery::AgentLost { agent, reason }));
            }
            FrameworkEvent::Refused { call, message } => out.send(Message::Deliver(Delivery::Refused { call, message })),
        }
    }

    fn subscribed(&mut self, now: Time, framework: FrameworkId, epoch: MasterEpoch, out: &mut Out) {
        self.link = Link::Up;
        self.has_stood = true;
        self.epoch = Some(epoch);
        if self.id.as_ref() != Some(&framework) {
            out.persist(Record::Subscribed(framework.clone()));
            let before = self.id.replace(framework.clone());
            out.send(Message::Deliver(Delivery::Subscribed { framework, epoch }));
            if before.is_some() {
                self.lose_all(now, out);
            }
        } else {
            out.send(Message::Deliver(Delivery::Subscribed { framework, epoch }));
        }
        if self.teardown {
            self.link = Link::Closed;
            out.send(Message::ToMaster(Call::Teardown));
            return;
        }
        let unsent = std::mem::take(&mut self.unsent);
        self.acknowledge(unsent, out);
        if self.suppressed {
            out.send(Message::ToMaster(Call::Suppress));
        }
        self.reconcile_all(now, out);
        // All that it knows: agents may have brought back what an earlier life of it, or of this process, gave up. Also to a master that
        // was asked before: what it said since may have been lost with the connection, and it says that once.
        out.send(Message::ToMaster(Call::Reconcile(Vec::new())));
        for ((task, attempt), a) in &mut self.attempts {
            if a.is_ended() {
                continue;
            }
            if let Some(kill) = &mut a.kill {
                *kill = Kill::new(kill.grace, now);
                let grace = kill.grace;
                out.send(Message::ToMaster(Call::Kill { task: task.clone(), attempt: *attempt, grace }));
            }
            if let Some(part) = &mut a.part {
                part.resubscribed(now);
            }
        }
    }

    /// The master does not know this framework any more: nothing will ever be heard of its tasks.
    fn lose_all(&mut self, now: Time, out: &mut Out) {
        let open: Vec<_> = self.attempts.iter().filter(|(_, a)| !a.is_ended()).map(|(k, _)| k.clone()).collect();
        for key in open {
            self.end_locally(now, &key, TaskState::Lost, Reason::FrameworkRemoved, "the master has forgotten this framework", out);
        }
    }

    /// Delivers a terminal state that this client itself is sure of.
    pub(crate) fn end_locally(&mut self, now: Time, key: &Key, state: TaskState, reason: Reason, why: &str, out: &mut Out) {
        let Some(framework) = self.id.clone() else { return };
        let agent = self.attempts.get(key).and_then(|a| a.agent.clone());
        let task = TaskKey { framework, task: key.0.clone(), attempt: key.1 };
        self.update(now, agent, StatusUpdate::new(task, 0, state, reason, why, now), &mut Vec::new(), out);
    }

    fn update(&mut self, now: Time, agent: Option<AgentId>, mut update: StatusUpdate, repeats: &mut Vec<UpdateId>, out: &mut Out) {
        if self.id.as_ref() != Some(&update.key.task.framework) {
            return;
        }
        let key = (update.key.task.task.clone(), update.key.task.attempt);
        if update.state == TaskState::Unknown {
            return self.unknown(now, agent, &key, update, repeats, out);
        }
        if self.attempts.len() >= MOST_ATTEMPTS && !self.attempts.contains_key(&key) {
            return;
        }
        let attempt = self.attempts.entry(key.clone()).or_insert_with(|| Attempt::adopted(None));
        let was_ended = attempt.is_ended();
        if agent.is_some() && attempt.agent.is_none() {
            attempt.agent.clone_from(&agent);
        }
        if attempt.is_undead(&update) {
            // It was given up while its agent was out of sight. What ended for the handler must not go on taking resources.
            out.send(Message::ToMaster(Call::Kill { task: key.0.clone(), attempt: key.1, grace: None }));
        }
        let verdict = attempt.judge(&mut update, now);
        let ended = attempt.is_ended();
        // UNREACHABLE stays in doubt: when the agent comes back, asking again tells.
        let doubtful = attempt.state == Some(TaskState::Unreachable) || attempt.is_behind();
        match verdict {
            Verdict::Drop | Verdict::Wait => {}
            Verdict::Acknowledge => repeats.push(UpdateId::of(&update)),
            Verdict::Deliver => {
                if Sabotage::SdkAcknowledgesEarly.is_on() && update.key.seq > 0 {
                    repeats.push(UpdateId::of(&update));
                }
                if let Some(delta) = &update.array
                    && !ended
                {
                    attempt.part.get_or_insert_with(|| Part::adopted(now)).account(update.key.seq, delta, now);
                    self.parts.insert(key.clone());
                }
                let agent = agent.or_else(|| attempt.agent.clone());
                out.send(Message::Deliver(Delivery::Update { agent, update }));
            }
        }
        if doubtful {
            self.doubt.insert(key.clone())
        } else {
            self.doubt.remove(&key)
        }
        if ended && !was_ended {
            (attempt.part, attempt.kill) = (None, None);
            self.parts.remove(&key);
            self.kills.remove(&key);
            self.ended.push_back(key);
            self.forget_ended(out);
        }
    }

    /// The master says that it does not know an attempt.
    fn unknown(&mut self, now: Time, agent: Option<AgentId>, key: &Key, update: StatusUpdate, repeats: &mut Vec<UpdateId>, out: &mut Out) {
        // An agent never says this in an update of its own.
        if update.key.seq > 0 {
            return repeats.push(UpdateId::of(&update));
        }
        let Some(attempt) = self.attempts.get(key) else {
            out.send(Message::Deliver(Delivery::Update { agent, update }));
            return;
        };
        if attempt.is_ended() {
            return;
        }
        // Answers to a reconciliation come only when nobody can have it: then it never started, or its agent has lost it.
        // Any other UNKNOWN (an accept from an earlier life of the master) says: ask.
        match (update.reason, attempt.state) {
            (Reason::Reconciliation, None) if attempt.is_own() => {
                self.end_locally(now, key, TaskState::Dropped, Reason::LaunchFailed, "the launch was lost on its way to the agent", out);
            }
            (Reason::Reconciliation, _) => {
                self.end_locally(now, key, TaskState::Lost, Reason::AgentDisconnected, "no agent has this task any more", out);
            }
            _ => self.doubt.insert(key.clone()),
        }
    }

    fn forget_ended(&mut self, out: &mut Out) {
        if self.ended.len() <= KEEP_ENDED {
            return;
        }
        if let Some(key) = self.ended.pop_front() {
            if self.attempts.get(&key).is_some_and(Attempt::is_busy) {
                self.ended.push_back(key);
            } else {
                self.attempts.remove(&key);
                out.persist(Record::Forgotten { task: key.0, attempt: key.1 });
            }
        }
    }

    fn handled(&mut self, updates: Vec<UpdateId>, out: &mut Out) {
        let mut ready = Vec::with_capacity(updates.len());
        let mut touched = BTreeSet::new();
        for UpdateId { task, attempt, seq } in updates {
            let key = (task, attempt);
            if let Some(part) = self.attempts.get_mut(&key).and_then(|a| a.part.as_mut()) {
                part.taken(seq);
            }
            for seq in self.attempts.get_mut(&key).map(|a| a.handled(seq)).unwrap_or_default() {
                ready.push(UpdateId { task: key.0.clone(), attempt, seq });
            }
            touched.insert(key);
        }
        for key in touched.into_iter().filter(|_| !Sabotage::SdkForgetsTaken.is_on()) {
            self.keep(&key, out);
        }
        self.acknowledge(ready, out);
    }

    fn acknowledge(&mut self, updates: Vec<UpdateId>, out: &mut Out) {
        if updates.is_empty() {
            return;
        }
        if self.link == Link::Up {
            out.send(Message::ToMaster(Call::Acknowledge(updates.into_iter().map(|u| (u.task, u.attempt, u.seq)).collect())));
        } else {
            self.unsent.extend(updates);
        }
    }

    /// What must hold after every event.
    ///
    /// # Errors
    /// The first thing that does not hold, in words.
    pub fn check_invariants(&self) -> Result<(), String> {
        if self.link == Link::Up && (self.id.is_none() || self.epoch.is_none()) {
            return Err("subscribed without an id".into());
        }
        if self.link != Link::Up && !self.offers.is_empty() {
            return Err(format!("{} offers are held without a subscription", self.offers.len()));
        }
        if self.link == Link::Up && !self.unsent.is_empty() {
            return Err("acknowledgements are held back although there is a subscription".into());
        }
        for (key, attempt) in &self.attempts {
            attempt.check().map_err(|e| format!("{}#{}: {e}", key.0, key.1))?;
            if attempt.is_ended() && (attempt.part.is_some() || self.parts.contains(key) || self.doubt.contains(key)) {
                return Err(format!("{}#{} has ended and is still waited for", key.0, key.1));
            }
            if attempt.part.is_some() != self.parts.contains(key) || attempt.kill.is_some() != self.kills.contains(key) {
                return Err(format!("{}#{} has a part or a kill by halves", key.0, key.1));
            }
        }
        let ended = self.attempts.values().filter(|a| a.is_ended()).count();
        if ended != self.ended.len() {
            return Err(format!("{ended} attempts have ended, {} are listed", self.ended.len()));
        }
        Ok(())
    }
}
