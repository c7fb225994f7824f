//! Tests of the whole core: a recording fake for scenarios, a simulated executor for arrays, random events for invariants.

mod arrays;
mod fake;
mod hostile;
mod kills;
mod pieces;
mod process;
mod random;
mod recovery;
mod tasks;
mod usage;
