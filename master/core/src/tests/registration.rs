//! Agents that come, go, and come back with or without their tasks.

use super::fixture::*;
use crate::{AgentMessage, Conn, Event};
use smalti_types::protocol::{AgentCommand, Call, FrameworkEvent, RunningTask};
use smalti_types::*;

fn running(key: TaskKey, resources: Resources) -> RunningTask {
    RunningTask { key, state: TaskState::Running, resources, slot_resources: None, exclusive: false }
}

/// An agent whose task "t" of (3, 3) has been heard of if `heard`; the framework wants no offers.
fn one_task(heard: bool) -> (Cluster, Conn, Conn, FrameworkId) {
    let mut c = Cluster::new();
    let (f, id) = c.framework("one");
    let agent = c.agent("a1", res(4, 4));
    let offer = c.offer(f);
    c.accept(f, &[offer.id], vec![task("t", res(3, 3))], Filters::default());
    c.call(f, Call::Suppress);
    c.commands(agent);
    if heard {
        c.update(agent, &key(&id, "t"), 1, TaskState::Running);
        c.events(f);
    }
    (c, agent, f, id)
}

#[test]
fn tasks_that_an_agent_brings_back_go_on() {
    let (mut c, agent, f, id) = one_task(true);
    c.batch(Event::AgentDisconnected { conn: agent });
    let agent = c.register(agent_info("a1", res(4, 4)), vec![running(key(&id, "t"), res(3, 3))], vec![]);
    assert_eq!(c.commands_after_registered(agent), vec![]);
    assert_eq!(c.books("a1"), (res(3, 3), Resources::default(), res(1, 1)));
    c.update(agent, &key(&id, "t"), 2, TaskState::Finished);
    assert_eq!(c.updates(f), vec![("t".into(), TaskState::Finished, Reason::None, 2)]);
    c.silence();
}

#[test]
fn tasks_that_it_does_not_bring_back_end_once() {
    let cases = [
        (true, "boot-1", 1, TaskState::Lost, Reason::AgentRestarted),
        (false, "boot-1", 2, TaskState::Lost, Reason::AgentRestarted),
        (false, "boot-1", 1, TaskState::Dropped, Reason::AgentDisconnected),
        (true, "boot-2", 2, TaskState::Gone, Reason::AgentRestarted),
    ];
    for (heard, boot_id, incarnation, state, reason) in cases {
        let (mut c, _, f, id) = one_task(heard);
        let mut info = agent_info("a1", res(4, 4));
        (info.boot_id, info.incarnation) = (boot_id.into(), incarnation);
        let agent = c.register(info.clone(), vec![], vec![]);
        assert_eq!(c.commands_after_registered(agent), vec![]);
        assert_eq!(c.updates(f), vec![("t".into(), state, reason, 0)]);
        assert_eq!(c.books("a1").2, res(4, 4));
        c.update(agent, &key(&id, "t"), 9, TaskState::Finished);
        assert_eq!(c.commands(agent).len(), 1, "acknowledged, not forwarded");
        assert_eq!(c.closed.len(), 1, "the first connection was replaced");
        c.closed.clear();
        c.silence();
    }
}

#[test]
fn an_end_that_waits_for_its_acknowledgement_is_not_a_loss() {
    let (mut c, agent, f, id) = one_task(true);
    c.batch(Event::AgentDisconnected { conn: agent });
    let end = StatusUpdate::new(key(&id, "t"), 2, TaskState::Finished, Reason::None, "", c.now);
    let agent = c.register(agent_info("a1", res(4, 4)), vec![], vec![end]);
    assert_eq!(c.commands_after_registered(agent), vec![]);
    assert_eq!(c.updates(f), vec![("t".into(), TaskState::Finished, Reason::None, 2)]);
    c.silence();
}

#[test]
fn a_task_that_is_listed_as_ended_but_whose_end_does_not_come_is_not_waited_for() {
    let (mut c, agent, f, id) = one_task(true);
    c.batch(Event::AgentDisconnected { conn: agent });
    let ended = RunningTask { state: TaskState::Killed, ..running(key(&id, "t"), res(3, 3)) };
    let agent = c.register(agent_info("a1", res(4, 4)), vec![ended], vec![]);
    assert_eq!(c.commands_after_registered(agent), vec![]);
    assert_eq!(c.updates(f), vec![("t".into(), TaskState::Lost, Reason::AgentRestarted, 0)]);
    assert_eq!(c.books("a1").2, res(4, 4));
}

