//! The client against scripted and random masters.

use crate::{Client, Delivery, Event, Message, UpdateId};
use proptest::prelude::*;
use smalti_types::protocol::{Call, FrameworkEvent};
use smalti_types::{
    AgentId, ArrayDelta, ArrayTemplate, Attributes, BundleRef, Bytes, Digest, DurationMs, Filters, FrameworkId, FrameworkInfo, ItemBatch,
    ItemSet, Launch, LaunchArray, MasterEpoch, MilliCpus, Offer, OfferId, Operation, Reason, Resources, Role, StatusUpdate, TaskId,
    TaskKey, TaskSpec, TaskState, Time,
};
use std::collections::BTreeMap;

pub(crate) fn framework() -> FrameworkId {
    FrameworkId::new("F1-1").unwrap()
}

pub(crate) fn agent() -> AgentId {
    AgentId::new("a1").unwrap()
}

pub(crate) fn task(name: &str) -> TaskId {
    TaskId::new(name).unwrap()
}

fn spec() -> TaskSpec {
    TaskSpec::new(BundleRef { digest: Digest::of(b"x"), uri: None })
}

fn resources() -> Resources {
    Resources::new(MilliCpus(100), Bytes::mib(16))
}

pub(crate) fn launch(name: &str, attempt: u32) -> Operation {
    Operation::Launch(Launch { task: task(name), attempt, resources: resources(), spec: spec() })
}

fn array(name: &str, items: u64) -> Operation {
    Operation::LaunchArray(LaunchArray {
        task: task(name),
        attempt: 0,
        slot_resources: resources(),
        slots: 2,
        template: ArrayTemplate { spec: spec(), total_items: items, split_inputs: Vec::new() },
        batch: ItemBatch { items: ItemSet::range(0, items), ..ItemBatch::default() },
        open: true,
    })
}

pub(crate) fn update(name: &str, attempt: u32, seq: u64, state: TaskState) -> StatusUpdate {
    let key = TaskKey { framework: framework(), task: task(name), attempt };
    StatusUpdate::new(key, seq, state, Reason::None, "", Time(0))
}

/// A client with a clock and everything it said.
struct Bench {
    client: Client,
    now: Time,
    epoch: u64,
    offers: u64,
    sent: Vec<Call>,
    delivered: Vec<Delivery>,
}

impl Bench {
    fn new() -> Self {
        let info = FrameworkInfo {
            name: "test".into(),
            principal: "p".into(),
            role: Role::default(),
            failover_timeout: DurationMs(1),
            services: BTreeMap::new(),
        };
        let mut bench =
            Self { client: Client::new(info, None), now: Time(0), epoch: 1, offers: 0, sent: Vec::new(), delivered: Vec::new() };
        bench.connect();
        bench
    }

    fn step(&mut self, event: Event) {
        let effects = self.client.step(self.now, event);
        for message in effects.commit(|_| Ok::<_, ()>(())).unwrap() {
            match message {
                Message::Subscribe(_) | Message::Reconnect => {}
                Message::ToMaster(call) => self.sent.push(call),
                Message::Deliver(delivery) => self.delivered.push(delivery),
            }
        }
        self.client.check_invariants().unwrap();
    }

    fn master(&mut self, event: FrameworkEvent) {
        self.step(Event::FromMaster(event));
    }

    fn connect(&mut self) {
        self.step(Event::Connected);
        self.master(FrameworkEvent::Subscribed { framework: framework(), epoch: MasterEpoch(self.epoch) });
    }

    fn offer(&mut self) -> OfferId {
        self.offers += 1;
        let id = OfferId { epoch: MasterEpoch(self.epoch), number: self.offers };
        self.master(FrameworkEvent::Offers(vec![Offer {
            id,
            framework: framework(),
            role: Role::default(),
            agent: agent(),
            hostname: "h".into(),
            resources: resources(),
            attributes: Attributes::default(),
            holdings: Vec::new(),
        }]));
        id
    }

