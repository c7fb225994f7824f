//! Why attempts failed for the infrastructure's sake, and that they are tried again: said on stderr, for who waits and sees nothing.
//!
//! Owns which of it is news: a cause is said when it is another one than the last, and not for ever. Deliberately absent: failures of the
//! guest that are tried again (it speaks for itself), and how the job ends.

use crate::output::printable;
use smalti_proto::v1::{Again, JobView};
use std::sync::{Mutex, PoisonError};

/// Most lines for one job: causes may alternate.
const MOST: u32 = 20;

/// What was said.
#[derive(Debug, Default)]
pub(super) struct Retries(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    last: Option<(String, String)>,
    lines: u32,
}

impl Retries {
    /// A line, if there is something new to say about this job.
    pub(super) fn news(&self, job: &JobView) -> Option<String> {
        let again = job.again.as_ref().filter(|a| a.infrastructure)?;
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cause = Some((again.reason.clone(), again.message.clone()));
        if said.last == cause || said.lines > MOST {
            return None;
        }
        said.last = cause;
        said.lines += 1;
        let job = printable(&job.job);
        Some(if said.lines > MOST {
            format!("job {job}: more causes follow; `smalti explain {job}` shows the last")
        } else {
            line(&job, again)
        })
    }
}

fn line(job: &str, again: &Again) -> String {
    let what = match again.items {
        0 => format!("attempt {}", again.attempt),
        1 => format!("attempt {} of an item", again.attempt),
        n => format!("attempt {} of {n} items", again.attempt),
    };
    let place = if again.agent.is_empty() { String::new() } else { format!(" on agent {}", printable(&again.agent)) };
    let (reason, message) = (printable(&again.reason), printable(&again.message));
    let colon = if reason.is_empty() || message.is_empty() { "" } else { ": " };
    format!("job {job}: {what} failed{place}: {reason}{colon}{message}; it is tried again, which does not count against --retries")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(attempt: u32, message: &str, infrastructure: bool) -> JobView {
        let again = Again {
            attempt,
            reason: "LAUNCH_FAILED".into(),
            message: message.into(),
            agent: "a1".into(),
            infrastructure,
            ..Default::default()
        };
        JobView { job: "j1".into(), again: Some(again), ..Default::default() }
    }

    #[test]
    fn each_cause_is_said_once_until_it_changes() {
        let retries = Retries::default();
        assert_eq!(retries.news(&JobView::default()), None);
        assert_eq!(retries.news(&view(0, "the guest's own", false)), None);
        let expected =
            "job j1: attempt 0 failed on agent a1: LAUNCH_FAILED: no room; it is tried again, which does not count against --retries";
        assert_eq!(retries.news(&view(0, "no room", true)).as_deref(), Some(expected));
        assert_eq!(retries.news(&view(1, "no room", true)), None, "the same again");
        assert!(retries.news(&view(2, "no \u{1b}[31mport", true)).is_some_and(|l| l.contains("attempt 2") && !l.contains('\u{1b}')));
        let mut items = view(0, "no room", true);
        items.again.as_mut().unwrap().items = 3;
        assert!(retries.news(&items).is_some_and(|l| l.starts_with("job j1: attempt 0 of 3 items failed")));
    }

    #[test]
    fn they_do_not_go_on_for_ever() {
        let retries = Retries::default();
        let lines: Vec<String> = (0..100).filter_map(|n| retries.news(&view(n, &n.to_string(), true))).collect();
        assert_eq!(lines.len(), MOST as usize + 1);
        assert!(lines.last().is_some_and(|l| l.contains("smalti explain j1")), "{lines:?}");
    }
}
