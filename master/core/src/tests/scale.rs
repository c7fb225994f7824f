//! The size of the books must not show in the work after one change. Counts work, not time.

use super::fixture::*;
use crate::{Config, Conn, Event, Master, Message, Record, Stored};
use smalti_types::protocol::{Claim, FrameworkEvent, Registration, RunningTask, Subscription};
use smalti_types::*;

/// A cluster of this size, before its first allocation.
fn cluster(agents: u64, frameworks: usize) -> (Master, Time) {
    let now = Time(1_000_000);
    let mut master = Master::new(Config::default(), MasterEpoch(1), now);
    for n in 0..frameworks {
        let info = framework_info(&format!("f{n}"), ["x", "y", "z"][n % 3]);
        let fresh = FrameworkId::new(format!("F1-{n}")).unwrap();
        let subscription = Subscription { info, id: None, claim: Claim::default() };
        let _ = master.step(now, Event::FrameworkSubscribed { conn: Conn(n as u64), subscription, fresh });
    }
    for n in 0..agents {
        let registration = Registration { info: agent_info(&format!("a{n}"), res(4, 4)), tasks: vec![], unacknowledged: vec![] };
        let _ = master.step(now, Event::AgentRegistered { conn: Conn(1_000_000 + n), registration });
    }
    (master, now)
}

#[test]
fn one_change_touches_one_agent() {
    let agents = 2_000;
    let (mut master, now) = cluster(agents, 200);
    let _ = master.step(now, Event::BatchEnd);
    assert_eq!(master.offer_views().count() as u64, agents);
    let (least, most) = master.framework_views().fold((usize::MAX, 0), |(least, most), f| {
        let n = (f.offered.cpus.0 / 4_000) as usize;
        (least.min(n), most.max(n))
    });
    assert!(most - least <= 2, "between {least} and {most} offers each");
    let _ = master.step(now, Event::AgentDisconnected { conn: Conn(1_000_000) });
    assert!(master.dirty.is_empty());
    let registration = Registration { info: agent_info("a0", res(4, 4)), tasks: vec![], unacknowledged: vec![] };
    let _ = master.step(now, Event::AgentRegistered { conn: Conn(9_000_000), registration });
    assert_eq!(master.dirty.len(), 1);
    let _ = master.step(now, Event::BatchEnd);
    master.check_invariants().unwrap();
}

/// Ten thousand agents with ten tasks each come back to a master that has just restarted: nothing is written down again, nobody is told
/// anything twice, and the first batch makes offers.
#[test]
fn ten_thousand_agents_come_back() {
    let (agents, tasks) = (10_000_u64, 10_u64);
    let now = Time(1_000_000);
    let mut stored = Stored::default();
    let id = FrameworkId::new("F1-1").unwrap();
    stored.apply(Record::Framework { id: id.clone(), info: framework_info("f", "x"), claim: Claim::default(), away_until: None });
    let names: Vec<String> = (0..agents).map(|n| format!("a{n}")).collect();
    names.iter().for_each(|name| stored.apply(Record::Agent(agent_info(name, res(16, 16)))));
    let mut master = Master::recover(Config::default(), MasterEpoch(2), now, stored);
    let mut records = Vec::new();
    let mut messages = Vec::new();
    let mut step = |master: &mut Master, event: Event| {
        let taken = master.step(now, event).commit(|r| {
            records.extend(r);
            Ok::<_, ()>(())
        });
        let taken = taken.unwrap();
        let offers = taken.iter().any(|m| matches!(m, Message::ToFramework { event: FrameworkEvent::Offers(_), .. }));
        messages.extend(taken);
        offers
    };
    let subscription = Subscription { info: framework_info("f", "x"), id: Some(id.clone()), claim: Claim::default() };
    step(&mut master, Event::FrameworkSubscribed { conn: Conn(1), subscription, fresh: FrameworkId::new("F2-1").unwrap() });
    for (n, name) in names.iter().enumerate() {
        let running = |t: u64| RunningTask {
            key: TaskKey { framework: id.clone(), task: TaskId::new(format!("{name}-{t}")).unwrap(), attempt: 0 },
            state: TaskState::Running,
            resources: res(1, 1),
            slot_resources: None,
            exclusive: false,
        };
        let tasks = (0..tasks).map(running).collect();
        let registration = Registration { info: agent_info(name, res(16, 16)), tasks, unacknowledged: vec![] };
        step(&mut master, Event::AgentRegistered { conn: Conn(100 + n as u64), registration });
        if n == 0 || n % 1_000 == 999 {
            assert!(step(&mut master, Event::BatchEnd), "offers do not wait for the slowest agent");
        }
    }
    assert_eq!(records.len(), 2, "the framework's deadline at the start, and that it is back");
    let updates = messages.iter().filter(|m| matches!(m, Message::ToFramework { event: FrameworkEvent::Updates(_), .. })).count() as u64;
    let registered = messages.iter().filter(|m| matches!(m, Message::ToAgent { .. })).count() as u64;
    assert_eq!((registered, updates, master.offer_views().count() as u64), (agents, agents * tasks, agents));
    master.check_invariants().unwrap();
}