    fn accept(&mut self, offers: Vec<OfferId>, operations: Vec<Operation>) {
        self.step(Event::Call(Call::Accept { offers, operations, filters: Filters::default() }));
    }

    fn updates(&mut self, updates: Vec<StatusUpdate>) {
        self.master(FrameworkEvent::Updates(updates.into_iter().map(|u| (Some(agent()), u)).collect()));
    }

    fn handled(&mut self, name: &str, attempt: u32, seq: u64) {
        self.step(Event::Handled(vec![UpdateId { task: task(name), attempt, seq }]));
    }

    fn later(&mut self, seconds: u64) {
        self.now.0 += seconds * 1_000_000;
        self.step(Event::Tick);
    }

    fn take_sent(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.sent)
    }

    /// (attempt, sequence number, state) of the updates delivered since the last call.
    fn take_updates(&mut self) -> Vec<(u32, u64, TaskState)> {
        let updates = std::mem::take(&mut self.delivered).into_iter().filter_map(|d| match d {
            Delivery::Update { update: u, .. } => Some((u.key.task.attempt, u.key.seq, u.state)),
            _ => None,
        });
        updates.collect()
    }

    fn take_deliveries(&mut self) -> Vec<Delivery> {
        std::mem::take(&mut self.delivered)
    }
}

fn acknowledged(calls: &[Call]) -> Vec<u64> {
    calls
        .iter()
        .flat_map(|c| if let Call::Acknowledge(list) = c { list.iter().map(|(_, _, seq)| *seq).collect() } else { Vec::new() })
        .collect()
}

fn reconciled(calls: &[Call]) -> Vec<String> {
    calls
        .iter()
        .flat_map(|c| if let Call::Reconcile(l) = c { l.iter().map(|(t, ..)| t.to_string()).collect() } else { Vec::new() })
        .collect()
}

#[test]
fn a_repeat_is_acknowledged_again_and_not_delivered_again() {
    let mut b = Bench::new();
    let offer = b.offer();
    b.accept(vec![offer], vec![launch("t", 0)]);
    b.updates(vec![update("t", 0, 1, TaskState::Running)]);
    assert_eq!(b.take_updates(), [(0, 1, TaskState::Running)]);
    b.updates(vec![update("t", 0, 1, TaskState::Running)]);
    assert_eq!(acknowledged(&b.take_sent()), [] as [u64; 0], "the handler has it in its hands");
    b.handled("t", 0, 1);
    assert_eq!(acknowledged(&b.take_sent()), [1]);
    b.updates(vec![update("t", 0, 1, TaskState::Running), update("t", 0, 2, TaskState::Finished)]);
    assert_eq!(b.take_updates(), [(0, 2, TaskState::Finished)]);
    assert_eq!(acknowledged(&b.take_sent()), [1]);
    b.handled("t", 0, 2);
    b.updates(vec![update("t", 0, 2, TaskState::Finished), update("t", 0, 0, TaskState::Gone)]);
    assert_eq!(b.take_updates(), []);
    assert_eq!(acknowledged(&b.take_sent()), [2, 2]);
}

#[test]
fn an_update_waits_for_the_one_before_it_but_not_for_ever() {
    let mut b = Bench::new();
    let offer = b.offer();
    b.accept(vec![offer], vec![launch("t", 0)]);
    b.updates(vec![update("t", 0, 2, TaskState::Running)]);
    assert_eq!(b.take_updates(), []);
    b.updates(vec![update("t", 0, 1, TaskState::Starting), update("t", 0, 2, TaskState::Running)]);
    assert_eq!(b.take_updates(), [(0, 1, TaskState::Starting), (0, 2, TaskState::Running)]);
    b.take_sent();
    b.handled("t", 0, 2);
    assert_eq!(acknowledged(&b.take_sent()), [] as [u64; 0], "an acknowledgement speaks for all before it");
    b.handled("t", 0, 1);
    assert_eq!(acknowledged(&b.take_sent()), [1, 2]);
    b.updates(vec![update("t", 0, 4, TaskState::Finished)]);
    assert_eq!(b.take_updates(), []);
    b.later(2);
    assert_eq!(reconciled(&b.take_sent()), ["t"]);
    b.later(59);
    b.updates(vec![update("t", 0, 4, TaskState::Finished)]);
    assert_eq!(b.take_updates(), [(0, 4, TaskState::Finished)], "its agent is gone with what was between");
}

