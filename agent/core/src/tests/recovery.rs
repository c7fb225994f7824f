//! The agent's process dies and comes back: what was told stays told, what never arrived is placed again, and executors go on.

use super::fake::*;
use crate::{ArrayReport, Event, ExecutorKind, Failure, FromExecutor, HeldPart, Message, ModuleId, Parameters, Record, Run, ToExecutor};
use smalti_types::protocol::AgentCommand;
use smalti_types::*;

fn back(e: u32, slots: u32) -> Event {
    Event::ExecutorBack { executor: executor(e), slots }
}

fn holds(e: u32, modules: &[u32], tasks: &[u64], parts: Vec<HeldPart>) -> Event {
    let modules = modules.iter().copied().map(ModuleId).collect();
    from(e, FromExecutor::Holds { modules, tasks: tasks.iter().copied().map(Run).collect(), parts })
}

fn held(run: u64, first: u64, end: u64, slots: &[u32]) -> HeldPart {
    HeldPart { run: Run(run), items: ItemSet::range(first, end), slots: slots.to_vec() }
}

fn finished(run: u64) -> FromExecutor {
    FromExecutor::Outcome { run: Run(run), exit_code: Some(0), failure: None, usage: Usage::default(), result: None }
}

fn report(run: u64, first: u64, end: u64) -> FromExecutor {
    // Long ones: they are not leased ahead.
    let usage = Usage { wall_us: (end - first) * 20_000, ..Usage::default() };
    let report = ArrayReport { finished: ItemSet::range(first, end), usage, ..ArrayReport::default() };
    FromExecutor::Report { run: Run(run), report }
}

/// What an executor of class `instance` hears first when it was found again.
fn taken_up(w: &mut World, e: u32, modules: &[u32]) {
    assert!(matches!(w.next(), Message::SetExecutorMemory { executor: id, .. } if id == executor(e)));
    for module in modules {
        assert_eq!(w.told(e), ToExecutor::UnloadModule { module: ModuleId(*module) });
    }
}

#[test]
fn a_running_task_goes_on_and_ends_once() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.restart(true);
    w.silent();
    assert_eq!(w.agent.to_find().cloned().collect::<Vec<_>>(), [executor(1)]);
    let (running, unacknowledged) = w.register();
    assert_eq!((running[0].state, unacknowledged), (TaskState::Running, vec![]));
    w.event(back(1, 4));
    w.event(holds(1, &[1], &[1], vec![]));
    taken_up(&mut w, 1, &[1]);
    w.silent();
    w.event(numbered(1, 1, finished(1)));
    assert_eq!(w.told(1), ToExecutor::Confirm { number: 1 });
    w.ended(1, "a");
    let update = w.update();
    assert_eq!((update.state, update.key.seq), (TaskState::Finished, 2));
    w.empty();
    // Numbers are never given twice: neither runs nor executors nor modules.
    w.event(launch(1, "b"));
    assert!(matches!(w.next(), Message::Prepare { run: Run(2), keep: false, .. }));
    w.event(prepared(2));
    assert!(matches!(w.told(1), ToExecutor::LoadModule { module: ModuleId(2), .. }));
}

#[test]
fn an_outcome_that_was_said_while_nobody_listened_counts_once() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.event(numbered(1, 1, finished(1)));
    // The record is durable; the agent dies before it told anybody.
    w.said.clear();
    w.restart(true);
    let (running, unacknowledged) = w.register();
    assert!(running.is_empty());
    assert_eq!((unacknowledged.len(), unacknowledged[0].state), (1, TaskState::Finished));
    w.event(back(1, 4));
    // Not confirmed, so it comes again.
    w.event(numbered(1, 1, finished(1)));
    w.event(holds(1, &[1], &[], vec![]));
    taken_up(&mut w, 1, &[1]);
    w.silent();
    assert_eq!(w.agent.counters().executor_ignored, 0, "a repeat is no lie");
    w.event(Event::Command(AgentCommand::Acknowledge(unacknowledged[0].key.clone())));
    w.empty();
}

