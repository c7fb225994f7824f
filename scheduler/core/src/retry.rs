//! Whether and when something that failed is tried again.

use serde::{Deserialize, Serialize};
use smalti_types::{DurationMs, Reason, TaskState, Time};

/// Failures of the infrastructure do not count against `--retries`, but they do not go on for ever either.
pub const MAX_INFRASTRUCTURE_RETRIES: u32 = 20;
/// First back-off; doubles with every further try.
pub const FIRST_BACKOFF: DurationMs = DurationMs(200);
/// Longest back-off.
pub const LONGEST_BACKOFF: DurationMs = DurationMs(10_000);

/// How often something has failed. The next attempt's number is the sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Tries {
    /// Failures that count against `--retries`.
    pub counted: u32,
    /// Failures of the infrastructure.
    pub infrastructure: u32,
}

impl Tries {
    /// Number of the next attempt.
    #[must_use]
    pub const fn attempt(self) -> u32 {
        self.counted + self.infrastructure
    }
}

/// Who is to blame for an end that was not FINISHED.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The guest: counts.
    Guest,
    /// Agent, executor, network, a race for an offer: does not count.
    Infrastructure,
    /// The description: trying again cannot help.
    Description,
    /// Somebody asked for it.
    Request,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Again, not before this time, with these tries behind it.
    Again(Time, Tries),
    /// That was the last one.
    GiveUp,
}

/// Who is to blame. The reason speaks first: a bundle that is not Wasm will not be Wasm on the next agent, whatever the state.
#[must_use]
pub fn blame(state: TaskState, reason: Reason) -> Blame {
    match reason {
        Reason::InvalidBundle | Reason::MissingImport | Reason::NoEntryPoint | Reason::DigestMismatch | Reason::InvalidTask => {
            Blame::Description
        }
        Reason::KilledByRequest | Reason::FailFast | Reason::FrameworkRemoved => Blame::Request,
        Reason::FetchFailed | Reason::InputFailed => Blame::Guest,
        r if r.is_infrastructure() => Blame::Infrastructure,
        _ if matches!(state, TaskState::Lost | TaskState::Gone | TaskState::Dropped | TaskState::Unknown) => Blame::Infrastructure,
        _ if state == TaskState::Killed => Blame::Request,
        _ if state == TaskState::Error => Blame::Description,
        _ => Blame::Guest,
    }
}

/// What follows from a failure after `tries` earlier ones.
#[must_use]
pub fn verdict(now: Time, blame: Blame, tries: Tries, retries: u32) -> Verdict {
    let wait = |n: u32| FIRST_BACKOFF.0.saturating_mul(1 << n.min(16)).min(LONGEST_BACKOFF.0);
    match blame {
        Blame::Guest if tries.counted < retries => {
            let next = Tries { counted: tries.counted + 1, ..tries };
            Verdict::Again(now.after(DurationMs(wait(tries.attempt()))), next)
        }
        Blame::Infrastructure if tries.infrastructure < MAX_INFRASTRUCTURE_RETRIES => {
            let next = Tries { infrastructure: tries.infrastructure + 1, ..tries };
            // The first time at once: an agent that died or an offer that was rescinded says nothing about the next one.
            let delay = if tries.infrastructure == 0 { 0 } else { wait(tries.attempt().saturating_sub(1)) };
            Verdict::Again(now.after(DurationMs(delay)), next)
        }
        _ => Verdict::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_up_to_its_limit() {
        let mut tries = Tries::default();
        let mut waits = Vec::new();
        while let Verdict::Again(at, next) = verdict(Time(0), Blame::Guest, tries, 8) {
            waits.push(at.0 / 1000);
            tries = next;
        }
        assert_eq!(waits, [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        assert_eq!(tries.attempt(), 8);
    }

    #[test]
    fn infrastructure_does_not_count_and_is_bounded() {
        let mut tries = Tries::default();
        let mut n = 0;
        while let Verdict::Again(_, next) = verdict(Time(0), blame(TaskState::Gone, Reason::None), tries, 0) {
            tries = next;
            n += 1;
        }
        assert_eq!((n, tries.counted), (MAX_INFRASTRUCTURE_RETRIES, 0));
    }

    #[test]
    fn what_cannot_get_better_is_not_tried_again() {
        for (state, reason) in [
            (TaskState::Dropped, Reason::InvalidBundle),
            (TaskState::Failed, Reason::MissingImport),
            (TaskState::Error, Reason::InvalidTask),
            (TaskState::Killed, Reason::KilledByRequest),
        ] {
            assert_eq!(verdict(Time(0), blame(state, reason), Tries::default(), 5), Verdict::GiveUp, "{state} {reason}");
        }
    }
}
