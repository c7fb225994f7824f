//! The agent's decisions: launches, executors and their slots, item leases, status streams.
//!
//! Owns the state of everything that an agent runs. Time and facts come in as [`Event`]s, decisions go out as [`Message`]s.
//! Deliberately absent: I/O, clocks, random sources, processes, files, the wire. An executor is hostile until checked: what it says
//! about a run that is not its own, about an item that it does not hold, or twice, is ignored and counted.

mod agent;
mod array;
mod commands;
mod debts;
mod event;
mod exclusive;
mod executor;
mod executors;
mod invariants;
mod lanes;
mod launch;
mod lease;
mod losses;
mod parameters;
mod pieces;
mod process;
mod queue;
mod record;
mod recovery;
mod reports;
mod restore;
mod seen;
mod task;
mod trust;
mod turns;
mod updates;
mod views;

#[cfg(test)]
mod tests;

pub use agent::{Agent, Counters};
pub use event::{ArrayReport, Event, Failure, FromExecutor, Grant, HeldPart, ItemFailure, Message, ModuleId, Run, ToExecutor};
pub use losses::Loss;
pub use parameters::{ExecutorKind, Parameters, ProcessPolicy};
pub use queue::HandOut;
pub use record::{AttemptState, ExecutorRecord, KillState, LaneState, LanesState, LaunchedWork, PartState, PlaceState, Record};
pub use views::{ExecutorState, ExecutorView, LeasedItems};
