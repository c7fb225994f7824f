//! What can come into the core, and what can come out of it.

use crate::delivery::Delivered;
use crate::id::JobId;
use crate::spec::JobSpec;
use smalti_types::protocol::{Call, FrameworkEvent};
use smalti_types::{AgentId, DurationMs, Input, Role, TaskId, UpdateKey};
use std::sync::Arc;

/// Everything the core reacts to.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A job whose id came from [`crate::Scheduler::admit`].
    Submit(Arc<JobSpec>),
    /// Somebody wants a job to end. Repeats may shorten the grace period.
    Kill {
        /// Which.
        job: JobId,
        /// Overrides the grace period of its limits.
        grace: Option<DurationMs>,
    },
    /// The master speaks to the framework of this role.
    Framework {
        /// Which framework.
        role: Role,
        /// What it says; repeats of updates are already dropped.
        event: FrameworkEvent,
    },
    /// Answer to [`Message::StoreOutput`].
    OutputStored {
        /// The job.
        job: JobId,
        /// The round whose reduce was read.
        round: u32,
        /// The object in the cluster's store, or why it is not there.
        result: Result<Input, String>,
    },
    /// How far a job's outputs are on their way to its store; what is to be done is asked for with [`crate::Job::deliverable`].
    Delivered {
        /// The job.
        job: JobId,
        /// What came of writing.
        what: Delivered,
    },
    /// About every 100 ms: back-off, lost answers. Nothing else waits for it.
    Tick,
}

/// Everything that leaves the core, after the records are durable.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// A role has its first job: subscribe its framework.
    Connect(Role),
    /// Tell the master.
    Call {
        /// As which framework.
        role: Role,
        /// What.
        call: Call,
    },
    /// This update is dealt with and need not come again.
    Handled {
        /// By which framework.
        role: Role,
        /// Which update.
        key: UpdateKey,
    },
    /// Something about this job changed: watchers look again.
    Changed(JobId),
    /// Copy the stdout of a finished reduce into the cluster's store; answered by [`Event::OutputStored`].
    StoreOutput {
        /// The job.
        job: JobId,
        /// The round that ended.
        round: u32,
        /// The agent that has the output.
        agent: AgentId,
        /// The reduce.
        task: TaskId,
        /// Its attempt.
        attempt: u32,
    },
}

/// What must be durable before the messages of the same step go out.
///
/// Records name what changed and do not carry it: the shell reads [`crate::Scheduler::record`] once per job and batch, so
/// a thousand updates of one job in one batch cost one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Record {
    /// A new job: its specification, once.
    Submitted(JobId),
    /// Its state changed.
    Changed(JobId),
    /// Its state changed in a way that may be lost: it is enough when this is kept with the next record that must be.
    Noted(JobId),
    /// It left the history.
    Forgotten(JobId),
}
