//! What executors of class `process` need and what is the same for all of them: made once, in the forge, and copied with it.
//!
//! Owns the one place where it lies until a worker takes it. Such an executor runs one guest in its life, so its engines have no
//! pools, which would hold what only this process may hold (a descriptor of its own page map) and would be reset for nobody.
//! Deliberately absent: what executors of class `instance` use; they make their engines themselves.

use crate::confine::filter;
use crate::engine::Engines;
use crate::modules::Loader;
use std::sync::{Mutex, PoisonError};

/// Engines for one guest, and what links guests.
pub(crate) struct Prepared {
    pub(crate) engines: Engines,
    pub(crate) loader: Loader,
}

static PREPARED: Mutex<Option<Prepared>> = Mutex::new(None);

impl Prepared {
    fn new() -> anyhow::Result<Self> {
        let engines = Engines::for_one_guest()?;
        let loader = Loader::prepared(&engines).map_err(|e| anyhow::anyhow!("{e:#}"))?;
        Ok(Self { engines, loader })
    }
}

/// Makes it, before this process is copied. Without it each copy makes its own and says what is wrong.
pub(crate) fn prepare() {
    *PREPARED.lock().unwrap_or_else(PoisonError::into_inner) = Prepared::new().ok();
    filter::prepare();
}

/// What was made before this process was copied, or made now.
///
/// # Errors
/// No engine.
pub(crate) fn take() -> anyhow::Result<Prepared> {
    let made = PREPARED.lock().unwrap_or_else(PoisonError::into_inner).take();
    made.map_or_else(Prepared::new, Ok)
}
