//! Exclusive tasks: none runs beyond its lease, whatever it does and whoever is there.

use super::*;
use crate::clock::{SlotClock, Stopwatch, boot_us};
use crate::control::Control;
use crate::directories::View;
use crate::engine::Engines;
use crate::instance::{self, Ended, Run, Seat, Template};
use crate::modules::{Loader, Request};
use crate::output::{Channel, Sink};
use crate::state::Common;
use smalti_types::task_state::Reason;
use std::sync::Arc;

/// Long enough for a task to start, and to be renewed.
const LEASE_US: u64 = 300_000;

impl Agent {
    fn start_exclusive(&mut self, run: u64, module: u32, until_us: u64) {
        let start = v1::StartTask { run, guest: Some(guest(module)), lease_until_us: Some(until_us), ..Default::default() };
        self.send_task(start, &[]);
    }
}

#[test]
fn a_lease_ends_loops_and_sleeps_and_only_later() {
    let mut agent = Agent::start(1);
    for (run, text) in [(1, guests::LOOP), (2, guests::SLEEP)] {
        let module = agent.load(text);
        let until = boot_us() + LEASE_US;
        agent.start_exclusive(run, module, until);
        let outcome = agent.await_outcome(run);
        assert!(boot_us() >= until, "too early");
        assert_eq!(reason(&outcome), "LEASE_EXPIRED", "{outcome:?}");
    }
    // The slot is as good as new.
    let module = agent.load(guests::EMPTY);
    agent.start_exclusive(9, module, boot_us() + 3_600_000_000);
    assert_eq!(agent.await_outcome(9).exit_code, Some(0));
    agent.stop();
}

#[test]
fn a_renewal_moves_the_end_on() {
    let mut agent = Agent::start(2);
    let sleep = agent.load(guests::SLEEP);
    let until = boot_us() + LEASE_US;
    agent.start_exclusive(1, sleep, until);
    agent.start_task(2, guest(sleep));
    for run in [1, 2, 77] {
        // Of one without a lease, and of one that is not there, nothing becomes of it.
        agent.send(To::Renew(v1::Renew { run, until_us: until + LEASE_US }), &[]);
    }
    let outcome = agent.await_outcome(1);
    assert!(boot_us() >= until + LEASE_US);
    assert_eq!(reason(&outcome), "LEASE_EXPIRED");
    agent.send(To::Kill(v1::Kill { run: 2, grace_us: 0 }), &[]);
    assert_eq!(reason(&agent.await_outcome(2)), "KILLED_BY_REQUEST");
    agent.stop();
}

#[test]
fn what_has_no_lease_any_more_does_not_begin() {
    let mut agent = Agent::start(1);
    let (empty, sleep) = (agent.load(guests::EMPTY), agent.load(guests::SLEEP));
    agent.start_exclusive(1, empty, boot_us());
    let (_, said) = agent.receive_numbered();
    assert!(matches!(&said, From::Outcome(o) if o.run == 1 && reason(o) == "LEASE_EXPIRED"), "it was never started: {said:?}");
    // Behind another one, for too long.
    agent.start_task(2, guest(sleep));
    agent.await_started(2);
    let until = boot_us() + LEASE_US;
    agent.start_exclusive(3, empty, until);
    while boot_us() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    agent.send(To::Kill(v1::Kill { run: 2, grace_us: 0 }), &[]);
    assert_eq!(reason(&agent.await_outcome(2)), "KILLED_BY_REQUEST");
    let (_, said) = agent.receive_numbered();
    assert!(matches!(&said, From::Outcome(o) if o.run == 3 && reason(o) == "LEASE_EXPIRED"), "{said:?}");
    agent.stop();
}

#[test]
fn a_lease_ends_without_an_agent() {
    let mut agent = Agent::start(2);
    let (looping, sleep) = (agent.load(guests::LOOP), agent.load(guests::SLEEP));
    let known = agent.last;
    let until = boot_us() + LEASE_US;
    agent.start_exclusive(1, looping, until);
    agent.send_task(v1::StartTask { run: 2, slot: 1, guest: Some(guest(sleep)), lease_until_us: Some(until), ..Default::default() }, &[]);
    agent.cut();
    let mut ended = Vec::new();
    while ended.len() < 2 {
        agent.come_back(known);
        let outcome = |(_, said): &(u64, From)| if let From::Outcome(o) = said { Some((o.run, reason(o).to_owned())) } else { None };
        ended = agent.again.iter().filter_map(outcome).collect();
        assert!(boot_us() >= until || ended.is_empty());
        assert_eq!(agent.holds.tasks.len() + ended.len(), 2);
        agent.cut();
    }
    ended.sort();
    assert_eq!(ended, [(1, "LEASE_EXPIRED".to_owned()), (2, "LEASE_EXPIRED".to_owned())]);
    agent.come_back(agent.last);
    agent.stop();
}

/// Takes nothing.
#[derive(Debug)]
struct Nowhere;

impl Sink for Nowhere {
    fn write(&self, _: Channel, _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs a guest whose lease ran out while nobody could look: no timer, no tick of the epoch.
fn run_unwatched(text: &str, component: bool) -> Ended {
    let loader = Arc::new(Loader::new(Arc::new(Engines::new(1, false).expect("an engine"))));
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&compile(text, false)).expect("written");
    file.rewind().expect("rewound");
    let request = Request { name: "guest".to_owned(), component, fuel: false, network: false };
    let template = Template {
        module: Arc::new(loader.load(request, file.into()).expect("loaded")),
        args: vec!["guest".to_owned()],
        env: Vec::new(),
        memory_bytes: 1 << 20,
        handles: 32,
        timeout: None,
        fuel: None,
        output_bytes: 1 << 20,
        view: View::new(Vec::new(), None, Vec::new()).expect("a view"),
        only: false,
        common: Common { control: Arc::new(Control::new(Some(boot_us()))), ..Common::default() },
        gauge: Arc::default(),
    };
    let watch = Stopwatch::start(&Arc::new(SlotClock::of_this_thread()));
    let run = Run {
        env: Vec::new(),
        stdin: None,
        sink: Arc::new(Nowhere),
        directories: template.view.fixed(),
        watch: &watch,
        seat: &Seat::new(&template, 0),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(instance::run(&template, run))
}

#[test]
fn not_one_call_gets_out_after_the_lease_even_before_a_timer_can_act() {
    for (text, component) in [(guests::PRINT.to_owned(), false), (guests::component(0), true)] {
        let ended = run_unwatched(&text, component);
        let reason = ended.failure.map(|f| f.reason);
        assert_eq!((reason, ended.bytes_written, ended.result), (Some(Reason::LeaseExpired), 0, None), "component: {component}");
    }
}
