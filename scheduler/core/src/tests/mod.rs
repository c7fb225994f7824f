//! Scenarios and properties, in a world of virtual time.

mod arrays;
mod delivery;
mod failures;
mod properties;
mod singles;
mod world;
