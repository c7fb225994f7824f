//! The walls around the two long-lived processes of an executor: its supervisor and its worker.
//!
//! In the order in which they are closed (`docs/threat-model.md` says what each one stops):
//! 1. the supervisor leaves the host's namespaces ([`namespaces`]) and becomes a user of its own ([`identity`]), with limits on
//!    what its processes may hold ([`rlimits`]); the worker is a copy of it as that user, without any capability, whose memory lies
//!    elsewhere ([`layout`]);
//! 2. the worker builds its engines while `/proc` is there, then says so; the supervisor takes the root away from both
//!    ([`root`]), drops its own capabilities, and locks itself in ([`filter`], [`rules`]);
//! 3. the worker, still with one thread, closes its own ([`walls`]): Landlock and the system call filter with the handler that
//!    names a denied call ([`trap`]). Only then does it start its slots and say Hello.
//!
//! A wall that cannot be closed is named, never passed over: the texts go to the agent, which reads from the kernel what is in
//! force and decides whether that is enough. Deliberately absent: that decision, and control groups (the agent's).

mod decide;
pub(crate) mod filter;
pub(crate) mod identity;
pub(crate) mod layout;
pub(crate) mod namespaces;
pub(crate) mod probe;
pub(crate) mod rlimits;
pub(crate) mod root;
pub(crate) mod rules;
pub(crate) mod trap;
pub(crate) mod walls;

/// A wall that is not closed: `layer: why`, the form in which the agent reads it.
pub(crate) fn open_wall(layer: &str, why: impl std::fmt::Display) -> String {
    format!("{layer}: {why}")
}
