//! Array parts: items leased in small spans, slots given back, results told in few updates.

use super::fake::*;
use crate::{ArrayReport, Event, FromExecutor, ItemFailure, Message, Run, ToExecutor};
use smalti_types::protocol::AgentCommand;
use smalti_types::*;

fn report(e: u32, run: u64, report: ArrayReport) -> Event {
    from(e, FromExecutor::Report { run: Run(run), report })
}

/// Items `first..end` ended; `busy` slots go on with others, and nothing waits.
fn finished(first: u64, end: u64, wall_us: u64, busy: u32) -> ArrayReport {
    let usage = Usage { wall_us: wall_us * (end - first), ..Usage::default() };
    ArrayReport { finished: ItemSet::range(first, end), usage, busy, ..ArrayReport::default() }
}

fn ended(e: u32, run: u64, slots: &[u32]) -> Event {
    from(e, FromExecutor::Ended { run: Run(run), slots: slots.to_vec() })
}

fn lease(w: &mut World) -> ItemSet {
    match w.told(1) {
        ToExecutor::Lease { items, .. } => items,
        other => panic!("expected a lease, not {other:?}"),
    }
}

/// Up to the first lease; the RUNNING update is acknowledged.
fn running_part(w: &mut World, slots: u32, items: u64, total: u64, open: bool) -> ItemSet {
    w.start_part(part(1, "p", slots, items, total, open), slots);
    let first = lease(w);
    let update = w.update();
    assert_eq!(update.state, TaskState::Running);
    assert_eq!(update.array.unwrap().slots, slots);
    w.silent();
    first
}

#[test]
fn long_items_are_never_leased_ahead_and_slots_go_as_they_find_nothing() {
    let mut w = World::new(parameters());
    assert_eq!(running_part(&mut w, 2, 3, 3, false), ItemSet::range(0, 2));
    w.event(report(1, 1, finished(0, 1, 50_000, 1)));
    assert_eq!(lease(&mut w), ItemSet::range(2, 3));
    w.silent();
    // Both slots are busy and nothing waits: they can leave after these items.
    w.event(report(1, 1, ArrayReport { busy: 2, ..ArrayReport::default() }));
    assert!(matches!(w.told(1), ToExecutor::EndArray { slots, .. } if slots == [0, 1]));
    w.event(report(1, 1, finished(1, 2, 50_000, 1)));
    w.now = Time(w.now.0 + 50_000);
    w.event(ended(1, 1, &[1]));
    let delta = w.update().array.unwrap();
    assert_eq!((delta.finished, delta.slots, delta.outstanding), (ItemSet::range(0, 2), 1, 1));
    assert_eq!(*w.agent.held(), Resources::new(MilliCpus(1_000), Bytes::mib(1)));
    w.event(report(1, 1, finished(2, 3, 50_000, 0)));
    w.event(ended(1, 1, &[0]));
    w.ended(1, "p");
    let last = w.update();
    assert_eq!((last.state, last.usage.wall_us), (TaskState::Finished, 150_000));
    w.empty();
}

#[test]
fn a_lease_on_its_way_is_not_lost_to_a_report_that_crosses_it() {
    let mut w = World::new(parameters());
    running_part(&mut w, 2, 2, 10, true);
    w.event(report(1, 1, finished(0, 2, 50_000, 0)));
    w.update();
    w.event(assign(1, "p", 2, 3, false));
    assert_eq!(lease(&mut w), ItemSet::range(2, 3));
    // Made before the lease arrived.
    w.event(report(1, 1, ArrayReport::default()));
    w.silent();
    w.event(report(1, 1, ArrayReport { busy: 1, ..ArrayReport::default() }));
    assert!(matches!(w.told(1), ToExecutor::EndArray { .. }));
}

#[test]
fn slots_that_never_got_an_item_are_asked_about_once() {
    let mut w = World::new(parameters());
    running_part(&mut w, 2, 1, 1, false);
    w.after_ms(100);
    assert_eq!(w.told(1), ToExecutor::Unlease { run: Run(1), most: 0 });
    w.after_ms(100);
    w.silent();
    w.event(report(1, 1, ArrayReport { busy: 1, ..ArrayReport::default() }));
    assert!(matches!(w.told(1), ToExecutor::EndArray { .. }));
}

