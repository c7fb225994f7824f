//! Single tasks.

use super::*;
use std::collections::BTreeMap;
use std::time::Instant;

#[test]
fn exit_codes_and_traps_have_their_reasons() {
    let mut agent = Agent::start(1);
    for (run, (text, code, why)) in (1..).zip([
        (guests::EMPTY.to_owned(), Some(0), ""),
        (guests::exit(0), Some(0), ""),
        (guests::exit(3), Some(3), "EXIT_CODE"),
        (guests::exit(125), Some(125), "EXIT_CODE"),
        (guests::exit(126), None, "TRAP"),
        (guests::TRAP.to_owned(), None, "TRAP"),
        (guests::RECURSE.to_owned(), None, "TRAP"),
        (guests::LIAR.to_owned(), None, "TRAP"),
    ]) {
        let module = agent.load(&text);
        let outcome = agent.outcome(run, guest(module));
        assert_eq!((outcome.exit_code, reason(&outcome)), (code, why), "{outcome:?}");
        assert!(outcome.usage.is_some_and(|u| u.peak_memory == 65_536));
        assert_eq!(agent.read(&format!("t{run}/stdout")), b"");
    }
    let trap = agent.load(guests::TRAP);
    let message = agent.outcome(100, guest(trap)).failure.expect("a failure").message;
    assert!(message.contains("unreachable") && message.contains("inner"), "{message}");
    agent.stop();
}

