//! What the benchmarks and the `swarm` program share: simulated agents that speak the real protocol.

pub mod files;
pub mod swarm;