#[test]
fn a_kill_is_repeated_to_an_agent_that_comes_back() {
    let (mut c, agent, f, id) = one_task(true);
    c.batch(Event::AgentDisconnected { conn: agent });
    c.call(f, Call::Kill { task: TaskId::new("t").unwrap(), attempt: 0, grace: None });
    c.silence();
    let agent = c.register(agent_info("a1", res(4, 4)), vec![running(key(&id, "t"), res(3, 3))], vec![]);
    assert_eq!(c.commands_after_registered(agent), vec![AgentCommand::Kill { task: key(&id, "t"), grace: None }]);
}

#[test]
fn an_agent_that_stays_away_makes_its_tasks_unreachable_until_it_is_back() {
    let (mut c, agent, f, id) = one_task(true);
    c.batch(Event::AgentDisconnected { conn: agent });
    c.pass(74_000);
    c.silence();
    c.pass(1_000);
    c.pass(100);
    assert_eq!(c.updates(f), vec![("t".into(), TaskState::Unreachable, Reason::AgentDisconnected, 0)]);
    assert_eq!(c.books("a1").0, res(3, 3));
    let agent = c.register(agent_info("a1", res(4, 4)), vec![running(key(&id, "t"), res(3, 3))], vec![]);
    c.commands_after_registered(agent);
    assert_eq!(c.updates(f), vec![("t".into(), TaskState::Running, Reason::Reconciliation, 0)]);
    c.silence();
}

#[test]
fn a_removed_agents_tasks_are_gone_and_killed_when_it_comes_back() {
    let (mut c, agent, f, id) = one_task(true);
    c.batch(Event::AgentRemoved { agent: AgentId::new("a1").unwrap(), reason: "broken".into() });
    let events = c.events(f);
    let [FrameworkEvent::Updates(u), FrameworkEvent::AgentLost { .. }] = &events[..] else { panic!("{events:?}") };
    assert_eq!(u[0].1.state, TaskState::Gone);
    assert_eq!(std::mem::take(&mut c.closed), vec![agent]);
    let agent = c.register(agent_info("a1", res(4, 4)), vec![running(key(&id, "t"), res(3, 3))], vec![]);
    assert_eq!(c.commands_after_registered(agent), vec![AgentCommand::Kill { task: key(&id, "t"), grace: None }]);
    assert_eq!(c.books("a1").0, res(3, 3));
    c.update(agent, &key(&id, "t"), 2, TaskState::Killed);
    c.commands(agent);
    assert_eq!(c.books("a1").2, res(4, 4));
    c.silence();
}

#[test]
fn tasks_of_an_unknown_framework_wait_for_it() {
    let mut c = Cluster::new();
    let id = FrameworkId::new("F6-1").unwrap();
    let end = StatusUpdate::new(key(&id, "u"), 4, TaskState::Finished, Reason::None, "", c.now);
    let agent = c.register(agent_info("a1", res(4, 4)), vec![running(key(&id, "t"), res(3, 3))], vec![end]);
    assert_eq!(c.commands_after_registered(agent), vec![]);
    assert_eq!(c.books("a1").0, res(3, 3));
    let f = c.subscribe(framework_info("old", "other"), Some(id.clone()));
    c.subscribed(f);
    let events = c.events(f);
    let [FrameworkEvent::Updates(u), FrameworkEvent::Offers(o)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((u[0].1.key.seq, o[0].resources.clone(), o[0].role.as_str()), (4, res(1, 1), "other"));
}

#[test]
fn impossible_registrations_are_refused_with_a_reason() {
    let mut c = Cluster::new();
    let id = FrameworkId::new("F6-1").unwrap();
    let twice = vec![running(key(&id, "t"), res(1, 1)), running(key(&id, "t"), res(1, 1))];
    for tasks in [vec![running(key(&id, "t"), res(5, 1))], twice] {
        let agent = c.register(agent_info("a1", res(4, 4)), tasks, vec![]);
        assert!(matches!(&c.agent_messages(agent)[..], [AgentMessage::Refused(_)]));
        assert_eq!(c.closed.pop(), Some(agent));
    }
    assert_eq!(c.master.cluster_view().agents, 0);
}

#[test]
fn old_connections_have_no_say() {
    let (mut c, old, f, id) = one_task(true);
    let new = c.register(agent_info("a1", res(4, 4)), vec![running(key(&id, "t"), res(3, 3))], vec![]);
    c.commands_after_registered(new);
    assert_eq!(std::mem::take(&mut c.closed), vec![old]);
    c.update(old, &key(&id, "t"), 2, TaskState::Finished);
    c.batch(Event::AgentDisconnected { conn: old });
    c.batch(Event::AgentDeregistered { conn: old, reason: "bye".into() });
    assert_eq!(c.books("a1").0, res(3, 3));
    assert_eq!(c.updates(f), vec![]);
    c.silence();
}
