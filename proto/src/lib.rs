//! Smalti's wire messages, generated clients and servers, and conversions to `smalti-types`.

/// Generated from `proto/smalti/v1/*.proto`.
#[allow(clippy::all, clippy::pedantic, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("smalti.v1");
}
