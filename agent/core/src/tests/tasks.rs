//! Single tasks from launch to acknowledgement, and what can go wrong on the way.

use super::fake::*;
use crate::{Event, Failure, FromExecutor, Message, Parameters, ToExecutor};
use smalti_types::*;

#[test]
fn a_task_goes_from_launch_to_acknowledged_in_as_few_messages_as_there_are_steps() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.event(outcome(1, 1, Some(0), None));
    w.ended(1, "a");
    let last = w.update();
    assert_eq!((last.state, last.reason, last.exit_code, last.key.seq), (TaskState::Finished, Reason::None, Some(0), 2));
    w.empty();
}

#[test]
fn a_warm_task_needs_neither_executor_nor_code_nor_limits() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.event(outcome(1, 1, Some(0), None));
    w.ended(1, "a");
    w.update();
    w.event(launch(1, "b"));
    assert!(matches!(w.next(), Message::Prepare { .. }));
    w.event(prepared(2));
    assert!(matches!(w.told(1), ToExecutor::StartTask { slot: 0, .. }));
    w.silent();
}

#[test]
fn running_and_terminal_updates_may_travel_together_and_keep_their_order() {
    let mut w = World::new(parameters());
    w.launch_cold(1, "a", 1, 1);
    w.event(started(1, 1));
    let first = w.updates_unacknowledged();
    w.event(outcome(1, 1, Some(3), None));
    w.ended(1, "a");
    let second = w.updates_unacknowledged();
    assert_eq!((first[0].key.seq, first[0].state), (1, TaskState::Running));
    assert_eq!((second[0].key.seq, second[0].state, second[0].reason), (2, TaskState::Failed, Reason::ExitCode));
    w.after_ms(999);
    w.silent();
    w.after_ms(1);
    let again: Vec<u64> = w.updates().iter().map(|u| u.key.seq).collect();
    assert_eq!(again, [1, 2]);
    w.empty();
}

#[test]
fn progress_that_nobody_was_told_comes_with_the_end() {
    let mut w = World::new(parameters());
    w.launch_cold(1, "a", 1, 1);
    w.event(started(1, 1));
    w.updates_unacknowledged();
    w.event(from(1, crate::FromExecutor::Progress { run: crate::Run(1), permille: 1000, text: "done".into() }));
    w.event(outcome(1, 1, Some(0), None));
    w.ended(1, "a");
    let last = w.updates_unacknowledged();
    assert_eq!(last[0].progress, Some((1000, "done".into())), "{last:?}");
    w.after_ms(1_000);
    w.updates();
    w.empty();
}

#[test]
fn how_far_a_transfer_is_is_told_until_it_is_there() {
    let fetching = |permille| Event::Fetching { run: crate::Run(1), permille, text: "fetching it".into() };
    let mut w = World::new(parameters());
    w.event(launch(1, "a"));
    w.next();
    w.event(fetching(250));
    let update = w.update();
    assert_eq!((update.state, update.progress), (TaskState::Staging, Some((250, "fetching it".into()))));
    // What nobody was told by then is of no interest any more, and nobody listens later.
    w.event(fetching(900));
    w.event(prepared(1));
    w.event(fetching(1_000));
    w.event(Event::Fetching { run: crate::Run(7), permille: 0, text: String::new() });
    assert!(matches!(w.next(), Message::StartExecutor { .. }));
    w.after_ms(2_000);
    w.silent();
}

#[test]
fn what_cannot_be_prepared_fails_with_its_reason() {
    for (reason, state) in [(Reason::DigestMismatch, TaskState::Failed), (Reason::LaunchFailed, TaskState::Dropped)] {
        let mut w = World::new(parameters());
        w.event(launch(1, "a"));
        w.next();
        w.event(Event::Prepared { run: crate::Run(1), result: Err(Failure::new(reason, "no")) });
        w.ended(1, "a");
        let update = w.update();
        assert_eq!((update.state, update.reason, update.message.as_str()), (state, reason, "no"));
        w.empty();
    }
}