#[test]
fn an_open_part_asks_for_more_at_once_when_a_slot_has_nothing_to_do() {
    let mut w = World::new(parameters());
    running_part(&mut w, 2, 2, 100, true);
    w.event(report(1, 1, finished(0, 1, 50_000, 1)));
    assert_eq!(w.update().array.unwrap().outstanding, 1);
    w.event(assign(1, "p", 2, 3, true));
    assert_eq!(lease(&mut w), ItemSet::range(2, 3));
    w.event(report(1, 1, ArrayReport { finished: ItemSet::range(1, 3), ..ArrayReport::default() }));
    assert_eq!(w.update().array.unwrap().outstanding, 0);
    w.silent();
    w.event(assign(1, "p", 0, 0, false));
    assert!(matches!(w.told(1), ToExecutor::EndArray { .. }));
    w.event(ended(1, 1, &[0, 1]));
    w.ended(1, "p");
    assert_eq!(w.update().state, TaskState::Finished);
    w.empty();
}

#[test]
fn items_go_back_for_another_part_from_the_queue_first_then_from_the_executor() {
    let mut w = World::new(parameters());
    running_part(&mut w, 2, 10, 10, true);
    w.event(Event::Command(AgentCommand::ReturnItems { task: key(1, "p"), most: 3 }));
    assert_eq!(w.update().array.unwrap().returned, ItemSet::range(7, 10));
    w.event(Event::Command(AgentCommand::ReturnItems { task: key(1, "p"), most: 6 }));
    assert_eq!(w.told(1), ToExecutor::Unlease { run: Run(1), most: 1 });
    assert_eq!(w.update().array.unwrap().returned, ItemSet::range(2, 7));
    w.event(report(1, 1, ArrayReport { returned: ItemSet::range(1, 2), ..ArrayReport::default() }));
    let delta = w.update().array.unwrap();
    assert_eq!((delta.returned, delta.outstanding), (ItemSet::range(1, 2), 1));
}

#[test]
fn an_executor_that_dies_fails_what_it_held_and_gives_back_the_rest() {
    let mut w = World::new(parameters());
    running_part(&mut w, 2, 10, 10, false);
    w.event(exited(1, "killed by signal 9"));
    w.ended(1, "p");
    let update = w.update();
    assert_eq!((update.state, update.reason), (TaskState::Failed, Reason::ExecutorTerminated));
    let delta = update.array.unwrap();
    assert_eq!(delta.failed.iter().map(|f| (f.item, f.reason)).collect::<Vec<_>>(), [0, 1].map(|i| (i, Reason::ExecutorTerminated)));
    assert_eq!(delta.returned, ItemSet::range(2, 10));
    w.empty();
}

#[test]
fn a_running_part_is_killed_slot_by_slot() {
    let mut w = World::new(parameters());
    running_part(&mut w, 2, 10, 10, true);
    w.event(kill(1, "p"));
    assert!(matches!(w.told(1), ToExecutor::Kill { .. }));
    w.event(kill(1, "p"));
    let failed = |item| ItemFailure { item, exit_code: None, failure: Some(crate::Failure::new(Reason::KilledByRequest, "stopped")) };
    w.event(report(1, 1, ArrayReport { failed: vec![failed(0), failed(1)], ..ArrayReport::default() }));
    w.event(ended(1, 1, &[0, 1]));
    w.ended(1, "p");
    let update = w.update();
    assert_eq!((update.state, update.reason), (TaskState::Killed, Reason::KilledByRequest));
    let delta = update.array.unwrap();
    assert_eq!((delta.failed.len(), delta.returned), (2, ItemSet::range(2, 10)));
    assert!(delta.failed.iter().all(|f| f.state == TaskState::Killed));
    w.empty();
}

