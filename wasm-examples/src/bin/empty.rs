//! Does nothing: what a task costs beside its own work.

fn main() {}