#[test]
fn a_start_that_never_arrived_is_made_again() {
    let mut w = World::new(parameters());
    w.launch_cold(1, "a", 1, 1);
    w.restart(true);
    w.register();
    w.event(back(1, 4));
    w.event(holds(1, &[], &[], vec![]));
    taken_up(&mut w, 1, &[]);
    assert!(matches!(w.next(), Message::Prepare { run: Run(1), keep: false, .. }));
    w.silent();
    w.event(prepared(1));
    assert!(matches!(w.told(1), ToExecutor::LoadModule { module: ModuleId(2), run: Run(1), .. }));
    w.event(numbered(1, 1, FromExecutor::ModuleLoaded { module: ModuleId(2), failure: None }));
    assert_eq!(w.told(1), ToExecutor::Confirm { number: 1 });
    assert!(matches!(w.next(), Message::SetSlotCpus { .. }));
    assert!(matches!(w.told(1), ToExecutor::StartTask { run: Run(1), .. }));
    w.silent();
}

#[test]
fn code_that_a_task_of_its_own_was_to_start_with_and_that_cannot_be_loaded_ends_it() {
    let mut w = World::new(Parameters { pool: 0, ..parameters() });
    w.event(launch_own(1, "a"));
    w.event(prepared(1));
    w.event(Event::ExecutorStarted { executor: executor(1), slots: 1, cpu_us: None });
    assert!(matches!(w.said.back(), Some(Message::ToExecutor { message: ToExecutor::StartTask { .. }, .. })));
    w.said.clear();
    w.restart(true);
    w.register();
    w.event(back(1, 1));
    let failure = Some(Failure::new(Reason::MissingImport, "no"));
    w.event(numbered(1, 1, FromExecutor::ModuleLoaded { module: ModuleId(1), failure }));
    let said: Vec<Message> = w.said.drain(..).collect();
    let update = said.iter().find_map(|m| if let Message::Updates(u) = m { u.last() } else { None }).expect("an update");
    assert_eq!((update.state, update.reason), (TaskState::Failed, Reason::MissingImport));
}

#[test]
fn code_that_was_on_its_way_is_unloaded() {
    let mut w = World::new(parameters());
    w.event(launch(1, "a"));
    w.event(prepared(1));
    w.event(Event::ExecutorStarted { executor: executor(1), slots: 4, cpu_us: None });
    assert!(matches!(w.said.back(), Some(Message::ToExecutor { message: ToExecutor::LoadModule { module: ModuleId(1), .. }, .. })));
    w.said.clear();
    w.restart(true);
    assert!(matches!(w.next(), Message::Prepare { run: Run(1), .. }), "it was in no executor yet");
    w.event(back(1, 4));
    w.event(holds(1, &[], &[], vec![]));
    taken_up(&mut w, 1, &[]);
    w.event(numbered(1, 1, FromExecutor::ModuleLoaded { module: ModuleId(1), failure: None }));
    assert_eq!(w.told(1), ToExecutor::Confirm { number: 1 });
    assert_eq!(w.told(1), ToExecutor::UnloadModule { module: ModuleId(1) });
    w.silent();
    assert_eq!(w.agent.counters().executor_ignored, 0);
}

