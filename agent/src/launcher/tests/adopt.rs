//! Executors that are found again by a later life of the agent, with real processes.

use super::guests::{hear, load_text, nowhere, outcome, start};
use super::*;
use crate::launcher::record::{RECORD_NAME, Record};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use smalti_executor_protocol::v1::{self, from_executor::Message as From, to_executor::Message as To};

const EMPTY: &str = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;
const LOOP: &str = r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;

fn guest(module: u32) -> Option<v1::Guest> {
    Some(v1::Guest { module, args: vec!["guest".into()], memory_bytes: 1 << 20, output_bytes: 1 << 20, ..Default::default() })
}

fn task(run: u64, module: u32) -> v1::StartTask {
    v1::StartTask { run, guest: guest(module), ..Default::default() }
}

/// In which groups a process's threads are.
fn places(pid: i32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let mut all: Vec<String> = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("cgroup")).ok()).collect();
    all.sort();
    all
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

async fn until_gone(pid: i32) {
    let deadline = Instant::now() + PATIENCE;
    while is_alive(pid) {
        assert!(Instant::now() < deadline, "{pid} lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_executor_is_found_again_with_what_it_said_and_what_it_holds() {
    for (mode, namespaces) in [(Mode::Auto, true), (Mode::Auto, false), (Mode::None, true), (Mode::None, false)] {
        let world = World::new("adopt", mode);
        let launcher = world.launcher(|o| o.namespaces = namespaces);
        let mut before = launcher.start(world.spec()).await.unwrap();
        load_text(&mut before, 1, false, EMPTY).await;
        load_text(&mut before, 2, false, LOOP).await;
        start(&mut before, task(1, 1), nowhere()).await;
        assert_eq!(outcome(&mut before, 1).await.exit_code, Some(0));
        start(&mut before, task(2, 2), nowhere()).await;
        assert!(matches!(hear(&mut before).await, From::Started(s) if s.run == 2));
        let (supervisor, worker, uid, isolation) = (before.process.pid(), before.worker, before.uid, before.isolation.clone());
        let threads = places(worker);
        drop(before);

        // Of the five messages so far the first three are known.
        let mut after = launcher.adopt(&world.spec().id, 3).await.unwrap();
        assert_eq!((after.process.pid(), after.worker, after.uid), (supervisor, worker, uid));
        assert_eq!((after.hello.slots.len(), &after.isolation), (3, &isolation));
        assert_eq!(places(worker), threads, "no thread moves");
        let said = [hear(&mut after).await, hear(&mut after).await, hear(&mut after).await];
        assert!(matches!(&said[0], From::Outcome(o) if o.run == 1), "{said:?}");
        assert!(matches!(&said[1], From::Started(s) if s.run == 2), "{said:?}");
        assert_eq!(said[2], From::Holds(v1::Holds { modules: vec![1, 2], tasks: vec![2], parts: Vec::new() }));
        // It works as ever, and so do its limits.
        if world.cgroups.version().is_some() {
            after.group.set_slot_cpus(0, MilliCpus(500)).unwrap();
        }
        after.link.send(To::Kill(v1::Kill { run: 2, grace_us: 0 }), &[]).await.unwrap();
        assert_eq!(outcome(&mut after, 2).await.failure.map(|f| f.reason).as_deref(), Some("KILLED_BY_REQUEST"));
        start(&mut after, task(3, 1), nowhere()).await;
        assert_eq!(outcome(&mut after, 3).await.exit_code, Some(0));
        let exit = after.stop(PATIENCE).await;
        assert_eq!(exit.cause, "exited with code 0");
        until_gone(supervisor).await;
        world.all_gone().await;
    }
}

#[tokio::test]
async fn one_that_is_gone_tells_its_cause() {
    let world = World::new("gone", Mode::Auto);
    let launcher = world.launcher(|_| {});
    let before = launcher.start(world.spec()).await.unwrap();
    let (supervisor, worker) = (before.process.pid(), before.worker);
    drop(before);
    signal(worker, Signal::SIGKILL);
    until_gone(supervisor).await;
    let gone = launcher.adopt(&world.spec().id, 0).await.unwrap_err();
    assert_eq!(gone, Gone { cause: "killed by signal 9 (SIGKILL)".to_owned(), oom: false });
    world.all_gone().await;
    // Its directory goes, too; afterwards nothing is known of it.
    let home = world.dir.path().join("executors").join("e1");
    let deadline = Instant::now() + PATIENCE;
    while home.exists() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let unknown = launcher.adopt(&world.spec().id, 0).await.unwrap_err();
    assert!(unknown.cause.contains("its record cannot be read"), "{unknown}");
}

/// Who waits for a process.
fn parent(pid: i32) -> i32 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok()).unwrap()
}

