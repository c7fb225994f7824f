//! The same guests in each way of allocating and resetting memory.

use super::*;

const MODES: [Mode; 3] = [Mode::Best, Mode::PlainReset, Mode::OnDemand];

/// Runs `body` with an executor of one slot in each mode.
fn in_each_mode(body: impl Fn(&mut Agent, Mode)) {
    for mode in MODES {
        let mut agent = Agent::start_in(mode, 1);
        eprintln!("{mode:?}: {} {} {:?}", agent.hello.allocator, agent.hello.reset, agent.hello.warnings);
        body(&mut agent, mode);
        agent.stop();
    }
}

#[test]
fn the_executor_says_which_mode_it_is_in() {
    in_each_mode(|agent, mode| {
        let (allocator, reset) = (agent.hello.allocator.as_str(), agent.hello.reset.as_str());
        match mode {
            Mode::Best => {}
            Mode::PlainReset => assert_eq!((allocator, reset), ("pooling", "plain")),
            Mode::OnDemand => assert_eq!((allocator, reset), ("on-demand", "plain")),
        }
    });
}

#[test]
fn a_reused_slot_never_shows_the_last_guests_bytes() {
    in_each_mode(|agent, mode| {
        let (dirty, other) = (agent.load(guests::DIRTY), agent.load(guests::DIRTY_WITH_DATA));
        for run in 1..40 {
            let module = if run % 3 == 0 { other } else { dirty };
            let outcome = agent.outcome(run, guest(module));
            assert_eq!(outcome.exit_code, Some(0), "{mode:?}, run {run}: {outcome:?}");
        }
    });
}

#[test]
fn limits_have_the_same_reasons_and_peaks() {
    in_each_mode(|agent, mode| {
        let mib = 1 << 20;
        let cases = [
            (guests::EMPTY, 64 * mib, Some(0), ""),
            (guests::TRAP, 64 * mib, None, "TRAP"),
            (guests::RECURSE, 64 * mib, None, "TRAP"),
            (guests::GROW, mib, None, "MEMORY_LIMIT"),
            (guests::GROW, 100 * mib, None, "MEMORY_LIMIT"),
            (guests::GROW_TABLE, 64 * mib, None, "TRAP"),
            (guests::GROW_TABLE, mib / 2, None, "MEMORY_LIMIT"),
            (guests::TWO_GIB, 64 * mib, None, "MEMORY_LIMIT"),
            (guests::MANY_CLOCKS, 64 * mib, None, "HANDLE_LIMIT"),
        ];
        for (run, (text, memory_bytes, code, why)) in (1..).zip(cases) {
            let module = agent.load(text);
            let outcome = agent.outcome(run, v1::Guest { memory_bytes, ..guest(module) });
            assert_eq!((outcome.exit_code, reason(&outcome)), (code, why), "{mode:?}, run {run}: {outcome:?}");
            let peak = outcome.usage.expect("usage").peak_memory;
            assert!(peak <= memory_bytes, "{mode:?}, run {run}: {peak}");
            if text == guests::GROW {
                assert_eq!(peak, memory_bytes, "{mode:?}: to the last page");
            }
        }
    });
}

#[test]
fn the_host_keeps_only_so_much_for_a_component() {
    in_each_mode(|agent, mode| {
        for (run, text, why) in
            [(1, guests::RESOURCE_LEAK.to_owned(), "HANDLE_LIMIT"), (2, guests::instances(8), ""), (3, guests::component(0), "")]
        {
            let module = agent.load_code(&compile(&text, false), true, false).expect("loaded");
            let outcome = agent.outcome(run, guest(module));
            assert_eq!(reason(&outcome), why, "{mode:?}, run {run}: {outcome:?}");
        }
        // Pools refuse it when it is loaded, the other allocator when it is instantiated.
        let text = guests::instances(100);
        let refused = match agent.load_code(&compile(&text, false), true, false) {
            Err(failure) => failure,
            Ok(module) => agent.outcome(4, guest(module)).failure.expect("a failure"),
        };
        assert_eq!(refused.reason, "INSTANCE_LIMIT", "{mode:?}: {}", refused.message);
    });
}

#[test]
fn a_table_that_is_too_large_has_the_same_reason() {
    in_each_mode(|agent, mode| {
        // As above.
        let failure = match agent.load_code(&compile(guests::LARGE_TABLE, false), false, false) {
            Err(failure) => failure,
            Ok(module) => agent.outcome(1, guest(module)).failure.expect("a failure"),
        };
        assert_eq!(failure.reason, "MEMORY_LIMIT", "{mode:?}: {}", failure.message);
    });
}

#[test]
fn fuel_and_time_and_exit_codes_are_the_same() {
    let mut fuel = Vec::new();
    for mode in MODES {
        let mut agent = Agent::start_in(mode, 1);
        let module = agent.load_code(&compile(guests::COUNT_DOWN, true), false, true).expect("loaded");
        let outcome = agent.outcome(1, v1::Guest { fuel: Some(1 << 40), ..guest(module) });
        fuel.push(outcome.usage.and_then(|u| u.fuel).expect("fuel"));
        let module = agent.load(guests::LOOP);
        let outcome = agent.outcome(2, v1::Guest { timeout_us: Some(30_000), ..guest(module) });
        assert_eq!(reason(&outcome), "TIME_LIMIT", "{mode:?}");
        let module = agent.load(&guests::exit(9));
        assert_eq!(agent.outcome(3, guest(module)).exit_code, Some(9), "{mode:?}");
        agent.stop();
    }
    assert!(fuel.iter().all(|f| *f == fuel[0]), "{fuel:?}");
}

#[test]
fn a_guest_that_was_refused_memory_and_exits_by_itself_keeps_its_code() {
    let mut agent = Agent::start(1);
    let module = agent.load(guests::GROW_AND_EXIT);
    let outcome = agent.outcome(1, v1::Guest { memory_bytes: 1 << 20, ..guest(module) });
    assert_eq!((outcome.exit_code, reason(&outcome)), (Some(4), "EXIT_CODE"));
    let message = outcome.failure.expect("a failure").message;
    assert!(message.contains("memory limit of 1048576 bytes"), "{message}");
    agent.stop();
}
