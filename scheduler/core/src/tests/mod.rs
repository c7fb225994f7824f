//! Scenarios and properties, in a world of virtual time.

mod arrays;
mod bundles;
mod delivery;
mod failures;
mod locality;
mod properties;
mod singles;
mod world;
