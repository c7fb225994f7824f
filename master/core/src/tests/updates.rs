//! Updates, acknowledgements, kills, items, reconciliation, removal of frameworks.

use super::fixture::*;
use crate::{Config, Conn, Event};
use smalti_types::protocol::{AgentCommand, Call, Claim, FrameworkEvent};
use smalti_types::*;

fn id(name: &str) -> TaskId {
    TaskId::new(name).unwrap()
}

/// An agent, a framework, and one operation that runs.
fn running(operation: Operation) -> (Cluster, Conn, Conn, FrameworkId) {
    let mut c = Cluster::new();
    let (f, fid) = c.framework("one");
    let agent = c.agent("a1", res(4, 4));
    let offer = c.offer(f);
    c.accept(f, &[offer.id], vec![operation], refuse(3_600_000));
    assert_eq!(c.commands(agent).len(), 1);
    (c, agent, f, fid)
}

fn acknowledgement(fid: &FrameworkId, seq: u64) -> AgentCommand {
    AgentCommand::Acknowledge(UpdateKey { task: key(fid, "t"), seq })
}

#[test]
fn updates_go_up_and_acknowledgements_go_down() {
    let (mut c, agent, f, fid) = running(task("t", res(3, 3)));
    for (seq, state) in [(1, TaskState::Running), (2, TaskState::Finished)] {
        c.call(f, Call::Suppress);
        c.update(agent, &key(&fid, "t"), seq, state);
        assert_eq!(c.updates(f), vec![("t".into(), state, Reason::None, seq)]);
        c.call(f, Call::Acknowledge(vec![(id("t"), 0, seq)]));
        assert_eq!(c.commands(agent), vec![acknowledgement(&fid, seq)]);
    }
    assert_eq!(c.books("a1"), (Resources::default(), Resources::default(), res(4, 4)));
    c.update(agent, &key(&fid, "t"), 2, TaskState::Finished);
    assert_eq!(c.commands(agent), vec![acknowledgement(&fid, 2)], "nobody waits for it any more");
    c.silence();
}

#[test]
fn a_repeat_is_forwarded_and_counted_once_and_the_first_end_wins() {
    let (mut c, agent, f, fid) = running(task("t", res(3, 3)));
    c.call(f, Call::Suppress);
    for _ in 0..3 {
        c.update(agent, &key(&fid, "t"), 1, TaskState::Failed);
    }
    assert_eq!(c.updates(f).len(), 3);
    assert_eq!(c.books("a1").2, res(4, 4));
    c.update(agent, &key(&fid, "t"), 2, TaskState::Gone);
    assert_eq!(c.commands(agent), vec![acknowledgement(&fid, 2)]);
    c.silence();
}

#[test]
fn updates_of_strangers_are_acknowledged_and_go_nowhere() {
    let (mut c, agent, f, fid) = running(task("t", res(3, 3)));
    c.call(f, Call::Suppress);
    let other = c.agent("a2", res(1, 1));
    c.update(other, &key(&fid, "t"), 1, TaskState::Finished);
    assert_eq!(c.commands(other), vec![acknowledgement(&fid, 1)]);
    let stranger = key(&FrameworkId::new("F1-9").unwrap(), "t");
    c.update(agent, &stranger, 5, TaskState::Finished);
    assert_eq!(c.commands(agent), vec![AgentCommand::Acknowledge(UpdateKey { task: stranger, seq: 5 })]);
    c.update(Conn(999), &key(&fid, "t"), 1, TaskState::Finished);
    c.update(agent, &key(&fid, "t"), 0, TaskState::Finished);
    assert_eq!(c.books("a1").0, res(3, 3));
    c.silence();
}

#[test]
fn a_part_gives_slots_back_as_they_run_dry() {
    let (mut c, agent, f, fid) = running(array("t", res(1, 1), 4, 100));
    let report = |seq, state, slots| {
        let mut update = StatusUpdate::new(key(&fid, "t"), seq, state, Reason::None, "", Time(0));
        update.array = Some(ArrayDelta { slots, outstanding: 5, ..ArrayDelta::default() });
        update
    };
    c.call(f, Call::Suppress);
    let updates = vec![report(1, TaskState::Running, 4), report(2, TaskState::Running, 1), report(3, TaskState::Running, 3)];
    c.batch(Event::AgentUpdates { conn: agent, updates });
    assert_eq!(c.books("a1"), (res(1, 1), Resources::default(), res(3, 3)), "slots never come back");
    c.batch(Event::AgentUpdates { conn: agent, updates: vec![report(4, TaskState::Killing, 1), report(5, TaskState::Running, 0)] });
    let updates = c.updates(f);
    assert_eq!(updates.len(), 5);
    assert_eq!(updates[4].1, TaskState::Killing, "a report after a kill does not lead back");
    c.batch(Event::AgentUpdates { conn: agent, updates: vec![report(6, TaskState::Killed, 0)] });
    assert_eq!(c.books("a1").2, res(4, 4));
}

