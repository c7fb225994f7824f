//! The size of the books must not show in the work after one change. Counts work, not time.

use super::fixture::*;
use crate::{Config, Conn, Event, Master};
use smalti_types::protocol::{Call, Registration, Subscription};
use smalti_types::*;

/// A cluster of this size, before its first allocation.
fn cluster(agents: u64, frameworks: usize) -> (Master, Time) {
    let now = Time(1_000_000);
    let mut master = Master::new(Config::default(), MasterEpoch(1), now);
    for n in 0..frameworks {
        let info = framework_info(&format!("f{n}"), ["x", "y", "z"][n % 3]);
        let fresh = FrameworkId::new(format!("F1-{n}")).unwrap();
        let subscription = Subscription { info, id: None };
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

/// What the design promises: 5 ms after one change, 200 ms for a full cycle. Run by hand: `-- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn full_size() {
    let (mut master, now) = cluster(50_000, 1_000);
    let since = std::time::Instant::now();
    let _ = master.step(now, Event::BatchEnd);
    println!("full cycle: {:?}", since.elapsed());
    let offers: Vec<Offer> = master.offer_views().collect();
    for n in 0..1_000 {
        let mine = |o: &&Offer| o.framework.as_str() == format!("F1-{n}");
        let call = Call::Decline { offers: offers.iter().filter(mine).map(|o| o.id).collect(), filters: Filters::default() };
        let _ = master.step(now, Event::FrameworkCall { conn: Conn(n), call });
    }
    let since = std::time::Instant::now();
    let _ = master.step(now, Event::BatchEnd);
    println!("full cycle, each agent refused by one: {:?}", since.elapsed());
    let offer = master.offer_views().next().unwrap();
    let conn = Conn(offer.framework.as_str()[3..].parse().unwrap());
    let _ = master.step(now, Event::FrameworkCall { conn, call: Call::Decline { offers: vec![offer.id], filters: Filters::default() } });
    let since = std::time::Instant::now();
    let _ = master.step(now, Event::BatchEnd);
    println!("one change: {:?}", since.elapsed());
}