#[test]
fn a_lease_that_never_arrived_is_made_again_and_the_rest_goes_on() {
    let mut w = World::new(parameters());
    w.event(part(1, "a", 2, 10, 10, false));
    w.event(prepared(1));
    w.event(Event::ExecutorStarted { executor: executor(1), slots: 4, cpu_us: None });
    w.event(loaded(1, 1));
    let leased: Vec<_> = w.said.drain(..).filter(|m| matches!(m, Message::ToExecutor { message: ToExecutor::Lease { .. }, .. })).collect();
    assert_eq!(leased.len(), 1, "items 0 and 1");
    w.event(numbered(1, 1, report(1, 0, 1)));
    assert_eq!(w.told(1), ToExecutor::Confirm { number: 1 });
    assert!(matches!(w.told(1), ToExecutor::Lease { items, .. } if items == ItemSet::range(2, 3)));
    w.said.clear();
    w.restart(true);
    let (running, unacknowledged) = w.register();
    assert_eq!((running.len(), unacknowledged.len()), (1, 1), "{unacknowledged:?}");
    w.said.clear();
    w.event(back(1, 4));
    w.event(numbered(1, 1, report(1, 0, 1)));
    w.event(numbered(1, 2, report(1, 1, 2)));
    assert_eq!(w.told(1), ToExecutor::Confirm { number: 2 });
    // Item 2 was leased and is not there.
    w.said.clear();
    w.event(holds(1, &[1], &[], vec![held(1, 2, 2, &[0, 1])]));
    taken_up(&mut w, 1, &[1]);
    let items = std::iter::from_fn(|| w.said.pop_front()).filter_map(|m| match m {
        Message::ToExecutor { message: ToExecutor::Lease { items, .. }, .. } => Some(items),
        _ => None,
    });
    assert_eq!(items.collect::<Vec<_>>(), [ItemSet::range(2, 4)]);
    for number in 3..11 {
        w.event(numbered(1, number, report(1, number - 1, number)));
    }
    let ended = FromExecutor::Ended { run: Run(1), slots: vec![0, 1] };
    w.event(numbered(1, 11, ended));
    assert!(w.said.iter().any(|m| matches!(m, Message::Ended { .. })), "{:#?}", w.said);
}

#[test]
fn what_the_executor_has_and_nobody_knows_is_ended() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.restart(true);
    w.event(back(1, 4));
    w.event(holds(1, &[], &[1, 77], vec![held(78, 0, 3, &[2])]));
    taken_up(&mut w, 1, &[]);
    for run in [77, 78] {
        assert_eq!(w.told(1), ToExecutor::Kill { run: Run(run), grace: DurationMs(0) });
    }
    w.silent();
}

#[test]
fn a_gap_in_what_it_says_ends_the_executor() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.event(numbered(1, 2, finished(1)));
    assert!(matches!(w.next(), Message::KillExecutor { .. }));
    w.silent();
}

#[test]
fn an_executor_that_died_with_the_agent_ends_its_tasks_and_the_next_gets_a_new_one() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.restart(true);
    w.register();
    w.event(Event::ExecutorExited { executor: executor(1), cause: "signal 9".into(), out_of_memory: false });
    w.ended(1, "a");
    let update = w.update();
    assert_eq!((update.state, update.reason), (TaskState::Failed, Reason::ExecutorTerminated));
    w.event(launch(1, "b"));
    w.event(prepared(2));
    assert!(matches!(w.said.pop_back(), Some(Message::StartExecutor { executor: id, .. }) if id == executor(2)));
}

#[test]
fn after_a_boot_only_what_was_not_acknowledged_is_left() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.event(launch(1, "b"));
    w.event(prepared(2));
    w.event(started(1, 2));
    w.event(outcome(1, 2, Some(0), None));
    w.said.clear();
    w.restart(false);
    w.silent();
    assert_eq!(w.agent.to_find().count(), 0);
    let (running, unacknowledged) = w.register();
    assert!(running.is_empty() && w.agent.held().is_empty());
    assert_eq!(unacknowledged.iter().map(|u| u.state).collect::<Vec<_>>(), [TaskState::Running, TaskState::Finished]);
    // A launch that was seen stays seen.
    w.event(launch(1, "a"));
    w.silent();
}

#[test]
fn a_kill_is_said_again_and_its_deadline_stays() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.event(kill(1, "a"));
    w.said.clear();
    w.restart(true);
    w.event(back(1, 4));
    w.event(holds(1, &[], &[1], vec![]));
    taken_up(&mut w, 1, &[]);
    assert_eq!(w.told(1), ToExecutor::Kill { run: Run(1), grace: DurationMs(5_000) });
    w.after_ms(16_000);
    assert!(w.said.iter().any(|m| matches!(m, Message::KillExecutor { .. })), "{:#?}", w.said);
}

