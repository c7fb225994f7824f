//! A real cluster for tests, demo and bench: master, scheduler and agents as processes of the `smalti` binary, on
//! loopback, with data below one temporary directory. Dropping it stops what it started and removes what it made.

mod cluster;
mod paths;
mod patience;
mod process;

pub use cluster::{AgentConfig, Cluster, Config};
pub use paths::{Paths, workspace_root};
pub use patience::patience;
pub use process::{Finished, Process};