#[test]
fn nonsense_is_refused_with_words() {
    let mut w = World::new(parameters());
    w.event(launch_with(1, "zero", Resources::default(), spec()));
    w.ended(1, "zero");
    assert_eq!(w.update().reason, Reason::InvalidTask);
    w.event(launch_with(1, "huge", Resources::new(MilliCpus(8_001), Bytes(1)), spec()));
    w.ended(1, "huge");
    let update = w.update();
    assert_eq!((update.state, update.reason), (TaskState::Dropped, Reason::LaunchFailed));
    assert!(update.message.contains("cpus: 8.001 wanted, 8 there"), "{}", update.message);
    let disk = Resources { disk: Bytes(1), ..Resources::new(MilliCpus(10), Bytes(1)) };
    let nowhere = TaskSpec { disk_path: Some("/data".into()), ..spec() };
    let plain = Resources::new(MilliCpus(10), Bytes(1));
    for (name, spec, resources) in [("disk", spec(), disk), ("nowhere", nowhere, plain)] {
        w.event(launch_with(1, name, resources, spec));
        w.ended(1, name);
        let update = w.update();
        assert_eq!((update.state, update.reason), (TaskState::Error, Reason::InvalidTask), "{name}");
    }
    w.empty();
}

#[test]
fn a_disk_is_prepared_for_every_slot_and_counts_as_memory_where_it_lies_there() {
    for in_memory in [false, true] {
        let total = Resources { disk: Bytes::gib(2), ..parameters().total };
        let mut w = World::new(crate::Parameters { total, disk_in_memory: in_memory, ..parameters() });
        let resources = Resources { disk: Bytes::gib(1), ..Resources::new(MilliCpus(10), Bytes(1)) };
        w.event(launch_with(1, "disk", resources, spec()));
        let Message::Prepare { run, disk, slots, .. } = w.next() else { panic!("not prepared") };
        assert_eq!((disk, slots), (Bytes::gib(1), 1));
        w.event(Event::Prepared { run, result: Ok(spec().bundle.digest) });
        let Message::StartExecutor { memory, .. } = w.next() else { panic!("not started") };
        assert_eq!(memory >= Bytes::gib(1), in_memory, "{memory}");
    }
}

#[test]
fn a_launch_is_started_once() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.event(launch(1, "a"));
    w.silent();
    w.event(outcome(1, 1, Some(0), None));
    w.ended(1, "a");
    w.update();
    w.event(launch(1, "a"));
    w.empty();
    assert_eq!(w.agent.counters().master_ignored, 2);
}

#[test]
fn an_executor_that_dies_takes_only_its_own_tasks_with_it() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.run_cold(2, "b", 2, 2);
    w.event(exited(1, "killed by signal 9"));
    w.ended(1, "a");
    let update = w.update();
    assert_eq!((update.key.task.task.as_str(), update.state, update.reason), ("a", TaskState::Failed, Reason::ExecutorTerminated));
    assert!(update.message.contains("signal 9"));
    assert_eq!(w.agent.live(), 1);
    w.event(outcome(2, 2, Some(0), None));
    w.ended(2, "b");
    assert_eq!(w.update().state, TaskState::Finished);
    w.empty();
}

#[test]
fn an_executor_that_cannot_start_drops_those_who_wait_for_it() {
    let mut w = World::new(parameters());
    w.event(launch(1, "a"));
    w.next();
    w.event(prepared(1));
    assert!(matches!(w.next(), Message::StartExecutor { .. }));
    w.event(Event::ExecutorFailed { executor: executor(1), failure: Failure::new(Reason::LaunchFailed, "no such file") });
    w.ended(1, "a");
    let update = w.update();
    assert_eq!((update.state, update.reason), (TaskState::Dropped, Reason::LaunchFailed));
    assert!(update.message.contains("no such file"));
    w.empty();
}

