//! What running tasks have used so far reaches the master: now and then, once per number, and never as more than there was.

use super::fake::*;
use crate::{ArrayReport, Event, FromExecutor, Message, Run};
use smalti_types::*;

fn used(cpu_us: u64) -> Usage {
    Usage { cpu_us, wall_us: cpu_us, ..Usage::default() }
}

fn says(run: u64, cpu_us: u64) -> Event {
    from(1, FromExecutor::Usage { runs: vec![(Run(run), used(cpu_us))] })
}

fn told(w: &mut World) -> Option<Usage> {
    let Some(Message::Updates(updates)) = w.said.pop_front() else { return None };
    w.silent();
    w.event(Event::Command(smalti_types::protocol::AgentCommand::Acknowledge(updates[0].key.clone())));
    assert_eq!(updates[0].state, TaskState::Running);
    Some(updates[0].usage)
}

#[test]
fn a_running_task_says_now_and_then_what_it_has_used() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.after_ms(2_000);
    w.silent();
    w.event(says(1, 100));
    assert_eq!(told(&mut w), Some(used(100)));
    // Too early, and the same again later: the pace holds, and what is no news is not told.
    w.event(says(1, 200));
    w.silent();
    w.after_ms(1_000);
    assert_eq!(told(&mut w), Some(used(200)));
    w.event(says(1, 200));
    w.after_ms(60_000);
    w.silent();
    // Progress carries it too, and a kill.
    w.event(from(1, FromExecutor::Progress { run: Run(1), permille: 5, text: "x".into() }));
    assert_eq!(told(&mut w), Some(used(200)));
    // An old task speaks rarely: a twentieth of its age.
    w.event(says(1, 300));
    w.after_ms(2_000);
    w.silent();
    w.after_ms(1_500);
    assert_eq!(told(&mut w), Some(used(300)));
    w.event(kill(1, "a"));
    w.told(1);
    assert_eq!(w.update().usage, used(300));
    // What is known is kept when the executor dies without another word.
    w.event(Event::ExecutorExited { executor: executor(1), cause: "gone".into(), out_of_memory: false });
    w.ended(1, "a");
    assert_eq!(w.update().usage, used(300));
    w.empty();
}

#[test]
fn nothing_is_said_while_an_update_waits_for_its_acknowledgement() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.after_ms(2_000);
    w.event(says(1, 100));
    assert_eq!(w.updates_unacknowledged()[0].key.seq, 2);
    for n in 0..30 {
        w.event(says(1, 100 + n));
        w.now = Time(w.now.0 + 10_000);
        w.event(Event::Tick);
        w.silent();
    }
}

#[test]
fn running_items_count_until_their_report_does() {
    let mut w = World::new(parameters());
    w.event(part(1, "p", 1, 3, 3, true));
    w.event(prepared(1));
    w.event(Event::ExecutorStarted { executor: executor(1), slots: 4, cpu_us: None });
    w.event(loaded(1, 1));
    w.said.retain(|m| matches!(m, Message::Updates(_)));
    w.updates();
    w.said.clear();
    w.after_ms(10_000);
    w.event(says(1, 5_000_000));
    assert_eq!(told(&mut w).map(|u| u.cpu_us), Some(5_000_000));
    // The item ends with a little more than was said: it is counted once.
    let report = ArrayReport { finished: ItemSet::range(0, 1), usage: used(6_000_000), busy: 1, ..ArrayReport::default() };
    w.event(from(1, FromExecutor::Report { run: Run(1), report }));
    w.after_ms(5_000);
    w.said.retain(|m| matches!(m, Message::Updates(_)));
    assert_eq!(w.update().usage.cpu_us, 6_000_000);
}
