//! What the programs of this package share: simulated agents that speak the real protocol, and rounds of the pure cores.

pub mod cores;
pub mod files;
pub mod swarm;
