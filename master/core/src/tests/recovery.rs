//! A master that restarts: what it knows at once, what it waits for, and what it never says.

use super::fixture::*;
use crate::{Config, Conn, Event, Record, StoredFramework};
use smalti_types::protocol::{AgentCommand, Call, Claim, FrameworkEvent, RunningTask};
use smalti_types::*;

fn running(key: TaskKey, resources: Resources) -> RunningTask {
    RunningTask { key, state: TaskState::Running, resources, slot_resources: None, exclusive: false }
}

/// An agent "a1" of (4, 4) with the running task "t" of (3, 3); the framework wants no offers.
fn one_task() -> (Cluster, Conn, Conn, FrameworkId) {
    let mut c = Cluster::new();
    let (f, id) = c.framework("one");
    let agent = c.agent("a1", res(4, 4));
    let offer = c.offer(f);
    c.accept(f, &[offer.id], vec![task("t", res(3, 3))], Filters::default());
    c.call(f, Call::Suppress);
    c.commands(agent);
    c.update(agent, &key(&id, "t"), 1, TaskState::Running);
    c.call(f, Call::Acknowledge(vec![(TaskId::new("t").unwrap(), 0, 1)]));
    c.events(f);
    c.commands(agent);
    (c, agent, f, id)
}

fn back(c: &mut Cluster, id: &FrameworkId) -> Conn {
    let f = c.subscribe(framework_info("one", "default"), Some(id.clone()));
    assert_eq!(&c.subscribed(f), id);
    f
}

fn ask(c: &mut Cluster, f: Conn, agent: Option<&str>) -> Vec<(TaskState, Reason)> {
    c.call(f, Call::Reconcile(vec![(TaskId::new("t").unwrap(), 0, agent.map(|a| AgentId::new(a).unwrap()))]));
    c.updates(f).into_iter().map(|(_, state, reason, _)| (state, reason)).collect()
}

