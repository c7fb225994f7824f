//! Spans and points of time as people write and read them.

use smalti_types::DurationMs;

/// Reads `30s`, `500ms`, `1h30m`. At least one millisecond, at most about a century.
pub(crate) fn duration(text: &str) -> Result<DurationMs, String> {
    let hint = "write it like 30s, 500ms, 2m or 1h30m";
    let parsed: jiff::SignedDuration = text.trim().parse().map_err(|_| format!("`{text}` is not a span of time: {hint}"))?;
    if parsed.is_negative() {
        return Err(format!("`{text}` is negative: {hint}"));
    }
    let ms = u64::try_from(parsed.as_millis()).map_err(|_| format!("`{text}` is negative: {hint}"))?;
    match ms {
        0 if parsed.is_zero() => Ok(DurationMs(0)),
        0 => Err(format!("`{text}` is finer than a millisecond")),
        1..=3_200_000_000_000 => Ok(DurationMs(ms)),
        _ => Err(format!("`{text}` is longer than a century")),
    }
}

/// As [`duration`], but zero is refused: a limit of no time at all is a mistake.
pub(crate) fn positive_duration(text: &str) -> Result<DurationMs, String> {
    match duration(text)? {
        DurationMs(0) => Err(format!("`{text}` is no time at all: it must be more than zero")),
        ms => Ok(ms),
    }
}

/// RFC 3339 of microseconds since the Unix epoch; `None` for 0, which means unknown.
pub(crate) fn rfc3339(time_us: u64) -> Option<String> {
    if time_us == 0 {
        return None;
    }
    let micros = i64::try_from(time_us).ok()?;
    jiff::Timestamp::from_microsecond(micros).ok().map(|t| t.to_string())
}

/// Now, in microseconds since the Unix epoch.
pub(crate) fn now_us() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0)
}

/// `1h02m`, `3m07s`, `4.2s`, `17ms`: how long something took, for tables.
pub(crate) fn brief(us: u64) -> String {
    let (ms, s) = (us / 1_000, us / 1_000_000);
    match s {
        0 => format!("{ms}ms"),
        1..60 => format!("{}.{}s", s, ms % 1_000 / 100),
        60..3_600 => format!("{}m{:02}s", s / 60, s % 60),
        3_600..172_800 => format!("{}h{:02}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_with_their_unit() {
        for (text, ms) in [("30s", 30_000), ("500ms", 500), ("2m", 120_000), ("1h30m", 5_400_000), ("1.5s", 1_500), ("0s", 0)] {
            assert_eq!(duration(text), Ok(DurationMs(ms)), "{text}");
        }
        for bad in ["", "30", "-5s", "s", "NaN", "1us", "9999999h", "1 parsec"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(positive_duration("0s").is_err());
    }

    #[test]
    fn points_in_time_are_rfc_3339() {
        assert_eq!(rfc3339(0), None);
        assert_eq!(rfc3339(1_700_000_000_250_000).as_deref(), Some("2023-11-14T22:13:20.25Z"));
        assert_eq!(rfc3339(u64::MAX), None);
    }

    #[test]
    fn brief_spans() {
        assert_eq!(brief(17_000), "17ms");
        assert_eq!(brief(4_200_000), "4.2s");
        assert_eq!(brief(187_000_000), "3m07s");
        assert_eq!(brief(3_720_000_000), "1h02m");
    }
}
