//! An executor may lie: it can harm only what is its own.

use super::fake::*;
use crate::{ArrayReport, Failure, FromExecutor, ItemFailure, Message, Run};
use smalti_types::*;

#[test]
fn statements_about_the_runs_of_others_are_ignored() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.run_cold(2, "b", 2, 2);
    for event in [
        outcome(2, 1, Some(0), None),
        started(2, 1),
        outcome(2, 77, Some(0), None),
        loaded(2, 9),
        outcome(3, 1, Some(0), None),
        from(2, FromExecutor::Report { run: Run(2), report: ArrayReport { finished: ItemSet::range(0, 5), ..ArrayReport::default() } }),
        from(2, FromExecutor::Ended { run: Run(2), slots: vec![0, 1, 2, 3, 4, u32::MAX] }),
        from(2, FromExecutor::Usage { runs: vec![(Run(1), Usage { cpu_us: 1, ..Usage::default() })] }),
        from(2, FromExecutor::Usage { runs: vec![(Run(2), Usage::default()); 5] }),
    ] {
        w.event(event);
        w.silent();
    }
    assert_eq!(w.agent.live(), 2);
    assert_eq!(w.agent.counters().executor_ignored, 9);
}

#[test]
fn a_reason_that_is_not_its_to_give_becomes_a_trap_and_long_messages_are_cut() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.event(outcome(1, 1, None, Some(Failure::new(Reason::AgentRemoved, "ä".repeat(10_000)))));
    w.ended(1, "a");
    let update = w.update();
    assert_eq!((update.state, update.reason), (TaskState::Failed, Reason::Trap));
    assert!(update.message.len() <= status::MAX_MESSAGE_LEN);
    w.empty();
}

#[test]
fn items_that_it_does_not_hold_or_reports_twice_are_not_believed() {
    let mut w = World::new(parameters());
    w.event(part(1, "p", 2, 4, 10, true));
    w.event(prepared(1));
    w.event(crate::Event::ExecutorStarted { executor: executor(1), slots: 4, cpu_us: None });
    w.event(loaded(1, 1));
    w.said.clear();
    let failed = |item| ItemFailure { item, exit_code: Some(1), failure: None };
    let everything = ArrayReport {
        finished: [ItemRange { first: 0, end: u64::MAX }].into_iter().collect(),
        failed: vec![failed(0), failed(3), failed(u64::MAX)],
        returned: ItemSet::range(1, 9),
        results: vec![(0, vec![1]), (0, vec![2]), (1, vec![0; status::MAX_RESULT_LEN + 1]), (3, vec![])],
        usage: Usage { wall_us: u64::MAX, cpu_us: u64::MAX, ..Usage::default() },
        unstarted: u64::MAX,
        busy: u32::MAX,
    };
    for _ in 0..3 {
        w.event(from(1, FromExecutor::Report { run: Run(1), report: everything.clone() }));
    }
    w.after_ms(1_000);
    let told: u64 = w
        .said
        .iter()
        .flat_map(|m| if let Message::Updates(u) = m { u.as_slice() } else { &[] })
        .filter(|u| u.key.seq == 2)
        .filter_map(|u| u.array.as_ref().map(|a| a.finished.len()))
        .next()
        .unwrap_or_default();
    assert_eq!(told, 2, "only what it held: {:#?}", w.said);
    assert!(w.agent.counters().executor_ignored > 3);
}

#[test]
fn a_count_of_lies_has_no_end() {
    let mut w = World::new(parameters());
    w.event(part(1, "p", 2, 2, 2, true));
    w.event(prepared(1));
    w.event(crate::Event::ExecutorStarted { executor: executor(1), slots: 4, cpu_us: None });
    w.event(loaded(1, 1));
    // Found by feeding the core whatever an executor may send: the second statement made the sum overflow.
    let all = ArrayReport { finished: ItemSet::range(0, u64::MAX), ..ArrayReport::default() };
    for n in 1..4 {
        w.event(from(1, FromExecutor::Report { run: Run(1), report: all.clone() }));
        w.event(loaded(1, 77));
        // One report does not make the counter stand still: those after it count, too.
        assert_eq!(w.agent.counters().executor_ignored, n * 1_000_001);
    }
}

#[test]
fn one_that_keeps_lying_is_ended_and_the_others_go_on() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.run_cold(2, "b", 2, 2);
    for _ in 1..crate::trust::MOST_LIES {
        w.event(outcome(2, 1, Some(0), None));
        w.silent();
    }
    w.event(loaded(2, 77));
    assert!(matches!(w.next(), Message::KillExecutor { executor: id, why } if id == executor(2) && why.contains("does not hold")));
    // Nothing that it says on its way out ends it twice, and its own task ends with it.
    for _ in 0..10 {
        w.event(loaded(2, 77));
        w.silent();
    }
    w.event(crate::Event::ExecutorExited { executor: executor(2), cause: "killed by signal 9 (SIGKILL)".into(), out_of_memory: false });
    w.ended(2, "b");
    assert_eq!((w.update().reason, w.agent.live()), (Reason::ExecutorTerminated, 1));
    w.event(outcome(1, 1, Some(0), None));
    w.ended(1, "a");
    assert_eq!(w.update().state, TaskState::Finished);
    w.empty();
}

#[test]
fn it_cannot_have_used_more_than_there_was() {
    let mut w = World::new(parameters());
    w.run_cold(1, "a", 1, 1);
    w.now = Time(w.now.0 + 5_000);
    let usage = Usage { cpu_us: u64::MAX, wall_us: u64::MAX, peak_memory: u64::MAX, fuel: Some(u64::MAX), ..Usage::default() };
    w.event(from(1, FromExecutor::Outcome { run: Run(1), exit_code: Some(0), failure: None, usage, result: None }));
    w.ended(1, "a");
    let update = w.update();
    assert_eq!(update.usage, Usage { cpu_us: 15_000, wall_us: 5_000, peak_memory: 1 << 20, ..Usage::default() });
    w.empty();
}

#[test]
fn a_list_of_slots_longer_than_its_own_is_not_looked_through() {
    let mut w = World::new(parameters());
    w.event(part(1, "p", 2, 2, 2, false));
    w.event(prepared(1));
    w.event(crate::Event::ExecutorStarted { executor: executor(1), slots: 4, cpu_us: None });
    w.event(loaded(1, 1));
    let report = ArrayReport { finished: ItemSet::range(0, 2), ..ArrayReport::default() };
    w.event(from(1, FromExecutor::Report { run: Run(1), report }));
    w.event(from(1, FromExecutor::Ended { run: Run(1), slots: (0..1_000_000).collect() }));
    assert_eq!((w.agent.live(), w.agent.counters().executor_ignored), (1, 1));
    w.event(from(1, FromExecutor::Ended { run: Run(1), slots: vec![0, 1] }));
    assert_eq!(w.agent.live(), 0);
}