#[test]
fn an_attempt_of_an_earlier_life_may_begin_anywhere() {
    let mut b = Bench::new();
    b.updates(vec![update("t", 0, 6, TaskState::Running), update("t", 0, 5, TaskState::Running), update("t", 0, 5, TaskState::Running)]);
    assert_eq!(b.take_updates(), [(0, 6, TaskState::Running), (0, 5, TaskState::Running)]);
    b.updates(vec![update("t", 0, 8, TaskState::Finished)]);
    assert_eq!(b.take_updates(), []);
    b.updates(vec![update("t", 0, 7, TaskState::Running), update("t", 0, 8, TaskState::Finished)]);
    assert_eq!(b.take_updates().len(), 2);
}

#[test]
fn an_update_that_the_handler_let_go_of_is_delivered_when_it_comes_again() {
    let mut b = Bench::new();
    b.updates(vec![update("t", 0, 1, TaskState::Finished)]);
    b.step(Event::NotHandled(vec![UpdateId { task: task("t"), attempt: 0, seq: 1 }]));
    b.updates(vec![update("t", 0, 1, TaskState::Finished)]);
    assert_eq!(b.take_updates().len(), 2);
    b.handled("t", 0, 1);
    assert_eq!(acknowledged(&b.take_sent()), [1]);
}

#[test]
fn the_first_terminal_state_wins_and_nothing_goes_backwards() {
    let mut b = Bench::new();
    let offer = b.offer();
    b.accept(vec![offer], vec![launch("t", 0)]);
    b.updates(vec![update("t", 0, 0, TaskState::Killing), update("t", 0, 1, TaskState::Running), update("t", 0, 0, TaskState::Staging)]);
    assert_eq!(b.take_updates(), [(0, 0, TaskState::Killing), (0, 1, TaskState::Killing)]);
    b.updates(vec![update("t", 0, 0, TaskState::Lost), update("t", 0, 2, TaskState::Finished)]);
    assert_eq!(b.take_updates(), [(0, 0, TaskState::Lost)]);
    assert_eq!(acknowledged(&b.take_sent()), [2]);
}

#[test]
fn a_launch_on_void_offers_is_dropped_without_leaving_the_process() {
    let mut b = Bench::new();
    let (gone, kept) = (b.offer(), b.offer());
    b.master(FrameworkEvent::Rescind(vec![gone]));
    b.take_sent();
    b.accept(vec![gone, kept], vec![launch("t", 0)]);
    assert_eq!(b.take_updates(), [(0, 0, TaskState::Dropped)]);
    assert!(matches!(b.take_sent().as_slice(), [Call::Decline { offers, .. }] if offers == &[kept]));
    let offer = b.offer();
    b.step(Event::Disconnected);
    let seen = b.take_deliveries();
    assert!(matches!(seen.as_slice(), [Delivery::Offers(_), Delivery::Rescind(_), Delivery::Disconnected]), "{seen:?}");
    b.accept(vec![offer], vec![launch("t", 1)]);
    assert_eq!(b.take_updates(), [(1, 0, TaskState::Dropped)]);
    assert_eq!(b.take_sent(), []);
}

