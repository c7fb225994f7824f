//! Class `process`: an executor for one task alone, ready before the task is known, used once.

use super::fake::*;
use crate::{ArrayReport, Event, ExecutorKind, Failure, FromExecutor, ItemFailure, Message, ModuleId, Parameters, ProcessPolicy, Run};
use crate::{ToExecutor, executor::Phase, task::Work};
use smalti_types::*;
use std::collections::BTreeSet;

fn up(e: u32) -> Event {
    Event::ExecutorStarted { executor: executor(e), slots: 1, cpu_us: None }
}

/// Without a pool, so that each test says what is started.
fn no_pool() -> Parameters {
    Parameters { pool: 0, ..parameters() }
}

impl World {
    fn starts(&mut self, e: u32, kind: ExecutorKind) {
        match self.next() {
            Message::StartExecutor { executor: id, kind: k, slots: 1, .. } if id == executor(e) && k == kind => {}
            other => panic!("expected the start of {kind:?} E{e}, not {other:?}"),
        }
    }

    /// Bound, told to load the code, and limited; a single task is to start as soon as its code is there.
    fn bound(&mut self, e: u32, f: u32, name: &str, run: u64) {
        assert_eq!(self.next(), Message::BindExecutor { executor: executor(e), key: key(f, name) });
        assert!(matches!(self.told(e), ToExecutor::LoadModule { run: r, .. } if r == Run(run)));
        assert!(matches!(self.next(), Message::SetExecutorMemory { .. }));
        if matches!(self.agent.tasks[&Run(run)].work, Work::Single(_)) {
            assert!(matches!(self.next(), Message::SetSlotCpus { slot: 0, .. }));
            assert!(matches!(self.told(e), ToExecutor::StartTask { run: r, slot: 0, .. } if r == Run(run)));
        }
    }

    /// The code is there, and the task runs.
    fn runs(&mut self, e: u32, run: u64) {
        self.event(loaded(e, 1));
        self.silent();
        self.event(started(e, run));
        assert_eq!(self.update().state, TaskState::Running);
    }

    fn discarded(&mut self, e: u32) {
        assert_eq!(self.next(), Message::DiscardExecutor { executor: executor(e) });
    }

    fn launched_own(&mut self, f: u32, name: &str, run: u64) {
        self.event(launch_own(f, name));
        assert!(matches!(self.next(), Message::Prepare { .. }));
        self.event(prepared(run));
    }
}

/// An executor's number: runs and executors count alike here.
fn number(run: u64) -> u32 {
    u32::try_from(run).unwrap()
}

#[test]
fn an_executor_is_ready_before_its_task_and_ends_with_it() {
    let mut w = World::new(Parameters { pool: 2, pool_from_start: true, ..parameters() });
    w.event(Event::Tick);
    w.starts(1, ExecutorKind::Pooled);
    w.starts(2, ExecutorKind::Pooled);
    w.event(up(1));
    w.event(up(2));
    w.silent();
    w.launched_own(1, "a", 1);
    w.bound(1, 1, "a", 1);
    // As long as there is a ready one, nothing is started beside a task that has just begun.
    w.runs(1, 1);
    w.silent();
    w.event(outcome(1, 1, Some(0), None));
    w.discarded(1);
    w.ended(1, "a");
    assert_eq!(w.update().state, TaskState::Finished);
    // What it still says is nobody's, and nobody gets it again.
    w.event(outcome(1, 1, Some(0), None));
    w.silent();
    w.event(exited(1, "killed by signal 9"));
    w.starts(3, ExecutorKind::Pooled);
    w.launched_own(2, "b", 2);
    w.bound(2, 2, "b", 2);
    w.starts(4, ExecutorKind::Pooled);
    w.silent();
}

#[test]
fn the_pool_is_filled_with_the_first_use_and_its_memory_is_never_a_tasks() {
    let mut w = World::new(parameters());
    w.event(Event::Tick);
    w.silent();
    w.launched_own(1, "a", 1);
    for e in 1..=3 {
        w.starts(e, ExecutorKind::Pooled);
    }
    assert_eq!(*w.agent.held(), Resources::new(MilliCpus(1_000), Bytes::mib(1)));
    w.event(up(2));
    w.bound(2, 1, "a", 1);
    w.event(up(1));
    w.event(up(3));
    w.silent();
    assert_eq!(*w.agent.held(), Resources::new(MilliCpus(1_000), Bytes::mib(1)));
}

