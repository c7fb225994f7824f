//! Bundles that were found not to run: for a while the answer is the same without the work of finding out again.
//!
//! Holds answers that follow from the bundle's bytes alone, and limits of the compiler, never those of this agent's own trouble.
//! Bounded in number and time; who fills it makes it forget its oldest.

use super::Failure;
use smalti_types::Reason;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer stands. A limit of the compiler may be met by chance (a machine under load), so not for ever.
const STANDS_FOR: Duration = Duration::from_secs(300);
/// Most answers; each is a key and a short text.
const MOST: usize = 4_096;

/// The answers by what was asked for.
pub(crate) struct Refused<K>(Mutex<HashMap<K, (Instant, Failure)>>);

impl<K> Default for Refused<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Copy> Refused<K> {
    /// The answer from before, if it still stands at `now`.
    pub(crate) fn get(&self, key: K, now: Instant) -> Option<Failure> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(&key).filter(|(at, _)| now.saturating_duration_since(*at) < STANDS_FOR).map(|(_, failure)| failure.clone())
    }

    /// Keeps an answer, if it is one about the bundle.
    pub(crate) fn keep(&self, key: K, failure: &Failure, now: Instant) {
        if !matches!(failure.reason, Reason::InvalidBundle | Reason::MissingImport | Reason::NoEntryPoint) {
            return;
        }
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MOST {
            answers.retain(|_, (at, _)| now.saturating_duration_since(*at) < STANDS_FOR);
            if answers.len() >= MOST
                && let Some(oldest) = answers.iter().min_by_key(|(_, (at, _))| *at).map(|(key, _)| *key)
            {
                answers.remove(&oldest);
            }
        }
        answers.insert(key, (now, failure.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_about_the_bundle_stands_for_a_while() {
        let (refused, now) = (Refused::default(), Instant::now());
        refused.keep(1, &Failure::new(Reason::InvalidBundle, "no"), now);
        refused.keep(2, &Failure::new(Reason::LaunchFailed, "the agent's fault"), now);
        assert!(refused.get(1, now).is_some_and(|f| f.message == "no") && refused.get(2, now).is_none());
        assert!(refused.get(1, now + STANDS_FOR).is_none());
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let (refused, now) = (Refused::default(), Instant::now());
        for n in 0..=MOST {
            refused.keep(n, &Failure::new(Reason::InvalidBundle, "no"), now + Duration::from_millis(n as u64));
        }
        assert!(refused.get(0, now).is_none() && refused.get(1, now).is_some() && refused.get(MOST, now).is_some());
    }
}