#[test]
fn an_id_starts_again_only_as_a_higher_attempt_after_the_end_of_the_one_before() {
    let mut b = Bench::new();
    let try_launch = |b: &mut Bench, attempt| {
        let offer = b.offer();
        b.take_deliveries();
        b.take_sent();
        b.accept(vec![offer], vec![launch("t", attempt)]);
        let refused = b.delivered.iter().any(|d| matches!(d, Delivery::Refused { .. }));
        let sent = b.take_sent().iter().any(|c| matches!(c, Call::Accept { operations, .. } if !operations.is_empty()));
        (sent, refused, b.take_updates())
    };
    let (started, refused) = ((true, false, vec![]), (false, true, vec![]));
    assert_eq!(try_launch(&mut b, 1), started);
    assert_eq!(try_launch(&mut b, 1), refused);
    assert_eq!(try_launch(&mut b, 0), refused);
    assert_eq!(try_launch(&mut b, 2), (false, false, vec![(2, 0, TaskState::Dropped)]), "attempt 1 lives");
    b.updates(vec![update("t", 1, 0, TaskState::Unreachable)]);
    assert_eq!(try_launch(&mut b, 3), started);
    b.updates(vec![update("t", 1, 1, TaskState::Finished), update("t", 3, 1, TaskState::Failed)]);
    assert_eq!(try_launch(&mut b, 4), started);
}

#[test]
fn what_is_open_is_reconciled_on_every_subscription_until_a_state_comes() {
    let mut b = Bench::new();
    let offer = b.offer();
    b.accept(vec![offer], vec![launch("t", 0), launch("u", 0)]);
    b.updates(vec![update("u", 0, 1, TaskState::Finished)]);
    b.step(Event::Disconnected);
    b.handled("u", 0, 1);
    b.take_sent();
    b.epoch = 2;
    b.connect();
    let sent = b.take_sent();
    assert_eq!(acknowledged(&sent), [1], "kept while there was no connection");
    assert_eq!(reconciled(&sent), ["t"]);
    b.take_updates();
    b.updates(vec![update("t", 0, 0, TaskState::Unknown)]);
    assert_eq!(b.take_updates(), []);
    b.later(2);
    assert_eq!(reconciled(&b.take_sent()), ["t"]);
    b.later(1);
    assert_eq!(reconciled(&b.take_sent()), [] as [&str; 0], "not before its back-off");
    b.updates(vec![update("t", 0, 0, TaskState::Running)]);
    b.later(60);
    assert_eq!(reconciled(&b.take_sent()), [] as [&str; 0]);
    assert_eq!(b.take_updates(), [(0, 0, TaskState::Running)]);
}

#[test]
fn what_no_agent_has_is_over_and_killed_if_it_lives_all_the_same() {
    let mut b = Bench::new();
    let offer = b.offer();
    b.accept(vec![offer], vec![launch("t", 0), launch("u", 0)]);
    b.updates(vec![update("u", 0, 1, TaskState::Running)]);
    b.step(Event::Disconnected);
    b.connect();
    b.take_updates();
    let nobody_has = |name| StatusUpdate { reason: Reason::Reconciliation, ..update(name, 0, 0, TaskState::Unknown) };
    b.updates(vec![nobody_has("t"), nobody_has("u")]);
    assert_eq!(b.take_updates(), [(0, 0, TaskState::Dropped), (0, 0, TaskState::Lost)]);
    b.take_sent();
    b.updates(vec![update("u", 0, 2, TaskState::Running)]);
    assert_eq!(b.take_updates(), []);
    let sent = b.take_sent();
    assert!(matches!(sent.as_slice(), [Call::Kill { .. }, Call::Acknowledge(_)]), "{sent:?}");
}

