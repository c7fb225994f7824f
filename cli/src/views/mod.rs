//! What the cluster says, in the shape that the command line promises as JSON.
//!
//! Owns the keys: snake_case, cpus as numbers in cores, sizes in bytes, durations with their unit in the key, points in time
//! as RFC 3339. Keys may be added; those that are there stay. Each view is made from one wire message and from nothing else.

mod agent;
mod bundle;
mod framework;
mod job;
mod resources;
mod task;

pub(crate) use agent::AgentView;
pub(crate) use bundle::BundleView;
pub(crate) use framework::{FrameworkView, OfferView, RoleView};
pub(crate) use job::JobJson;
pub(crate) use resources::ResourcesView;
pub(crate) use task::TaskJson;
