//! Executors that die again and again: the next one waits longer each time.
//!
//! Owns how often each framework has lost a shared executor of late. What class `process` does about executors that die before their use
//! is in `process`.

use smalti_types::{DurationMs, FrameworkId, Time};
use std::collections::BTreeMap;

/// The second loss waits this long, …
const FIRST_PAUSE: DurationMs = DurationMs(1_000);
/// … each further one twice as long, up to this.
const LAST_PAUSE: DurationMs = DurationMs(60_000);
/// Without another loss for this long after the pause, all is forgotten.
const FORGET_AFTER: DurationMs = DurationMs(120_000);

/// What one framework has lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// How many executors one after the other.
    pub count: u32,
    /// How the last one ended.
    pub cause: String,
    /// None is started before this.
    pub not_before: Time,
}

/// What all have lost.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    by_framework: BTreeMap<FrameworkId, Loss>,
}

impl Losses {
    /// An executor died that was not told to.
    pub(crate) fn add(&mut self, now: Time, framework: &FrameworkId, cause: &str) {
        let loss = self.by_framework.entry(framework.clone()).or_insert_with(|| Loss { count: 0, cause: String::new(), not_before: now });
        loss.count = loss.count.saturating_add(1);
        cause.clone_into(&mut loss.cause);
        let pause = match loss.count {
            // One alone is no pattern: whoever comes next gets a new one at once.
            1 => DurationMs(0),
            n => DurationMs(FIRST_PAUSE.0.saturating_shl(n - 2).min(LAST_PAUSE.0)),
        };
        loss.not_before = now.after(pause);
    }

    /// Whether another executor may be started.
    pub(crate) fn may_start(&self, now: Time, framework: &FrameworkId) -> bool {
        self.by_framework.get(framework).is_none_or(|loss| now >= loss.not_before)
    }

    /// Forgets what is long ago.
    pub(crate) fn forget(&mut self, now: Time) {
        self.by_framework.retain(|_, loss| now < loss.not_before.after(FORGET_AFTER));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&FrameworkId, &Loss)> {
        self.by_framework.iter()
    }
}

/// Shifts that would leave the number saturate.
trait SaturatingShl {
    fn saturating_shl(self, n: u32) -> Self;
}

impl SaturatingShl for u64 {
    fn saturating_shl(self, n: u32) -> Self {
        if n < self.leading_zeros() { self << n } else { Self::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_forgotten() {
        let framework = FrameworkId::new("F").unwrap();
        let mut losses = Losses::default();
        let mut now = Time(1_000_000);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            losses.add(now, &framework, "signal 9");
            let not_before = losses.by_framework[&framework].not_before;
            pauses.push(not_before.micros_since(now) / 1_000_000);
            now = not_before;
            assert!(losses.may_start(now, &framework));
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        losses.forget(now);
        assert_eq!(losses.iter().count(), 1);
        losses.forget(now.after(FORGET_AFTER));
        assert_eq!(losses.iter().count(), 0);
        assert_eq!(1_u64.saturating_shl(80), u64::MAX);
    }
}
