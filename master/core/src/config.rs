//! What an operator may change about the master's decisions.

use smalti_types::DurationMs;

/// Time-outs and budgets of the core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How long a framework may keep an offer before it is taken back.
    pub offer_timeout: DurationMs,
    /// For how long an offer that was taken back is not made again to the framework that did not answer, so that others
    /// get their turn. Doubles each time in a row, some times.
    pub unanswered_refuse: DurationMs,
    /// How long an agent may be away before its tasks are reported UNREACHABLE.
    pub agent_timeout: DurationMs,
    /// How long the master waits for the scheduler of a framework of which it only knows tasks that agents brought back.
    pub orphan_timeout: DurationMs,
    /// How many ended attempts are remembered per framework, to refuse late updates and second launches.
    pub remembered_attempts: usize,
    /// How many removed frameworks are remembered, to refuse their ids and to end tasks that agents bring back.
    pub remembered_frameworks: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            offer_timeout: DurationMs(30_000),
            unanswered_refuse: DurationMs(5_000),
            agent_timeout: DurationMs(75_000),
            orphan_timeout: DurationMs(600_000),
            remembered_attempts: 16_384,
            remembered_frameworks: 1_024,
        }
    }
}
