//! Why an object cannot be had.
//!
//! The messages name the object and never a secret; callers map them to a reason. Owns whether another try may help.

use std::time::Duration;

/// Why an object cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Not a place.
    #[error("`{uri}` is not a place to fetch from: {why}")]
    Uri {
        /// What was named, without secrets.
        uri: String,
        /// What is wrong with it.
        why: String,
    },
    /// The place is there, the object is not.
    #[error("there is no {at}: {why}")]
    NotFound {
        /// The object.
        at: String,
        /// Who says so.
        why: String,
    },
    /// The operator or the place does not let us.
    #[error("fetching {at} was refused: {why}")]
    Refused {
        /// The object.
        at: String,
        /// By whom, and what would help.
        why: String,
    },
    /// It is not any more what it was at submission.
    #[error("{at} changed since the task was submitted: {why}")]
    Changed {
        /// The object.
        at: String,
        /// What differs.
        why: String,
    },
    /// Trouble that may pass.
    #[error("cannot fetch {at}: {why}")]
    Transient {
        /// The object.
        at: String,
        /// What happened.
        why: String,
        /// How long the place wants to be left alone.
        wait: Option<Duration>,
    },
    /// What we have and what the server would go on with do not belong together: from the beginning, it may work.
    #[error("cannot fetch {at}: {why}")]
    Discontinued {
        /// The object.
        at: String,
        /// What does not fit.
        why: String,
    },
    /// Trouble that stays.
    #[error("cannot fetch {at}: {why}")]
    Permanent {
        /// The object.
        at: String,
        /// What is wrong.
        why: String,
    },
}

impl SourceError {
    /// Trouble that may pass, without a word of the server about when.
    pub(crate) fn transient(at: &str, why: impl Into<String>) -> Self {
        Self::Transient { at: at.to_owned(), why: why.into(), wait: None }
    }

    /// Trouble that stays.
    pub(crate) fn permanent(at: &str, why: impl Into<String>) -> Self {
        Self::Permanent { at: at.to_owned(), why: why.into() }
    }

    /// Somebody does not let us.
    pub(crate) fn refused(at: &str, why: impl Into<String>) -> Self {
        Self::Refused { at: at.to_owned(), why: why.into() }
    }
}

/// What libraries say of a certificate that nobody vouches for, or that is another's.
const CERTIFICATE: &str = "invalid peer certificate";

/// A connection that broke, or was not made. Only what a certificate is the cause of stays as it is.
pub(crate) fn disconnected(at: &str, why: String) -> SourceError {
    match why.strip_prefix(CERTIFICATE) {
        Some(what) => {
            let what = what.trim_start_matches([':', ' ']);
            SourceError::permanent(
                at,
                format!("the server's certificate is not accepted ({what}); --fetch-ca adds an authority to the system's"),
            )
        }
        None => SourceError::transient(at, why),
    }
}

/// The innermost cause says what happened; the outer layers only repeat the address, with whatever is secret in it.
pub(crate) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
