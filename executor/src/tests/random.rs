//! Random guests from fixed seeds, in a process of its own: each ends with a reason that is possible, none leaves anything behind.
//!
//! `SMALTI_RANDOM_MODULES` says how many (2,000 otherwise), `SMALTI_RANDOM_SEED` from which seed on (0 otherwise).

use crate::fuzzing::{Executor, Guest, LOOK_EVERY, Setup};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// Without another word in the environment.
const MODULES: u64 = 2_000;
/// Guests of one executor; then comes one that is set up otherwise.
const PER_EXECUTOR: u64 = 256;
/// Where the running seed is written, so that one that ends the process is known.
const SEED_FILE: &str = "SMALTI_RANDOM_SEED_FILE";
/// Threads that end by themselves have this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The worker, its slot, the ticker.
const WORKER_THREADS: usize = 3;
/// The test harness's two, the worker, its slot, the slot's two for files, the ticker.
const MOST_THREADS: usize = 7;
/// An executor's: sockets, directories, epoll. Everything of a guest is gone when it is counted.
const MOST_DESCRIPTORS: usize = 32;
/// Beside those of the program itself: pools, stacks, arenas, code that is loaded.
const MOST_MAPS: usize = 400;
/// What may be added after the first round of executors, in bytes: allocators keep some.
const MOST_GROWTH: usize = 96 << 20;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

/// `n` bytes that follow from `seed` alone (SplitMix64).
fn bytes(seed: u64, n: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    (0..n.div_ceil(8)).flat_map(|_| next()).take(n).collect()
}

#[test]
fn random_guests_end_with_a_reason_and_leave_nothing() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let mut alone = Command::new(std::env::current_exe().expect("this program"));
    alone.args(["--exact", "tests::random::alone", "--ignored", "--nocapture"]).env(SEED_FILE, file.path());
    let output = alone.output().expect("started");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    let seed = std::fs::read_to_string(file.path()).expect("read");
    let (status, signal) = (output.status, output.status.signal());
    assert!(status.success() && said.contains("1 passed"), "ended with {status} (signal {signal:?}) at seed {seed}:\n{said}");
    eprintln!("{said}");
}

#[test]
fn a_single_byte_in_a_used_slot_is_found() {
    let mut executor = Executor::start(Setup::Best, false);
    for (left, ending) in [
        ("", "FINISHED"),
        (r#"(data (memory $m0) (i32.const 0) "\01")"#, "TRAP"),
        (r#"(data (memory $m3) (i32.const 33554431) "\01")"#, "TRAP"),
        ("(elem (table $t0) (i32.const 0) func $f)", "TRAP"),
        ("(elem (table $t15) (i32.const 99) func $f)", "TRAP"),
    ] {
        assert_eq!(executor.look(left).as_deref(), Ok(ending), "{left}");
    }
    executor.stop().expect("silence");
}

#[test]
#[ignore = "random_guests_end_with_a_reason_and_leave_nothing runs it in a process of its own, because it counts what that holds"]
fn alone() {
    let (first, modules) = (number("SMALTI_RANDOM_SEED", 0), number("SMALTI_RANDOM_MODULES", MODULES));
    let mut endings = BTreeMap::<String, u64>::new();
    let (mut walls, mut settled) = (0, None);
    let mut seeds = first..first + modules;
    let round = PER_EXECUTOR * Setup::ALL.len() as u64;
    while !seeds.is_empty() {
        let setup = Setup::ALL[usize::try_from((seeds.start - first) / PER_EXECUTOR).expect("small") % Setup::ALL.len()];
        let mut executor = Executor::start(setup, true);
        walls += 1;
        assert!(filtered() >= WORKER_THREADS, "only {} threads are behind the filter", filtered());
        for seed in seeds.by_ref().take(usize::try_from(PER_EXECUTOR).expect("small")) {
            *endings.entry(run(&mut executor, seed)).or_default() += 1;
            if seed % LOOK_EVERY == LOOK_EVERY - 1 {
                executor.look_at_used_slot().unwrap_or_else(|why| panic!("after seed {seed}, {setup:?}: {why}"));
                await_quiet(walls, &format!("after seed {seed}, {setup:?}"));
            }
        }
        executor.stop().unwrap_or_else(|why| panic!("{setup:?}, before seed {}: {why}", seeds.start));
        if (seeds.start - first).is_multiple_of(round) {
            let resident = resident();
            eprintln!("before seed {}: {} MiB, {} maps", seeds.start, resident >> 20, count("maps"));
            let most = *settled.get_or_insert(resident) + MOST_GROWTH;
            assert!(resident < most, "before seed {}: {resident} bytes are resident, {most} at most", seeds.start);
        }
    }
    eprintln!("{modules} guests from seed {first} on: {endings:?}");
    // All kinds of ends are met, or this tests less than it says.
    for reason in ["FINISHED", "TRAP", "TIME_LIMIT", "FUEL_LIMIT", "MEMORY_LIMIT", "EXIT_CODE", "OUTPUT_LIMIT"] {
        assert!(modules < MODULES || endings.contains_key(reason), "no guest ended with {reason}: {endings:?}");
    }
}

fn run(executor: &mut Executor, seed: u64) -> String {
    if let Some(path) = std::env::var_os(SEED_FILE) {
        std::fs::write(path, seed.to_string()).expect("written");
    }
    let length = 300 + usize::try_from(seed % 17).expect("small") * 400;
    match Guest::new(&bytes(seed, length)) {
        Ok(guest) => executor.run(&guest).unwrap_or_else(|why| panic!("seed {seed}: {why}")),
        Err(_) => "not enough bytes".to_owned(),
    }
}

/// Lines of, or entries in, what the kernel says about this process.
fn count(what: &str) -> usize {
    let path = format!("/proc/self/{what}");
    match std::fs::read_dir(&path) {
        Ok(entries) => entries.count(),
        Err(_) => std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}")).lines().count(),
    }
}

/// Threads behind a system call filter.
fn filtered() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("listed").flatten();
    // One that ends meanwhile is not there any more.
    tasks.filter(|t| std::fs::read_to_string(t.path().join("status")).is_ok_and(|s| s.contains("Seccomp:\t2"))).count()
}

/// Bytes in memory.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("read");
    let pages: usize = text.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
    pages * rustix::param::page_size()
}

/// Waits until no more is held than an idle executor holds; each walled worker keeps one descriptor for ever, for the handler of
/// denied calls.
fn await_quiet(walls: usize, when: &str) {
    let began = Instant::now();
    loop {
        let (threads, descriptors, maps) = (count("task"), count("fd"), count("maps"));
        if threads <= MOST_THREADS && descriptors <= MOST_DESCRIPTORS + walls && maps <= MOST_MAPS {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{when}: {threads} threads, {descriptors} descriptors and {maps} maps are left");
        std::thread::sleep(Duration::from_millis(10));
    }
}
