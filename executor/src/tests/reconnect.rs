//! Agents that go and come back while guests run.

use super::arrays::{Seen, set};
use super::*;
use crate::outbox::MAX_BYTES;
use smalti_types::items::ItemSet;
use std::collections::BTreeMap;

/// Prints a byte, then sleeps for an hour.
const PRINT_AND_SLEEP: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 100))
    (i32.store (i32.const 4) (i32.const 1))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20)))
    (i32.store (i32.const 0) (i32.const 0))
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 3600000000000))
    (drop (call $poll (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))))"#;

/// Prints 4 KiB: what a report has to write out before it may be sent takes a moment.
const PRINT_4_KIB: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 100))
    (i32.store (i32.const 4) (i32.const 4096))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20)))))"#;

/// Returns 16 KiB.
const RESULT: &str = r#"(module
  (import "smalti" "result" (func $result (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (if (call $result (i32.const 0) (i32.const 16384)) (then unreachable))))"#;

/// Waits for something that other threads do; a hang becomes a failure.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Agent {
    fn length(&self, path: &str) -> u64 {
        std::fs::metadata(self.directory.path().join(path)).map_or(0, |m| m.len())
    }

    fn outcomes_again(&self) -> Vec<(u64, &v1::Outcome)> {
        let said = self.again.iter().map(|(number, said)| (*number, said));
        said.filter_map(|(number, said)| if let From::Outcome(o) = said { Some((number, o)) } else { None }).collect()
    }
}

#[test]
fn an_outcome_from_the_time_without_an_agent_arrives_once() {
    let mut agent = Agent::start(1);
    let (empty, sleep) = (agent.load(guests::EMPTY), agent.load(PRINT_AND_SLEEP));
    let known = agent.last;
    agent.start_task(1, guest(empty));
    agent.start_task(2, guest(sleep));
    agent.cut();
    // One slot: the first has ended when the second prints.
    wait_until("the second task prints", || agent.length("t2/stdout") > 0);
    agent.come_back(known);
    assert_eq!(agent.outcomes_again().iter().map(|(_, o)| (o.run, o.exit_code)).collect::<Vec<_>>(), [(1, Some(0))]);
    assert_eq!(agent.holds, v1::Holds { modules: vec![empty, sleep], tasks: vec![2], parts: Vec::new() });
    // As long as it is not confirmed it is told to everyone who comes, the same under the same number.
    let (told, number) = (agent.again.clone(), agent.last);
    agent.cut();
    agent.come_back(known);
    assert_eq!(agent.again, told);
    agent.send(To::Confirm(v1::Confirm { number }), &[]);
    // It was heard: nothing else answers to this.
    agent.send(To::Unlease(v1::Unlease { run: 99, most: 1 }), &[]);
    assert!(matches!(agent.receive(), From::Report(r) if r.run == 99));
    agent.cut();
    agent.come_back(number);
    assert_eq!((agent.outcomes_again().len(), agent.again.len()), (0, 1));
    agent.send(To::Kill(v1::Kill { run: 2, grace_us: 0 }), &[]);
    assert_eq!(reason(&agent.await_outcome(2)), "KILLED_BY_REQUEST");
    agent.stop();
}

#[test]
fn garbage_closes_its_connection_and_nothing_else() {
    let mut agent = Agent::start(1);
    let module = agent.load(guests::SLEEP);
    agent.start_task(1, guest(module));
    agent.await_started(1);
    agent.cut();
    let (garbage, theirs) = UnixStream::pair().expect("a socket pair");
    agent.connections.send(theirs).expect("the worker runs");
    (&garbage).write_all(&[0xff; 100]).expect("written");
    // One that says nothing before it goes is no agent either.
    let (silent, theirs) = UnixStream::pair().expect("a socket pair");
    agent.connections.send(theirs).expect("the worker runs");
    drop(silent);
    agent.come_back(agent.last);
    assert_eq!(agent.holds.tasks, [1]);
    agent.send(To::Kill(v1::Kill { run: 1, grace_us: 0 }), &[]);
    assert_eq!(reason(&agent.await_outcome(1)), "KILLED_BY_REQUEST");
    agent.stop();
}

