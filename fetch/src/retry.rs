//! Whether to try again, and when. Pure.
//!
//! Owns which failures of a server may pass, how long to wait, and how often. Deliberately absent: the clock and the dice.

use std::time::{Duration, SystemTime};

/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The longest time that a server may ask for with Retry-After.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Most tries in all: a server that gives a few bytes each time is not asked for ever.
const MOST_TRIES: u32 = 200;

/// What a status of HTTP means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Bytes come, or a range cannot be had.
    Bytes,
    /// Elsewhere.
    Redirect,
    /// Nothing there.
    NotFound,
    /// Not for us.
    Refused,
    /// Another version by now.
    Changed,
    /// May pass.
    Transient,
    /// Stays.
    Permanent,
}

/// What a status of HTTP means.
#[must_use]
pub const fn meaning(status: u16) -> Meaning {
    match status {
        200 | 206 | 416 => Meaning::Bytes,
        301 | 302 | 303 | 307 | 308 => Meaning::Redirect,
        404 | 410 => Meaning::NotFound,
        401 | 403 | 407 | 451 => Meaning::Refused,
        412 => Meaning::Changed,
        408 | 425 | 429 | 500 | 502..=599 => Meaning::Transient,
        _ => Meaning::Permanent,
    }
}

/// `Retry-After`: seconds or a date.
#[must_use]
pub fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    Some(until.duration_since(now).unwrap_or_default())
}

/// How often and how soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tries without a single byte in a row.
    pub attempts: u32,
    /// The pause before the second try; doubled for each further one.
    pub backoff: Duration,
}

/// The tries of one transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tries {
    limits: Limits,
    /// In a row, without progress.
    fruitless: u32,
    total: u32,
}

impl Tries {
    /// None yet.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self { limits, fruitless: 0, total: 0 }
    }

    /// One failed in a way that may pass, after it brought `gained` bytes. Gives the pause before the next one, or `None` when there have
    /// been enough. `wait` is what the server asks for, `dice` any number.
    pub fn failed(&mut self, gained: u64, wait: Option<Duration>, dice: u64) -> Option<Duration> {
        self.total += 1;
        self.fruitless = if gained > 0 { 1 } else { self.fruitless + 1 };
        if self.fruitless >= self.limits.attempts.max(1) || self.total >= MOST_TRIES {
            return None;
        }
        if wait.is_some_and(|w| w > LONGEST_WAIT) {
            return None;
        }
        let doubled = self.limits.backoff.saturating_mul(1 << (self.fruitless - 1).min(16)).min(LONGEST_PAUSE);
        // From half of it to all: agents that failed together do not come back together.
        let half = doubled / 2;
        let span = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        Some((half + Duration::from_micros(dice % span)).max(wait.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { attempts: 4, backoff: Duration::from_millis(100) };

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for status in [408, 425, 429, 500, 502, 503, 504, 599] {
            assert_eq!(meaning(status), Meaning::Transient, "{status}");
        }
        for status in [400, 402, 405, 409, 418, 501, 600] {
            assert_eq!(meaning(status), Meaning::Permanent, "{status}");
        }
        assert_eq!([404, 410].map(meaning), [Meaning::NotFound; 2]);
        assert_eq!([401, 403].map(meaning), [Meaning::Refused; 2]);
    }

    #[test]
    fn a_server_may_say_when() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2015 07:28:00 GMT").unwrap();
        assert_eq!(retry_after(" 7 ", now), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:30 GMT", now), Some(Duration::from_secs(30)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:27:30 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
        let mut tries = Tries::new(LIMITS);
        assert!(tries.failed(0, Some(Duration::from_secs(3)), 0).is_some_and(|p| p >= Duration::from_secs(3)));
        assert_eq!(tries.failed(0, Some(Duration::from_secs(3_600)), 0), None, "nobody waits an hour for it");
    }

    #[test]
    fn tries_without_progress_end_and_those_with_it_go_on_for_long() {
        let mut tries = Tries::new(LIMITS);
        assert_eq!((0..9).map_while(|_| tries.failed(0, None, 0)).count(), 3);
        let mut tries = Tries::new(LIMITS);
        assert_eq!((0..1_000).map_while(|_| tries.failed(1, None, 0)).count(), MOST_TRIES as usize - 1);
    }

    proptest! {
        #[test]
        fn pauses_grow_and_differ_and_have_a_bound(attempts in 2_u32..40, backoff_ms in 1_u64..10_000, dice: u64) {
            let mut tries = Tries::new(Limits { attempts, backoff: Duration::from_millis(backoff_ms) });
            let (mut most, mut n) = (Duration::ZERO, 1);
            while let Some(pause) = tries.failed(0, None, dice) {
                let full = Duration::from_millis(backoff_ms).saturating_mul(1 << (n - 1_u32).min(16)).min(LONGEST_PAUSE);
                prop_assert!(pause >= full / 2 && pause <= full, "{pause:?} of {full:?}");
                most = most.max(pause);
                n += 1;
            }
            prop_assert_eq!(n, attempts);
            prop_assert!(most <= LONGEST_PAUSE);
        }
    }
}