#[test]
fn a_part_of_class_process_goes_on_with_its_items_and_prepares_for_the_next() {
    let mut w = World::new(crate::Parameters { pool: 0, ..parameters() });
    w.event(part_with(1, "a", 1, 3, 3, false, own()));
    w.event(prepared(1));
    assert!(w.said.iter().any(|m| matches!(m, Message::StartExecutor { kind: ExecutorKind::Pooled, .. })));
    w.event(Event::ExecutorStarted { executor: executor(1), slots: 1, cpu_us: None });
    w.event(loaded(1, 1));
    w.said.clear();
    w.restart(true);
    assert!(matches!(w.next(), Message::Prepare { run: Run(1), keep: true, array: true, .. }));
    w.silent();
    w.event(back(1, 1));
    w.event(holds(1, &[1], &[], vec![held(1, 0, 1, &[0])]));
    taken_up(&mut w, 1, &[1]);
    w.event(numbered(1, 1, report(1, 0, 1)));
    assert_eq!(w.told(1), ToExecutor::Confirm { number: 1 });
    assert_eq!(w.next(), Message::DiscardExecutor { executor: executor(1) });
    w.silent();
    w.event(exited(1, "exit code 0"));
    w.silent();
    w.event(prepared(1));
    assert!(matches!(w.next(), Message::StartExecutor { executor: id, .. } if id == executor(2)));
}

#[test]
fn an_item_whose_executor_has_not_begun_goes_to_the_next() {
    let mut w = World::new(crate::Parameters { pool: 0, ..parameters() });
    w.event(part_with(1, "a", 1, 1, 1, false, own()));
    w.event(prepared(1));
    w.event(Event::ExecutorStarted { executor: executor(1), slots: 1, cpu_us: None });
    w.said.clear();
    // Bound and loading.
    w.restart(true);
    assert!(matches!(w.next(), Message::Prepare { keep: true, .. }));
    w.event(back(1, 1));
    w.event(holds(1, &[], &[], vec![]));
    taken_up(&mut w, 1, &[]);
    assert_eq!(w.next(), Message::DiscardExecutor { executor: executor(1) });
    w.event(prepared(1));
    assert!(matches!(w.next(), Message::StartExecutor { executor: id, .. } if id == executor(2)));
}

#[test]
fn nothing_is_written_when_nothing_changes() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    let before = w.records.len();
    w.after_ms(100);
    w.after_ms(100);
    w.event(from(1, FromExecutor::Progress { run: Run(1), permille: 10, text: "x".into() }));
    w.said.clear();
    // Progress is an update like any other.
    assert!(matches!(w.records[before..], [Record::Update { .. }]), "{:?}", &w.records[before..]);
}

#[test]
fn exclusive_tasks_start_with_a_lease_and_every_renewal_reaches_their_executor() {
    let mut w = World::new(parameters());
    let spec = TaskSpec { exclusive: true, ..spec() };
    w.event(launch_with(1, "a", Resources::new(MilliCpus(1_000), Bytes::mib(1)), spec));
    assert!(w.agent.wants_lease());
    w.event(prepared(1));
    w.event(Event::ExecutorStarted { executor: executor(1), slots: 4, cpu_us: None });
    w.said.clear();
    w.event(loaded(1, 1));
    w.silent();
    let lease = |asked| Event::Command(AgentCommand::Lease { asked: BootTime(asked), lease: DurationMs(15_000) });
    w.event(lease(7));
    assert!(matches!(w.next(), Message::SetSlotCpus { .. }));
    assert!(matches!(w.told(1), ToExecutor::StartTask { lease_until: Some(BootTime(15_000_007)), .. }));
    w.event(started(1, 1));
    assert_eq!(w.update().state, TaskState::Running);
    w.event(lease(10));
    assert_eq!(w.told(1), ToExecutor::Renew { run: Run(1), until: BootTime(15_000_010) });
    w.event(lease(9));
    w.silent();
    w.restart(true);
    assert!(w.agent.wants_lease());
    w.event(back(1, 4));
    w.event(holds(1, &[], &[1], vec![]));
    taken_up(&mut w, 1, &[]);
    w.event(lease(20));
    assert_eq!(w.told(1), ToExecutor::Renew { run: Run(1), until: BootTime(15_000_020) });
    w.register();
    w.event(outcome(1, 1, None, Some(Failure::new(Reason::LeaseExpired, "its lease ran out"))));
    w.ended(1, "a");
    assert_eq!(w.update().reason, Reason::LeaseExpired);
    assert!(!w.agent.wants_lease());
    w.empty();
}

