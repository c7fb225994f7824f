//! Points and spans of time as plain numbers, handed in by whoever owns a clock.

use serde::{Deserialize, Serialize};

/// A point in time: microseconds since the Unix epoch (in simulation: since the start of the run).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Time(pub u64);

impl Time {
    /// This point moved into the future by `span`, saturating at the end of time.
    #[must_use]
    pub const fn after(self, span: DurationMs) -> Self {
        Self(self.0.saturating_add(span.0.saturating_mul(1_000)))
    }

    /// Microseconds from `earlier` to this point; zero when `earlier` is later (clocks step back).
    #[must_use]
    pub const fn micros_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A point in time by the clock of one boot of one machine, which goes on while the machine sleeps (`CLOCK_BOOTTIME`): microseconds
/// since it booted. Means nothing on another machine, nor after the next boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct BootTime(pub u64);

impl BootTime {
    /// This point moved into the future by `span`, saturating at the end of time.
    #[must_use]
    pub const fn after(self, span: DurationMs) -> Self {
        Self(self.0.saturating_add(span.0.saturating_mul(1_000)))
    }
}

impl From<std::time::SystemTime> for Time {
    /// What a clock showed; zero for what lies before the epoch.
    fn from(shown: std::time::SystemTime) -> Self {
        let since = shown.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}

/// A span of time in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct DurationMs(pub u64);

impl DurationMs {
    /// The same span for the standard library.
    #[must_use]
    pub const fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}