#[test]
fn tasks_offers_and_kills_go_on_after_a_restart() {
    let (mut c, _, _, id) = one_task();
    c.restart(5_000);
    assert_eq!(c.master.cluster_view().agents, 1);
    let f = back(&mut c, &id);
    assert_eq!(ask(&mut c, f, Some("a1")), vec![], "its agent may bring it back");
    let agent = c.register(agent_info("a1", res(4, 4)), vec![running(key(&id, "t"), res(3, 3))], vec![]);
    assert_eq!(c.commands_after_registered(agent), vec![]);
    let events = c.events(f);
    let [FrameworkEvent::Updates(u), FrameworkEvent::Offers(o)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((u[0].1.state, o[0].resources.clone(), o[0].id.epoch), (TaskState::Running, res(1, 1), c.master.epoch()));
    assert_eq!(ask(&mut c, f, Some("a1")), vec![(TaskState::Running, Reason::Reconciliation)]);
    c.call(f, Call::Kill { task: TaskId::new("t").unwrap(), attempt: 0, grace: None });
    assert_eq!(c.commands(agent).len(), 1);
    c.silence();
}

#[test]
fn offers_start_with_the_first_agent_that_is_back() {
    let mut c = Cluster::new();
    let (f, id) = c.framework("one");
    c.agent("a1", res(4, 4));
    c.agent("a2", res(4, 4));
    c.call(f, Call::Suppress);
    c.events(f);
    c.restart(0);
    let f = back(&mut c, &id);
    c.agent("a2", res(4, 4));
    assert_eq!(c.offer(f).agent.as_str(), "a2");
    assert_eq!(c.books("a1").1, Resources::default(), "nothing of an agent that was not heard of is offered");
}

#[test]
fn agents_that_come_back_as_they_were_are_not_written_down_again() {
    let mut c = Cluster::new();
    c.agent("a1", res(4, 4));
    c.restart(0);
    c.records.clear();
    c.agent("a1", res(4, 4));
    assert_eq!(c.records, vec![]);
    c.agent_with_boot("a1", "boot-2");
    assert_eq!(c.records.len(), 1);
}

#[test]
fn a_deadline_that_was_running_goes_on_over_restarts() {
    let (mut c, agent, f, id) = one_task();
    c.batch(Event::FrameworkDisconnected { conn: f });
    for _ in 0..5 {
        c.restart(9_000);
    }
    let until = c.master.framework_views().next().unwrap().failover_deadline;
    assert_eq!(until, Some(c.now.after(DurationMs(15_000))), "60 s after it was lost, 45 of which are over");
    c.pass(14_999);
    assert_eq!(c.master.cluster_view().frameworks, 1);
    c.pass(1);
    assert_eq!(c.master.cluster_view().frameworks, 0);
    assert!(matches!(c.records.last(), Some(Record::FrameworkRemoved { .. })));
    c.closed.clear();
    let agent_back = c.register(agent_info("a1", res(4, 4)), vec![running(key(&id, "t"), res(3, 3))], vec![]);
    assert_ne!(agent, agent_back);
    assert_eq!(c.commands_after_registered(agent_back), vec![AgentCommand::Kill { task: key(&id, "t"), grace: None }]);
    c.restart(0);
    let refused = c.subscribe(framework_info("one", "default"), Some(id));
    assert!(matches!(&c.events(refused)[..], [FrameworkEvent::Error(_)]), "a removed framework stays removed");
}

#[test]
fn a_scheduler_that_was_connected_has_its_whole_time_but_once() {
    let (mut c, _, _, id) = one_task();
    c.restart(30_000);
    c.restart(30_000);
    let until = c.master.framework_views().next().unwrap().failover_deadline;
    assert_eq!(until, Some(c.now.after(DurationMs(30_000))), "two restarts do not make it longer");
    let f = back(&mut c, &id);
    c.pass(200_000);
    assert_eq!(c.master.cluster_view().frameworks, 1);
    assert_eq!(c.stored.frameworks[&id].away_until, None);
    c.batch(Event::FrameworkDisconnected { conn: f });
    assert_eq!(c.stored.frameworks[&id].away_until, Some(c.now.after(DurationMs(60_000))));
}

#[test]
fn a_deadline_that_ended_while_the_master_was_away_leaves_time_to_connect() {
    let (mut c, _, f, id) = one_task();
    c.batch(Event::FrameworkDisconnected { conn: f });
    c.restart(3_600_000);
    c.pass(14_000);
    back(&mut c, &id);
    // And a clock that was set back gives nobody more than the whole time.
    let far = StoredFramework { info: framework_info("one", "default"), claim: Claim::default(), away_until: Some(Time(u64::MAX)) };
    c.stored.frameworks.insert(id, far);
    c.restart(0);
    assert_eq!(c.master.framework_views().next().unwrap().failover_deadline, Some(c.now.after(DurationMs(60_000))));
}

#[test]
fn an_agent_that_does_not_come_back_makes_unknown_tasks_unreachable_and_nothing_worse() {
    let (mut c, _, _, id) = one_task();
    c.restart(0);
    let f = back(&mut c, &id);
    for agent in [Some("a1"), None] {
        assert_eq!(ask(&mut c, f, agent), vec![]);
    }
    c.pass(75_000);
    for agent in [Some("a1"), None] {
        assert_eq!(ask(&mut c, f, agent), vec![(TaskState::Unreachable, Reason::LeaseExpired)], "{agent:?}");
    }
    assert_eq!(ask(&mut c, f, Some("never-seen")), vec![(TaskState::Unknown, Reason::Reconciliation)]);
    c.call(f, Call::Suppress);
    c.agent("a1", res(4, 4));
    c.events(f);
    assert_eq!(ask(&mut c, f, Some("a1")), vec![(TaskState::Unknown, Reason::Reconciliation)]);
}

#[test]
fn what_ran_on_a_machine_that_restarted_meanwhile_is_gone() {
    let (mut c, _, _, id) = one_task();
    c.restart(0);
    let f = back(&mut c, &id);
    c.call(f, Call::Suppress);
    c.agent_with_boot("a1", "boot-2");
    assert_eq!(ask(&mut c, f, Some("a1")), vec![(TaskState::Gone, Reason::AgentRestarted)]);
}

#[test]
fn a_lost_earlier_incarnation_may_run_on_under_its_lease() {
    let (mut c, _, _, id) = one_task();
    c.restart(0);
    let f = back(&mut c, &id);
    c.call(f, Call::Suppress);
    let mut info = agent_info("a1", res(4, 4));
    info.incarnation = 2;
    let agent = c.register(info, vec![], vec![]);
    c.commands_after_registered(agent);
    assert_eq!(ask(&mut c, f, Some("a1")), vec![], "what the agent forgot may still run");
    c.pass(Config::default().lease_span().0);
    assert_eq!(ask(&mut c, f, Some("a1")), vec![(TaskState::Unknown, Reason::Reconciliation)]);
}

#[test]
fn an_accept_of_an_earlier_life_asks_for_a_reconciliation_and_consumes_nothing() {
    let mut c = Cluster::new();
    let (f, id) = c.framework("one");
    c.agent("a1", res(4, 4));
    let old = c.offer(f);
    c.restart(0);
    let f = back(&mut c, &id);
    c.accept(f, &[old.id], vec![task("u", res(1, 1))], Filters::default());
    assert_eq!(c.updates(f), vec![("u".into(), TaskState::Unknown, Reason::InvalidOffers, 0)]);
    let agent = c.agent("a1", res(4, 4));
    c.offer(f);
    assert_eq!(ask(&mut c, f, Some("a1")), vec![(TaskState::Unknown, Reason::Reconciliation)]);
    assert_eq!(c.commands(agent), vec![], "an old accept starts nothing");
    c.silence();
}

#[test]
fn an_end_that_nobody_acknowledged_is_delivered_after_the_restart() {
    let (mut c, agent, _, id) = one_task();
    let end = StatusUpdate::new(key(&id, "t"), 2, TaskState::Finished, Reason::None, "", c.now);
    c.batch(Event::AgentUpdates { conn: agent, updates: vec![end.clone()] });
    c.restart(1_000);
    c.register(agent_info("a1", res(4, 4)), vec![], vec![end]);
    let f = back(&mut c, &id);
    let events = c.events(f);
    assert!(matches!(&events[0], FrameworkEvent::Updates(u) if u[0].1.key.seq == 2), "{events:?}");
}

#[test]
fn everything_that_an_ended_task_said_comes_in_order() {
    let (mut c, _, _, id) = one_task();
    c.restart(1_000);
    let said = |seq, state| StatusUpdate::new(key(&id, "t"), seq, state, Reason::None, "", Time(1));
    let all = vec![said(4, TaskState::Running), said(5, TaskState::Killing), said(6, TaskState::Killed)];
    c.register(agent_info("a1", res(4, 4)), vec![], all);
    let f = back(&mut c, &id);
    c.call(f, Call::Suppress);
    let FrameworkEvent::Updates(updates) = c.events(f).remove(0) else { panic!("updates expected") };
    assert_eq!(updates.iter().map(|(_, u)| u.key.seq).collect::<Vec<_>>(), vec![4, 5, 6]);
}

#[test]
fn removed_frameworks_are_remembered_up_to_a_bound() {
    let mut c = Cluster::with(Config { remembered_frameworks: 2, ..Config::default() });
    let ids: Vec<FrameworkId> = (0..4)
        .map(|n| {
            let (f, id) = c.framework(&format!("f{n}"));
            c.now = c.now.after(DurationMs(1));
            c.call(f, Call::Teardown);
            id
        })
        .collect();
    assert_eq!(c.stored.removed.keys().collect::<Vec<_>>(), ids[2..].iter().collect::<Vec<_>>());
    c.closed.clear();
    c.restart(0);
    let (f, _) = c.framework("next");
    c.call(f, Call::Teardown);
    assert!(c.stored.removed.len() == 2 && !c.stored.removed.contains_key(&ids[2]), "the oldest went first: {:?}", c.stored.removed);
}

#[test]
fn an_agent_that_never_comes_back_is_removed_in_the_end() {
    let (mut c, agent, f, _) = one_task();
    c.batch(Event::AgentDisconnected { conn: agent });
    c.pass(75_000);
    assert_eq!(c.updates(f).len(), 1);
    c.pass(Config::default().agent_removal.0);
    let events = c.events(f);
    let [FrameworkEvent::Updates(u), FrameworkEvent::AgentLost { .. }] = &events[..] else { panic!("{events:?}") };
    assert_eq!((u[0].1.state, c.master.cluster_view().agents, c.stored.agents.len()), (TaskState::Gone, 0, 0));
}