#[test]
fn items_that_the_master_gives_back_are_delivered_in_the_state_as_it_is() {
    let mut b = Bench::new();
    let offer = b.offer();
    b.accept(vec![offer], vec![array("p", 4)]);
    b.updates(vec![update("p", 0, 1, TaskState::Running)]);
    b.take_updates();
    let back = ArrayDelta { returned: ItemSet::range(2, 4), outstanding: 2, slots: 2, ..ArrayDelta::default() };
    b.updates(vec![StatusUpdate { array: Some(back), ..update("p", 0, 0, TaskState::Staging) }]);
    assert_eq!(b.take_updates(), [(0, 0, TaskState::Running)]);
}

#[test]
fn a_handler_may_speak_of_tasks_of_an_earlier_life() {
    let mut b = Bench::new();
    b.step(Event::Call(Call::Reconcile(vec![(task("t"), 3, Some(agent()))])));
    let more = ItemBatch { items: ItemSet::range(4, 8), ..ItemBatch::default() };
    b.step(Event::Call(Call::AssignItems { task: task("p"), attempt: 0, batch: more, open: true }));
    b.step(Event::Disconnected);
    b.take_sent();
    b.connect();
    assert_eq!(reconciled(&b.take_sent()), ["p", "t"]);
    b.updates(vec![StatusUpdate { reason: Reason::Reconciliation, ..update("t", 3, 0, TaskState::Unknown) }]);
    assert!(b.take_updates().contains(&(3, 0, TaskState::Lost)));
}

#[test]
fn a_launch_without_a_first_status_is_asked_about() {
    let mut b = Bench::new();
    let offer = b.offer();
    b.accept(vec![offer], vec![launch("t", 0)]);
    b.take_sent();
    b.later(9);
    assert_eq!(reconciled(&b.take_sent()), [] as [&str; 0]);
    b.later(2);
    assert_eq!(reconciled(&b.take_sent()), ["t"]);
}

#[test]
fn kills_and_items_survive_a_lost_connection() {
    let mut b = Bench::new();
    let offer = b.offer();
    b.accept(vec![offer], vec![array("p", 4)]);
    b.updates(vec![StatusUpdate {
        array: Some(ArrayDelta { outstanding: 4, slots: 2, ..ArrayDelta::default() }),
        ..update("p", 0, 1, TaskState::Running)
    }]);
    b.step(Event::Disconnected);
    let more = ItemBatch { items: ItemSet::range(4, 8), ..ItemBatch::default() };
    b.step(Event::Call(Call::AssignItems { task: task("p"), attempt: 0, batch: more, open: false }));
    b.step(Event::Call(Call::Kill { task: task("p"), attempt: 0, grace: None }));
    b.take_sent();
    b.connect();
    assert!(b.take_sent().iter().any(|c| matches!(c, Call::Kill { .. })));
    b.later(2);
    let items: ItemSet = b
        .take_sent()
        .iter()
        .filter_map(|c| if let Call::AssignItems { batch, .. } = c { Some(batch.items.clone()) } else { None })
        .flat_map(|s| s.iter().collect::<Vec<_>>())
        .collect();
    assert_eq!(items, ItemSet::range(4, 8), "the first ones went with the launch");
}

#[test]
fn a_kill_is_said_again_until_the_attempt_has_ended() {
    let mut b = Bench::new();
    let offer = b.offer();
    b.accept(vec![offer], vec![launch("t", 0)]);
    b.updates(vec![update("t", 0, 1, TaskState::Running)]);
    b.step(Event::Call(Call::Kill { task: task("t"), attempt: 0, grace: None }));
    let kills = |b: &mut Bench| b.take_sent().iter().filter(|c| matches!(c, Call::Kill { .. })).count();
    assert_eq!(kills(&mut b), 1);
    b.later(1);
    assert_eq!(kills(&mut b), 0);
    b.later(1);
    assert_eq!(kills(&mut b), 1);
    b.updates(vec![update("t", 0, 2, TaskState::Killed)]);
    b.later(60);
    assert_eq!(kills(&mut b), 0);
}

