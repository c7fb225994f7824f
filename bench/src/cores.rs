//! The pure cores by themselves, always doing the same: what `instructions` counts.
//!
//! Each scenario sets a core up and then repeats one round, after which the core is as before but for what it remembers of the past. No
//! clock, no randomness, no map whose order depends on a seed: the same build executes the same instructions.

mod agent;
pub mod master;
mod scheduler;
mod sdk;

use anyhow::{Context, Result};
use smalti_types::{BundleRef, Digest, Effects, TaskSpec};

/// Repeats its round so often; gives something that depends on all of it.
type Scenario = fn(u64) -> Result<u64>;

/// All scenarios: name, and what one round is.
pub const SCENARIOS: [(&str, &str, Scenario); 7] = [
    ("master_change", "one offer declined and given out again: 1,000 agents, 100 frameworks", master::change),
    ("master_task", "one task from accept to its last acknowledgement: 1,000 agents, 100 frameworks", master::task),
    ("agent_task", "one task from launch to its last acknowledgement, its executor being warm", agent::task),
    ("agent_items_1000", "an array part of 1,000 items, from launch to its last acknowledgement", agent::items),
    ("scheduler_job", "one single job from submission to its end", scheduler::job),
    ("scheduler_items_10000", "an array of 10,000 items from submission to its end", scheduler::items),
    ("sdk_task", "one task from its launch to the handler's word that it has taken its last update", sdk::task),
];

/// Runs one by its name.
///
/// # Errors
/// An unknown name, or a core that does something else than expected.
pub fn run(name: &str, rounds: u64) -> Result<u64> {
    let (_, _, scenario) = SCENARIOS
        .iter()
        .find(|(n, ..)| *n == name)
        .with_context(|| format!("there is no scenario {name}; there are {}", SCENARIOS.map(|(n, ..)| n).join(", ")))?;
    scenario(rounds)
}

/// A constant: hashing is as fast as the processor, and nobody's core.
const DIGEST: Digest = Digest::from_bytes([7; 32]);

fn spec() -> TaskSpec {
    TaskSpec { args: vec!["an".into(), "argument".into()], ..TaskSpec::new(BundleRef { digest: DIGEST, uri: None }) }
}

/// What a step wants to tell; what it wants to keep is dropped.
fn told<R, M>(effects: Effects<R, M>) -> Vec<M> {
    effects.commit(|_| Ok::<_, std::convert::Infallible>(())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scenario_does_its_rounds_and_always_the_same() {
        for (name, ..) in SCENARIOS {
            let once = run(name, 20).unwrap_or_else(|e| panic!("{name}: {e:#}"));
            assert_eq!(once, run(name, 20).unwrap(), "{name}");
            assert!(run(name, 40).unwrap() > once, "{name} does no more in more rounds");
        }
        assert!(run("nothing", 1).is_err());
    }
}
