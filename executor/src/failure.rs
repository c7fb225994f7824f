//! Why a guest or a load failed: a reason for machines and a message for people.

use smalti_executor_protocol::v1;
use smalti_types::status::truncate;
use smalti_types::task_state::Reason;

/// Longest message in bytes. Thousands of failed items travel in one report.
const MAX_MESSAGE_LEN: usize = 1024;

/// A reason with its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        let mut message = message.into();
        truncate(&mut message, MAX_MESSAGE_LEN);
        Self { reason, message }
    }
}

impl From<Failure> for v1::Failure {
    fn from(f: Failure) -> Self {
        Self { reason: f.reason.as_str().to_owned(), message: f.message }
    }
}
