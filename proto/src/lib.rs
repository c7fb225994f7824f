//! Smalti's wire messages, generated clients and servers, and conversions to `smalti-types`.

pub mod client;
pub mod convert;
pub mod registry;
pub mod version;

/// Generated from `proto/smalti/v1/*.proto`.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    missing_debug_implementations,
    unreachable_pub,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("smalti.v1");
}
