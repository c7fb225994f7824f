//! What executors of class `process` need and what is the same for all of them: made once, in the forge, and copied with it.
//!
//! Owns the one place where it lies until a worker takes it. Such an executor runs one guest in its life, so its engines have no
//! pools, which would hold what only this process may hold (a descriptor of its own page map) and would be reset for nobody.
//! Deliberately absent: what executors of class `instance` use; they make their engines themselves.

use crate::confine::filter;
use crate::engine::Engines;
use crate::modules::Loader;
use rand::SeedableRng;
use std::sync::{Arc, Mutex, PoisonError};

/// Engines for one guest, and what links guests.
static PREPARED: Mutex<Option<Loader>> = Mutex::new(None);

fn make() -> anyhow::Result<Loader> {
    Loader::prepared(Arc::new(Engines::for_one_guest()?)).map_err(|e| anyhow::anyhow!("{e:#}"))
}

/// Makes it, before this process is copied. Without it each copy makes its own and says what is wrong.
pub(crate) fn prepare() {
    *PREPARED.lock().unwrap_or_else(PoisonError::into_inner) = make().ok();
    filter::prepare();
    // What the processor can do is asked with instructions that a virtual machine's host answers, each time for microseconds. Each library
    // remembers it for itself: here the standard one, and that behind the random numbers of guests.
    #[cfg(target_arch = "x86_64")]
    let _ = std::arch::is_x86_feature_detected!("avx2");
    let _ = rand::rngs::StdRng::from_seed(<_>::default());
    // What the kernel says of itself a process reads in `/proc`, once, where the kernel has no call for it (before 6.4): executors see none.
    let _ = rustix::param::page_size();
}

/// What was made before this process was copied, or made now.
///
/// # Errors
/// No engine.
pub(crate) fn take() -> anyhow::Result<Loader> {
    let made = PREPARED.lock().unwrap_or_else(PoisonError::into_inner).take();
    made.map_or_else(make, Ok)
}
