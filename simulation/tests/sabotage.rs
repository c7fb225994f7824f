//! The checker sees: every deliberate bug is found, each within a thousand seeds; without one, the same seeds pass.

use smalti_simulation::{Config, Seed, run};
use smalti_types::Sabotage;

/// Seeds that are tried at most.
const MOST_SEEDS: u64 = 1_000;

/// Seeds that found bugs when this was written, where the first few do not: tried first, so that the test is quick.
const KNOWN: [(Sabotage, u64); 1] = [(Sabotage::AgentAwaitsWhatNeverArrived, 203)];

/// A seed that finds a bug, and what it says.
fn found_by(which: Sabotage, config: &Config) -> Option<(u64, String)> {
    Sabotage::set(Some(which));
    let known = KNOWN.iter().filter(|(bug, _)| *bug == which).map(|(_, seed)| *seed);
    let found = known.chain(1..=MOST_SEEDS).find_map(|seed| run(Seed(seed), config).err().map(|failure| (seed, failure.problem)));
    Sabotage::set(None);
    found
}

fn all_are_found(bugs: &[Sabotage]) {
    let config = Config::default();
    let mut missed = Vec::new();
    for bug in bugs {
        match found_by(*bug, &config) {
            Some((seed, problem)) => {
                println!("{bug:?}: seed {seed}: {}", problem.chars().take(200).collect::<String>());
                run(Seed(seed), &config).unwrap_or_else(|failure| panic!("without the bug: {failure}"));
            }
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found within {MOST_SEEDS} seeds: {missed:?}");
}

#[test]
fn bugs_of_the_sdk_are_found() {
    all_are_found(&Sabotage::ALL[..4]);
}

#[test]
fn bugs_of_the_agents_recovery_are_found() {
    all_are_found(&Sabotage::ALL[4..9]);
}

#[test]
fn bugs_of_the_arrays_ledger_are_found() {
    all_are_found(&Sabotage::ALL[9..13]);
}

#[test]
fn bugs_of_the_master_are_found() {
    all_are_found(&Sabotage::ALL[13..]);
}