#[test]
fn items_pass_through_and_come_back_when_the_agent_is_away() {
    let (mut c, agent, f, fid) = running(array("t", res(1, 1), 4, 100));
    c.call(f, Call::Suppress);
    let batch = ItemBatch { items: ItemSet::range(10, 20), attempt: 0, splits: vec![] };
    let assign = |batch: &ItemBatch| Call::AssignItems { task: id("t"), attempt: 0, batch: batch.clone(), open: true };
    c.call(f, assign(&batch));
    c.call(f, Call::ReturnItems { task: id("t"), attempt: 0, most: 3 });
    let expected = vec![
        AgentCommand::AssignItems { task: key(&fid, "t"), batch: batch.clone(), open: true },
        AgentCommand::ReturnItems { task: key(&fid, "t"), most: 3 },
    ];
    assert_eq!(c.commands(agent), expected);
    c.batch(Event::AgentDisconnected { conn: agent });
    c.call(f, assign(&batch));
    assert!(c.events(f).is_empty(), "the part may have these items: the client says it again");
    c.call(f, Call::AssignItems { task: id("x"), attempt: 0, batch, open: true });
    assert!(matches!(&c.events(f)[..], [FrameworkEvent::Refused { .. }]));
    c.silence();
}

#[test]
fn kills_reach_the_agent_and_unknown_tasks_are_answered() {
    let (mut c, agent, f, fid) = running(task("t", res(3, 3)));
    c.call(f, Call::Kill { task: id("t"), attempt: 0, grace: Some(DurationMs(5)) });
    assert_eq!(c.commands(agent), vec![AgentCommand::Kill { task: key(&fid, "t"), grace: Some(DurationMs(5)) }]);
    c.call(f, Call::Kill { task: id("nobody"), attempt: 0, grace: None });
    assert_eq!(c.updates(f), vec![("nobody".into(), TaskState::Unknown, Reason::Reconciliation, 0)]);
    c.silence();
}

#[test]
fn reconciliation_answers_what_is_known() {
    let (mut c, agent, f, fid) = running(task("t", res(3, 3)));
    c.call(f, Call::Suppress);
    let ask = |c: &mut Cluster, names: &[&str]| {
        c.call(f, Call::Reconcile(names.iter().map(|n| (id(n), 0, None)).collect()));
        c.updates(f)
    };
    assert_eq!(ask(&mut c, &["t"]), vec![("t".into(), TaskState::Staging, Reason::Reconciliation, 0)]);
    assert_eq!(ask(&mut c, &["x"]), vec![("x".into(), TaskState::Unknown, Reason::Reconciliation, 0)]);
    c.update(agent, &key(&fid, "t"), 1, TaskState::Failed);
    c.updates(f);
    assert_eq!(ask(&mut c, &[]), vec![("t".into(), TaskState::Failed, Reason::None, 1)], "the end itself, to be acknowledged");
    c.call(f, Call::Acknowledge(vec![(id("t"), 0, 1)]));
    assert_eq!(ask(&mut c, &["t"]), vec![("t".into(), TaskState::Failed, Reason::Reconciliation, 0)]);
    assert_eq!(ask(&mut c, &[]), vec![]);
}

#[test]
fn a_framework_that_brings_its_own_id_is_answered_only_when_all_agents_had_time_to_come_back() {
    let mut c = Cluster::new();
    let f = c.subscribe(framework_info("old", "default"), Some(FrameworkId::new("F6-1").unwrap()));
    c.subscribed(f);
    let ask = Call::Reconcile(vec![(id("t"), 0, Some(AgentId::new("a1").unwrap()))]);
    c.call(f, ask.clone());
    c.silence();
    c.call(f, Call::Suppress);
    c.agent("a1", res(1, 1));
    c.call(f, ask);
    assert_eq!(c.updates(f), vec![("t".into(), TaskState::Unknown, Reason::Reconciliation, 0)]);
    c.pass(75_000);
    c.call(f, Call::Reconcile(vec![(id("u"), 0, None)]));
    assert_eq!(c.updates(f).len(), 1);
}

