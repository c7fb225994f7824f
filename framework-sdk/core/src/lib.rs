//! The decisions of a framework's client: subscription, delivery of updates, reconciliation, fail-over. Pure.
//!
//! Owns: which updates are new and in which order they are delivered, what is acknowledged, which launches exist and
//! which of them are in doubt, kills and item assignments until they took effect. Time and facts come in as [`Event`]s,
//! decisions go out as [`Message`]s.
//! Deliberately absent: I/O, clocks, connections, scheduling (what to launch where is the handler's), a store (updates
//! that a handler took are forgotten with the process until the durable store comes).

mod attempts;
mod calls;
mod client;
mod doubt;
mod event;
mod part;
#[cfg(test)]
mod tests;

pub use client::Client;
pub use event::{Delivery, Event, Message, Record, UpdateId};