#[test]
fn an_executor_is_limited_to_its_own_task() {
    let mut w = World::new(no_pool());
    w.event(launch_with(1, "a", Resources::new(MilliCpus(250), Bytes::mib(100)), own()));
    w.next();
    w.event(prepared(1));
    let Message::StartExecutor { memory: before, framework: None, grant: None, .. } = w.next() else { panic!("no executor") };
    w.event(up(1));
    w.next();
    w.told(1);
    let Message::SetExecutorMemory { bytes, .. } = w.next() else { panic!("no memory") };
    assert_eq!(bytes.0, before.0 + Bytes::mib(100).0);
    assert!(matches!(w.next(), Message::SetSlotCpus { slot: 0, cpus: MilliCpus(250), .. }));
    assert!(matches!(w.told(1), ToExecutor::StartTask { .. }), "behind its limits");
}

#[test]
fn starts_are_bounded_and_those_who_wait_are_served_in_order() {
    let mut w = World::new(Parameters { most_starting: 2, most_processes: 3, ..no_pool() });
    for (run, name) in (1..).zip(["a", "b", "c", "d"]) {
        w.event(launch_own(1 + number(run) % 2, name));
        assert!(matches!(w.next(), Message::Prepare { .. }));
        w.event(prepared(run));
        if run <= 2 {
            w.starts(number(run), ExecutorKind::Pooled);
        }
        w.silent();
    }
    w.event(up(2));
    w.bound(2, 2, "a", 1);
    w.starts(3, ExecutorKind::Pooled);
    w.event(up(1));
    w.bound(1, 1, "b", 2);
    w.silent();
    w.event(up(3));
    w.bound(3, 2, "c", 3);
    w.silent();
    // There is no room for the fourth before one is gone.
    w.runs(2, 1);
    w.event(outcome(2, 1, Some(1), None));
    w.discarded(2);
    w.ended(2, "a");
    w.update();
    w.silent();
    w.event(exited(2, "killed by signal 9"));
    w.starts(4, ExecutorKind::Pooled);
}

#[test]
fn frameworks_take_turns_however_much_one_of_them_wants() {
    let mut w = World::new(no_pool());
    for (run, f, name) in [(1, 1, "a"), (2, 1, "b"), (3, 1, "c"), (4, 2, "d")] {
        w.launched_own(f, name, run);
        w.starts(number(run), ExecutorKind::Pooled);
    }
    for (e, f, name, run) in [(1, 1, "a", 1), (2, 2, "d", 4), (3, 1, "b", 2), (4, 1, "c", 3)] {
        w.event(up(e));
        w.bound(e, f, name, run);
        w.silent();
    }
}

#[test]
fn who_had_more_turns_leaves_the_last_ready_one_to_the_others() {
    let mut w = World::new(Parameters { pool: 2, pool_from_start: true, ..parameters() });
    w.event(Event::Tick);
    for e in 1..=2 {
        w.starts(e, ExecutorKind::Pooled);
        w.event(up(e));
    }
    for (run, f, name) in [(1, 1, "a"), (2, 2, "v")] {
        w.launched_own(f, name, run);
        w.bound(number(run), f, name, run);
        if run == 1 {
            // Another one is ready, so this waits for a moment.
            w.silent();
            w.after_ms(10);
        }
        w.starts(number(run) + 2, ExecutorKind::Pooled);
    }
    w.event(up(3));
    w.launched_own(1, "b", 3);
    w.bound(3, 1, "b", 3);
    w.starts(5, ExecutorKind::Pooled);
    // Now the first has had two turns, and the second one.
    w.event(up(4));
    w.launched_own(1, "c", 4);
    w.after_ms(10);
    w.starts(6, ExecutorKind::Pooled);
    w.silent();
    w.launched_own(2, "w", 5);
    w.bound(4, 2, "w", 5);
    w.starts(7, ExecutorKind::Pooled);
    w.event(up(5));
    w.bound(5, 1, "c", 4);
    w.silent();
}