#[test]
fn a_part_wider_than_an_executor_may_be_gives_the_rest_of_its_slots_back() {
    let mut w = World::new(crate::Parameters { most_slots_per_executor: 4, ..parameters() });
    w.event(part(1, "p", 6, 6, 6, false));
    w.next();
    w.event(prepared(1));
    assert!(matches!(w.next(), Message::StartExecutor { slots: 4, .. }));
    w.event(Event::ExecutorStarted { executor: executor(1), slots: 4, cpu_us: None });
    w.told(1);
    assert_eq!(w.update().array.unwrap().slots, 4);
    assert_eq!(w.agent.held().cpus, MilliCpus(4_000));
}

#[test]
fn items_for_a_part_that_is_gone_or_closed_are_not_lost_in_silence() {
    let mut w = World::new(parameters());
    running_part(&mut w, 1, 1, 10, false);
    w.event(assign(1, "p", 1, 3, true));
    assert_eq!(w.update().array.unwrap().returned, ItemSet::range(1, 3));
    w.event(assign(1, "gone", 1, 3, true));
    assert_eq!(w.agent.counters().master_ignored, 2);
    w.silent();
}

/// An executor that runs items of `item_us` in `slots` slots in virtual time, reports as it is told to, and counts frames.
#[test]
fn a_hundred_thousand_empty_items_need_few_frames() {
    let (slots, item_us, total) = (2_u64, 12_u64, 100_000_u64);
    let mut w = World::new(parameters());
    w.event(part(1, "p", 2, 2, total, true));
    w.next();
    w.event(prepared(1));
    w.next();
    w.event(Event::ExecutorStarted { executor: executor(1), slots: 4, cpu_us: None });
    w.event(loaded(1, 1));
    let (mut executor_frames, mut master_frames, mut next_item) = (0, 0, 2);
    let (mut leased, mut report_at, mut told) = (ItemSet::default(), 0, ItemSet::default());
    let mut terminal = false;
    while !terminal {
        while let Some(message) = w.said.pop_front() {
            match message {
                Message::ToExecutor { message, .. } => {
                    executor_frames += 1;
                    match message {
                        ToExecutor::Lease { items, report_when_left, .. } => {
                            assert!(leased.is_disjoint(&items));
                            leased.extend(&items);
                            report_at = report_when_left;
                        }
                        ToExecutor::EndArray { .. } if leased.is_empty() => w.event(ended(1, 1, &[0, 1])),
                        _ => {}
                    }
                }
                Message::Updates(updates) => {
                    master_frames += 1;
                    for update in updates {
                        w.event(Event::Command(AgentCommand::Acknowledge(update.key.clone())));
                        let delta = update.array.unwrap();
                        assert!(told.is_disjoint(&delta.finished));
                        told.extend(&delta.finished);
                        terminal |= update.state.is_terminal();
                        // The framework hands out about 100 ms of work when half of it is gone.
                        let chunk = (100_000 / item_us * slots).min(total - next_item);
                        if delta.outstanding < chunk / 2 || (chunk > 0 && delta.outstanding <= slots) {
                            w.event(assign(1, "p", next_item, next_item + chunk, next_item + chunk < total));
                            next_item += chunk;
                            master_frames += 1;
                        }
                    }
                }
                _ => {}
            }
        }
        if !leased.is_empty() {
            let n = if leased.len() > report_at { leased.len() - report_at } else { leased.len() };
            let done = leased.take_first(n);
            w.now = Time(w.now.0 + n * item_us / slots);
            executor_frames += 1;
            let usage = Usage { wall_us: n * item_us, ..Usage::default() };
            w.event(report(1, 1, ArrayReport { finished: done, usage, ..ArrayReport::default() }));
        } else if !terminal && w.said.is_empty() {
            w.event(ended(1, 1, &[0, 1]));
            w.after_ms(100);
        }
    }
    assert_eq!(told, ItemSet::range(0, total));
    assert!(executor_frames < 500 && master_frames < 500, "{executor_frames} to and from the executor, {master_frames} to the master");
    w.empty();
}
