//! Framed messages between an agent and its executors.

/// Generated from `proto/executor.proto`.
#[allow(clippy::all, clippy::pedantic, reason = "generated code")]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/smalti.executor.v1.rs"));
}
