//! Domain types and arithmetic of Smalti, shared by every process and every pure core.
//!
//! Owns: the words of the system (ids, resources, tasks, arrays, statuses, offers) and the arithmetic on them.
//! Deliberately absent: I/O, clocks, random sources, async, wire formats. Bytes become these types through
//! `TryFrom` in `smalti-proto`; the pure cores see nothing else.
#![warn(missing_docs)]

pub mod address;
pub mod amount;
pub mod attributes;
pub mod connect;
pub mod digest;
pub mod effects;
pub mod endpoint;
pub mod framework;
pub mod grants;
pub mod holdings;
pub mod id;
pub mod items;
pub mod offer;
pub mod pieces;
pub mod ports;
pub mod protocol;
pub mod resources;
pub mod sabotage;
pub mod status;
pub mod task;
pub mod task_state;
pub mod time;

pub use amount::{Bytes, MilliCpus, MilliUnits};
pub use attributes::Attributes;
pub use digest::Digest;
pub use effects::Effects;
pub use endpoint::Endpoint;
pub use framework::{AgentInfo, FrameworkInfo};
pub use holdings::{HoldingKey, HoldingsChange, HoldingsNews, LocateOutcome, MAX_HOLDINGS, PeerAddress};
pub use id::{AgentId, ExecutorId, FrameworkId, MasterEpoch, OfferId, Role, TaskId, TaskKey};
pub use items::{ItemRange, ItemSet};
pub use offer::{Filters, Offer, Operation};
pub use ports::{PortRange, PortSet};
pub use resources::{Resources, ResourcesError};
pub use sabotage::Sabotage;
pub use status::{ArrayDelta, FailedItem, StatusUpdate, UpdateKey, Usage};
pub use task::{ArrayTemplate, BundleRef, Input, Isolation, ItemBatch, Launch, LaunchArray, Limits, Packing, Split, Stdin, TaskSpec};
pub use task_state::{Reason, TaskState};
pub use time::{BootTime, DurationMs, Time};
