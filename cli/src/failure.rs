//! How a verb fails: one message for people and one exit code for scripts.
//!
//! Owns the exit codes of the command line that are not a guest's own. Deliberately absent: the mapping of task outcomes,
//! which is [`smalti_types::Reason::exit_code`].

use std::fmt;
use std::io;

/// How a verb ends: the process's exit code.
pub(crate) type Exit = u8;

/// It worked.
pub(crate) const SUCCESS: Exit = 0;
/// Smalti itself failed, or was asked for something that it cannot do.
pub(crate) const SMALTI_FAILED: Exit = 125;
/// The bundle is not valid Wasm or cannot be run.
pub(crate) const BAD_BUNDLE: Exit = 126;
/// No such bundle.
pub(crate) const NO_BUNDLE: Exit = 127;
/// A second Ctrl-C: what shells report for a process that SIGINT ended.
pub(crate) const INTERRUPTED: Exit = 130;
/// A job that was killed.
pub(crate) const KILLED: Exit = 137;
/// The reader of our stdout went away: what shells report for a process that SIGPIPE ended.
const BROKEN_PIPE: Exit = 141;

/// Longest text of a server that is repeated in an error, in characters.
const MAX_SERVER_TEXT: usize = 4096;

/// Why a verb failed. Printed once, by `main`, as `error: <message>`.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Exit,
    /// What failed, on what, why, and what to do next. `None`: nothing to say (a broken pipe).
    pub(crate) message: Option<String>,
}

/// Result of a verb and of what it calls.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// Exit code 125.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::with_code(SMALTI_FAILED, message)
    }

    pub(crate) fn with_code(code: Exit, message: impl Into<String>) -> Self {
        Self { code, message: Some(message.into()) }
    }

    /// An option or verb of the design that this version does not have: said, never ignored.
    pub(crate) fn not_yet(what: &str, instead: &str) -> Self {
        let hint = if instead.is_empty() { String::new() } else { format!("; {instead}") };
        Self::new(format!("{what} is not supported yet{hint}"))
    }

    /// A refusal or breakdown of a call: `what` names the operation and its object.
    pub(crate) fn rpc(what: &str, status: &tonic::Status) -> Self {
        Self::new(format!("{what}: {}", status_text(status)))
    }

    /// A failed read or write of `path`.
    pub(crate) fn io(what: &str, path: &std::path::Path, error: &io::Error) -> Self {
        Self::new(format!("{what} {}: {}", path.display(), io_text(error)))
    }

    /// Writing to stdout failed. A reader that went away (`smalti ps | head`) is no error worth a word.
    pub(crate) fn stdout(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self { code: BROKEN_PIPE, message: None };
        }
        Self::new(format!("writing to stdout: {}", io_text(error)))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message.as_deref().unwrap_or("stopped"))
    }
}

/// What the operating system says, without the number that helps nobody, beginning in lower case.
pub(crate) fn io_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map_or_else(|| "unknown error".into(), |c| c.to_lowercase().chain(chars).collect())
}

/// What a server says, or what its silence means.
pub(crate) fn status_text(status: &tonic::Status) -> String {
    let text: String = status.message().chars().take(MAX_SERVER_TEXT).collect();
    // Line by line: a refusal may list one agent a line.
    let text = text.lines().map(crate::output::printable).collect::<Vec<_>>().join("\n");
    match status.code() {
        tonic::Code::Unavailable => format!("no answer ({}); is it still running? `smalti agents` asks the master", or_silent(&text)),
        tonic::Code::Unimplemented => {
            format!("the other side does not know this call ({}); is it a Smalti process of the same version?", or_silent(&text))
        }
        tonic::Code::DeadlineExceeded if text.is_empty() => "no answer in time".into(),
        _ if text.is_empty() => status.code().description().to_owned(),
        _ => text,
    }
}

fn or_silent(text: &str) -> &str {
    if text.is_empty() { "it says nothing" } else { text }
}

/// Whether the same call may succeed later without anything being changed: the other side is away or restarting.
pub(crate) fn is_passing(status: &tonic::Status) -> bool {
    use tonic::Code;
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Aborted | Code::Internal | Code::DeadlineExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_pipe_is_silent_and_other_errors_are_not() {
        assert_eq!(Failure::stdout(&io::ErrorKind::BrokenPipe.into()).message, None);
        let full = Failure::stdout(&io::Error::from_raw_os_error(28));
        assert_eq!((full.code, full.message.as_deref()), (125, Some("writing to stdout: no space left on device")));
    }

    #[test]
    fn what_a_server_says_cannot_steer_the_terminal() {
        let status = tonic::Status::invalid_argument("bad \u{1b}[2J name");
        assert_eq!(status_text(&status), "bad \u{fffd}[2J name");
    }

    #[test]
    fn only_absence_is_passing() {
        assert!(is_passing(&tonic::Status::unavailable("")));
        assert!(is_passing(&tonic::Status::deadline_exceeded("an agent that stands still")));
        assert!(!is_passing(&tonic::Status::not_found("")));
        assert!(!is_passing(&tonic::Status::invalid_argument("")));
    }
}
