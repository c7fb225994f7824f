//! Tests of the decisions, against a recording fake: every message that nobody expected is a failure.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod accept;
mod fixture;
mod leases;
mod offers;
mod random;
mod recovery;
mod registration;
mod scale;
mod updates;
