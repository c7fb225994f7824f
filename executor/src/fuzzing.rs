//! Random guests through the worker's real entry: its socket, its slots, its host functions, with all limits on and, if wanted, its
//! walls closed.
//!
//! Owns the agent's end of the socket and the checks of each outcome: there is one, its reason is possible, and nothing was used
//! beyond a limit. The tests (`tests/random.rs`) run fixed seeds in a process of their own and look at what that process holds
//! afterwards; the fuzz target `fuzz/fuzz_targets/modules.rs` runs what libFuzzer finds interesting. Nothing here is part of an
//! executor.

pub(crate) mod agent;
mod component;
mod guest;
mod wasi;

pub use agent::{Executor, Setup};
pub(crate) use guest::Guest;

use std::cell::RefCell;

/// Guests between two that look at a used slot.
pub const LOOK_EVERY: u64 = 64;

/// How one guest ended: what it is counted under.
pub type Ending = String;

thread_local! {
    static RUNNING: RefCell<(u64, Option<Executor>)> = const { RefCell::new((0, None)) };
}

/// One guest made of `data`, in an executor that stays from call to call. For fuzzers.
///
/// # Panics
/// When anything is found: that is the result of fuzzing.
pub fn modules(data: &[u8]) {
    let Ok(guest) = Guest::new(data) else { return };
    RUNNING.with_borrow_mut(|(count, executor)| {
        let executor = executor.get_or_insert_with(|| Executor::start(Setup::Best, false));
        let ended = executor.run(&guest).and_then(|ending| {
            *count += 1;
            if count.is_multiple_of(LOOK_EVERY) { executor.look_at_used_slot().map(|()| ending) } else { Ok(ending) }
        });
        if let Err(why) = ended {
            panic!("{why}");
        }
    });
}
