//! For code inside a Smalti task: who am I, how far am I, should I stop, here is my result.
//!
//! [`Me`] reads the environment only, so a guest that uses nothing else still runs under plain `wasmtime run` (and
//! natively, in its own tests). The functions that talk to the host ([`progress`], [`should_stop`], [`return_value`])
//! import from the module `smalti` (core modules) or the WIT interface `smalti:guest/task` (components); a program
//! that does not call them does not import them. Natively they do nothing.
#![warn(missing_docs)]

mod host;
mod me;

pub use me::Me;

/// Longest value in bytes that [`return_value`] takes: it travels in the task's status.
pub const MAX_RESULT_LEN: usize = 16 * 1024;

/// The value was longer than [`MAX_RESULT_LEN`]; nothing was returned. Write it to stdout instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the result is longer than {MAX_RESULT_LEN} bytes; write it to stdout instead")
    }
}

impl std::error::Error for TooLong {}

/// Tells how much is done, from 0.0 to 1.0, with a word for people. Shown by `smalti ps`; cheap, and rate-limited by
/// the host.
pub fn progress(fraction: f64, text: &str) {
    #[expect(clippy::cast_possible_truncation, reason = "clamped to 0..=1000 before")]
    let permille = (fraction.clamp(0.0, 1.0) * 1000.0) as i32;
    host::progress(permille, text);
}

/// Whether somebody asked this task to stop. After the grace period it is stopped anyway.
#[must_use]
pub fn should_stop() -> bool {
    host::should_stop()
}

/// Sets the value that comes back in the task's status (`result` of `smalti ps --output json`). The last one counts.
///
/// # Errors
/// [`TooLong`] above [`MAX_RESULT_LEN`] bytes.
pub fn return_value(value: &[u8]) -> Result<(), TooLong> {
    if value.len() > MAX_RESULT_LEN {
        return Err(TooLong);
    }
    host::return_value(value)
}
