//! The master process: one listener, one event loop around the pure core, a bundle store.
//!
//! Owns the sockets, the clock, the connection numbers and the order "persist, then send". Decides nothing about
//! resources or tasks: that is `smalti-master-core`. Knows nothing about agents' or schedulers' insides.
//!
//! * [`server`](mod@server): listener, limits, routes;
//! * `event_loop`: the one task that owns the core; `peers`, `outbound`: what goes out, bounded;
//! * `registry`: what survives a restart, behind a trait; `data_dir`: where it lies, locked for one master;
//! * one file per gRPC service, `bundle_store` and `bundles_http` for bundles, `sandbox_relay` for reads on agents.

mod agent_service;
mod bundle_rights;
mod bundle_service;
mod bundle_store;
mod bundles_http;
mod clock;
mod data_dir;
mod error;
mod event_loop;
mod executor_reports;
mod frames;
mod framework_service;
mod listener;
mod operator_service;
mod options;
mod outbound;
mod peers;
mod registry;
mod sandbox_relay;
mod server;
mod views;

pub use error::StartError;
pub use options::Options;
pub use registry::RegistryError;
pub use server::{Server, run};
