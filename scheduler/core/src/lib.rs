//! The batch scheduler's decisions: jobs, arrays with a pool of items, retries, reduces, rounds, and what is launched on offers.
//!
//! Owns all state of jobs. [`Scheduler::step`] takes in an [`Event`] and gives out [`Message`]s that may leave only after the
//! [`Record`]s of the same step are durable. Deliberately absent: I/O, clocks, random numbers, the resolution of inputs into
//! splits (the shell does that before it submits), and everything about connections (the framework SDK's affair).

pub mod again;
pub mod delivery;
pub mod event;
pub mod feed;
pub mod id;
mod invariants;
pub mod job;
mod known;
pub mod launch;
mod near;
mod offers;
pub mod outcome;
pub mod part;
pub mod placing;
pub mod pool;
pub mod record;
pub mod retry;
pub mod run;
pub mod scheduler;
mod shunned;
pub mod spec;
pub mod trouble;
pub mod views;
pub mod waiting;
mod wanted;
mod yielding;

pub use again::Again;
pub use delivery::{Deliverable, Delivered, Delivery, output_name};
pub use event::{Event, Message, Record};
pub use id::{JobId, NameError, Target, TaskName};
pub use job::{Job, JobState, Stage};
pub use outcome::Outcome;
pub use placing::Request;
pub use scheduler::{Admission, Scheduler};
pub use spec::{Constraint, JobSpec, MapSpec, Policy, ReduceSpec, SingleSpec, SpecError, Work};
pub use views::{ItemOutput, JobView, OutputPlan, TaskView};
pub use wanted::{LOCALITY_WAIT, Patience};

#[cfg(test)]
mod tests;