#[test]
fn nobody_holds_all_that_may_be_alive() {
    let mut w = World::new(Parameters { most_processes: 4, ..no_pool() });
    for (run, name) in (1..).zip(["a", "b", "c"]) {
        w.launched_own(1, name, run);
        w.starts(number(run), ExecutorKind::Pooled);
        w.event(up(number(run)));
        w.bound(number(run), 1, name, run);
    }
    w.launched_own(1, "d", 4);
    w.silent();
    w.launched_own(2, "e", 5);
    w.starts(4, ExecutorKind::Pooled);
    w.event(up(4));
    w.bound(4, 2, "e", 5);
    w.event(exited(1, "killed by signal 9"));
    w.ended(1, "a");
    w.starts(5, ExecutorKind::Pooled);
}

/// A hundred tasks one after the other in executors of their own, as fast as it goes. Gives the first that has to wait.
fn starts_in_a_row(w: &mut World, first: u64) -> Option<u64> {
    for run in first..first + 100 {
        let name = format!("t{run}");
        w.launched_own(1, &name, run);
        if w.said.is_empty() {
            return Some(run);
        }
        let e = number(run);
        w.starts(e, ExecutorKind::Pooled);
        w.event(up(e));
        w.bound(e, 1, &name, run);
        w.runs(e, run);
        w.event(outcome(e, run, Some(0), None));
        w.discarded(e);
        w.ended(1, &name);
        w.update();
        w.event(exited(e, "killed by signal 9"));
    }
    None
}

#[test]
fn who_starts_too_many_waits_and_others_do_not() {
    let mut w = World::new(no_pool());
    let waits = starts_in_a_row(&mut w, 1).expect("nothing holds it back");
    assert!(waits > 5, "some tasks may come together: {waits}");
    let e = number(waits);
    w.launched_own(2, "other", waits + 1);
    w.starts(e, ExecutorKind::Pooled);
    w.event(up(e));
    w.bound(e, 2, "other", waits + 1);
    w.silent();
    // What it holds pays for it.
    w.after_ms(1_000);
    w.starts(e + 1, ExecutorKind::Pooled);
    w.event(up(e + 1));
    w.bound(e + 1, 1, &format!("t{waits}"), waits);
}

#[test]
fn who_has_the_node_alone_starts_as_many_as_it_can() {
    let lends = Parameters { lend_cpu: true, ..no_pool() };
    assert_eq!(starts_in_a_row(&mut World::new(lends.clone()), 1), None, "where cpu time is lent, whatever it holds");
    let total = Resources::new(MilliCpus(1_300), Bytes::gib(8));
    assert_eq!(starts_in_a_row(&mut World::new(Parameters { total, ..no_pool() }), 1), None, "it holds most of the cpus");
    let mut w = World::new(lends);
    w.launched_own(2, "other", 1);
    w.starts(1, ExecutorKind::Pooled);
    w.event(up(1));
    w.bound(1, 2, "other", 1);
    assert!(starts_in_a_row(&mut w, 2).is_some(), "somebody else is there");
}

#[test]
fn who_had_the_node_alone_has_it_to_the_end_unless_somebody_comes() {
    let total = Resources::new(MilliCpus(4_000), Bytes::gib(8));
    for others in [false, true] {
        let mut w = World::new(Parameters { total: total.clone(), ..no_pool() });
        for (run, name) in [(1, "a"), (2, "b"), (3, "c")] {
            w.launched_own(1, name, run);
            w.starts(number(run), ExecutorKind::Pooled);
            w.event(up(number(run)));
            w.bound(number(run), 1, name, run);
        }
        // A quarter of the cpus is left to it, and half with one more task.
        for (e, name) in [(2, "b"), (3, "c")] {
            w.event(outcome(e, u64::from(e), Some(0), None));
            w.discarded(e);
            w.ended(1, name);
            w.update();
            w.event(exited(e, "killed by signal 9"));
        }
        let mut first = 4;
        if others {
            w.event(launch_with(2, "other", Resources::new(MilliCpus(10), Bytes::mib(1)), own()));
            assert!(matches!(w.next(), Message::Prepare { .. }));
            w.event(prepared(4));
            w.starts(4, ExecutorKind::Pooled);
            w.event(up(4));
            w.bound(4, 2, "other", 4);
            first = 5;
        }
        let held_back = starts_in_a_row(&mut w, first);
        assert_eq!(held_back.is_some(), others, "{held_back:?}");
    }
}