#[tokio::test]
async fn one_without_a_supervisor_is_watched_whatever_becomes_of_the_agent() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("NOT TESTED: executors that are one process; that takes privilege");
        return;
    }
    // Ended when an agent is there again, and before.
    for (mode, found) in [(Mode::Auto, true), (Mode::None, true), (Mode::Auto, false), (Mode::None, false)] {
        let world = World::new("watched", mode);
        let launcher = world.launcher(|_| {});
        let mut before = launcher.start(world.pooled()).await.unwrap();
        load_text(&mut before, 1, false, LOOP).await;
        start(&mut before, task(1, 1), nowhere()).await;
        assert!(matches!(hear(&mut before).await, From::Started(s) if s.run == 1));
        let (worker, isolation) = (before.worker, before.isolation.clone());
        assert_eq!(before.process.pid(), worker, "it is one process");
        let (forge, threads) = (parent(worker), places(worker));
        if world.cgroups.version().is_some() {
            assert!(threads.len() > 1 && threads.iter().all(|groups| groups.contains("e1/slot-0")), "{threads:?}");
        }
        drop(before);
        drop(launcher);
        assert!(is_alive(forge), "somebody has to see how it ends");
        let launcher = world.launcher(|_| {});
        let cause = if found {
            let after = launcher.adopt(&world.spec().id, 0).await.unwrap();
            assert_eq!((after.process.pid(), after.worker, &after.isolation), (worker, worker, &isolation));
            assert_eq!(places(worker)[..2], threads[..2], "no thread moves");
            signal(worker, Signal::SIGKILL);
            after.exit.await.cause
        } else {
            signal(worker, Signal::SIGKILL);
            until_gone(worker).await;
            launcher.adopt(&world.spec().id, 0).await.unwrap_err().cause
        };
        assert_eq!(cause, "killed by signal 9 (SIGKILL)", "{mode:?} {found}");
        until_gone(forge).await;
        world.all_gone().await;
    }
}

