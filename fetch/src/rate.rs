//! How many bytes a second all transfers of this process take together.
//!
//! Owns a bucket that fills with time and may go into debt: who takes a large chunk waits until it is paid, and nobody is cut into pieces.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes a second; clones would be other buckets, so there are none.
#[derive(Debug)]
pub struct Rate {
    bytes_per_s: Option<u64>,
    /// Until when everything that was taken is paid for.
    paid_at: Mutex<Option<Instant>>,
}

impl Rate {
    /// `None`: no limit.
    #[must_use]
    pub fn new(bytes_per_s: Option<u64>) -> Self {
        Self { bytes_per_s: bytes_per_s.map(|b| b.max(1)), paid_at: Mutex::default() }
    }

    /// Takes `bytes`, and waits until they and all before are paid for.
    pub async fn take(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_s else { return };
        let until = {
            let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
            let cost = cost(bytes, rate);
            let until = paid_at.map_or_else(Instant::now, |p| p.max(Instant::now())) + cost;
            *paid_at = Some(until);
            until
        };
        tokio::time::sleep_until(until).await;
    }
}

/// How long `bytes` take.
fn cost(bytes: u64, rate: u64) -> Duration {
    let micros = u128::from(bytes) * 1_000_000 / u128::from(rate);
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX).min(3_600_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_cost_time() {
        assert_eq!(cost(500, 1_000), Duration::from_millis(500));
        assert_eq!(cost(0, 1), Duration::ZERO);
        assert_eq!(cost(u64::MAX, 1), Duration::from_secs(3_600), "no clock overflows");
    }

    #[tokio::test]
    async fn all_that_take_wait_for_each_other() {
        let rate = Rate::new(Some(1_000_000));
        let began = Instant::now();
        futures::future::join_all((0..5).map(|_| rate.take(10_000))).await;
        assert!(began.elapsed() >= Duration::from_millis(50));
        Rate::new(None).take(u64::MAX).await;
    }
}
