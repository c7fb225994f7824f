//! Offers and fairness.

use super::fixture::*;
use crate::{Config, Event};
use smalti_types::protocol::{AgentCommand, Call, FrameworkEvent};
use smalti_types::*;

/// The classic example of two-level scheduling, to the number.
#[test]
fn four_steps() {
    let mut c = Cluster::new();
    let (f1, id1) = c.framework("one");
    let agent = c.agent("a1", res(4, 4));
    let offer = c.offer(f1);
    assert_eq!(offer.resources, res(4, 4));
    let (f2, _) = c.framework("two");
    c.accept(f1, &[offer.id], vec![task("t1", res(2, 1)), task("t2", res(1, 2))], Filters::default());
    let commands = c.commands(agent);
    assert!(matches!(&commands[..], [AgentCommand::Launch { framework, .. }, AgentCommand::Launch { .. }] if *framework == id1));
    assert_eq!(c.offer(f2).resources, res(1, 1));
    assert_eq!(c.books("a1"), (res(3, 3), res(1, 1), Resources::default()));
    c.silence();
}

/// The example of the paper on dominant resource fairness: 9 cpus and 18 GB, tasks of (1, 4) and (3, 1): 3 and 2 tasks.
#[test]
fn dominant_resource_fairness_gives_three_and_two_tasks() {
    let mut c = Cluster::new();
    let (a, _) = c.framework("a");
    let (b, _) = c.framework("b");
    let agent = c.agent("a1", res(9, 18));
    let mut started = (0, 0);
    for n in 0..30 {
        for (conn, want, count) in [(a, res(1, 4), &mut started.0), (b, res(3, 1), &mut started.1)] {
            for event in c.events(conn) {
                let FrameworkEvent::Offers(offers) = event else { panic!("{event:?}") };
                for offer in offers {
                    let fits = offer.resources.contains(&want);
                    let operations = if fits { vec![task(&format!("t{n}-{}", want.cpus.0), want.clone())] } else { vec![] };
                    *count += u32::from(fits);
                    c.accept(conn, &[offer.id], operations, refuse(0));
                }
            }
        }
        c.commands(agent);
        c.pass(100);
    }
    assert_eq!(started, (3, 2));
    assert_eq!(c.books("a1").0, res(9, 14));
}

#[test]
fn roles_share_before_frameworks_do() {
    let mut c = Cluster::new();
    let (a1, _) = c.framework("a1");
    let (a2, _) = c.framework("a2");
    let b = c.subscribe(framework_info("b", "other"), None);
    c.subscribed(b);
    for n in 0..4 {
        c.agent(&format!("n{n}"), res(1, 1));
    }
    let count = |c: &mut Cluster, conn| c.events(conn).len();
    assert_eq!((count(&mut c, a1), count(&mut c, a2), count(&mut c, b)), (1, 1, 2));
}

#[test]
fn a_declined_offer_goes_to_the_next_and_comes_back_when_the_refusal_ends() {
    let mut c = Cluster::new();
    let (f1, _) = c.framework("one");
    c.agent("a1", res(4, 4));
    let offer = c.offer(f1);
    c.call(f1, Call::Decline { offers: vec![offer.id], filters: refuse(5_000) });
    c.silence();
    c.pass(4_900);
    c.silence();
    c.pass(100);
    assert_eq!(c.offer(f1).resources, res(4, 4));
    c.silence();
}

#[test]
fn refusing_for_no_time_does_not_loop() {
    let mut c = Cluster::new();
    let (f1, _) = c.framework("one");
    c.agent("a1", res(4, 4));
    let offer = c.offer(f1);
    c.call(f1, Call::Decline { offers: vec![offer.id], filters: refuse(0) });
    c.silence();
    c.pass(100);
    assert_eq!(c.offers(f1).len(), 1);
}

