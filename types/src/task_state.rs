//! The states of a task and the reasons for them: those of Apache Mesos (`mesos.proto`, `TaskState` and
//! `TaskStatus.Reason`), with reasons of our own where Mesos has no word.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where an attempt of a task is.
///
/// | from | to |
/// |---|---|
/// | Staging | Starting, Running, Killing, any terminal state |
/// | Starting | Running, Killing, any terminal state |
/// | Running | Killing, Unreachable, any terminal state |
/// | Killing | Unreachable, any terminal state |
/// | Unreachable | Running, Killing, any terminal state (the agent came back) |
/// | a terminal state | nothing: the first terminal state wins |
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskState {
    /// Accepted by the master; on its way to the agent, being fetched or compiled.
    Staging,
    /// Handed to an executor, not yet running.
    Starting,
    /// The guest runs.
    Running,
    /// A kill was accepted; the guest has its grace period.
    Killing,
    /// Terminal: the guest ended with exit code 0.
    Finished,
    /// Terminal: the guest ended otherwise, or a limit ended it.
    Failed,
    /// Terminal: ended because somebody asked.
    Killed,
    /// Terminal: the description of the task was wrong; it never ran and never will.
    Error,
    /// Terminal: the launch failed before the guest ran, through no fault of the task.
    Dropped,
    /// The agent cannot be reached; the task may still run.
    Unreachable,
    /// Terminal: the agent was removed or its machine restarted.
    Gone,
    /// Terminal: nobody can say what became of it.
    Lost,
    /// The master does not know this task (answer to a reconciliation).
    Unknown,
}

impl TaskState {
    /// Every state, for tables and tests.
    pub const ALL: [Self; 13] = [
        Self::Staging,
        Self::Starting,
        Self::Running,
        Self::Killing,
        Self::Finished,
        Self::Failed,
        Self::Killed,
        Self::Error,
        Self::Dropped,
        Self::Unreachable,
        Self::Gone,
        Self::Lost,
        Self::Unknown,
    ];

