//! Offers are used once, launches are checked one by one.

use super::fixture::*;
use smalti_types::protocol::{AgentCommand, Call, FrameworkEvent};
use smalti_types::*;

#[test]
fn an_offer_is_consumed_once() {
    let mut c = Cluster::new();
    let (f, _) = c.framework("one");
    let agent = c.agent("a1", res(4, 4));
    let offer = c.offer(f);
    c.accept(f, &[offer.id], vec![task("t1", res(1, 1))], Filters::default());
    c.accept(f, &[offer.id], vec![task("t2", res(1, 1))], Filters::default());
    assert_eq!(c.updates(f), vec![("t2".into(), TaskState::Dropped, Reason::InvalidOffers, 0)]);
    assert_eq!(c.commands(agent).len(), 1);
    assert_eq!(c.books("a1").0, res(1, 1));
    c.silence();
}

#[test]
fn a_void_accept_gives_its_valid_offers_back() {
    let mut c = Cluster::new();
    let (f, _) = c.framework("one");
    c.agent("a1", res(4, 4));
    let offer = c.offer(f);
    let never = OfferId { number: 99, ..offer.id };
    c.accept(f, &[offer.id, never], vec![task("t", res(1, 1))], Filters::default());
    let events = c.events(f);
    let [FrameworkEvent::Updates(updates), FrameworkEvent::Offers(again)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((updates[0].1.state, again[0].resources.clone()), (TaskState::Dropped, res(4, 4)));
    c.silence();
}

#[test]
fn an_offer_of_an_earlier_life_is_never_answered_with_an_end() {
    let mut c = Cluster::new();
    let (f, _) = c.framework("one");
    let earlier = OfferId { epoch: MasterEpoch(6), number: 1 };
    c.accept(f, &[earlier], vec![task("t", res(1, 1))], Filters::default());
    assert_eq!(c.updates(f), vec![("t".into(), TaskState::Unknown, Reason::InvalidOffers, 0)]);
}

#[test]
fn another_frameworks_offer_cannot_be_used() {
    let mut c = Cluster::new();
    let (f1, _) = c.framework("one");
    let (f2, _) = c.framework("two");
    c.agent("a1", res(4, 4));
    let offer = c.offer(f1);
    c.accept(f2, &[offer.id], vec![task("t", res(1, 1))], Filters::default());
    assert_eq!(c.updates(f2), vec![("t".into(), TaskState::Dropped, Reason::InvalidOffers, 0)]);
    c.call(f2, Call::Decline { offers: vec![offer.id], filters: Filters::default() });
    assert_eq!(c.books("a1").1, res(4, 4));
    c.silence();
}

#[test]
fn offers_of_one_agent_may_be_joined_and_of_two_may_not() {
    let mut c = Cluster::new();
    let (f, id) = c.framework("one");
    let agent = c.agent("a1", res(4, 4));
    let whole = c.offer(f);
    c.accept(f, &[whole.id], vec![task("t1", res(3, 3))], refuse(0));
    c.pass(100);
    let rest = c.offer(f);
    c.update(agent, &key(&id, "t1"), 1, TaskState::Finished);
    let events = c.events(f);
    let [_, FrameworkEvent::Offers(freed)] = &events[..] else { panic!("{events:?}") };
    c.commands(agent);
    c.accept(f, &[rest.id, freed[0].id], vec![task("t2", res(4, 4))], refuse(0));
    assert_eq!(c.commands(agent).len(), 1);
    c.silence();
    c.agent("a2", res(1, 1));
    c.agent("a3", res(1, 1));
    let ids: Vec<OfferId> =
        c.events(f).into_iter().flat_map(|e| if let FrameworkEvent::Offers(o) = e { o } else { vec![] }).map(|o| o.id).collect();
    c.accept(f, &ids, vec![task("t3", res(2, 2))], refuse(60_000));
    let events = c.events(f);
    assert!(matches!(&events[0], FrameworkEvent::Updates(u) if u[0].1.state == TaskState::Dropped), "{events:?}");
}

#[test]
fn wrong_operations_end_with_error_and_the_others_start() {
    let mut c = Cluster::new();
    let (f, _) = c.framework("one");
    let mut total = res(4, 4);
    total.ports = "31000-31009".parse().unwrap();
    let agent = c.agent("a1", total);
    let offer = c.offer(f);
    let mut ports = res(1, 1);
    ports.ports = "80".parse().unwrap();
    let mut named = task("named", res(1, 1));
    if let Operation::Launch(l) = &mut named {
        l.spec.env.push(("A=B".into(), "x".into()));
    }
    let mut tiny = res(1, 1);
    tiny.cpus = MilliCpus(9);
    let mut free_ports = res(1, 1);
    free_ports.ports = "31000-31001".parse().unwrap();
    let operations = vec![
        task("zero", Resources::default()),
        task("tiny", tiny),
        task("huge", res(5, 1)),
        task("ports", ports),
        named,
        array("no-slots", res(1, 1), 0, 10),
        array("no-items", res(1, 1), 1, 0),
        task("good", free_ports.clone()),
        array("part", res(1, 1), 3, 10),
        task("late", res(1, 1)),
        task("good", res(1, 1)),
    ];
    c.accept(f, &[offer.id], operations, Filters::default());
    let mut errors = vec![];
    let mut refused = vec![];
    for event in c.events(f) {
        match event {
            FrameworkEvent::Updates(u) => errors.extend(u.into_iter().map(|(_, u)| (u.key.task.task.to_string(), u.message))),
            FrameworkEvent::Refused { message, .. } => refused.push(message),
            other => panic!("{other:?}"),
        }
    }
    let field = |name: &str| errors.iter().find(|(n, _)| n == name).map(|(_, m)| m.as_str()).unwrap_or("started");
    assert_eq!(errors.len(), 8, "{errors:?}");
    assert!(field("zero").contains("cpus must be more than zero"));
    assert!(field("tiny").contains("below the smallest request"));
    assert!(field("huge").contains("cpus: 5 wanted, 4 there"), "{}", field("huge"));
    assert!(field("ports").contains("ports: 80 wanted"));
    assert!(field("named").contains("env"));
    assert!(field("no-slots").contains("slots"));
    assert!(field("no-items").contains("total_items"));
    assert!(field("late").contains("cpus: 1 wanted, 0 there"));
    assert!(refused.len() == 1 && refused[0].contains("good"), "{refused:?}");
    let (commands, role) = (c.commands(agent), Role::default());
    assert!(
        matches!(&commands[..], [AgentCommand::Launch { role: a, .. }, AgentCommand::LaunchArray { role: b, .. }] if *a == role && *b == role)
    );
    assert_eq!(c.books("a1").0, free_ports.checked_add(&res(3, 3)).unwrap());
    c.silence();
}

#[test]
fn a_launch_that_ended_is_not_started_again() {
    let mut c = Cluster::new();
    let (f, id) = c.framework("one");
    let agent = c.agent("a1", res(4, 4));
    let offer = c.offer(f);
    c.accept(f, &[offer.id], vec![task("t", res(4, 4))], Filters::default());
    c.update(agent, &key(&id, "t"), 1, TaskState::Failed);
    c.call(f, Call::Acknowledge(vec![(TaskId::new("t").unwrap(), 0, 1)]));
    let events = c.events(f);
    let Some(FrameworkEvent::Offers(offers)) = events.last() else { panic!("{events:?}") };
    c.commands(agent);
    c.accept(f, &[offers[0].id], vec![task("t", res(1, 1))], Filters::default());
    assert!(matches!(&c.events(f)[..], [FrameworkEvent::Refused { .. }]));
    c.silence();
}