#[test]
fn a_full_executor_is_joined_by_a_second_and_idle_ones_are_stopped() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    for (name, run) in [("b", 2), ("c", 3), ("d", 4)] {
        w.event(launch(1, name));
        w.next();
        w.event(prepared(run));
        assert!(matches!(w.next(), Message::SetSlotCpus { .. }));
        assert!(matches!(w.told(1), ToExecutor::StartTask { .. }));
    }
    w.event(launch(1, "e"));
    w.next();
    w.event(prepared(5));
    assert!(matches!(w.next(), Message::StartExecutor { .. }));
    w.silent();
    w.event(kill(1, "e"));
    w.ended(1, "e");
    w.update();
    w.event(Event::ExecutorStarted { executor: executor(2), slots: 4, cpu_us: None });
    w.after_ms(59_999);
    w.silent();
    w.after_ms(1);
    assert_eq!(w.next(), Message::StopExecutor { executor: executor(2) });
    w.after_ms(9_999);
    w.silent();
    w.after_ms(1);
    assert!(matches!(w.next(), Message::KillExecutor { .. }));
    w.event(exited(2, "killed"));
    w.after_ms(100_000);
    w.silent();
}

#[test]
fn when_there_may_be_no_more_executors_an_idle_one_makes_room() {
    let mut w = World::new(Parameters { most_executors: 1, ..parameters() });
    w.run_cold(1, "a", 1, 1);
    w.event(launch(2, "b"));
    w.next();
    w.event(prepared(2));
    w.silent();
    w.event(outcome(1, 1, Some(0), None));
    w.ended(1, "a");
    w.update();
    // The other framework's place is looked for when the executor is known to be idle: at the next event about it.
    w.after_ms(60_000);
    assert_eq!(w.next(), Message::StopExecutor { executor: executor(1) });
    w.event(exited(1, "stopped"));
    assert!(matches!(w.next(), Message::StartExecutor { .. }));
    w.silent();
}

#[test]
fn further_executors_are_as_large_as_the_others_together_within_bounds() {
    let total = Resources::new(MilliCpus(100_000), Bytes::gib(8));
    let mut w = World::new(Parameters { grown_slots: 8, most_slots: 27, total, ..parameters() });
    let mut started = Vec::new();
    for n in 0..28 {
        w.event(launch(1, &format!("t{n}")));
        while let Some(message) = w.said.pop_front() {
            match message {
                Message::Prepare { run, .. } => w.event(prepared(run.0)),
                Message::StartExecutor { executor, slots, .. } => {
                    started.push(slots);
                    w.event(Event::ExecutorStarted { executor, slots, cpu_us: None });
                }
                Message::ToExecutor { executor, message: ToExecutor::LoadModule { module, .. } } => {
                    w.event(Event::Executor { executor, number: 0, message: FromExecutor::ModuleLoaded { module, failure: None } });
                }
                _ => {}
            }
        }
    }
    // 4, then 4 more, 8, 8, and what is left of 27; the last task waits.
    assert_eq!(started, [4, 4, 8, 8, 3]);
    assert_eq!(w.agent.live(), 28);
}

#[test]
fn a_registration_tells_what_runs_and_what_was_not_acknowledged() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.event(launch(1, "b"));
    w.next();
    w.event(prepared(2));
    w.next();
    w.next();
    w.event(Event::MasterDisconnected);
    w.event(started(1, 2));
    w.event(outcome(1, 2, Some(0), None));
    w.ended(1, "b");
    w.silent();
    let (running, unacknowledged) = w.agent.registration(w.now);
    assert_eq!(running.len(), 1);
    assert_eq!((running[0].key.clone(), running[0].state), (key(1, "a"), TaskState::Running));
    assert_eq!(unacknowledged.iter().map(|u| u.state).collect::<Vec<_>>(), [TaskState::Running, TaskState::Finished]);
    w.event(Event::MasterConnected { epoch: MasterEpoch(2) });
    w.silent();
    w.after_ms(1_000);
    assert_eq!(w.updates().len(), 2);
    w.silent();
}