#[test]
fn slots_go_on_through_their_lease_and_tell_it_in_few_words() {
    const ITEMS: u64 = 15_000;
    let mut agent = Agent::start(2);
    let module = agent.load(guests::COUNTER);
    agent.start_array(1, &[0, 1], guest(module), ITEMS, &[]);
    let known = agent.last;
    agent.lease(1, 0, ITEMS, ITEMS / 2);
    agent.cut();
    wait_until("all items have their records", || {
        (agent.length("a1/slot-0.ledger") + agent.length("a1/slot-1.ledger")) == ITEMS * RECORD_LEN as u64
    });
    agent.come_back(known);
    // One when the agent wanted to hear of it, if it was still there; else those of the slots that found nothing more.
    assert!(agent.again.len() <= 4, "{}", agent.again.len());
    let mut seen = Seen::default();
    while let Some((_, said)) = agent.again.pop_front() {
        let From::Report(report) = said else { panic!("{said:?}") };
        seen.add(&report);
    }
    agent.collect(&mut seen, ITEMS);
    assert_eq!((seen.count, seen.finished.len()), (ITEMS, ITEMS));
    // More of it, as if nothing had been.
    agent.lease(1, ITEMS, ITEMS + 10, 0);
    agent.collect(&mut seen, ITEMS + 10);
    agent.end(1, &mut seen, 2);
    agent.stop();
}

/// A generator of numbers that look random; the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What an agent keeps of an array part over its restarts.
#[derive(Default)]
struct Kept {
    seen: Seen,
    said: BTreeMap<u64, From>,
}

impl Kept {
    fn take(&mut self, number: u64, said: From) {
        if let Some(before) = self.said.get(&number) {
            assert_eq!(*before, said, "a message changed");
            return;
        }
        match &said {
            From::Report(report) => self.seen.add(report),
            From::ArrayEnded(ended) => self.seen.ended.extend(&ended.slots),
            other => panic!("{other:?}"),
        }
        self.said.insert(number, said);
    }
    fn reported(&self) -> ItemSet {
        let mut all = self.seen.finished.union(&self.seen.returned);
        self.seen.failed.iter().for_each(|failed| all.insert(failed.item));
        assert_eq!(all.len(), self.seen.count, "an item was reported twice");
        all
    }
}