#[test]
fn one_that_cannot_be_started_drops_the_first_who_waits_with_the_cause() {
    let mut w = World::new(no_pool());
    w.launched_own(1, "a", 1);
    w.starts(1, ExecutorKind::Pooled);
    w.launched_own(1, "b", 2);
    w.starts(2, ExecutorKind::Pooled);
    w.event(Event::ExecutorFailed { executor: executor(2), failure: Failure::new(Reason::LaunchFailed, "no memory") });
    w.ended(1, "a");
    let update = w.update();
    assert_eq!((update.state, update.reason), (TaskState::Dropped, Reason::LaunchFailed));
    assert!(update.message.contains("no memory"), "{}", update.message);
    w.event(up(1));
    w.bound(1, 1, "b", 2);
    w.silent();
}

#[test]
fn a_pool_that_cannot_be_filled_pauses() {
    let mut w = World::new(Parameters { pool: 1, pool_from_start: true, ..parameters() });
    w.event(Event::Tick);
    w.starts(1, ExecutorKind::Pooled);
    w.event(Event::ExecutorFailed { executor: executor(1), failure: Failure::new(Reason::LaunchFailed, "no memory") });
    w.after_ms(1_999);
    w.silent();
    w.after_ms(1);
    w.starts(2, ExecutorKind::Pooled);
    w.event(up(2));
    w.event(exited(2, "killed by signal 11"));
    w.silent();
}

#[test]
fn a_kill_while_it_waits_leaves_the_executor_to_the_next() {
    let mut w = World::new(no_pool());
    w.launched_own(1, "a", 1);
    w.starts(1, ExecutorKind::Pooled);
    w.event(kill(1, "a"));
    w.ended(1, "a");
    assert_eq!(w.update().state, TaskState::Killed);
    w.event(up(1));
    w.silent();
    w.launched_own(1, "b", 2);
    w.bound(1, 1, "b", 2);
    w.silent();
    // While its code is loaded, it is to start already: the executor hears of the kill after that.
    w.event(kill(1, "b"));
    assert!(matches!(w.told(1), ToExecutor::Kill { run: Run(2), .. }));
    w.update();
    w.event(loaded(1, 1));
    w.silent();
    w.event(outcome(1, 2, None, Some(Failure::new(Reason::KilledByRequest, "killed before it began"))));
    w.discarded(1);
    w.ended(1, "b");
    assert_eq!(w.update().state, TaskState::Killed);
    w.event(exited(1, "killed"));
    w.empty();
    assert!(w.agent.pool.executors.is_empty());
}

#[test]
fn code_that_cannot_be_loaded_ends_the_task_that_was_to_start_with_it() {
    let mut w = World::new(no_pool());
    w.launched_own(1, "a", 1);
    w.starts(1, ExecutorKind::Pooled);
    w.event(up(1));
    w.bound(1, 1, "a", 1);
    let failure = Some(Failure::new(Reason::MissingImport, "no"));
    w.event(from(1, FromExecutor::ModuleLoaded { module: ModuleId(1), failure }));
    w.discarded(1);
    w.ended(1, "a");
    let last = w.update();
    assert_eq!((last.state, last.reason), (TaskState::Failed, Reason::MissingImport));
    // What it says of the start that came after is no news.
    w.event(outcome(1, 1, None, Some(Failure::new(Reason::LaunchFailed, "module 1 is not loaded"))));
    w.event(exited(1, "killed"));
    w.empty();
}

