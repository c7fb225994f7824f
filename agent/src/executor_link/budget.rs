//! How fast an executor may speak: a bucket of tokens. Pure; the link asks it before each read.
//!
//! One that is over its budget is not read for a while and then waits itself: its socket is full. That costs nobody else anything.
//! Far above what honest ones need (two messages per task, thousands of items per report), so that it shows only with those that flood.

use std::time::{Duration, Instant};

/// Tokens per second …
const RATE: i64 = 100_000;
/// … and how many may be saved up. A frame costs a token, and one for each of these many bytes.
const BURST: i64 = 100_000;
const BYTES_PER_TOKEN: usize = 512;

/// The bucket.
#[derive(Debug)]
pub(super) struct Budget {
    /// Below zero: spent ahead.
    tokens: i64,
    at: Instant,
}

impl Budget {
    pub(super) const fn new(now: Instant) -> Self {
        Self { tokens: BURST, at: now }
    }

    /// Pays for a frame; how long to wait before the next one is taken, if that is any time.
    pub(super) fn pay(&mut self, now: Instant, bytes: usize) -> Option<Duration> {
        let elapsed = i64::try_from(now.saturating_duration_since(self.at).as_micros()).unwrap_or(i64::MAX);
        let earned = elapsed.saturating_mul(RATE) / 1_000_000;
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(earned).min(BURST);
            self.at = now;
        }
        let cost = i64::try_from(1 + bytes / BYTES_PER_TOKEN).unwrap_or(i64::MAX);
        self.tokens = self.tokens.saturating_sub(cost);
        let missing = u64::try_from(self.tokens.saturating_neg()).unwrap_or(0);
        (missing > 0).then(|| Duration::from_micros(missing.saturating_mul(1_000_000) / RATE.unsigned_abs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_slowed_to_the_rate_and_honest_traffic_is_not() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let (mut now, mut waited) = (start, 0);
        for _ in 0..10 * BURST {
            if let Some(wait) = budget.pay(now, 20) {
                now += wait;
                waited += 1;
            }
        }
        let seconds = now.duration_since(start).as_secs_f64();
        assert!((8.9..9.2).contains(&seconds), "{seconds}");
        assert!(waited > 0);
        let mut budget = Budget::new(start);
        // 20,000 messages a second for ten seconds.
        assert!((0..200_000_u32).all(|n| budget.pay(start + n * Duration::from_micros(50), 200).is_none()));
    }

    #[test]
    fn large_frames_cost_more() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let last = (0..100).filter_map(|_| budget.pay(start, 16 << 20)).last();
        assert!(last.is_some_and(|wait| wait > Duration::from_secs(20)), "{last:?}");
    }
}
