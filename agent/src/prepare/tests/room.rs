//! Budgets that hold a few of many bundles: never more on the disk, nobody waits for ever, few downloads.

use super::*;
use smalti_types::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

/// A bundle that takes its number's own bytes and some room.
fn bundle(bed: &Bed, n: u8) -> BundleRef {
    // A custom section of 64 KiB.
    bed.store(&[wasm(), vec![0, 0x82, 0x80, 0x04, 1, b'p'], vec![n; 64 << 10]].concat())
}

/// Looks all the time.
struct Watched {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<(u64, u64)>>,
}

impl Watched {
    fn begin(bed: &Bed) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, handle) = (stop.clone(), bed.handle.clone());
        let thread = std::thread::spawn(move || {
            let (mut most, mut looks) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                most = most.max(handle.on_disk());
                looks += 1;
                std::thread::sleep(Duration::from_micros(200));
            }
            (most, looks)
        });
        Self { stop, thread: Some(thread) }
    }

    /// The most that there was, and how often that was looked at.
    fn end(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_over_more_bundles_than_fit_stay_within_the_budget_and_all_get_their_turn() {
    const BUNDLES: u8 = 20;
    const TASKS: u64 = 400;
    // Bundle, name, role, code: about 100 KiB each.
    let budget = Bytes(450 << 10);
    let mut bed = Bed::with(|o| o.budgets = Budgets::shared(budget)).await;
    let bundles: Vec<BundleRef> = (0..BUNDLES).map(|n| bundle(&bed, n)).collect();
    let watched = Watched::begin(&bed);
    // Twelve tasks run at a time, of twelve bundles, and four fit.
    let (mut running, mut asked, mut done) = (VecDeque::new(), 0, 0);
    while done < TASKS {
        while asked < TASKS && asked - done < 12 {
            let which = usize::try_from(asked * 7 % u64::from(BUNDLES)).unwrap();
            bed.handle.prepare(bed.request(asked, bundles[which].clone())).unwrap();
            asked += 1;
        }
        let next = tokio::time::timeout(Duration::from_millis(20), bed.results.recv()).await;
        if let Ok(answer) = next {
            running.push_back(answer.unwrap().result.unwrap());
        }
        // One ends when another has come, or when none comes.
        if running.len() > 2 || next_is_due(&running) {
            drop(running.pop_front());
            done += 1;
        }
    }
    let (most, looks) = watched.end();
    assert!(most <= budget.0 && most > budget.0 / 2 && looks > 100, "{most} of {} in {looks} looks", budget.0);
    let mut downloads: BTreeMap<String, u64> = BTreeMap::new();
    for (path, _) in &bed.origin.lock().unwrap().requests {
        *downloads.entry(path.clone()).or_default() += 1;
    }
    // Each bundle is wanted 20 times. The least lucky order, which this one is, comes to as many, and one in which its length was found out.
    assert!(downloads.values().all(|n| *n <= TASKS / u64::from(BUNDLES) + 1), "{downloads:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tickets_that_wait_are_served_bundle_by_bundle() {
    const BUNDLES: u64 = 20;
    const TASKS: u64 = 2_000;
    const AT_ONCE: u64 = 500;
    let budget = Bytes(450 << 10);
    let mut bed = Bed::with(|o| o.budgets = Budgets::shared(budget)).await;
    let bundles: Vec<BundleRef> = (0..20).map(|n| bundle(&bed, n)).collect();
    let watched = Watched::begin(&bed);
    let (mut asked, mut done) = (0, 0);
    while done < TASKS {
        while asked < TASKS && asked - done < AT_ONCE {
            // One of each after the other: the worst order for who keeps what was used last.
            let which = usize::try_from(asked % BUNDLES).unwrap();
            bed.handle.prepare(bed.request(asked, bundles[which].clone())).unwrap();
            asked += 1;
        }
        // It ends at once.
        drop(bed.results.recv().await.unwrap().result.unwrap());
        done += 1;
    }
    let (most, _) = watched.end();
    assert!(most <= budget.0, "{most} of {}", budget.0);
    let mut downloads: BTreeMap<String, u64> = BTreeMap::new();
    for (path, _) in &bed.origin.lock().unwrap().requests {
        *downloads.entry(path.clone()).or_default() += 1;
    }
    // With 25 tickets of each bundle waiting, twice as many come in one round: about three of 100, and one in which its length was found out.
    assert!(downloads.values().all(|n| *n <= 6), "{downloads:?}");
}

fn next_is_due(running: &VecDeque<Ready>) -> bool {
    !running.is_empty()
}

#[tokio::test]
async fn who_finds_no_room_waits_says_so_and_goes_on_when_there_is_some() {
    let mut bed = Bed::with(|o| o.budgets = Budgets::shared(Bytes(150 << 10))).await;
    let (first, second) = (bundle(&bed, 1), bundle(&bed, 2));
    let mut pinned = bed.request(1, first);
    // An input that is half of it.
    let state = vec![7; 100 << 10];
    bed.put(&format!("/v1/bundles/{}", Digest::of(&state).to_hex()), Answer::Bytes(state.clone(), None));
    pinned.spec.stdin = Stdin::Object(Input { uri: None, digest: Some(Digest::of(&state)), ..input("", String::new(), &state) });
    let failed = bed.answer(pinned.clone()).await.unwrap_err();
    assert!(failed.reason == Reason::LaunchFailed && failed.message.contains("--cache-budget"), "both can never be there: {failed}");
    pinned.spec.bundle = bed.store(&wasm());
    let running = bed.answer(pinned).await.unwrap();
    bed.handle.prepare(bed.request(2, second)).unwrap();
    let words = loop {
        if let Some((2, 0, words)) = bed.handle.progress().pop().filter(|(_, _, words)| words.contains("waiting")) {
            break words;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(words.contains("waiting for room in this agent's caches") && words.contains("in use by tasks"), "{words}");
    // What needs no more than there is goes past it.
    bed.handle.prepare(Request { fuel: false, ..bed.request(3, running_bundle()) }).unwrap();
    assert_eq!(bed.results.recv().await.unwrap().ticket, 3);
    let before = bed.requests();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(bed.requests(), before, "nobody asks the origin while there is no room");
    drop(running);
    let answer = bed.results.recv().await.unwrap();
    assert!(answer.ticket == 2 && answer.result.is_ok());
    assert!(bed.requests() <= before + 1);
}

fn running_bundle() -> BundleRef {
    BundleRef { digest: Digest::of(&wasm()), uri: None }
}

#[tokio::test]
async fn who_waits_for_room_too_long_is_told() {
    let mut bed = Bed::with(|o| (o.budgets, o.room_timeout) = (Budgets::shared(Bytes(300 << 10)), Duration::from_millis(300))).await;
    let archive = |n: u8| tar(&[("main.wasm", &wasm()), ("large", &vec![n; 100 << 10])]);
    let running = bed.answer(bed.request(1, bed.store(&archive(1)))).await.unwrap();
    let other = bed.store(&archive(2));
    let failure = bed.answer(bed.request(2, other)).await.unwrap_err();
    assert!(failure.reason == Reason::LaunchFailed && failure.message.contains("no room for 0 s"), "{failure}");
    drop(running);
}

#[tokio::test]
async fn a_length_that_nobody_says_is_found_out_within_the_budget() {
    let budget = Bytes(200 << 10);
    let mut bed = Bed::with(|o| (o.budgets, o.fetch.retries.attempts) = (Budgets::shared(budget), 1)).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    bed.put("/endless", Answer::Endless(tell));
    let watched = Watched::begin(&bed);
    let bundle = BundleRef { digest: Digest::of(b"x"), uri: Some(bed.url("/endless")) };
    let failure = bed.failure(bundle).await;
    assert!(failure.message.contains("does not fit"), "{failure}");
    assert!(told.recv().await.is_some());
    let (most, _) = watched.end();
    assert!(most <= budget.0, "{most}");
}
