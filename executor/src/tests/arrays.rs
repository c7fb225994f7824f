//! Task arrays.

use super::*;
use smalti_types::items::{ItemRange, ItemSet};

/// What was said about an array.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) finished: ItemSet,
    pub(super) failed: Vec<v1::FailedItem>,
    pub(super) returned: ItemSet,
    pub(super) ended: Vec<u32>,
    results: usize,
    /// Items reported in any way; more than the sets' sizes would mean that one was reported twice.
    pub(super) count: u64,
}

pub(super) fn set(ranges: &[v1::ItemRange]) -> ItemSet {
    ranges.iter().map(|r| ItemRange { first: r.first, end: r.end }).collect()
}

impl Seen {
    pub(super) fn add(&mut self, report: &v1::ArrayReport) {
        let (finished, returned) = (set(&report.finished), set(&report.returned));
        self.count += finished.len() + returned.len() + report.failed.len() as u64;
        self.finished.extend(&finished);
        self.returned.extend(&returned);
        self.failed.extend(report.failed.iter().cloned());
        self.results += report.results.len();
    }
}

impl Agent {
    pub(super) fn start_array(&mut self, run: u64, slots: &[u32], guest: v1::Guest, total_items: u64, inputs: &[&OwnedFd]) {
        // `inputs`: at most one, the directory with the one input `0`.
        let split_inputs = u32::try_from(inputs.len()).expect("few");
        let slots = slots.to_vec();
        let start = v1::StartArray { run, slots, guest: Some(guest), total_items, split_inputs, ..Default::default() };
        self.send_array(start, inputs);
        self.await_started(run);
    }

    pub(super) fn lease(&mut self, run: u64, first: u64, end: u64, report_when_left: u64) {
        let items = vec![v1::ItemRange { first, end }];
        self.send(
            To::Lease(v1::Lease { run, items, attempt: 2, splits: Vec::new(), report_when_left, report_interval_us: 60_000_000 }),
            &[],
        );
    }

    pub(super) fn next_array(&mut self, seen: &mut Seen) -> Option<v1::ArrayReport> {
        match self.receive() {
            From::Report(report) => {
                seen.add(&report);
                Some(report)
            }
            From::ArrayEnded(ended) => {
                seen.ended.extend(ended.slots);
                None
            }
            other => panic!("{other:?}"),
        }
    }

    /// Reports until `items` items were spoken of.
    pub(super) fn collect(&mut self, seen: &mut Seen, items: u64) {
        while seen.count < items {
            self.next_array(seen);
        }
    }

    pub(super) fn end(&mut self, run: u64, seen: &mut Seen, slots: usize) {
        self.send(To::EndArray(v1::EndArray { run, slots: Vec::new() }), &[]);
        while seen.ended.len() < slots {
            self.next_array(seen);
        }
    }
}

#[test]
fn every_item_runs_once_in_a_fresh_instance_and_frames_are_few() {
    const ITEMS: u64 = 100_000;
    const CHUNK: u64 = 4_000;
    let mut agent = Agent::start(2);
    let module = agent.load(guests::COUNTER);
    agent.start_array(1, &[0, 1], guest(module), ITEMS, &[]);
    let before = agent.frames;
    let mut seen = Seen::default();
    let (mut leased, mut sent) = (0, 0_u64);
    while seen.count < ITEMS {
        if leased < ITEMS && leased - seen.count <= CHUNK / 2 {
            agent.lease(1, leased, leased + CHUNK, CHUNK / 2);
            leased += CHUNK;
            sent += 1;
        }
        agent.next_array(&mut seen);
    }
    let frames = agent.frames - before + sent;
    eprintln!("{ITEMS} items: {frames} frames");
    assert!(frames < 200, "{frames}");
    assert_eq!((seen.count, seen.finished.len(), seen.finished.ranges().len()), (ITEMS, ITEMS, 1));
    agent.end(1, &mut seen, 2);

    // What was reported is in the files, each item once, each with its own output.
    let ledger = agent.ledger("a1", &[0, 1]);
    assert_eq!(ledger.len() as u64, ITEMS);
    assert_eq!(ledger.iter().map(|(_, r)| r.item).collect::<ItemSet>(), ItemSet::range(0, ITEMS));
    let outputs = [agent.read("a1/slot-0.out"), agent.read("a1/slot-1.out")];
    assert!(outputs.iter().all(|o| !o.is_empty()), "both slots worked");
    for (slot, r) in ledger {
        let first = usize::try_from(r.out_offset).expect("small");
        assert_eq!((r.attempt, r.exit_code, r.failed, r.out_length), (2, Some(0), false, 1));
        assert_eq!(outputs[slot as usize][first], b'1', "item {}", r.item);
    }
    agent.stop();
}