#[test]
fn when_an_executor_dies_only_its_task_fails_and_its_memory_limit_is_the_tasks() {
    let mut w = World::new(no_pool());
    for (run, name) in (1..=2).zip(["a", "b"]) {
        w.launched_own(1, name, run);
        w.starts(number(run), ExecutorKind::Pooled);
        w.event(up(number(run)));
        w.bound(number(run), 1, name, run);
        w.runs(number(run), run);
    }
    w.event(exited(1, "killed by signal 11 (SIGSEGV)"));
    w.ended(1, "a");
    let update = w.update();
    assert_eq!((update.state, update.reason), (TaskState::Failed, Reason::ExecutorTerminated));
    assert!(update.message.contains("SIGSEGV"), "{}", update.message);
    w.event(Event::ExecutorExited { executor: executor(2), cause: "out of memory".into(), out_of_memory: true });
    w.ended(1, "b");
    let update = w.update();
    assert_eq!((update.state, update.reason), (TaskState::Failed, Reason::MemoryLimit));
    assert!(update.message.contains("119MiB"), "{}", update.message);
    w.empty();
    // Others share the memory of a shared executor: nobody's own limit was reached.
    w.launch_cold(1, "c", 3, 3);
    w.event(Event::ExecutorExited { executor: executor(3), cause: "out of memory".into(), out_of_memory: true });
    w.ended(1, "c");
    assert_eq!(w.update().reason, Reason::ExecutorTerminated);
}

#[test]
fn the_operator_decides_for_a_role_or_for_all() {
    let roles = BTreeSet::from([Role::default()]);
    for policy in [ProcessPolicy { everything: false, roles }, ProcessPolicy { everything: true, roles: BTreeSet::new() }] {
        let mut w = World::new(Parameters { process: policy, ..no_pool() });
        w.event(launch(1, "a"));
        w.next();
        w.event(prepared(1));
        w.starts(1, ExecutorKind::Pooled);
    }
    let roles = BTreeSet::from([Role::new("other").unwrap()]);
    let mut w = World::new(Parameters { process: ProcessPolicy { everything: false, roles }, ..no_pool() });
    w.launch_cold(1, "a", 1, 1);
}

#[test]
fn a_task_with_ports_gets_an_executor_that_is_started_for_it() {
    let total = Resources { ports: "31000-31009".parse().unwrap(), ..parameters().total };
    let mut w = World::new(Parameters { total, ..no_pool() });
    let wanted = Resources { ports: "31001".parse().unwrap(), ..Resources::new(MilliCpus(1_000), Bytes::mib(1)) };
    w.event(launch_with(1, "server", wanted.clone(), spec()));
    w.next();
    w.event(prepared(1));
    let Message::StartExecutor { kind, framework: whose, grant: Some(grant), slots: 1, .. } = w.next() else { panic!("no executor") };
    assert_eq!((kind, whose), (ExecutorKind::Networked, Some(framework(1))));
    assert_eq!((grant.run, &grant.ports, &grant.role), (Run(1), &wanted.ports, &Role::default()));
    // Others do not get it, and when nobody wants it any more it goes.
    w.launched_own(1, "other", 2);
    w.starts(2, ExecutorKind::Pooled);
    w.event(kill(1, "server"));
    w.ended(1, "server");
    w.update();
    w.event(up(1));
    w.discarded(1);
    w.event(launch_with(1, "second", wanted, spec()));
    w.next();
    w.event(prepared(3));
    w.starts(3, ExecutorKind::Networked);
    w.event(up(3));
    w.bound(3, 1, "second", 3);
    w.runs(3, 3);
    w.event(outcome(3, 3, Some(0), None));
    w.discarded(3);
}

#[test]
fn ready_executors_that_nobody_wants_any_more_make_room_for_one_with_ports() {
    let total = Resources { ports: "31000-31009".parse().unwrap(), ..parameters().total };
    let mut w = World::new(Parameters { total, most_processes: 2, ..no_pool() });
    for (run, name) in [(1, "a"), (2, "b")] {
        w.launched_own(1, name, run);
        w.starts(number(run), ExecutorKind::Pooled);
    }
    for name in ["a", "b"] {
        w.event(kill(1, name));
        w.ended(1, name);
        w.update();
    }
    w.event(up(1));
    w.event(up(2));
    w.silent();
    let wanted = Resources { ports: "31001".parse().unwrap(), ..Resources::new(MilliCpus(1_000), Bytes::mib(1)) };
    w.event(launch_with(1, "server", wanted, spec()));
    w.next();
    w.event(prepared(3));
    w.discarded(1);
    // One is enough.
    w.event(Event::Tick);
    w.silent();
    w.event(exited(1, "killed by signal 9"));
    w.starts(3, ExecutorKind::Networked);
    w.event(up(3));
    w.bound(3, 1, "server", 3);
}

