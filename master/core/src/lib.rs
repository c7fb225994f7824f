//! The master's decisions, without I/O, clock or chance: who is registered, who is offered what, which launch is valid,
//! where each task is.
//!
//! Owns: [`Master`] and everything it knows. In goes an [`Event`], out come [`Effects`]: records that must be durable
//! first, then messages. The shell (`smalti-master`) turns bytes into events and messages into bytes; the simulation
//! runs this crate unchanged.
//!
//! Deliberately absent: sockets, timers, random ids, wall clocks, logs. Time and new ids come in as arguments.
#![warn(missing_docs)]

mod accept;
mod agents;
mod allocator;
mod config;
mod done;
mod event;
mod filters;
mod frameworks;
mod holdings;
mod invariants;
mod leases;
mod ledger;
mod limits;
mod master;
mod offers;
mod reconcile;
mod recover;
mod registration;
mod shares;
mod sharing;
mod slab;
mod stored;
mod sum;
mod tasks;
mod updates;
mod validate;
mod views;

#[cfg(test)]
mod tests;

pub use config::Config;
pub use event::{AgentMessage, Conn, Event, Message, Record};
pub use limits::*;
pub use master::Master;
pub use sharing::{MAX_LOCATES, PATIENCE, PER_HOLDER};
pub use stored::{Stored, StoredFramework};
pub use views::{AgentState, AgentView, ClusterView, FrameworkState, FrameworkView};

/// What one step, or a batch of them, decided.
pub type Effects = smalti_types::Effects<Record, Message>;
