//! A kill works in every state, and a repeated one does no harm.

use super::fake::*;
use crate::{Event, Failure, Message, ToExecutor};
use smalti_types::protocol::AgentCommand;
use smalti_types::*;

fn killed(w: &mut World, name: &str) {
    w.ended(1, name);
    let update = w.update();
    assert_eq!((update.state, update.reason), (TaskState::Killed, Reason::KilledByRequest));
    w.event(kill(1, name));
    w.empty();
}

#[test]
fn while_it_is_being_fetched() {
    let mut w = World::new(parameters());
    w.event(launch(1, "a"));
    w.next();
    w.event(kill(1, "a"));
    assert_eq!(w.next(), Message::CancelPrepare { run: crate::Run(1) });
    killed(&mut w, "a");
    w.event(prepared(1));
    w.empty();
}

#[test]
fn while_it_waits_for_an_executor() {
    let mut w = World::new(parameters());
    w.event(launch(1, "a"));
    w.next();
    w.event(prepared(1));
    w.next();
    w.event(kill(1, "a"));
    killed(&mut w, "a");
    w.event(Event::ExecutorStarted { executor: executor(1), slots: 4, cpu_us: None });
    w.empty();
}

#[test]
fn while_its_code_is_loaded() {
    let mut w = World::new(parameters());
    w.event(launch(1, "a"));
    w.next();
    w.event(prepared(1));
    w.next();
    w.event(Event::ExecutorStarted { executor: executor(1), slots: 4, cpu_us: None });
    w.told(1);
    w.event(kill(1, "a"));
    killed(&mut w, "a");
    w.event(loaded(1, 1));
    w.empty();
}

#[test]
fn while_it_runs_with_its_grace_and_again_with_less() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.event(kill(1, "a"));
    assert!(matches!(w.told(1), ToExecutor::Kill { grace: DurationMs(5_000), .. }));
    assert_eq!(w.update().state, TaskState::Killing);
    w.event(kill(1, "a"));
    w.silent();
    w.event(Event::Command(AgentCommand::Kill { task: key(1, "a"), grace: Some(DurationMs(10)) }));
    assert!(matches!(w.told(1), ToExecutor::Kill { grace: DurationMs(10), .. }));
    w.event(outcome(1, 1, None, Some(Failure::new(Reason::KilledByRequest, "stopped"))));
    killed(&mut w, "a");
}

#[test]
fn an_executor_that_does_not_stop_a_task_is_ended() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.event(kill(1, "a"));
    w.next();
    w.update();
    w.after_ms(14_999);
    w.silent();
    w.after_ms(1);
    assert!(matches!(w.next(), Message::KillExecutor { .. }));
    w.after_ms(5_000);
    w.silent();
    w.event(exited(1, "killed by signal 9"));
    killed(&mut w, "a");
}

#[test]
fn an_executor_that_forgets_a_time_limit_is_ended() {
    let mut w = World::new(parameters());
    let mut limited = spec();
    limited.limits.timeout = Some(DurationMs(1_000));
    w.run_cold(1, "first", 1, 1);
    w.event(launch_with(1, "a", Resources::new(MilliCpus(1_000), Bytes::mib(1)), limited));
    w.next();
    w.event(prepared(2));
    w.next();
    w.next();
    w.event(started(1, 2));
    w.update();
    w.after_ms(35_999);
    w.silent();
    w.after_ms(1);
    assert!(matches!(w.next(), Message::KillExecutor { why, .. } if why.contains("time limit")));
}

#[test]
fn a_part_gives_back_what_has_not_started() {
    let mut w = World::new(parameters());
    w.event(part(1, "p", 2, 10, 10, true));
    w.next();
    w.event(kill(1, "p"));
    assert!(matches!(w.next(), Message::CancelPrepare { .. }));
    w.ended(1, "p");
    let update = w.update();
    assert_eq!(update.state, TaskState::Killed);
    let delta = update.array.unwrap();
    assert_eq!((delta.returned, delta.outstanding, delta.slots), (ItemSet::range(0, 10), 0, 0));
    w.empty();
}
