//! Lives of one client over one store: crashes between any two steps, and a handler that commits with the client.

use crate::tests::{agent, framework, launch, task, update};
use crate::{Client, Delivery, Event, Message, Record, UpdateId};
use proptest::prelude::*;
use smalti_types::protocol::{Call, FrameworkEvent};
use smalti_types::{
    Attributes, Bytes, DurationMs, Filters, FrameworkInfo, ItemBatch, MasterEpoch, MilliCpus, Offer, OfferId, Reason, Resources, Role,
    StatusUpdate, TaskState, Time,
};
use std::collections::BTreeMap;

/// Bytes as a store has them.
type Disk = BTreeMap<Vec<u8>, Vec<u8>>;

/// A client over its lives, with what is durable of it and of its handler.
struct World {
    client: Client,
    now: Time,
    disk: Disk,
    /// What the handler committed together with the client: numbers and states of the updates of each attempt.
    committed: BTreeMap<u32, Vec<(u64, TaskState)>>,
    /// Delivered and not committed.
    inbox: Vec<StatusUpdate>,
    sent: Vec<Call>,
    offers: u64,
}

fn info() -> FrameworkInfo {
    FrameworkInfo {
        name: "test".into(),
        principal: "p".into(),
        role: Role::default(),
        failover_timeout: DurationMs(1),
        services: BTreeMap::new(),
    }
}

fn restore(disk: &Disk) -> Client {
    Client::restore(info(), disk.iter().map(|(k, v)| Record::decode(k, v).unwrap()))
}

impl World {
    fn new() -> Self {
        let disk = Disk::default();
        let client = restore(&disk);
        let mut world = Self { client, now: Time(0), disk, committed: BTreeMap::new(), inbox: Vec::new(), sent: Vec::new(), offers: 0 };
        world.subscribe();
        world
    }

    /// One step; when it crashes, its records are durable or not, and its messages are gone.
    fn step(&mut self, event: Event, crash: Option<bool>) {
        let effects = self.client.step(self.now, event);
        self.client.check_invariants().unwrap();
        let disk = &mut self.disk;
        let messages = effects
            .commit(|records| {
                for (key, value) in records.iter().filter(|_| crash != Some(false)).map(Record::encode) {
                    match value {
                        Some(value) => disk.insert(key, value),
                        None => disk.remove(&key),
                    };
                }
                Ok::<_, ()>(())
            })
            .unwrap();
        if crash.is_some() {
            return self.restart();
        }
        for message in messages {
            match message {
                Message::ToMaster(call) => self.sent.push(call),
                Message::Deliver(Delivery::Update { update, .. }) => self.inbox.push(update),
                Message::Deliver(_) | Message::Subscribe(_) | Message::Reconnect => {}
            }
        }
    }

    fn restart(&mut self) {
        self.inbox.clear();
        self.client = restore(&self.disk);
        self.client.check_invariants().unwrap();
        self.subscribe();
    }

    fn subscribe(&mut self) {
        self.step(Event::Connected, None);
        self.step(Event::FromMaster(FrameworkEvent::Subscribed { framework: framework(), epoch: MasterEpoch(1) }), None);
    }

    fn launch(&mut self, attempt: u32, crash: Option<bool>) {
        self.offers += 1;
        let offer = Offer {
            id: OfferId { epoch: MasterEpoch(1), number: self.offers },
            framework: framework(),
            role: Role::default(),
            agent: agent(),
            hostname: "h".into(),
            resources: Resources::new(MilliCpus(100), Bytes::mib(16)),
            attributes: Attributes::default(),
            holdings: Vec::new(),
        };
        let offers = vec![offer.id];
        self.step(Event::FromMaster(FrameworkEvent::Offers(vec![offer])), None);
        self.step(Event::Call(Call::Accept { offers, operations: vec![launch("t", attempt)], filters: Filters::default() }), crash);
    }

    fn hear(&mut self, update: StatusUpdate) {
        self.step(Event::FromMaster(FrameworkEvent::Updates(vec![(Some(agent()), update)])), None);
    }

    /// The handler commits the first `most` updates that it was given, in one transaction with the client's records.
    fn commit(&mut self, most: usize, crash: Option<bool>) {
        let taken: Vec<StatusUpdate> = self.inbox.drain(..most.min(self.inbox.len())).collect();
        let ids: Vec<UpdateId> = taken.iter().map(UpdateId::of).collect();
        self.client.in_order(&ids).unwrap();
        if crash != Some(false) {
            for u in &taken {
                self.committed.entry(u.key.task.attempt).or_default().push((u.key.seq, u.state));
            }
        }
        self.step(Event::Handled(ids), crash);
    }