#[test]
fn what_cannot_be_loaded_says_why() {
    let mut agent = Agent::start(1);
    let mut refused = |text: &str| agent.load_code(&compile(text, false), false, false).expect_err("refused");
    let missing = refused(r#"(module (import "env" "fork" (func)) (func (export "_start")))"#);
    assert_eq!(missing.reason, "MISSING_IMPORT");
    assert!(missing.message.contains("env::fork"), "{}", missing.message);
    assert_eq!(refused("(module)").reason, "NO_ENTRY_POINT");
    assert_eq!(refused(r#"(module (func (export "_start") (param i32)))"#).reason, "NO_ENTRY_POINT");
    assert_eq!(refused(r#"(module (global (export "_start") i32 (i32.const 0)))"#).reason, "NO_ENTRY_POINT");
    let refused = |agent: &mut Agent, text: &str| agent.load_code(&compile(text, false), true, false).expect_err("refused");
    assert_eq!(refused(&mut agent, "(component)").reason, "NO_ENTRY_POINT");
    let missing = refused(&mut agent, r#"(component (import "a:b/c" (instance (export "d" (func)))))"#);
    assert_eq!(missing.reason, "MISSING_IMPORT");
    assert!(missing.message.contains("a:b/c"), "{}", missing.message);
    assert_eq!(agent.load_code(b"no code", false, false).expect_err("refused").reason, "LAUNCH_FAILED");
    // Compiled for the other engine.
    assert_eq!(agent.load_code(&compile(guests::EMPTY, true), false, false).expect_err("refused").reason, "LAUNCH_FAILED");
    agent.stop();
}

#[test]
fn bad_starts_are_refused_one_by_one() {
    let mut agent = Agent::start(1);
    let module = agent.load(guests::EMPTY);
    let no_slot = v1::StartTask { run: 1, slot: 7, guest: Some(guest(module)), ..Default::default() };
    let no_module = v1::StartTask { run: 2, guest: Some(guest(99)), ..Default::default() };
    let no_stdin = v1::StartTask { run: 3, has_stdin: true, guest: Some(guest(module)), ..Default::default() };
    let no_guest = v1::StartTask { run: 4, ..Default::default() };
    for start in [no_slot, no_module, no_stdin, no_guest] {
        let run = start.run;
        agent.send_task(start, &[]);
        let outcome = agent.await_outcome(run);
        assert_eq!(reason(&outcome), "LAUNCH_FAILED", "{outcome:?}");
    }
    // Without its outputs.
    agent.send(To::Start(v1::StartTask { run: 5, guest: Some(guest(module)), ..Default::default() }), &[]);
    assert_eq!(reason(&agent.await_outcome(5)), "LAUNCH_FAILED");
    assert_eq!(agent.outcome(6, guest(module)).exit_code, Some(0));
    agent.stop();
}

#[test]
fn several_messages_in_one_frame_are_taken_in_order_with_their_own_descriptors() {
    let mut agent = Agent::start(2);
    let module = agent.load(&guests::exit(3));
    let start = |run, slot| To::Start(v1::StartTask { run, slot, guest: Some(guest(module)), ..Default::default() });
    let files: Vec<_> = [1, 2].map(|run| agent.output_files(&format!("t{run}"), &["stdout", "stderr"])).into_iter().flatten().collect();
    // One that it must not find there, one that it does not know, and one whose descriptors are missing.
    let nested = To::Several(v1::Several::default());
    let messages = [Some(start(1, 0)), Some(nested), None, Some(start(2, 1)), Some(start(3, 0))];
    let messages = messages.map(|message| v1::ToExecutor { message }).to_vec();
    agent.send(To::Several(v1::Several { messages, fds: vec![2, 0, 0, 2, 2] }), &files.iter().collect::<Vec<_>>());
    let mut ended = BTreeMap::new();
    while ended.len() < 3 {
        match agent.receive() {
            From::Outcome(outcome) => drop(ended.insert(outcome.run, outcome)),
            From::Started(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let missing = ended.remove(&3).expect("an end");
    assert!(ended.values().all(|outcome| outcome.exit_code == Some(3)), "{ended:?}");
    assert_eq!(reason(&missing), "LAUNCH_FAILED");
    // More counts than messages, and the other way round.
    for fds in [vec![], vec![0, 64]] {
        let messages = vec![v1::ToExecutor { message: Some(start(4, 0)) }];
        agent.send(To::Several(v1::Several { messages, fds }), &[]);
    }
    assert_eq!(reason(&agent.await_outcome(4)), "LAUNCH_FAILED");
    assert_eq!(agent.outcome(5, guest(module)).exit_code, Some(3));
    agent.stop();
}

#[test]
fn each_limit_has_its_reason() {
    let mut agent = Agent::start(1);
    let grow = agent.load(guests::GROW);
    let outcome = agent.outcome(1, v1::Guest { memory_bytes: 1 << 20, ..guest(grow) });
    assert_eq!(reason(&outcome), "MEMORY_LIMIT");
    assert_eq!(outcome.usage.expect("usage").peak_memory, 1 << 20);
    // Too little to begin with.
    assert_eq!(reason(&agent.outcome(2, v1::Guest { memory_bytes: 1000, ..guest(grow) })), "MEMORY_LIMIT");

    let print = agent.load(guests::PRINT);
    let outcome = agent.outcome(3, v1::Guest { output_bytes: 123_456, ..guest(print) });
    assert_eq!(reason(&outcome), "OUTPUT_LIMIT");
    assert_eq!(agent.read("t3/stdout").len(), 123_456);
    assert_eq!(outcome.usage.expect("usage").bytes_written, 123_456);

    for (run, text) in [(4, guests::LOOP), (5, guests::SLEEP)] {
        let module = agent.load(text);
        let outcome = agent.outcome(run, v1::Guest { timeout_us: Some(50_000), ..guest(module) });
        assert_eq!(reason(&outcome), "TIME_LIMIT");
        assert!(outcome.usage.is_some_and(|u| u.wall_us >= 50_000));
    }
    agent.stop();
}

#[test]
fn what_a_start_function_does_is_the_guests_own_doing() {
    let mut agent = Agent::start(1);
    let started = |body: &str| {
        format!(
            r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32))) (memory (export "memory") 1)
               (func $f {body}) (start $f) (func (export "_start")))"#
        )
    };
    let refused = "(drop (memory.grow (i32.const 2000)))";
    for (run, (body, code, why)) in (1..).zip([
        ("unreachable".to_owned(), None, "TRAP"),
        ("(call $exit (i32.const 0))".to_owned(), Some(0), ""),
        ("(call $exit (i32.const 3))".to_owned(), Some(3), "EXIT_CODE"),
        ("(call $exit (i32.const -1))".to_owned(), None, "TRAP"),
        // Nothing of the guest's is on the stack.
        ("(return_call $exit (i32.const -1))".to_owned(), None, "TRAP"),
        ("(loop (br 0))".to_owned(), None, "TIME_LIMIT"),
        (format!("{refused} (loop (br 0))"), None, "TIME_LIMIT"),
        (format!("{refused} (call $exit (i32.const 0))"), Some(0), ""),
        (format!("{refused} unreachable"), None, "MEMORY_LIMIT"),
    ]) {
        let module = agent.load(&started(&body));
        let outcome = agent.outcome(run, v1::Guest { timeout_us: Some(50_000), ..guest(module) });
        assert_eq!((outcome.exit_code, reason(&outcome)), (code, why), "{body}: {outcome:?}");
    }
    // Nothing of the guest's is on the stack, and Wasmtime's function fails before it is called.
    let blind = started("(return_call $exit (i32.const 3))").replace("(export \"memory\")", "");
    let module = agent.load(&blind);
    let outcome = agent.outcome(100, guest(module));
    assert_eq!((outcome.exit_code, reason(&outcome)), (None, "TRAP"), "{outcome:?}");
    agent.stop();
}

#[test]
fn fuel_is_the_same_every_time() {
    let mut agent = Agent::start(1);
    let module = agent.load_code(&compile(guests::COUNT_DOWN, true), false, true).expect("loaded");
    let used: Vec<_> = (1..4)
        .map(|run| agent.outcome(run, v1::Guest { fuel: Some(1 << 40), ..guest(module) }).usage.and_then(|u| u.fuel).expect("fuel"))
        .collect();
    assert!(used[0] > 1_000_000 && used.iter().all(|u| *u == used[0]), "{used:?}");
    assert_eq!(agent.outcome(4, v1::Guest { fuel: Some(used[0]), ..guest(module) }).exit_code, Some(0));
    // Checked at the head of loops and functions only.
    assert_eq!(reason(&agent.outcome(5, v1::Guest { fuel: Some(used[0] - 100), ..guest(module) })), "FUEL_LIMIT");
    // Without a limit, code that counts runs too; code that does not count cannot have a limit.
    assert_eq!(agent.outcome(6, guest(module)).exit_code, Some(0));
    let plain = agent.load(guests::EMPTY);
    assert_eq!(reason(&agent.outcome(7, v1::Guest { fuel: Some(1), ..guest(plain) })), "LAUNCH_FAILED");
    agent.stop();
}

#[test]
fn a_kill_ends_loops_and_sleeps_at_once() {
    let mut agent = Agent::start(1);
    for (run, text) in [(1, guests::LOOP), (2, guests::SLEEP)] {
        let module = agent.load(text);
        agent.start_task(run, guest(module));
        agent.await_started(run);
        // The guest may or may not be in its host call yet: both must work.
        std::thread::sleep(Duration::from_millis(20 * run));
        let asked = Instant::now();
        agent.send(To::Kill(v1::Kill { run, grace_us: 0 }), &[]);
        let outcome = agent.await_outcome(run);
        eprintln!("killed after {:?}", asked.elapsed());
        assert_eq!(reason(&outcome), "KILLED_BY_REQUEST");
        assert!(outcome.usage.is_some_and(|u| u.wall_us < 3_600_000_000));
    }
    agent.stop();
}

#[test]
fn a_guest_may_end_by_itself_within_its_grace() {
    let mut agent = Agent::start(1);
    let polite = agent.load(guests::POLITE);
    agent.start_task(1, guest(polite));
    agent.await_started(1);
    let From::Progress(progress) = agent.receive() else { panic!("progress comes while it runs") };
    assert_eq!((progress.run, progress.permille, progress.text.as_str()), (1, 1000, "abc"));
    agent.send(To::Kill(v1::Kill { run: 1, grace_us: 60_000_000 }), &[]);
    let outcome = agent.await_outcome(1);
    assert_eq!((outcome.exit_code, outcome.result.as_deref()), (Some(0), Some(&b"abc"[..])));

    let rude = agent.load(guests::SLEEP);
    agent.start_task(2, guest(rude));
    agent.await_started(2);
    agent.send(To::Kill(v1::Kill { run: 2, grace_us: 30_000 }), &[]);
    let outcome = agent.await_outcome(2);
    assert_eq!(reason(&outcome), "KILLED_BY_REQUEST");
    agent.stop();
}

#[test]
fn a_task_that_waits_for_its_slot_can_be_killed_and_others_go_on() {
    let mut agent = Agent::start(1);
    let (sleep, empty) = (agent.load(guests::SLEEP), agent.load(guests::EMPTY));
    agent.start_task(1, guest(sleep));
    agent.await_started(1);
    agent.start_task(2, guest(empty));
    agent.start_task(3, guest(empty));
    agent.send(To::Kill(v1::Kill { run: 2, grace_us: 0 }), &[]);
    agent.send(To::Kill(v1::Kill { run: 1, grace_us: 0 }), &[]);
    assert_eq!(reason(&agent.await_outcome(1)), "KILLED_BY_REQUEST");
    assert_eq!(reason(&agent.await_outcome(2)), "KILLED_BY_REQUEST");
    assert_eq!(agent.await_outcome(3).exit_code, Some(0));
    agent.stop();
}

#[test]
fn stdin_is_the_named_part_of_a_file() {
    let mut agent = Agent::start(1);
    let cat = agent.load(guests::CAT);
    let text: Vec<u8> = (0..200_000_u32).map(|i| b'a' + u8::try_from(i % 26).expect("a letter")).collect();
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&text).expect("written");
    let file = OwnedFd::from(file);
    for (run, offset, length, why) in [(1_u64, 0, 200_000, ""), (2, 1_000, 150_001, ""), (3, 100_000, 100_001, "INPUT_FAILED")] {
        let start = v1::StartTask {
            run,
            guest: Some(guest(cat)),
            has_stdin: true,
            stdin_offset: offset,
            stdin_length: length,
            ..Default::default()
        };
        agent.send_task(start, &[&file]);
        let outcome = agent.await_outcome(run);
        assert_eq!(reason(&outcome), why, "{outcome:?}");
        let first = usize::try_from(offset).expect("small");
        let end = usize::try_from(offset + length).expect("small").min(text.len());
        assert_eq!(agent.read(&format!("t{run}/stdout")), text[first..end]);
    }
    agent.stop();
}

#[test]
fn the_guest_sees_its_environment_and_its_deadline() {
    let mut agent = Agent::start(1);
    let module = agent.load(guests::ENVIRONMENT);
    let env = vec!["A=1".to_owned(), "B=x=y".to_owned(), "SMALTI_TASK_ID=t".to_owned(), "SMALTI_DEADLINE_US=7".to_owned()];
    agent.outcome(1, v1::Guest { env, timeout_us: Some(3_600_000_000), ..guest(module) });
    let printed = String::from_utf8(agent.read("t1/stdout")).expect("text");
    let variables: Vec<_> = printed.split('\0').collect();
    assert_eq!(variables[..3], ["A=1", "B=x=y", "SMALTI_TASK_ID=t"]);
    assert!(variables[3].starts_with("SMALTI_DEADLINE_US=1"), "{variables:?}");
    // One that is not told who it is gets nothing that it was not given.
    agent.outcome(2, v1::Guest { env: vec!["A=1".to_owned()], timeout_us: Some(3_600_000_000), ..guest(module) });
    let printed = String::from_utf8(agent.read("t2/stdout")).expect("text");
    assert_eq!(printed.trim_end_matches('\0'), "A=1");
    agent.stop();
}

#[test]
fn directories_are_seen_and_read_only_ones_stay_as_they_are() {
    let mut agent = Agent::start(1);
    let module = agent.load(guests::FILES);
    let shared = tempfile::tempdir().expect("a directory");
    std::fs::write(shared.path().join("f"), "content").expect("written");
    let fd = OwnedFd::from(File::open(shared.path()).expect("opened"));
    for (run, writable) in [(1_u64, false), (2, true)] {
        let dirs = vec![v1::GuestDir { guest_path: "/data".to_owned(), writable }];
        let start = v1::StartTask { run, guest: Some(v1::Guest { dirs, ..guest(module) }), ..Default::default() };
        agent.send_task(start, &[&fd]);
        let outcome = agent.await_outcome(run);
        assert_eq!(outcome.exit_code.is_some_and(|code| code == 0), writable, "{outcome:?}");
        assert_eq!(agent.read(&format!("t{run}/stdout")), b"content");
        assert_eq!(shared.path().join("g").exists(), writable);
    }
    agent.stop();
}

#[test]
fn components_run_too() {
    let mut agent = Agent::start(1);
    for (run, result) in [(1, 0), (2, 1)] {
        let module = agent.load_code(&compile(&guests::component(result), false), true, false).expect("loaded");
        let outcome = agent.outcome(run, guest(module));
        assert_eq!((outcome.exit_code, outcome.result.as_deref()), (Some(result), Some(&b"A"[..])), "{outcome:?}");
    }
    agent.stop();
}
