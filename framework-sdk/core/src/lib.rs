//! The decisions of a framework's client: subscription, delivery of updates, reconciliation, fail-over. Pure.
//!
//! Owns: which updates are new and in which order they are delivered, what is acknowledged, which launches exist and
//! which of them are in doubt, kills and item assignments until they took effect. Time and facts come in as [`Event`]s,
//! decisions go out as [`Message`]s, and what a later life must know as [`Record`]s: launches before they leave, and what
//! the handler has taken before it is acknowledged. [`Client::restore`] goes on from them.
//! Deliberately absent: I/O, clocks, connections, scheduling (what to launch where is the handler's), the store itself
//! (the shell's), items of parts (a handler that starts again hands them out again; agents ignore what they have).

mod attempts;
mod calls;
mod client;
mod doubt;
mod event;
mod part;
mod record;
#[cfg(test)]
mod restarts;
#[cfg(test)]
mod tests;

pub use client::Client;
pub use event::{Delivery, Event, Message, UpdateId};
pub use record::{AttemptRecord, Record, RecordError};
