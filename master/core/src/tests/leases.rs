//! Exclusive tasks: never UNREACHABLE, never ended before the last lease is over, never twice.

use super::fixture::*;
use crate::{Config, Conn, Event};
use smalti_types::protocol::{AgentCommand, Call, FrameworkEvent, RunningTask};
use smalti_types::*;

fn exclusive(name: &str, attempt: u32) -> Operation {
    let Operation::Launch(mut launch) = task(name, res(1, 1)) else { panic!("a single task") };
    launch.attempt = attempt;
    launch.spec.exclusive = true;
    Operation::Launch(launch)
}

fn running(key: TaskKey) -> RunningTask {
    RunningTask { key, state: TaskState::Running, resources: res(1, 1), slot_resources: None, exclusive: true }
}

/// An agent whose exclusive task "t" runs, launched and leased now.
fn one_task() -> (Cluster, Conn, Conn, FrameworkId) {
    let mut c = Cluster::new();
    let (f, id) = c.framework("one");
    let agent = c.agent("a1", res(4, 4));
    let offer = c.offer(f);
    c.accept(f, &[offer.id], vec![exclusive("t", 0)], refuse(3_600_000));
    c.call(f, Call::Suppress);
    c.commands(agent);
    c.update(agent, &key(&id, "t"), 1, TaskState::Running);
    c.events(f);
    (c, agent, f, id)
}

fn span() -> u64 {
    Config::default().lease_span().0
}

#[test]
fn a_lease_is_granted_to_who_is_connected_with_its_own_words() {
    let (mut c, agent, _, _) = one_task();
    c.batch(Event::AgentLease { conn: agent, asked: BootTime(42) });
    assert_eq!(c.commands(agent), vec![AgentCommand::Lease { asked: BootTime(42), lease: DurationMs(15_000) }]);
    c.batch(Event::AgentDisconnected { conn: agent });
    c.batch(Event::AgentLease { conn: agent, asked: BootTime(43) });
    c.silence();
    assert_eq!(span(), 15_000 + 750 + 1_000);
}

#[test]
fn a_master_that_is_restarted_with_shorter_leases_waits_for_the_longer_ones_that_were_granted() {
    let (mut c, agent, f, id) = one_task();
    c.batch(Event::AgentLease { conn: agent, asked: BootTime(1) });
    c.commands(agent);
    c.events(f);
    (c.config.lease, c.config.lease_margin) = (DurationMs(2_000), DurationMs(100));
    assert_eq!(c.config.lease_span(), DurationMs(2_200));
    for _ in 0..2 {
        // The second restart comes before the first has forgotten the long ones: it must not, either.
        c.restart(1_000);
    }
    let f = c.subscribe(framework_info("one", "default"), Some(id.clone()));
    c.subscribed(f);
    let agent = c.register(agent_info("a1", res(4, 4)), vec![running(key(&id, "t"))], vec![]);
    c.commands_after_registered(agent);
    c.events(f);
    c.batch(Event::AgentDisconnected { conn: agent });
    c.events(f);
    c.pass(span() - 1);
    c.silence();
    c.pass(1);
    assert_eq!(c.updates(f), vec![("t".into(), TaskState::Lost, Reason::LeaseExpired, 0)]);
    // From now on the short ones are all there are.
    assert_eq!(c.stored.lease_span, Some(DurationMs(2_200)));
    (c.config.lease, c.config.lease_margin) = (DurationMs(60_000), DurationMs(0));
    c.restart(1_000);
    assert_eq!(c.stored.lease_span, Some(DurationMs(63_000)), "before the first of them is granted");
}

#[test]
fn an_agent_that_is_away_loses_its_exclusive_tasks_when_the_last_lease_is_over() {
    let (mut c, agent, f, id) = one_task();
    c.pass(10_000);
    c.batch(Event::AgentLease { conn: agent, asked: BootTime(1) });
    c.commands(agent);
    c.pass(1_000);
    c.batch(Event::AgentDisconnected { conn: agent });
    c.pass(span() - 1_001);
    c.silence();
    c.pass(1);
    assert_eq!(c.updates(f), vec![("t".into(), TaskState::Lost, Reason::LeaseExpired, 0)]);
    assert_eq!(c.books("a1").0, Resources::default());
    c.pass(200_000);
    c.silence();
    // It comes back with it: stopped by its executor already, or an orphan that is killed.
    let agent = c.register(agent_info("a1", res(4, 4)), vec![running(key(&id, "t"))], vec![]);
    assert_eq!(c.commands_after_registered(agent), vec![AgentCommand::Kill { task: key(&id, "t"), grace: None }]);
    assert_eq!(c.books("a1").0, res(1, 1));
    c.update(agent, &key(&id, "t"), 2, TaskState::Failed);
    assert_eq!(c.books("a1").0, Resources::default());
}

#[test]
fn a_short_absence_changes_nothing() {
    let (mut c, agent, f, id) = one_task();
    c.batch(Event::AgentDisconnected { conn: agent });
    c.pass(span() - 1);
    let agent = c.register(agent_info("a1", res(4, 4)), vec![running(key(&id, "t"))], vec![]);
    assert_eq!(c.commands_after_registered(agent), vec![]);
    c.pass(100_000);
    c.silence();
    c.update(agent, &key(&id, "t"), 2, TaskState::Finished);
    assert_eq!(c.updates(f).len(), 1);
}

