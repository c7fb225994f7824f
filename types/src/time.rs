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

/// Why a text is no span of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a span of time: write it like 500ms, 30s, 15min or 1h")]
pub struct DurationError(String);

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

impl std::str::FromStr for DurationMs {
    type Err = DurationError;

    /// Reads `500ms`, `30s`, `15m` or `15min`, `1h`, or plain seconds.
    fn from_str(text: &str) -> Result<Self, DurationError> {
        let bad = || DurationError(text.to_owned());
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor: u64 = match unit {
            "ms" => 1,
            "s" | "" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        number.checked_mul(factor).map(Self).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_with_their_unit() {
        for (text, ms) in
            [("500ms", 500), ("30s", 30_000), ("7", 7_000), ("15min", 900_000), ("2m", 120_000), ("168h", 604_800_000), ("0s", 0)]
        {
            assert_eq!(text.parse(), Ok(DurationMs(ms)), "{text}");
        }
        for bad in ["", "s", "-1s", "1.5s", "1 s", "1d", "99999999999999999h", "1h30m"] {
            assert!(bad.parse::<DurationMs>().is_err_and(|e| e.to_string().contains(bad)), "{bad}");
        }
    }
}