#[test]
fn more_than_what_was_refused_is_offered_at_once() {
    let mut c = Cluster::new();
    let (f1, id) = c.framework("one");
    let agent = c.agent("a1", res(4, 4));
    let offer = c.offer(f1);
    c.accept(f1, &[offer.id], vec![task("t", res(3, 3))], refuse(60_000));
    c.commands(agent);
    c.silence();
    c.update(agent, &key(&id, "t"), 1, TaskState::Finished);
    let events = c.events(f1);
    let [FrameworkEvent::Updates(_), FrameworkEvent::Offers(offers)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(offers[0].resources, res(4, 4));
}

#[test]
fn suppress_and_revive() {
    let mut c = Cluster::new();
    let (f1, _) = c.framework("one");
    c.call(f1, Call::Suppress);
    c.agent("a1", res(4, 4));
    c.silence();
    c.call(f1, Call::Revive);
    let offer = c.offer(f1);
    c.call(f1, Call::Decline { offers: vec![offer.id], filters: refuse(60_000) });
    c.silence();
    c.call(f1, Call::Revive);
    assert_eq!(c.offers(f1).len(), 1);
}

#[test]
fn an_unanswered_offer_is_taken_back_and_goes_to_somebody_else() {
    let mut c = Cluster::new();
    let (f1, _) = c.framework("one");
    c.agent("a1", res(4, 4));
    let offer = c.offer(f1);
    let (f2, _) = c.framework("two");
    c.pass(29_000);
    c.silence();
    c.pass(1_000);
    assert_eq!(c.events(f1), vec![FrameworkEvent::Rescind(vec![offer.id])]);
    assert_eq!(c.offers(f2).len(), 1);
    c.accept(f1, &[offer.id], vec![task("t", res(1, 1))], Filters::default());
    assert_eq!(c.updates(f1), vec![("t".into(), TaskState::Dropped, Reason::InvalidOffers, 0)]);
    c.silence();
}

#[test]
fn a_framework_that_never_answers_gets_its_turn_more_and_more_rarely() {
    let mut c = Cluster::new();
    let (f1, _) = c.framework("one");
    c.agent("a1", res(4, 4));
    let mut offer = c.offer(f1);
    for refused in [5_000, 10_000, 20_000, 40_000] {
        c.pass(30_000);
        assert_eq!(c.events(f1), vec![FrameworkEvent::Rescind(vec![offer.id])]);
        c.pass(refused - 1_000);
        c.silence();
        c.pass(1_000);
        offer = c.offer(f1);
    }
    c.call(f1, Call::Decline { offers: vec![offer.id], filters: refuse(1_000) });
    c.pass(1_000);
    let offer = c.offer(f1);
    c.pass(30_000);
    assert_eq!(c.events(f1), vec![FrameworkEvent::Rescind(vec![offer.id])]);
    c.pass(5_000);
    assert_eq!(c.offers(f1).len(), 1, "it had answered in between");
}

#[test]
fn what_is_too_small_for_any_task_is_not_offered() {
    let mut c = Cluster::new();
    let (f1, _) = c.framework("one");
    c.agent("a1", Resources::new(MilliCpus(9), Bytes::gib(1)));
    c.agent("a2", Resources::new(MilliCpus(900), Bytes(0)));
    assert_eq!(c.events(f1), vec![]);
}

#[test]
fn offers_of_an_agent_or_framework_that_disconnects_are_void() {
    let mut c = Cluster::new();
    let (f1, _) = c.framework("one");
    let agent = c.agent("a1", res(4, 4));
    let offer = c.offer(f1);
    c.batch(Event::AgentDisconnected { conn: agent });
    assert_eq!(c.events(f1), vec![FrameworkEvent::Rescind(vec![offer.id])]);
    let agent = c.register(agent_info("a1", res(4, 4)), vec![], vec![]);
    c.commands_after_registered(agent);
    assert_eq!(c.offers(f1).len(), 1);
    let (f2, _) = c.framework("two");
    c.batch(Event::FrameworkDisconnected { conn: f1 });
    assert_eq!(c.offer(f2).resources, res(4, 4));
    c.silence();
}

#[test]
fn beyond_the_bound_the_refusal_that_ends_first_ends_now() {
    let mut c = Cluster::with(Config { remembered_refusals: 2, ..Config::default() });
    let (f, _) = c.framework("one");
    for (agent, ms) in [("a1", 60_000), ("a2", 90_000)] {
        c.agent(agent, res(4, 4));
        let offer = c.offer(f);
        c.call(f, Call::Decline { offers: vec![offer.id], filters: refuse(ms) });
        c.silence();
    }
    c.agent("a3", res(4, 4));
    let offer = c.offer(f);
    c.call(f, Call::Decline { offers: vec![offer.id], filters: refuse(70_000) });
    assert_eq!(c.offer(f).agent.as_str(), "a1");
    assert_eq!(c.master.cluster_view().counters["forgotten_refusals"], 1);
    c.silence();
}