#[test]
fn ports_that_other_programs_have_are_named_in_the_status() {
    let total = Resources { ports: "31000-31009".parse().unwrap(), ..parameters().total };
    let mut w = World::new(Parameters { total, ..no_pool() });
    let wanted = Resources { ports: "31001-31002".parse().unwrap(), ..Resources::new(MilliCpus(1_000), Bytes::mib(1)) };
    w.event(launch_with(1, "server", wanted, spec()));
    w.next();
    w.event(prepared(1));
    w.starts(1, ExecutorKind::Networked);
    let in_use: PortSet = "31002".parse().unwrap();
    let failure = Failure { ports_in_use: in_use.clone(), ..Failure::new(Reason::LaunchFailed, "in use") };
    w.event(Event::ExecutorFailed { executor: executor(1), failure });
    w.ended(1, "server");
    let update = w.update();
    assert_eq!((update.state, update.reason, update.ports_in_use), (TaskState::Dropped, Reason::LaunchFailed, in_use));
    w.silent();
}

fn report(e: u32, run: u64, finished: std::ops::Range<u64>) -> Event {
    let report = ArrayReport { finished: ItemSet::range(finished.start, finished.end), ..ArrayReport::default() };
    from(e, FromExecutor::Report { run: Run(run), report })
}

impl World {
    /// A part's executor is bound, loads and starts one item in this lane.
    fn item_starts(&mut self, e: u32, run: u64, lane: u32, item: u64) {
        self.bound(e, 1, "p", run);
        self.item_loads(e, run, lane, item);
    }

    fn item_loads(&mut self, e: u32, run: u64, lane: u32, item: u64) {
        self.event(loaded(e, 1));
        assert!(matches!(self.next(), Message::SetSlotCpus { slot: 0, .. }));
        let ToExecutor::StartArray { run: r, slots, segments, .. } = self.told(e) else { panic!("no array") };
        assert_eq!((r, slots, segments), (Run(run), vec![0], vec![lane]));
        let ToExecutor::Lease { items, .. } = self.told(e) else { panic!("no lease") };
        assert_eq!(items, ItemSet::range(item, item + 1));
    }
}

#[test]
fn each_item_of_a_part_has_an_executor_of_its_own() {
    let mut w = World::new(no_pool());
    w.event(part_with(1, "p", 2, 3, 3, false, own()));
    w.next();
    w.event(prepared(1));
    w.starts(1, ExecutorKind::Pooled);
    w.starts(2, ExecutorKind::Pooled);
    assert_eq!(w.update().state, TaskState::Running);
    w.event(up(1));
    w.item_starts(1, 1, 0, 0);
    w.event(up(2));
    w.item_starts(2, 1, 1, 1);
    w.silent();
    // The second says what it cannot know, then what it can.
    w.event(report(2, 1, 0..3));
    w.discarded(2);
    w.starts(3, ExecutorKind::Pooled);
    assert_eq!(w.agent.counters().executor_ignored, 2);
    w.event(up(3));
    w.item_starts(3, 1, 1, 2);
    // Its executor dies: this item fails, and no other. Its lane has nothing left to do and goes.
    w.event(exited(1, "killed by signal 9"));
    let delta = w.update().array.unwrap();
    assert_eq!((delta.finished, delta.failed.len(), delta.slots), (ItemSet::range(1, 2), 1, 1));
    assert_eq!((delta.failed[0].item, delta.failed[0].reason), (0, Reason::ExecutorTerminated));
    assert_eq!(*w.agent.held(), Resources::new(MilliCpus(1_000), Bytes::mib(1)));
    w.event(report(3, 1, 2..3));
    w.discarded(3);
    w.ended(1, "p");
    let last = w.update();
    assert_eq!((last.state, last.array.unwrap().finished), (TaskState::Finished, ItemSet::range(2, 3)));
    w.empty();
    assert!(w.agent.pool.executors.values().all(|e| matches!(e.phase, Phase::Stopping(_))));
}