#[test]
fn a_removed_agents_exclusive_tasks_end_only_after_their_lease() {
    let a1 = AgentId::new("a1").unwrap();
    let removals = [
        |_: Conn, agent: AgentId| Event::AgentRemoved { agent, reason: "broken".into() },
        |conn: Conn, _: AgentId| Event::AgentDeregistered { conn, reason: "bye".into() },
    ];
    for removal in removals {
        let (mut c, agent, f, id) = one_task();
        c.batch(removal(agent, a1.clone()));
        assert!(matches!(&c.events(f)[..], [FrameworkEvent::AgentLost { .. }]), "not a word about the task");
        c.closed.clear();
        c.call(f, Call::Reconcile(vec![(TaskId::new("t").unwrap(), 0, None)]));
        let states: Vec<_> = c.updates(f).into_iter().map(|u| u.1).collect();
        assert_eq!(states, vec![TaskState::Running, TaskState::Running], "what waits, and where it is");
        c.pass(span() - 1);
        c.silence();
        c.pass(1);
        assert_eq!(c.updates(f), vec![("t".into(), TaskState::Gone, Reason::AgentRemoved, 0)]);
        assert_eq!(id.as_str(), "F7-1");
    }
}

#[test]
fn an_agent_that_lost_its_memory_is_believed_only_after_the_lease() {
    let (mut c, _, f, _) = one_task();
    let mut info = agent_info("a1", res(4, 4));
    info.incarnation = 2;
    let agent = c.register(info, vec![], vec![]);
    c.commands_after_registered(agent);
    c.closed.clear();
    assert_eq!(c.books("a1").2, res(4, 4), "the agent has them to give");
    c.silence();
    c.pass(span());
    assert_eq!(c.updates(f), vec![("t".into(), TaskState::Lost, Reason::AgentRestarted, 0)]);
    // A machine that restarted is believed at once.
    let (mut c, _, f, _) = one_task();
    c.agent_with_boot("a1", "boot-2");
    assert_eq!(c.updates(f), vec![("t".into(), TaskState::Gone, Reason::AgentRestarted, 0)]);
}

#[test]
fn a_removed_agent_that_comes_back_in_time_keeps_its_exclusive_task() {
    let (mut c, _, f, id) = one_task();
    c.batch(Event::AgentRemoved { agent: AgentId::new("a1").unwrap(), reason: "a mistake".into() });
    c.events(f);
    c.closed.clear();
    let agent = c.register(agent_info("a1", res(4, 4)), vec![running(key(&id, "t"))], vec![]);
    assert_eq!(c.commands_after_registered(agent), vec![]);
    assert_eq!(c.books("a1").0, res(1, 1));
    c.pass(span());
    c.silence();
    c.update(agent, &key(&id, "t"), 2, TaskState::Finished);
    assert_eq!(c.updates(f), vec![("t".into(), TaskState::Finished, Reason::None, 2)]);
}

#[test]
fn a_lease_outlives_the_removal_of_its_agent() {
    let (mut c, agent, f, id) = one_task();
    c.pass(30_000);
    c.batch(Event::AgentLease { conn: agent, asked: BootTime(1) });
    c.batch(Event::AgentRemoved { agent: AgentId::new("a1").unwrap(), reason: "a mistake".into() });
    let agent = c.register(agent_info("a1", res(4, 4)), vec![running(key(&id, "t"))], vec![]);
    c.batch(Event::AgentDisconnected { conn: agent });
    c.events(f);
    c.pass(span() - 1);
    assert_eq!(c.events(f), vec![]);
    c.pass(1);
    assert_eq!(c.updates(f), vec![("t".into(), TaskState::Lost, Reason::LeaseExpired, 0)]);
}

#[test]
fn a_second_attempt_waits_for_the_end_of_the_first_and_arrays_are_refused() {
    let (mut c, agent, f, _) = one_task();
    c.call(f, Call::Revive);
    let offer = c.offer(f);
    let Operation::LaunchArray(mut part) = array("part", res(1, 1), 1, 4) else { panic!("an array") };
    part.template.spec.exclusive = true;
    let operations = vec![exclusive("t", 1), Operation::LaunchArray(part)];
    c.accept(f, &[offer.id], operations, refuse(3_600_000));
    let errors: Vec<_> = c.updates(f).into_iter().map(|u| (u.0, u.1, u.2)).collect();
    let error = |name: &str| (name.to_owned(), TaskState::Error, Reason::InvalidTask);
    assert_eq!(errors, vec![error("t"), error("part")]);
    assert_eq!(c.commands(agent), vec![]);
}

#[test]
fn after_a_restart_of_the_master_a_lease_counts_from_its_start() {
    let (mut c, _, _, id) = one_task();
    c.restart(1_000);
    let f = c.subscribe(framework_info("one", "default"), Some(id.clone()));
    c.subscribed(f);
    let agent = c.register(agent_info("a1", res(4, 4)), vec![running(key(&id, "t"))], vec![]);
    c.commands_after_registered(agent);
    c.call(f, Call::Suppress);
    c.batch(Event::AgentDisconnected { conn: agent });
    c.events(f);
    c.pass(span() - 1);
    c.silence();
    c.pass(1);
    assert_eq!(c.updates(f), vec![("t".into(), TaskState::Lost, Reason::LeaseExpired, 0)]);
}
