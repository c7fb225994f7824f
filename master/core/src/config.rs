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
    /// How long an agent may be away before it is removed and its tasks are GONE: a node that was taken down without a goodbye
    /// must not be remembered for ever.
    pub agent_removal: DurationMs,
    /// How long an agent may run exclusive tasks after it asked for a lease.
    pub lease: DurationMs,
    /// By how much an agent's clock may be slower than the master's, in percent.
    pub lease_drift_percent: u64,
    /// What the master waits beyond lease and drift before it takes an exclusive task for ended.
    pub lease_margin: DurationMs,
    /// How long the scheduler of every stored framework has at least to come back after a restart of the master, even if its
    /// fail-over time ended meanwhile: it could not have connected.
    pub reconnect_grace: DurationMs,
    /// How long the master waits for the scheduler of a framework of which it only knows tasks that agents brought back.
    pub orphan_timeout: DurationMs,
    /// How many ended attempts are remembered per framework, to refuse late updates and second launches.
    pub remembered_attempts: usize,
    /// How many ended attempts are remembered for all frameworks together: with many of them, each has only its part of this.
    pub remembered_attempts_total: usize,
    /// How many refusals of offers are remembered: beyond it, the one that would end first ends now.
    pub remembered_refusals: usize,
    /// How many removed frameworks are remembered, to refuse their ids and to end tasks that agents bring back.
    pub remembered_frameworks: usize,
    /// How many updates of one attempt may wait for their acknowledgement here. More stay with the agent, which sends them again.
    pub pending_per_attempt: usize,
    /// How many bytes of updates may wait for one framework's acknowledgements here. More stay with the agents.
    pub pending_bytes: usize,
    /// How many bytes of updates may wait for the acknowledgements of all frameworks together.
    pub pending_bytes_total: usize,
    /// How many updates a framework gets at once when it comes back; the next follow as it acknowledges. Also how many answers to a
    /// reconciliation of everything it gets per tick.
    pub resend_window: usize,
}

impl Config {
    /// How many ended attempts are remembered for each of so many frameworks.
    #[must_use]
    pub fn remembered_of(&self, frameworks: usize) -> usize {
        self.remembered_attempts.min(self.remembered_attempts_total / frameworks.max(1))
    }

    /// How long an exclusive task may run after the master granted its agent a lease, by the master's clock.
    #[must_use]
    pub const fn lease_span(&self) -> DurationMs {
        let drift = self.lease.0.saturating_mul(self.lease_drift_percent).div_ceil(100);
        DurationMs(self.lease.0.saturating_add(drift).saturating_add(self.lease_margin.0))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            offer_timeout: DurationMs(30_000),
            unanswered_refuse: DurationMs(5_000),
            agent_timeout: DurationMs(75_000),
            agent_removal: DurationMs(14 * 24 * 3_600_000),
            lease: DurationMs(15_000),
            lease_drift_percent: 5,
            lease_margin: DurationMs(1_000),
            reconnect_grace: DurationMs(15_000),
            orphan_timeout: DurationMs(600_000),
            remembered_attempts: 16_384,
            remembered_attempts_total: 4_000_000,
            remembered_refusals: 4_000_000,
            remembered_frameworks: 1_024,
            pending_per_attempt: 256,
            pending_bytes: 256 << 20,
            pending_bytes_total: 2 << 30,
            resend_window: 10_000,
        }
    }
}