#[tokio::test]
async fn a_process_that_only_has_its_number_is_left_alone() {
    let world = World::new("recycled", Mode::None);
    let launcher = world.launcher(|_| {});
    let home = world.dir.path().join("executors").join("e1");
    let running = launcher.start(world.spec()).await.unwrap();
    let record = Record::load(&home).unwrap();
    assert_eq!((record.supervisor, record.user().ok()), (running.process.pid(), running.uid));
    running.process.kill();
    running.exit.await;
    let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = i32::try_from(other.id()).unwrap();
    let time = process::start_time(pid).unwrap();
    // Its number with an older time; and all as it is now, but of another boot.
    for (start_time, boot_id) in [(time - 1, record.boot_id.clone()), (time, "another".to_owned())] {
        // What is behind the last one is removed behind its back.
        let deadline = Instant::now() + PATIENCE;
        while home.exists() {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::fs::create_dir_all(&home).unwrap();
        let mut record = record.clone();
        (record.supervisor, record.start_time, record.boot_id) = (pid, start_time, boot_id.clone());
        record.store(&home).unwrap();
        let gone = launcher.adopt(&world.spec().id, 0).await.unwrap_err();
        assert_eq!(gone.cause == "the machine was started again", boot_id == "another", "{gone}");
    }
    assert!(other.try_wait().unwrap().is_none(), "nobody touches it");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[tokio::test]
async fn one_that_cannot_be_taken_over_is_ended() {
    // It does not answer; and what stands in its record is not what it is.
    for (slots, stop) in [(3, true), (2, false)] {
        let world = World::new("unfit", Mode::Auto);
        let launcher = world.launcher(|o| o.start_timeout = if stop { Duration::from_millis(300) } else { PATIENCE });
        let starter = world.launcher(|_| {});
        let before = starter.start(world.spec()).await.unwrap();
        let (supervisor, worker) = (before.process.pid(), before.worker);
        drop(before);
        let home = world.dir.path().join("executors").join("e1");
        let mut record = Record::load(&home).unwrap();
        record.slots = slots;
        record.store(&home).unwrap();
        if stop {
            signal(worker, Signal::SIGSTOP);
        }
        let gone = launcher.adopt(&world.spec().id, 0).await.unwrap_err();
        assert!(gone.cause.starts_with("ended because it cannot be taken over: "), "{gone}");
        assert_eq!(gone.cause.contains("did not answer"), stop, "{gone}");
        until_gone(worker).await;
        until_gone(supervisor).await;
        world.all_gone().await;
    }
}

#[tokio::test]
async fn a_record_that_is_not_understood_ends_whoever_listens() {
    for mode in [Mode::Auto, Mode::None] {
        let world = World::new("damaged", mode);
        let launcher = world.launcher(|_| {});
        let before = launcher.start(world.spec()).await.unwrap();
        let (supervisor, worker) = (before.process.pid(), before.worker);
        drop(before);
        std::fs::write(world.dir.path().join("executors/e1").join(RECORD_NAME), "{").unwrap();
        let gone = launcher.adopt(&world.spec().id, 0).await.unwrap_err();
        assert!(gone.cause.contains("its record cannot be read"), "{gone}");
        until_gone(worker).await;
        until_gone(supervisor).await;
        world.all_gone().await;
    }
}

#[tokio::test]
async fn without_an_agent_it_ends_in_the_end_whatever_runs() {
    let world = World::new("alone", Mode::Auto);
    let launcher = world.launcher(|o| o.recovery_timeout = Duration::from_millis(300));
    let mut running = launcher.start(world.spec()).await.unwrap();
    load_text(&mut running, 1, false, LOOP).await;
    start(&mut running, task(1, 1), nowhere()).await;
    assert!(matches!(hear(&mut running).await, From::Started(_)));
    let Running { link, exit, process, .. } = running;
    drop(link);
    assert_eq!(exit.await.cause, "exited with code 0");
    until_gone(process.pid()).await;
    world.all_gone().await;
}

#[tokio::test]
async fn what_makes_the_sockets_of_a_networked_one_stays_with_it() {
    let world = World::new("broker", Mode::Auto);
    let spec = ExecutorSpec { kind: ExecutorKind::Networked, slots: 1, ..world.spec() };
    let launcher = world.launcher(|_| {});
    let before = launcher.start(spec).await.unwrap();
    // Its launcher is in its group, too, and in no other process's way.
    let [worker, supervisor] = [before.worker, before.process.pid()];
    let children = |of: &World| {
        let group = of.cgroups.executor(&of.spec().id).unwrap();
        let all = group.processes().unwrap();
        all.into_iter().filter(|pid| ![worker, supervisor].contains(pid)).collect::<Vec<_>>()
    };
    let broker = children(&world);
    assert_eq!(broker.len(), usize::from(world.cgroups.version().is_some()));
    drop(before);
    let after = launcher.adopt(&world.spec().id, 0).await.unwrap();
    assert_eq!(children(&world), broker, "it is there still");
    assert!(after.broker.is_none() && broker.iter().all(|pid| is_alive(*pid)));
    assert_eq!(after.stop(PATIENCE).await.code, Some(0));
    // And it ends with its executor, not with its agent.
    for pid in broker {
        until_gone(pid).await;
    }
    world.all_gone().await;
}
