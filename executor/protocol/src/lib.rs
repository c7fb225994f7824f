//! Framed messages between an agent and its executors.
//!
//! [`codec`] is the pure part that both sides share, [`blocking`] moves frames over a unix socket in the executor (the agent's
//! side is async and lives in the agent), [`supervision`] is what the supervisor tells the agent outside of the socket, and
//! [`ledger`] says how the outcomes of items lie in files.
//! Deliberately absent: what the messages mean.

pub mod blocking;
pub mod codec;
pub mod ledger;
pub mod supervision;

/// Generated from `proto/executor.proto`.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    missing_debug_implementations,
    unreachable_pub,
    reason = "generated code"
)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/smalti.executor.v1.rs"));
}

pub use blocking::{Reader, Writer};
pub use codec::{Decoder, Draft, Frame, FrameError, MAX_FDS, MAX_MESSAGE_BYTES, encode, encode_into};

/// Version of the messages, sent in `Hello`. An agent refuses an executor that says another one: both are installed together.
pub const PROTOCOL_VERSION: u32 = 3;