#[test]
fn a_used_memory_shows_nothing_of_the_last_guest() {
    let mut agent = Agent::start(1);
    eprintln!("{} {} {:?}", agent.hello.allocator, agent.hello.reset, agent.hello.warnings);
    let module = agent.load(guests::DIRTY);
    agent.start_array(1, &[0], guest(module), 200, &[]);
    let mut seen = Seen::default();
    agent.lease(1, 0, 200, 0);
    agent.collect(&mut seen, 200);
    assert_eq!(seen.finished.len(), 200, "{:?}", seen.failed.first());
    agent.end(1, &mut seen, 1);
    agent.stop();
}

#[test]
fn items_read_their_split_and_know_who_they_are() {
    let mut agent = Agent::start(2);
    let cat = agent.load(guests::CAT);
    let inputs = tempfile::tempdir().expect("a directory");
    std::fs::write(inputs.path().join("0"), b"aabbbc").expect("written");
    let directory = std::fs::File::open(inputs.path()).expect("opened");
    agent.start_array(1, &[0], guest(cat), 4, &[&directory.into()]);
    let split = |item, offset, length| v1::Split { item, input: 0, offset, length };
    let splits = vec![split(0, 0, 2), split(1, 2, 3), split(2, 5, 1), v1::Split { item: 4, input: 9, offset: 0, length: 1 }];
    let items = vec![v1::ItemRange { first: 0, end: 5 }];
    agent.send(To::Lease(v1::Lease { run: 1, items, splits, report_interval_us: 60_000_000, ..Default::default() }), &[]);
    let mut seen = Seen::default();
    agent.collect(&mut seen, 5);
    assert_eq!(agent.read("a1/slot-0.out"), b"aabbbc");
    assert_eq!(seen.finished.len(), 3);
    // Item 3 has no split, item 4 one of an input that is not there.
    let reasons: Vec<_> = seen.failed.iter().map(|f| (f.item, f.failure.as_ref().map(|f| f.reason.as_str()))).collect();
    assert_eq!(reasons, [(3, Some("INPUT_FAILED")), (4, Some("INPUT_FAILED"))]);
    agent.end(1, &mut seen, 1);

    let environment = agent.load(guests::ENVIRONMENT);
    let own =
        v1::Guest { env: vec!["A=1".to_owned(), "SMALTI_ATTEMPT=0".to_owned(), "SMALTI_FENCING_TOKEN=0".to_owned()], ..guest(environment) };
    agent.start_array(2, &[1], own, 77, &[]);
    let mut seen = Seen::default();
    agent.lease(2, 5, 6, 0);
    agent.collect(&mut seen, 1);
    let printed = String::from_utf8(agent.read("a2/slot-1.out")).expect("text");
    assert_eq!(printed, "A=1\0SMALTI_ITEM=5\0SMALTI_ITEMS=77\0SMALTI_ATTEMPT=2\0SMALTI_FENCING_TOKEN=2\0");
    agent.end(2, &mut seen, 1);
    agent.stop();
}

#[test]
fn the_outputs_of_more_slots_than_a_frame_has_descriptors_reach_their_slots() {
    const SLOTS: u32 = 50;
    let mut agent = Agent::start(SLOTS);
    let module = agent.load(guests::COUNTER);
    let slots: Vec<u32> = (0..SLOTS).collect();
    agent.start_array(1, &slots, guest(module), 1_000, &[]);
    let mut seen = Seen::default();
    agent.lease(1, 0, 1_000, 0);
    agent.collect(&mut seen, 1_000);
    agent.end(1, &mut seen, SLOTS as usize);
    let ledger = agent.ledger("a1", &slots);
    assert_eq!(ledger.iter().map(|(_, r)| r.item).collect::<ItemSet>(), ItemSet::range(0, 1_000));
    for slot in slots {
        let printed = agent.read(&format!("a1/slot-{slot}.out"));
        assert_eq!(printed.len(), ledger.iter().filter(|(s, _)| *s == slot).count(), "slot {slot}");
    }
    // What the agent could not get ready fails with the agent's words.
    let broken = v1::StartArray { run: 3, slots: vec![0], refused: "no room".to_owned(), ..Default::default() };
    agent.send(To::StartArray(broken), &[]);
    agent.await_started(3);
    let mut seen = Seen::default();
    agent.lease(3, 0, 1, 0);
    agent.collect(&mut seen, 1);
    assert_eq!(seen.failed[0].failure.as_ref().map(|f| f.message.as_str()), Some("no room"));
    agent.end(3, &mut seen, 1);
    // Outputs of other slots than its own: the part is refused, and its slots are free.
    agent.output_files("a2", &[]);
    let files = agent.output_files("a2", &["a", "b", "c"]);
    agent.send(To::SlotFiles(v1::SlotFiles { run: 2, slots: vec![1], disks: false }), &files.iter().collect::<Vec<_>>());
    agent.send(To::StartArray(v1::StartArray { run: 2, slots: vec![0], guest: Some(guest(module)), ..Default::default() }), &[]);
    agent.await_started(2);
    let mut seen = Seen::default();
    agent.lease(2, 0, 1, 0);
    agent.collect(&mut seen, 1);
    assert_eq!(seen.failed.len(), 1);
    agent.end(2, &mut seen, 1);
    agent.stop();
}