    fn acknowledged(&mut self) -> Vec<(u32, u64)> {
        let sent = std::mem::take(&mut self.sent);
        let acks = sent.into_iter().filter_map(|c| if let Call::Acknowledge(list) = c { Some(list) } else { None });
        acks.flatten().map(|(_, attempt, seq)| (attempt, seq)).collect()
    }
}

/// With what the client subscribes on a new connection.
fn claim(w: &mut World) -> (u64, u64) {
    let mut said = None;
    let effects = w.client.step(w.now, Event::Connected);
    let disk = &mut w.disk;
    let persist = |records: Vec<Record>| {
        disk.extend(records.iter().map(Record::encode).map(|(key, value)| (key, value.unwrap())));
        Ok::<_, ()>(())
    };
    for message in effects.commit(persist).unwrap() {
        if let Message::Subscribe(subscription) = message {
            said = Some((subscription.claim.life, subscription.claim.turn));
        }
    }
    said.unwrap()
}

/// What the client does about a refusal: whether it tries again.
fn refused(w: &mut World, life: u64) -> bool {
    let fenced = FrameworkEvent::Fenced { life, message: "another one".into() };
    let messages = w.client.step(w.now, Event::FromMaster(fenced)).commit(|_| Ok::<_, ()>(())).unwrap();
    match &messages[..] {
        [Message::Reconnect] => true,
        [Message::Deliver(Delivery::Error(why))] if why == "another one" => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_life_subscribes_with_a_greater_number_and_each_connection_of_it_with_a_later_turn() {
    let subscribed = || Event::FromMaster(FrameworkEvent::Subscribed { framework: framework(), epoch: MasterEpoch(1) });
    let mut w = World::new();
    assert_eq!(claim(&mut w), (1, 1), "the first stood");
    w.step(subscribed(), None);
    assert_eq!(claim(&mut w), (1, 2));
    w.client = restore(&w.disk);
    // Nothing was answered: whoever hears the first after the second must be able to tell.
    assert_eq!((claim(&mut w), claim(&mut w)), ((2, 0), (3, 0)));
    w.step(subscribed(), None);
    assert_eq!(claim(&mut w), (3, 1));
    assert!(!refused(&mut w, 4), "it has been taken over");
}

#[test]
fn a_scheduler_that_was_just_started_takes_over_from_one_that_its_store_does_not_know() {
    let mut w = World::new();
    w.disk.retain(|key, _| key != b"life");
    w.client = restore(&w.disk);
    assert_eq!(claim(&mut w), (1, 0));
    assert!(refused(&mut w, 40));
    assert_eq!(claim(&mut w), (41, 0));
    w.step(Event::FromMaster(FrameworkEvent::Subscribed { framework: framework(), epoch: MasterEpoch(1) }), None);
    assert_eq!(claim(&mut w), (41, 1));
    w.client = restore(&w.disk);
    assert_eq!(claim(&mut w), (42, 0), "its own store knows now");
}

#[test]
fn a_launch_is_known_to_the_next_life_and_is_asked_about() {
    let mut w = World::new();
    w.launch(0, Some(true));
    assert_eq!(w.client.open_attempts(), 1);
    let asked = w.sent.iter().any(|c| matches!(c, Call::Reconcile(list) if list == &[(task("t"), 0, Some(agent()))]));
    assert!(asked, "{:?}", w.sent);
    w.hear(StatusUpdate { reason: Reason::Reconciliation, ..update("t", 0, 0, TaskState::Unknown) });
    assert_eq!(w.inbox[0].state, TaskState::Dropped, "it never left");
    w.commit(1, Some(true));
    assert_eq!(w.client.open_attempts(), 0);
    w.hear(StatusUpdate { reason: Reason::Reconciliation, ..update("t", 0, 0, TaskState::Unknown) });
    assert_eq!(w.inbox, []);
    w.launch(1, None);
    assert_eq!(w.client.open_attempts(), 1, "its id starts again as the next attempt");
}

#[test]
fn what_was_committed_is_acknowledged_again_and_what_was_not_comes_again() {
    let mut w = World::new();
    w.launch(0, None);
    w.hear(update("t", 0, 1, TaskState::Running));
    w.commit(1, Some(true));
    assert_eq!(w.acknowledged(), []);
    w.hear(update("t", 0, 1, TaskState::Running));
    w.hear(update("t", 0, 2, TaskState::Finished));
    assert_eq!(w.acknowledged(), [(0, 1)]);
    w.commit(1, Some(false));
    w.hear(update("t", 0, 2, TaskState::Finished));
    w.commit(1, None);
    assert_eq!(w.acknowledged(), [(0, 2)]);
    assert_eq!(w.committed[&0], [(1, TaskState::Running), (2, TaskState::Finished)]);
    w.restart();
    w.hear(update("t", 0, 2, TaskState::Finished));
    w.hear(update("t", 0, 0, TaskState::Gone));
    assert_eq!((w.inbox.len(), w.acknowledged()), (0, vec![(0, 2)]));
}

#[test]
fn the_masters_word_that_ended_an_attempt_is_kept_like_any_other() {
    let mut w = World::new();
    w.launch(0, None);
    w.hear(update("t", 0, 1, TaskState::Running));
    w.hear(update("t", 0, 0, TaskState::Lost));
    let end = UpdateId { task: task("t"), attempt: 0, seq: 0 };
    assert!(w.client.in_order(std::slice::from_ref(&end)).unwrap_err().contains("update 1 of t#0"));
    w.commit(2, Some(true));
    assert_eq!(w.client.open_attempts(), 0);
    w.hear(update("t", 0, 2, TaskState::Finished));
    assert_eq!((w.inbox.len(), w.committed[&0].len()), (0, 2));
}

#[test]
fn updates_of_one_attempt_are_taken_in_order_or_not_at_all() {
    let mut w = World::new();
    w.launch(0, None);
    for (seq, state) in [(1, TaskState::Starting), (2, TaskState::Running), (3, TaskState::Finished)] {
        w.hear(update("t", 0, seq, state));
    }
    let id = |seq| UpdateId { task: task("t"), attempt: 0, seq };
    assert!(w.client.in_order(&[id(1), id(3)]).unwrap_err().contains("update 2 of t#0"));
    assert_eq!(w.client.in_order(&[id(1), id(2)]), Ok(()));
    // Said one by one, the order is free; a later life then knows only what has no gap before it.
    w.step(Event::Handled(vec![id(2), id(3)]), Some(true));
    for (seq, state) in [(1, TaskState::Starting), (2, TaskState::Running), (3, TaskState::Finished)] {
        w.hear(update("t", 0, seq, state));
    }
    assert_eq!(w.inbox.len(), 3);
}

#[test]
fn a_kill_is_said_by_the_next_life_until_it_took_effect() {
    let mut w = World::new();
    w.launch(0, None);
    w.step(Event::Call(Call::Kill { task: task("t"), attempt: 0, grace: Some(DurationMs(7)) }), Some(true));
    let kill = Call::Kill { task: task("t"), attempt: 0, grace: Some(DurationMs(7)) };
    assert!(w.sent.contains(&kill), "{:?}", w.sent);
    w.hear(update("t", 0, 1, TaskState::Killed));
    w.commit(1, Some(true));
    w.sent.clear();
    w.restart();
    assert!(!w.sent.contains(&kill), "{:?}", w.sent);
}

#[test]
fn with_every_subscription_the_master_is_asked_for_all_it_knows() {
    // An agent may have brought back what had ended: the master's word on that may have been lost, and it says it once.
    let mut w = World::new();
    w.launch(0, None);
    w.hear(update("t", 0, 0, TaskState::Gone));
    w.commit(1, None);
    for _ in 0..2 {
        w.step(Event::Disconnected, None);
        w.sent.clear();
        w.subscribe();
        assert!(w.sent.contains(&Call::Reconcile(Vec::new())), "{:?}", w.sent);
    }
    w.hear(StatusUpdate { reason: Reason::Reconciliation, ..update("t", 0, 0, TaskState::Running) });
    assert!(w.sent.contains(&Call::Kill { task: task("t"), attempt: 0, grace: None }), "{:?}", w.sent);
}

#[test]
fn a_part_that_was_closed_is_told_so_by_the_next_life_until_it_has_ended() {
    let mut w = World::new();
    w.launch(0, None);
    w.hear(update("t", 0, 1, TaskState::Running));
    w.commit(1, None);
    let close = Call::AssignItems { task: task("t"), attempt: 0, batch: ItemBatch::default(), open: false };
    w.step(Event::Call(close.clone()), Some(true));
    assert!(!w.sent.contains(&close), "it was lost with the process");
    for _ in 0..2 {
        w.now = w.now.after(DurationMs(40_000));
        w.step(Event::Tick, None);
    }
    assert_eq!(w.sent.iter().filter(|c| **c == close).count(), 2);
    w.hear(update("t", 0, 2, TaskState::Finished));
    w.commit(1, Some(true));
    w.sent.clear();
    w.now = w.now.after(DurationMs(40_000));
    w.step(Event::Tick, None);
    assert!(!w.sent.contains(&close), "{:?}", w.sent);
}

#[derive(Debug, Clone)]
enum Step {
    /// Attempt; whether the process ends in it, and then whether its records are durable.
    Launch(u32, Option<bool>),
    /// The agent makes its next update, or says again what is not acknowledged, from this position on.
    Update(u32),
    Repeat(u32, usize),
    Commit(usize, Option<bool>),
    Crash,
    Reconnect,
    Later(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let crash = || prop_oneof![4 => Just(None), 1 => any::<bool>().prop_map(Some)];
    prop_oneof![
        3 => (0_u32..3, crash()).prop_map(|(a, c)| Step::Launch(a, c)),
        6 => (0_u32..3).prop_map(Step::Update),
        4 => (0_u32..3, 0_usize..3).prop_map(|(a, n)| Step::Repeat(a, n)),
        6 => (1_usize..4, crash()).prop_map(|(n, c)| Step::Commit(n, c)),
        1 => Just(Step::Crash),
        1 => Just(Step::Reconnect),
        1 => (0_u64..20).prop_map(Step::Later),
    ]
}

/// What an agent has of one attempt.
#[derive(Default)]
struct Stream {
    made: u64,
    acknowledged: u64,
}

const STATES: [TaskState; 3] = [TaskState::Starting, TaskState::Running, TaskState::Finished];

proptest! {
    #[test]
    fn whenever_it_crashes_what_the_handler_commits_is_every_update_once(steps in prop::collection::vec(step(), 0..100)) {
        let mut w = World::new();
        let mut streams: BTreeMap<u32, Stream> = BTreeMap::new();
        for s in steps {
            let say = |w: &mut World, attempt: u32, seq: u64| {
                w.hear(update("t", attempt, seq, STATES[usize::try_from(seq).unwrap() - 1]));
            };
            match s {
                Step::Launch(attempt, crash) => w.launch(attempt, crash),
                Step::Update(attempt) => {
                    if let Some(stream) = streams.get_mut(&attempt).filter(|s| s.made < 3) {
                        stream.made += 1;
                        say(&mut w, attempt, stream.made);
                    }
                }
                Step::Repeat(attempt, skip) => {
                    if let Some(stream) = streams.get(&attempt) {
                        (stream.acknowledged + 1..=stream.made).skip(skip).for_each(|seq| say(&mut w, attempt, seq));
                    }
                }
                Step::Commit(most, crash) => w.commit(most, crash),
                Step::Crash => w.restart(),
                Step::Reconnect => { w.step(Event::Disconnected, None); w.subscribe(); }
                Step::Later(seconds) => { w.now.0 += seconds * 1_000_000; w.step(Event::Tick, None); }
            }
            let launched: Vec<u32> = w.sent.iter().filter_map(|c| match c {
                Call::Accept { operations, .. } => operations.iter().find_map(|o| match o {
                    smalti_types::Operation::Launch(l) => Some(l.attempt),
                    smalti_types::Operation::LaunchArray(_) => None,
                }),
                _ => None,
            }).collect();
            for attempt in launched {
                prop_assert!(streams.insert(attempt, Stream::default()).is_none(), "attempt {} started twice", attempt);
            }
            for (attempt, seq) in w.acknowledged() {
                let stream = streams.get_mut(&attempt).unwrap();
                stream.acknowledged = stream.acknowledged.max(seq);
                let durable = w.committed.get(&attempt).is_some_and(|c| c.iter().any(|(s, _)| *s == seq));
                prop_assert!(durable, "{}#{} was acknowledged before it was committed", attempt, seq);
            }
        }
        // Peace: the agents say what is left, the handler takes it.
        let lives: Vec<u32> = streams.keys().copied().collect();
        for attempt in lives {
            let stream = &streams[&attempt];
            for seq in 1..=stream.made {
                w.hear(update("t", attempt, seq, STATES[usize::try_from(seq).unwrap() - 1]));
            }
            w.commit(usize::MAX, None);
            let numbers: Vec<u64> = w.committed.get(&attempt).into_iter().flatten().map(|(s, _)| *s).filter(|s| *s > 0).collect();
            prop_assert_eq!(numbers, (1..=stream.made).collect::<Vec<_>>());
        }
    }
}