/// The end of the exclusive attempt `a`, which must not begin any more.
fn dropped(w: &mut World) {
    w.said.retain(|m| matches!(m, Message::Ended { .. }));
    w.ended(1, "a");
    w.silent();
    let (running, unacknowledged) = w.register();
    let last = unacknowledged.last().unwrap();
    assert!(running.is_empty());
    assert_eq!((last.state, last.reason), (TaskState::Dropped, Reason::LeaseExpired));
    w.event(Event::Command(AgentCommand::Lease { asked: BootTime(7), lease: DurationMs(15_000) }));
    assert!(!w.said.iter().any(|m| matches!(m, Message::ToExecutor { message: ToExecutor::StartTask { .. }, .. })));
    assert!(!w.agent.wants_lease());
}

#[test]
fn an_exclusive_task_that_has_not_begun_ends_with_the_masters_connection_and_with_the_agent() {
    let launched = || {
        let mut w = World::new(parameters());
        let spec = TaskSpec { exclusive: true, ..spec() };
        w.event(launch_with(1, "a", Resources::new(MilliCpus(1_000), Bytes::mib(1)), spec));
        w
    };
    let ready = || {
        let mut w = launched();
        w.event(prepared(1));
        w.event(Event::ExecutorStarted { executor: executor(1), slots: 4, cpu_us: None });
        w.event(loaded(1, 1));
        w
    };
    let mut w = launched();
    w.said.clear();
    w.event(Event::MasterDisconnected);
    assert_eq!(w.next(), Message::CancelPrepare { run: Run(1) });
    dropped(&mut w);
    let mut w = ready();
    w.said.clear();
    w.event(Event::MasterDisconnected);
    dropped(&mut w);
    let mut w = ready();
    w.said.clear();
    w.restart(true);
    dropped(&mut w);
    // Told to start, and the executor has never heard of it.
    let mut w = ready();
    w.event(Event::Command(AgentCommand::Lease { asked: BootTime(1), lease: DurationMs(15_000) }));
    w.restart(true);
    w.event(back(1, 4));
    w.said.clear();
    w.event(holds(1, &[], &[], vec![]));
    dropped(&mut w);
}

#[test]
fn an_exclusive_array_and_a_launch_without_room_are_refused() {
    let mut w = World::new(parameters());
    w.event(part_with(1, "a", 1, 1, 1, false, TaskSpec { exclusive: true, ..spec() }));
    w.ended(1, "a");
    let update = w.update();
    assert_eq!((update.state, update.reason), (TaskState::Error, Reason::InvalidTask));
    w.event(Event::Room(false));
    w.event(launch(1, "b"));
    w.ended(1, "b");
    let update = w.update();
    assert_eq!((update.state, update.reason), (TaskState::Dropped, Reason::LaunchFailed));
    assert!(update.message.contains("takes no tasks until there is room"), "{}", update.message);
    w.event(Event::Room(true));
    w.event(launch(1, "c"));
    assert!(matches!(w.next(), Message::Prepare { .. }));
}

#[test]
fn executors_that_die_again_and_again_are_started_later_each_time() {
    let mut w = World::new(parameters());
    w.run_cold(1, "t1", 1, 1);
    w.event(exited(1, "signal 11"));
    w.said.clear();
    // The first loss costs nothing.
    w.launch_cold(1, "t2", 2, 2);
    w.event(exited(2, "signal 11"));
    w.said.clear();
    w.event(launch(1, "t3"));
    w.event(prepared(3));
    assert!(matches!(w.next(), Message::Prepare { .. }));
    w.silent();
    w.after_ms(900);
    w.silent();
    let (framework_id, loss) = w.agent.losses().next().unwrap();
    assert_eq!((framework_id, loss.count, loss.cause.as_str()), (&framework(1), 2, "signal 11"));
    w.after_ms(100);
    assert!(matches!(w.next(), Message::StartExecutor { executor: id, .. } if id == executor(3)));
}