#[test]
fn unstarted_items_go_back_when_asked_for_and_when_the_slots_leave() {
    let mut agent = Agent::start(1);
    let sleep = agent.load(guests::SLEEP);
    agent.start_array(1, &[0], guest(sleep), 100, &[]);
    let mut seen = Seen::default();
    agent.lease(1, 0, 100, 0);
    agent.send(To::Unlease(v1::Unlease { run: 1, most: 30 }), &[]);
    let report = agent.next_array(&mut seen).expect("an answer");
    assert_eq!(set(&report.returned), ItemSet::range(70, 100));
    // The slot runs item 0 (or has not taken it yet).
    agent.send(To::EndArray(v1::EndArray { run: 1, slots: vec![0] }), &[]);
    agent.send(To::Kill(v1::Kill { run: 1, grace_us: 0 }), &[]);
    while seen.ended.is_empty() {
        agent.next_array(&mut seen);
    }
    assert_eq!(seen.count, 100);
    assert_eq!(seen.finished.len(), 0);
    for failed in &seen.failed {
        assert_eq!(failed.failure.as_ref().map(|f| f.reason.as_str()), Some("KILLED_BY_REQUEST"));
    }
    // What comes too late goes back.
    agent.lease(1, 200, 210, 0);
    let late = agent.next_array(&mut seen).expect("an answer");
    assert_eq!(set(&late.returned), ItemSet::range(200, 210));
    agent.stop();
}

#[test]
fn failed_items_do_not_stop_the_others_and_the_next_lease_starts_at_once() {
    let mut agent = Agent::start(2);
    let trap = agent.load(guests::TRAP);
    agent.start_array(1, &[0, 1], guest(trap), 20, &[]);
    let mut seen = Seen::default();
    for lease in 0..10 {
        agent.lease(1, lease * 2, lease * 2 + 2, 0);
        agent.collect(&mut seen, lease * 2 + 2);
    }
    assert_eq!(seen.failed.len(), 20);
    assert!(seen.failed.iter().all(|f| f.attempt == 2 && f.exit_code.is_none()));
    assert!(agent.ledger("a1", &[0, 1]).iter().all(|(_, r)| r.failed && r.exit_code.is_none()));
    // One slot leaves, the other goes on.
    agent.send(To::EndArray(v1::EndArray { run: 1, slots: vec![1] }), &[]);
    assert!(agent.next_array(&mut seen).is_none());
    assert_eq!(seen.ended, [1]);
    agent.lease(1, 20, 25, 0);
    agent.collect(&mut seen, 25);
    agent.end(1, &mut seen, 2);
    agent.stop();
}

#[test]
fn a_long_item_is_reported_about_by_time_and_its_output_can_be_followed() {
    let mut agent = Agent::start(2);
    let print = agent.load(
        r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "smalti" "should_stop" (func $stop (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 100) "live")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 100))
    (i32.store (i32.const 4) (i32.const 4))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20)))
    (loop (br_if 0 (i32.eqz (call $stop))))))"#,
    );
    agent.start_array(1, &[0], guest(print), 2, &[]);
    agent.lease(1, 0, 1, 0);
    // Flushed by the ticker, while the item runs.
    while agent.read("a1/slot-0.out").is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(agent.read("a1/slot-0.out"), b"live");
    agent.send(To::Kill(v1::Kill { run: 1, grace_us: 60_000_000 }), &[]);
    let mut seen = Seen::default();
    agent.collect(&mut seen, 1);
    assert_eq!(seen.finished.len(), 1, "it ended by itself within its grace");
    agent.next_array(&mut seen);
    assert_eq!(seen.ended, [0]);
    agent.stop();
}

#[test]
fn the_items_of_a_part_that_cannot_start_fail_with_the_reason() {
    let mut agent = Agent::start(2);
    for run in [1, 2] {
        agent.start_array(run, &[0, 1], guest(42), 100, &[]);
        let mut seen = Seen::default();
        agent.lease(run, 0, 10_005, 0);
        agent.collect(&mut seen, 10_005);
        assert_eq!((seen.failed.len(), seen.returned.len()), (10_000, 5));
        assert!(seen.failed.iter().all(|f| f.attempt == 2 && f.failure.as_ref().is_some_and(|f| f.reason == "LAUNCH_FAILED")));
        if run == 1 {
            agent.end(run, &mut seen, 2);
        } else {
            agent.send(To::Kill(v1::Kill { run, grace_us: 1_000 }), &[]);
            agent.next_array(&mut seen);
        }
        assert_eq!(seen.ended, [0, 1]);
    }
    // The slots are really free.
    let module = agent.load(guests::EMPTY);
    assert_eq!(agent.outcome(3, guest(module)).exit_code, Some(0));
    agent.stop();
}