#[test]
fn teardown_kills_and_keeps_the_books_until_the_tasks_ended() {
    let (mut c, agent, f, fid) = running(task("t", res(3, 3)));
    c.call(f, Call::Teardown);
    assert_eq!(std::mem::take(&mut c.closed), vec![f]);
    assert_eq!(c.commands(agent), vec![AgentCommand::Kill { task: key(&fid, "t"), grace: None }]);
    assert_eq!(c.books("a1").0, res(3, 3));
    c.update(agent, &key(&fid, "t"), 1, TaskState::Killed);
    assert_eq!(c.commands(agent), vec![acknowledgement(&fid, 1)]);
    assert_eq!(c.books("a1").2, res(4, 4));
    let again = c.subscribe(framework_info("one", "default"), Some(fid));
    assert!(matches!(&c.events(again)[..], [FrameworkEvent::Error(_)]));
    assert_eq!(c.closed, vec![again]);
}

#[test]
fn a_scheduler_that_is_heard_after_its_successor_is_refused_also_by_the_next_master() {
    let (mut c, agent, first, fid) = running(task("t", res(3, 3)));
    let claim = |life, turn| Claim { life, turn };
    let subscribe = |c: &mut Cluster, claim| c.subscribe_as(framework_info("one", "default"), Some(fid.clone()), claim);
    let stands = |c: &mut Cluster, claim| {
        let conn = subscribe(c, claim);
        assert_eq!(c.subscribed(conn), fid, "{claim:?}");
        c.events(conn);
        conn
    };
    let is_refused = |c: &mut Cluster, claim| {
        let conn = subscribe(c, claim);
        let [FrameworkEvent::Fenced { life: 2, message }] = &c.events(conn)[..] else { panic!("{claim:?} was not refused") };
        assert!(message.contains("another scheduler has framework") && message.contains("number 2."), "{message}");
        assert_eq!(std::mem::take(&mut c.closed), [conn]);
    };
    let second = stands(&mut c, claim(2, 0));
    assert!(matches!(&c.events(first)[..], [FrameworkEvent::Error(_)]), "one without a number gives way");
    assert_eq!(std::mem::take(&mut c.closed), [first]);
    for late in [claim(1, 0), claim(1, 9), claim(2, 0), claim(0, 0)] {
        is_refused(&mut c, late);
    }
    c.update(agent, &key(&fid, "t"), 1, TaskState::Finished);
    let heard = c.events(second);
    assert!(heard.iter().any(|e| matches!(e, FrameworkEvent::Updates(_))), "the living one goes on: {heard:?}");
    let again = stands(&mut c, claim(2, 1));
    c.events(second);
    assert_eq!(std::mem::take(&mut c.closed), [second]);
    is_refused(&mut c, claim(2, 0));
    c.batch(Event::FrameworkDisconnected { conn: again });
    is_refused(&mut c, claim(1, 10));
    c.restart(1_000);
    is_refused(&mut c, claim(2, 1));
    stands(&mut c, claim(3, 0));
}

#[test]
fn failover_keeps_tasks_and_repeats_what_was_not_acknowledged() {
    let (mut c, agent, f, fid) = running(task("t", res(3, 3)));
    c.batch(Event::FrameworkDisconnected { conn: f });
    c.update(agent, &key(&fid, "t"), 1, TaskState::Finished);
    c.silence();
    c.pass(59_000);
    let f = c.subscribe(framework_info("one", "default"), Some(fid.clone()));
    assert_eq!(c.subscribed(f), fid);
    let events = c.events(f);
    assert!(matches!(&events[..], [FrameworkEvent::Updates(u), FrameworkEvent::Offers(_)] if u[0].1.key.seq == 1), "{events:?}");
    let second = c.subscribe(framework_info("one", "default"), Some(fid.clone()));
    assert!(matches!(&c.events(f)[..], [FrameworkEvent::Error(_)]), "the first is fenced out");
    assert_eq!(std::mem::take(&mut c.closed), vec![f]);
    c.subscribed(second);
    c.events(second);
    c.call(f, Call::Teardown);
    c.batch(Event::FrameworkDisconnected { conn: f });
    assert_eq!(c.master.cluster_view().frameworks, 1, "the fenced one has no say");
    c.batch(Event::FrameworkDisconnected { conn: second });
    c.pass(60_000);
    assert_eq!(c.master.cluster_view().frameworks, 0);
    assert_eq!(c.commands(agent), vec![acknowledgement(&fid, 1)], "nobody else will acknowledge it now");
}

/// A framework that is away, while "t" says `n` things.
fn said_while_away(c: &mut Cluster, agent: Conn, f: Conn, fid: &FrameworkId, n: u64) {
    c.batch(Event::FrameworkDisconnected { conn: f });
    for seq in 1..=n {
        c.update(agent, &key(fid, "t"), seq, if seq == n { TaskState::Finished } else { TaskState::Running });
    }
    c.silence();
}

