//! How a job ended: the exit code, and the words on stderr.

use crate::failure::{Exit, KILLED, SMALTI_FAILED, SUCCESS};
use crate::output::printable;
use smalti_proto::v1::JobView;
use smalti_types::Reason;

/// Codes from here on also mean something of smalti's own, so a guest that returns one is explained.
const FIRST_AMBIGUOUS: Exit = 124;
/// What a code that no process can return becomes: as a trap.
const NOT_A_CODE: Exit = 134;

/// Whether nothing can follow.
pub(crate) fn is_terminal(job: &JobView) -> bool {
    matches!(job.state.as_str(), "FINISHED" | "FAILED" | "KILLED" | "ERROR" | "LOST" | "DROPPED" | "GONE")
}

/// What `run`, `map` and `wait` exit with.
pub(crate) fn exit_code(job: &JobView) -> Exit {
    if let Some(code) = job.exit_code {
        return Exit::try_from(code).unwrap_or(NOT_A_CODE);
    }
    match job.state.as_str() {
        "FINISHED" => SUCCESS,
        "KILLED" => KILLED,
        _ => reason(job).map_or(SMALTI_FAILED, |r| match r {
            // A failed job without a reason or a code: the fault is ours.
            Reason::None => SMALTI_FAILED,
            r => Exit::try_from(r.exit_code(None)).unwrap_or(SMALTI_FAILED),
        }),
    }
}

fn reason(job: &JobView) -> Option<Reason> {
    Reason::ALL.into_iter().find(|r| r.as_str() == job.reason)
}

/// One line for stderr; `None` when the exit code says all: success, or a single guest's own exit code.
pub(crate) fn explanation(job: &JobView) -> Option<String> {
    let code = exit_code(job);
    let own_code = job.kind != "map" && reason(job) == Some(Reason::ExitCode) && code < FIRST_AMBIGUOUS;
    if code == SUCCESS || own_code {
        return None;
    }
    let mut text = format!("job {} {}", printable(&job.job), printable(&job.state).to_lowercase());
    for part in [&job.reason, &job.message] {
        if !part.is_empty() {
            text.push_str(": ");
            text.push_str(&printable(part));
        }
    }
    // With several failed items the scheduler's own message counts them.
    if job.kind == "map" && job.items_failed > 0 && !job.message.ends_with("items failed)") {
        text.push_str(&format!(" ({} of {} items failed)", job.items_failed, job.items_total));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(kind: &str, state: &str, reason: &str, exit_code: Option<i32>) -> JobView {
        JobView { job: "j1".into(), kind: kind.into(), state: state.into(), reason: reason.into(), exit_code, ..Default::default() }
    }

    #[test]
    fn the_exit_code_is_the_job_s_own() {
        assert_eq!(exit_code(&job("run", "FINISHED", "", Some(0))), 0);
        assert_eq!(exit_code(&job("run", "FAILED", "EXIT_CODE", Some(7))), 7);
        assert_eq!(exit_code(&job("run", "FAILED", "TRAP", Some(-1))), 134);
    }

    #[test]
    fn without_a_code_the_reason_decides() {
        for reason in Reason::ALL.into_iter().filter(|r| *r != Reason::None) {
            let code = exit_code(&job("run", "FAILED", reason.as_str(), None));
            assert_eq!(i32::from(code), reason.exit_code(None), "{reason}");
        }
        assert_eq!(exit_code(&job("run", "KILLED", "", None)), 137);
        assert_eq!(exit_code(&job("run", "FAILED", "", None)), 125);
        assert_eq!(exit_code(&job("run", "FAILED", "SOMETHING_NEW", None)), 125);
        assert_eq!(exit_code(&job("run", "FINISHED", "", None)), 0);
    }

    #[test]
    fn a_guest_s_own_code_needs_no_words_and_everything_else_does() {
        assert_eq!(explanation(&job("run", "FINISHED", "", Some(0))), None);
        assert_eq!(explanation(&job("run", "FAILED", "EXIT_CODE", Some(3))), None);
        assert_eq!(explanation(&job("run", "FAILED", "EXIT_CODE", Some(124))).as_deref(), Some("job j1 failed: EXIT_CODE"));
        let mut map = job("map", "FAILED", "EXIT_CODE", Some(3));
        (map.message, map.items_failed, map.items_total) = ("item 5: exit code 3\n".into(), 1, 8);
        assert_eq!(explanation(&map).as_deref(), Some("job j1 failed: EXIT_CODE: item 5: exit code 3  (1 of 8 items failed)"));
        map.message = "item 3: exit code 3 (2 items failed)".into();
        assert_eq!(explanation(&map).as_deref(), Some("job j1 failed: EXIT_CODE: item 3: exit code 3 (2 items failed)"));
        assert_eq!(explanation(&job("run", "FAILED", "TIME_LIMIT", Some(124))).as_deref(), Some("job j1 failed: TIME_LIMIT"));
    }
}