#[test]
fn a_master_that_forgot_the_framework_loses_its_tasks_once() {
    let mut b = Bench::new();
    let offer = b.offer();
    b.accept(vec![offer], vec![launch("t", 0)]);
    b.step(Event::Disconnected);
    b.take_deliveries();
    b.step(Event::Connected);
    let other = FrameworkId::new("F2-1").unwrap();
    b.master(FrameworkEvent::Subscribed { framework: other, epoch: MasterEpoch(2) });
    assert_eq!(b.take_updates(), [(0, 0, TaskState::Lost)]);
    assert_eq!(b.client.open_attempts(), 0);
}

#[test]
fn after_an_error_nothing_happens_any_more() {
    let mut b = Bench::new();
    let offer = b.offer();
    b.master(FrameworkEvent::Error("go away".into()));
    b.take_sent();
    b.step(Event::Connected);
    b.accept(vec![offer], vec![launch("t", 0)]);
    b.later(60);
    assert_eq!(b.sent, []);
    assert_eq!(b.take_updates(), [(0, 0, TaskState::Dropped)]);
}

#[derive(Debug, Clone)]
enum Step {
    Connect(u64),
    Disconnect,
    Offer,
    Launch(u32),
    Update(u32, u64, TaskState),
    Handle(u32, u64),
    LetGo(u32, u64),
    Kill(u32),
    AgentLost,
    Later(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let state = || prop::sample::select(TaskState::ALL.to_vec());
    prop_oneof![
        1 => (1_u64..4).prop_map(Step::Connect),
        1 => Just(Step::Disconnect),
        3 => Just(Step::Offer),
        3 => (0_u32..4).prop_map(Step::Launch),
        9 => (0_u32..4, 0_u64..5, state()).prop_map(|(a, s, state)| Step::Update(a, s, state)),
        5 => (0_u32..4, 0_u64..5).prop_map(|(a, s)| Step::Handle(a, s)),
        1 => (0_u32..4, 0_u64..5).prop_map(|(a, s)| Step::LetGo(a, s)),
        1 => (0_u32..4).prop_map(Step::Kill),
        1 => Just(Step::AgentLost),
        1 => (0_u64..15).prop_map(Step::Later),
    ]
}

proptest! {
    #[test]
    fn whatever_the_master_does_statuses_arrive_in_order_and_end_once(steps in proptest::collection::vec(step(), 0..120)) {
        let mut b = Bench::new();
        let mut states: BTreeMap<u32, TaskState> = BTreeMap::new();
        let mut let_go = false;
        let mut last_offer = None;
        for s in steps {
            match s {
                Step::Connect(epoch) => { b.epoch = epoch; b.connect(); }
                Step::Disconnect => b.step(Event::Disconnected),
                Step::Offer => last_offer = Some(b.offer()),
                Step::Launch(attempt) => b.accept(last_offer.take().into_iter().collect(), vec![launch("t", attempt)]),
                Step::Update(attempt, seq, state) => b.updates(vec![update("t", attempt, seq, state)]),
                Step::Handle(attempt, seq) => b.handled("t", attempt, seq),
                Step::LetGo(attempt, seq) => {
                    let_go = true;
                    b.step(Event::NotHandled(vec![UpdateId { task: task("t"), attempt, seq }]));
                }
                Step::Kill(attempt) => b.step(Event::Call(Call::Kill { task: task("t"), attempt, grace: None })),
                Step::AgentLost => b.master(FrameworkEvent::AgentLost { agent: agent(), reason: String::new() }),
                Step::Later(seconds) => b.later(seconds),
            }
            for (attempt, seq, state) in b.take_updates() {
                if let_go {
                    continue;
                }
                // An answer to nobody's question: an attempt that this client does not know.
                if state == TaskState::Unknown {
                    prop_assert_eq!((seq, states.get(&attempt)), (0, None));
                    continue;
                }
                if let Some(before) = states.insert(attempt, state) {
                    prop_assert!(before.may_become(state), "{} -> {}", before, state);
                }
            }
        }
    }
}