    /// Whether nothing can follow.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Killed | Self::Error | Self::Dropped | Self::Gone | Self::Lost)
    }

    /// Whether the table above allows `next` after this state. Staying where it is (a repeat) is allowed unless terminal.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        if self.is_terminal() {
            return false;
        }
        match next {
            Self::Staging => matches!(self, Self::Staging),
            Self::Starting => matches!(self, Self::Staging | Self::Starting),
            Self::Running => matches!(self, Self::Staging | Self::Starting | Self::Running | Self::Unreachable),
            Self::Unknown => matches!(self, Self::Unknown),
            _ => true,
        }
    }

    /// The name in upper case, as Mesos writes it without the `TASK_` prefix.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Staging => "STAGING",
            Self::Starting => "STARTING",
            Self::Running => "RUNNING",
            Self::Killing => "KILLING",
            Self::Finished => "FINISHED",
            Self::Failed => "FAILED",
            Self::Killed => "KILLED",
            Self::Error => "ERROR",
            Self::Dropped => "DROPPED",
            Self::Unreachable => "UNREACHABLE",
            Self::Gone => "GONE",
            Self::Lost => "LOST",
            Self::Unknown => "UNKNOWN",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why an attempt is in its state, for machines. Each has one exit code of the command line ([`Reason::exit_code`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    /// Nothing to say.
    #[default]
    None,
    /// The guest returned a non-zero exit code.
    ExitCode,
    /// The guest trapped (unreachable, out of bounds, stack overflow, division by zero, …).
    Trap,
    /// The wall time limit was reached.
    TimeLimit,
    /// The memory limit was reached.
    MemoryLimit,
    /// More output was written than allowed.
    OutputLimit,
    /// The fuel ran out.
    FuelLimit,
    /// More files, directories or sockets were opened at one time than allowed.
    HandleLimit,
    /// More was written to the writable directory than it holds, in bytes or in files.
    DiskLimit,
    /// More instances, memories or tables were made than allowed.
    InstanceLimit,
    /// Killed on request of the framework.
    KilledByRequest,
    /// The bundle could not be fetched.
    FetchFailed,
    /// The bundle's bytes do not match its digest.
    DigestMismatch,
    /// The bundle is not valid Wasm or not a readable archive.
    InvalidBundle,
    /// The module imports what the host does not give.
    MissingImport,
    /// The module has no `_start` (or the component no `run`).
    NoEntryPoint,
    /// An input could not be read, or changed since it was pinned.
    InputFailed,
    /// What the guest printed could not be kept: the agent's disk is full or broken.
    OutputFailed,
    /// The executor process died; all its tasks share its cause.
    ExecutorTerminated,
    /// The executor could not be started or the task not placed in it.
    LaunchFailed,
    /// Resources that the accept did not cover, or an otherwise wrong description.
    InvalidTask,
    /// The offer was used before, rescinded or of an earlier life of the master.
    InvalidOffers,
    /// The agent left or was removed.
    AgentRemoved,
    /// The agent restarted and does not know the task any more.
    AgentRestarted,
    /// The agent does not answer.
    AgentDisconnected,
    /// The framework was removed.
    FrameworkRemoved,
    /// The lease of an exclusive task ran out before its agent could renew it: the guest was stopped, or nobody can say.
    LeaseExpired,
    /// This status answers a reconciliation.
    Reconciliation,
    /// Another item of the job failed and `--fail-fast` was asked for.
    FailFast,
}

impl Reason {
    /// Every reason, for tables and tests.
    pub const ALL: [Self; 29] = [
        Self::None,
        Self::ExitCode,
        Self::Trap,
        Self::TimeLimit,
        Self::MemoryLimit,
        Self::OutputLimit,
        Self::FuelLimit,
        Self::HandleLimit,
        Self::DiskLimit,
        Self::InstanceLimit,
        Self::KilledByRequest,
        Self::FetchFailed,
        Self::DigestMismatch,
        Self::InvalidBundle,
        Self::MissingImport,
        Self::NoEntryPoint,
        Self::InputFailed,
        Self::OutputFailed,
        Self::ExecutorTerminated,
        Self::LaunchFailed,
        Self::InvalidTask,
        Self::InvalidOffers,
        Self::AgentRemoved,
        Self::AgentRestarted,
        Self::AgentDisconnected,
        Self::FrameworkRemoved,
        Self::LeaseExpired,
        Self::Reconciliation,
        Self::FailFast,
    ];

    /// The name in upper case with underscores, as in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "",
            Self::ExitCode => "EXIT_CODE",
            Self::Trap => "TRAP",
            Self::TimeLimit => "TIME_LIMIT",
            Self::MemoryLimit => "MEMORY_LIMIT",
            Self::OutputLimit => "OUTPUT_LIMIT",
            Self::FuelLimit => "FUEL_LIMIT",
            Self::HandleLimit => "HANDLE_LIMIT",
            Self::DiskLimit => "DISK_LIMIT",
            Self::InstanceLimit => "INSTANCE_LIMIT",
            Self::KilledByRequest => "KILLED_BY_REQUEST",
            Self::FetchFailed => "FETCH_FAILED",
            Self::DigestMismatch => "DIGEST_MISMATCH",
            Self::InvalidBundle => "INVALID_BUNDLE",
            Self::MissingImport => "MISSING_IMPORT",
            Self::NoEntryPoint => "NO_ENTRY_POINT",
            Self::InputFailed => "INPUT_FAILED",
            Self::OutputFailed => "OUTPUT_FAILED",
            Self::ExecutorTerminated => "EXECUTOR_TERMINATED",
            Self::LaunchFailed => "LAUNCH_FAILED",
            Self::InvalidTask => "INVALID_TASK",
            Self::InvalidOffers => "INVALID_OFFERS",
            Self::AgentRemoved => "AGENT_REMOVED",
            Self::AgentRestarted => "AGENT_RESTARTED",
            Self::AgentDisconnected => "AGENT_DISCONNECTED",
            Self::FrameworkRemoved => "FRAMEWORK_REMOVED",
            Self::LeaseExpired => "LEASE_EXPIRED",
            Self::Reconciliation => "RECONCILIATION",
            Self::FailFast => "FAIL_FAST",
        }
    }

    /// Whether the infrastructure is to blame and not the guest: such a failure does not count against `--retries`.
    #[must_use]
    pub const fn is_infrastructure(self) -> bool {
        matches!(
            self,
            Self::OutputFailed
                | Self::ExecutorTerminated
                | Self::LaunchFailed
                | Self::InvalidOffers
                | Self::AgentRemoved
                | Self::AgentRestarted
                | Self::AgentDisconnected
                | Self::LeaseExpired
        )
    }

    /// The exit code of `smalti run` for a task that ended with this reason and the guest's own exit code, if any
    /// (design, section 8): 124 time, 126 not runnable, 127 not there, 134 trap, 137 killed or another limit, 125 ours.
    #[must_use]
    pub const fn exit_code(self, guest: Option<i32>) -> i32 {
        match self {
            Self::None | Self::ExitCode => match guest {
                Some(code @ 0..=125) => code,
                Some(_) => 134,
                None => match self {
                    Self::None => 0,
                    _ => 125,
                },
            },
            Self::Trap => 134,
            Self::TimeLimit => 124,
            Self::MemoryLimit
            | Self::OutputLimit
            | Self::FuelLimit
            | Self::HandleLimit
            | Self::DiskLimit
            | Self::InstanceLimit
            | Self::KilledByRequest
            | Self::FailFast => 137,
            Self::InvalidBundle | Self::MissingImport | Self::DigestMismatch => 126,
            Self::NoEntryPoint | Self::FetchFailed => 127,
            _ => 125,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_follows_a_terminal_state() {
        for from in TaskState::ALL.into_iter().filter(|s| s.is_terminal()) {
            for to in TaskState::ALL {
                assert!(!from.may_become(to), "{from} -> {to}");
            }
        }
    }

    #[test]
    fn exit_codes_are_those_of_the_documentation() {
        assert_eq!(Reason::None.exit_code(Some(0)), 0);
        assert_eq!(Reason::ExitCode.exit_code(Some(3)), 3);
        assert_eq!(Reason::ExitCode.exit_code(Some(200)), 134);
        assert_eq!(Reason::TimeLimit.exit_code(None), 124);
        assert_eq!(Reason::Trap.exit_code(None), 134);
        for limit in [Reason::MemoryLimit, Reason::HandleLimit, Reason::DiskLimit, Reason::InstanceLimit] {
            assert_eq!(limit.exit_code(None), 137, "{limit}");
        }
    }
}
