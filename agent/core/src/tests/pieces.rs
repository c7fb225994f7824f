//! Array parts whose items read splits of objects that are fetched in pieces: an item is leased when its bytes are there.

use super::fake::*;
use crate::{ArrayReport, Event, FromExecutor, Message, Run, ToExecutor};
use smalti_types::*;

fn there(run: u64, first: u64, end: u64) -> Event {
    Event::SplitsThere { run: Run(run), items: ItemSet::range(first, end) }
}

impl World {
    /// The next message asks for the splits of these items.
    fn fetches(&mut self, items: std::ops::Range<u64>) {
        let expected: Vec<(Split, Input)> = splits(items).into_iter().map(|s| (s, large())).collect();
        match self.next() {
            Message::FetchSplits { run: Run(1), wanted, .. } => assert_eq!(wanted, expected),
            other => panic!("expected a fetch, not {other:?}"),
        }
    }

    fn leases(&mut self, items: std::ops::Range<u64>) {
        match self.told(1) {
            ToExecutor::Lease { items: leased, splits: read, .. } => {
                assert_eq!((leased, read), (ItemSet::range(items.start, items.end), splits(items)));
            }
            other => panic!("expected a lease, not {other:?}"),
        }
    }

    fn drops(&mut self, first: u64, end: u64) {
        assert_eq!(self.next(), Message::DropSplits { run: Run(1), items: ItemSet::range(first, end) });
    }
}

/// A part of two slots that has its executor: the first splits are asked for, nothing is leased.
fn running(items: u64) -> World {
    let mut w = World::new(parameters());
    w.start_part(part_of_splits(1, "p", 2, items, items, false, spec()), 2);
    w.fetches(0..2);
    assert_eq!(w.update().state, TaskState::Running);
    w.silent();
    w
}

fn finished(first: u64, end: u64) -> Event {
    let usage = Usage { wall_us: 50_000 * (end - first), ..Usage::default() };
    let report = ArrayReport { finished: ItemSet::range(first, end), usage, busy: 1, ..ArrayReport::default() };
    from(1, FromExecutor::Report { run: Run(1), report })
}

#[test]
fn an_item_is_leased_when_its_bytes_are_there_and_the_next_are_fetched_meanwhile() {
    let mut w = running(5);
    // The second is there first, and need not wait for the other.
    w.event(there(1, 1, 2));
    w.leases(1..2);
    w.fetches(2..3);
    w.silent();
    w.event(there(1, 0, 1));
    w.leases(0..1);
    w.fetches(3..4);
    w.event(there(1, 2, 4));
    w.silent();
    // What has ended needs its bytes no more.
    w.event(finished(0, 1));
    w.drops(0, 1);
    w.leases(2..3);
    w.fetches(4..5);
    // What nobody asked for, or was there already, changes nothing.
    w.event(there(1, 0, 4));
    w.event(there(7, 0, 9));
    w.silent();
}

#[test]
fn what_goes_back_is_not_fetched_any_more_and_an_end_needs_no_word() {
    let mut w = running(4);
    w.event(there(1, 0, 1));
    w.leases(0..1);
    w.fetches(2..3);
    let most = smalti_types::protocol::AgentCommand::ReturnItems { task: key(1, "p"), most: 3 };
    w.event(Event::Command(most));
    w.drops(1, 3);
    assert_eq!(w.update().array.unwrap().returned, ItemSet::range(1, 4));
    w.event(kill(1, "p"));
    assert!(matches!(w.told(1), ToExecutor::Kill { .. }));
    w.event(exited(1, "killed"));
    w.ended(1, "p");
    assert_eq!(w.update().array.unwrap().failed.len(), 1);
    w.silent();
}

#[test]
fn items_without_such_a_split_wait_for_nothing() {
    let mut w = World::new(parameters());
    let mut event = part_of_splits(1, "p", 2, 4, 4, false, spec());
    if let Event::Command(protocol::AgentCommand::LaunchArray { launch, .. }) = &mut event {
        let small = Input { length: 10, ..large() };
        launch.template.split_inputs = vec![large(), small];
        launch.batch.splits.iter_mut().for_each(|s| s.input = 1);
        launch.batch.splits[3].input = 0;
    }
    w.start_part(event, 2);
    let ToExecutor::Lease { items, .. } = w.told(1) else { panic!("no lease") };
    assert_eq!(items, ItemSet::range(0, 2));
}

#[test]
fn after_a_restart_they_are_asked_for_again_and_what_runs_goes_on() {
    let mut w = running(4);
    w.event(there(1, 0, 2));
    w.leases(0..2);
    w.fetches(2..4);
    w.event(there(1, 2, 3));
    w.silent();
    w.restart(true);
    w.event(Event::ExecutorBack { executor: executor(1), slots: 4 });
    let held = crate::HeldPart { run: Run(1), items: ItemSet::range(0, 2), slots: vec![0, 1] };
    w.event(from(1, FromExecutor::Holds { modules: vec![], tasks: vec![], parts: vec![held] }));
    w.said.retain(|m| matches!(m, Message::FetchSplits { .. } | Message::ToExecutor { message: ToExecutor::Lease { .. }, .. }));
    w.fetches(2..4);
    w.silent();
    w.register();
    w.said.clear();
    w.event(there(1, 2, 4));
    w.silent();
    w.event(finished(0, 1));
    w.leases(2..3);
    w.silent();
}

#[test]
fn an_executor_of_its_own_is_taken_when_its_items_bytes_are_there() {
    let mut w = World::new(crate::Parameters { pool: 0, ..parameters() });
    w.event(part_of_splits(1, "p", 2, 3, 3, false, own()));
    w.next();
    w.event(prepared(1));
    w.fetches(0..2);
    assert_eq!(w.update().state, TaskState::Running);
    w.silent();
    w.event(there(1, 1, 2));
    assert!(matches!(w.next(), Message::StartExecutor { slots: 1, .. }));
    w.silent();
    w.event(Event::ExecutorStarted { executor: executor(1), slots: 1, cpu_us: None });
    assert!(matches!(w.next(), Message::BindExecutor { .. }));
    assert!(matches!(w.told(1), ToExecutor::LoadModule { .. }));
    assert!(matches!(w.next(), Message::SetExecutorMemory { .. }));
    w.fetches(2..3);
    w.event(loaded(1, 1));
    assert!(matches!(w.next(), Message::SetSlotCpus { .. }));
    assert!(matches!(w.told(1), ToExecutor::StartArray { .. }));
    w.leases(1..2);
}