#[test]
fn every_leased_item_is_held_or_was_reported_never_both() {
    const ROUNDS: u64 = 1_200;
    const SLOTS: [u32; 3] = [0, 1, 2];
    let mut agent = Agent::start(3);
    let module = agent.load(PRINT_4_KIB);
    agent.start_array(1, &SLOTS, guest(module), 1, &[]);
    agent.confirms = false;
    let (mut confirmed, mut dice, mut kept, mut leased) = (agent.last, Dice(0x5eed), Kept::default(), 0);
    for round in 0..ROUNDS {
        // Every other time slots run out of items, and say so, while the next agent comes.
        let in_haste = dice.below(2) == 0;
        let more = dice.below(if in_haste { 40 } else { 300 });
        let lease = v1::Lease {
            run: 1,
            items: vec![v1::ItemRange { first: leased, end: leased + more }],
            attempt: 0,
            splits: Vec::new(),
            report_when_left: dice.below(300),
            report_interval_us: 1_000,
        };
        agent.send(To::Lease(lease), &[]);
        leased += more;
        if dice.below(4) == 0 {
            agent.send(To::Unlease(v1::Unlease { run: 1, most: dice.below(50) }), &[]);
        }
        // Reads a little, and not all that came: what was not read was not said.
        for _ in 0..dice.below(3) {
            agent.send(To::Unlease(v1::Unlease { run: 1, most: 0 }), &[]);
            let (number, said) = agent.receive_numbered();
            kept.take(number, said);
        }
        std::thread::sleep(Duration::from_micros(if in_haste { 0 } else { dice.below(2_000) }));
        agent.cut();
        std::thread::sleep(Duration::from_micros(dice.below(if in_haste { 200 } else { 1_000 })));
        let heard = agent.last;
        // Not always is everything that was heard also kept.
        confirmed = heard - dice.below(1 + (heard - confirmed).min(5));
        agent.come_back(confirmed);
        while let Some((number, said)) = agent.again.pop_front() {
            kept.take(number, said);
        }
        let [part] = &agent.holds.parts[..] else { panic!("{:?}", agent.holds) };
        let (held, reported) = (set(&part.items), kept.reported());
        assert!(held.is_disjoint(&reported), "round {round}: {:?} is both", held.intersection(&reported));
        let all = held.union(&reported);
        // What was sent before the end of a connection is heard before its end.
        assert_eq!(all, ItemSet::range(0, leased), "round {round}: {:?} is neither", ItemSet::range(0, leased).difference(&all));
        assert_eq!((part.run, &part.slots[..]), (1, &SLOTS[..]));
    }
    agent.confirms = true;
    agent.send(To::EndArray(v1::EndArray { run: 1, slots: Vec::new() }), &[]);
    while kept.seen.ended.len() < SLOTS.len() {
        let (number, said) = agent.receive_numbered();
        kept.take(number, said);
    }
    assert_eq!(kept.reported(), ItemSet::range(0, leased));
    agent.cut();
    agent.come_back(agent.last);
    assert_eq!(agent.holds.parts, [], "a part that is over is not held");
    agent.stop();
}

#[test]
fn a_full_outbox_stops_the_slots_and_not_the_worker() {
    const ITEMS: u64 = 2_000;
    let mut agent = Agent::start(2);
    agent.confirms = false;
    let module = agent.load(RESULT);
    agent.start_array(1, &[0, 1], guest(module), ITEMS, &[]);
    let (known, mut seen) = (agent.last, Seen::default());
    agent.lease(1, 0, ITEMS, 0);
    // The bound, and what each slot and the answer below may say beyond it.
    let mut bytes = 0;
    while bytes < MAX_BYTES {
        if let Some(report) = agent.next_array(&mut seen) {
            bytes += report.results.iter().map(|r| r.value.len()).sum::<usize>();
        }
    }
    // No slot goes on: all that is asked is answered, and most of the lease is still there.
    while seen.returned.is_empty() {
        agent.send(To::Unlease(v1::Unlease { run: 1, most: 1 }), &[]);
        agent.next_array(&mut seen);
    }
    assert!(seen.count < ITEMS * 3 / 4, "{} items are spoken of", seen.count);
    // Neither a cut nor an agent that confirms nothing changes that.
    agent.cut();
    let heard = agent.last;
    agent.come_back(known);
    assert_eq!(agent.again.len() as u64, agent.last - known);
    while let Some((number, said)) = agent.again.pop_front() {
        match said {
            From::Report(report) if number > heard => seen.add(&report),
            _ => {}
        }
    }
    agent.send(To::Unlease(v1::Unlease { run: 1, most: 1 }), &[]);
    while seen.returned.len() < 2 {
        agent.next_array(&mut seen);
    }
    assert!(seen.count < ITEMS * 3 / 4, "{} items are spoken of", seen.count);
    agent.confirms = true;
    agent.send(To::Confirm(v1::Confirm { number: agent.last }), &[]);
    while seen.count < ITEMS {
        agent.next_array(&mut seen);
        let number = agent.last;
        agent.send(To::Confirm(v1::Confirm { number }), &[]);
    }
    agent.end(1, &mut seen, 2);
    agent.stop();
}