#[test]
fn all_updates_that_were_not_acknowledged_come_again_in_order() {
    let (mut c, agent, f, fid) = running(task("t", res(3, 3)));
    said_while_away(&mut c, agent, f, &fid, 4);
    let seqs = |c: &mut Cluster, f: Conn| -> Vec<u64> {
        let updates = c.events(f).into_iter().filter_map(|e| if let FrameworkEvent::Updates(u) = e { Some(u) } else { None });
        updates.flatten().map(|(_, u)| u.key.seq).collect()
    };
    let f = c.subscribe(framework_info("one", "default"), Some(fid.clone()));
    c.subscribed(f);
    assert_eq!(seqs(&mut c, f), vec![1, 2, 3, 4]);
    c.call(f, Call::Acknowledge(vec![(id("t"), 0, 2)]));
    c.call(f, Call::Reconcile(vec![]));
    assert_eq!(seqs(&mut c, f), vec![3, 4], "the end is the last of what is owed");
    c.batch(Event::FrameworkDisconnected { conn: f });
    let f = c.subscribe(framework_info("one", "default"), Some(fid.clone()));
    c.subscribed(f);
    assert_eq!(seqs(&mut c, f), vec![3, 4]);
    c.call(f, Call::Acknowledge(vec![(id("t"), 0, 4)]));
    assert_eq!(c.commands(agent), vec![acknowledgement(&fid, 2), acknowledgement(&fid, 4)]);
    assert_eq!(c.master.framework_views().next().unwrap().pending_bytes, 0);
}

#[test]
fn what_does_not_fit_stays_with_the_agent_and_nothing_overtakes_it() {
    let mut c = Cluster::with(Config { pending_per_attempt: 2, ..Config::default() });
    let (f, fid) = c.framework("one");
    let agent = c.agent("a1", res(4, 4));
    let offer = c.offer(f);
    c.accept(f, &[offer.id], vec![task("t", res(3, 3))], refuse(3_600_000));
    c.commands(agent);
    said_while_away(&mut c, agent, f, &fid, 4);
    assert_eq!(c.master.cluster_view().counters["refused_updates"], 2);
    assert_eq!(c.books("a1").0, res(3, 3), "its end was not taken yet");
    let f = c.subscribe(framework_info("one", "default"), Some(fid.clone()));
    c.subscribed(f);
    c.call(f, Call::Suppress);
    c.events(f);
    c.call(f, Call::Acknowledge(vec![(id("t"), 0, 2)]));
    c.update(agent, &key(&fid, "t"), 4, TaskState::Finished);
    assert_eq!(c.updates(f), vec![], "number 3 comes first");
    c.update(agent, &key(&fid, "t"), 3, TaskState::Running);
    c.update(agent, &key(&fid, "t"), 4, TaskState::Finished);
    assert_eq!(c.updates(f).iter().map(|u| u.3).collect::<Vec<_>>(), vec![3, 4]);
    assert_eq!(c.books("a1").0, Resources::default());
}

#[test]
fn a_framework_that_comes_back_to_very_much_is_not_flooded() {
    let mut c = Cluster::with(Config { resend_window: 10, ..Config::default() });
    let (f, fid) = c.framework("one");
    let agent = c.agent("a1", res(100, 100));
    let offer = c.offer(f);
    let tasks = (0..50).map(|n| task(&format!("t{n:02}"), res(1, 1))).collect();
    c.accept(f, &[offer.id], tasks, refuse(3_600_000));
    c.commands(agent);
    c.batch(Event::FrameworkDisconnected { conn: f });
    for n in 0..50 {
        c.update(agent, &key(&fid, &format!("t{n:02}")), 1, TaskState::Finished);
    }
    let f = c.subscribe(framework_info("one", "default"), Some(fid.clone()));
    c.subscribed(f);
    c.call(f, Call::Suppress);
    let mut got: Vec<String> = vec![];
    let mut most = 0;
    while got.len() < 50 {
        let events = c.events(f);
        let now: Vec<String> = events
            .into_iter()
            .filter_map(|e| if let FrameworkEvent::Updates(u) = e { Some(u) } else { None })
            .flatten()
            .map(|(_, u)| u.key.task.task.to_string())
            .collect();
        most = most.max(now.len());
        // One of these is repeated by its agent before its turn: it waits for its turn all the same.
        c.update(agent, &key(&fid, "t49"), 1, TaskState::Finished);
        if now.is_empty() {
            c.pass(100); // Without an acknowledgement, a tick goes on.
        } else if got.len() != 20 {
            c.call(f, Call::Acknowledge(now.iter().map(|n| (id(n), 0, 1)).collect()));
        }
        got.extend(now);
    }
    assert_eq!(got, (0..50).map(|n| format!("t{n:02}")).collect::<Vec<_>>());
    assert!(most <= 10, "{most} at once");
}