#[test]
fn a_kill_returns_what_has_not_begun() {
    let mut w = World::new(no_pool());
    w.event(part_with(1, "p", 2, 10, 10, true, own()));
    w.next();
    w.event(prepared(1));
    w.next();
    w.next();
    w.update();
    w.event(up(1));
    w.item_starts(1, 1, 0, 0);
    w.event(up(2));
    w.bound(2, 1, "p", 1);
    w.event(kill(1, "p"));
    w.discarded(2);
    assert!(matches!(w.told(1), ToExecutor::Kill { grace: DurationMs(5_000), .. }));
    let delta = w.update().array.unwrap();
    assert_eq!((delta.returned, delta.slots), (ItemSet::range(1, 10), 1));
    let failure = Some(Failure::new(Reason::KilledByRequest, "killed"));
    let failed = vec![ItemFailure { item: 0, exit_code: None, failure }];
    w.event(from(1, FromExecutor::Report { run: Run(1), report: ArrayReport { failed, ..ArrayReport::default() } }));
    w.discarded(1);
    w.ended(1, "p");
    let last = w.update();
    assert_eq!((last.state, last.array.unwrap().failed[0].state), (TaskState::Killed, TaskState::Killed));
    w.empty();
}

#[test]
fn code_that_cannot_be_loaded_ends_the_part() {
    let mut w = World::new(no_pool());
    w.event(part_with(1, "p", 2, 10, 10, false, own()));
    w.next();
    w.event(prepared(1));
    w.next();
    w.next();
    w.update();
    w.event(up(1));
    w.bound(1, 1, "p", 1);
    let failure = Some(Failure::new(Reason::MissingImport, "no"));
    w.event(from(1, FromExecutor::ModuleLoaded { module: ModuleId(1), failure }));
    w.discarded(1);
    w.ended(1, "p");
    let last = w.update();
    assert_eq!((last.state, last.reason), (TaskState::Failed, Reason::MissingImport));
    assert_eq!(last.array.unwrap().returned, ItemSet::range(0, 10));
    w.empty();
}

#[test]
fn an_open_part_goes_on_when_items_come() {
    let mut w = World::new(no_pool());
    w.event(part_with(1, "p", 1, 1, 10, true, own()));
    w.next();
    w.event(prepared(1));
    w.next();
    w.update();
    w.event(up(1));
    w.item_starts(1, 1, 0, 0);
    w.event(report(1, 1, 0..1));
    w.discarded(1);
    w.update();
    w.event(exited(1, "killed"));
    w.silent();
    w.event(assign(1, "p", 1, 2, false));
    w.starts(2, ExecutorKind::Pooled);
    w.event(up(2));
    w.item_starts(2, 1, 0, 1);
    w.event(report(2, 1, 1..2));
    w.discarded(2);
    w.ended(1, "p");
    assert_eq!(w.update().state, TaskState::Finished);
    w.empty();
}

#[test]
fn a_throttled_guest_gets_the_cpu_to_be_stopped() {
    let mut w = World::new(no_pool());
    for (e, spec) in [(1, own()), (2, spec())] {
        let run = u64::from(e);
        let name = format!("t{e}");
        w.event(launch_with(1, &name, Resources::new(MilliCpus(10), Bytes::mib(1)), spec));
        w.next();
        w.event(prepared(run));
        w.next();
        w.event(Event::ExecutorStarted { executor: executor(e), slots: if e == 1 { 1 } else { 4 }, cpu_us: None });
        w.said.clear();
        w.event(loaded(e, 1));
        w.said.clear();
        w.event(started(e, run));
        w.update();
        w.event(kill(1, &name));
        assert!(matches!(w.told(e), ToExecutor::Kill { .. }));
        w.update();
        w.after_ms(4_899);
        w.silent();
        w.after_ms(1);
        let raised = Message::SetSlotCpus { executor: executor(e), slot: 0, cpus: MilliCpus(1_000) };
        assert_eq!(w.next(), raised);
        w.after_ms(100);
        w.silent();
    }
}
