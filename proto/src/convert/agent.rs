//! Registrations and commands: what an agent and the master say to each other.

use super::status::task_state;
use super::{ConvertError, MAX_LIST, Result, at, duration, wire};
use crate::{v1, version};
use smalti_types::protocol::{AgentCommand, Registration, RunningTask};
use smalti_types::{BootTime, ItemBatch, Resources};

impl TryFrom<v1::RunningTask> for RunningTask {
    type Error = ConvertError;
    fn try_from(m: v1::RunningTask) -> Result<Self> {
        Ok(Self {
            key: at("RunningTask", "task").get(m.task)?,
            state: task_state(m.state)?,
            resources: at("RunningTask", "resources").get(m.resources)?,
            slot_resources: m.slot_resources.map(Resources::try_from).transpose()?,
            exclusive: m.exclusive,
        })
    }
}

impl From<RunningTask> for v1::RunningTask {
    fn from(t: RunningTask) -> Self {
        Self {
            task: Some(t.key.into()),
            state: v1::TaskState::from(t.state).into(),
            resources: Some(t.resources.into()),
            slot_resources: t.slot_resources.map(Into::into),
            exclusive: t.exclusive,
        }
    }
}

/// Does not look at the version: the receiver calls [`version::check`] first.
impl TryFrom<v1::Register> for Registration {
    type Error = ConvertError;
    fn try_from(m: v1::Register) -> Result<Self> {
        Ok(Self {
            info: at("Register", "agent").get(m.agent)?,
            tasks: at("Register", "tasks").list(m.tasks, MAX_LIST)?,
            unacknowledged: at("Register", "unacknowledged").list(m.unacknowledged, MAX_LIST)?,
        })
    }
}

/// Carries this build's version.
impl From<Registration> for v1::Register {
    fn from(r: Registration) -> Self {
        Self { version: Some(version::current()), agent: Some(r.info.into()), tasks: wire(r.tasks), unacknowledged: wire(r.unacknowledged) }
    }
}

impl TryFrom<v1::AgentCommand> for AgentCommand {
    type Error = ConvertError;
    fn try_from(m: v1::AgentCommand) -> Result<Self> {
        use v1::agent_command::Command;
        Ok(match at("AgentCommand", "command").need(m.command)? {
            Command::Launch(c) => Self::Launch {
                framework: at("LaunchTask", "framework").id(&c.framework)?,
                role: at("LaunchTask", "role").id(&c.role)?,
                launch: at("LaunchTask", "launch").get(c.launch)?,
            },
            Command::LaunchArray(c) => Self::LaunchArray {
                framework: at("LaunchArrayPart", "framework").id(&c.framework)?,
                role: at("LaunchArrayPart", "role").id(&c.role)?,
                launch: at("LaunchArrayPart", "launch").get(c.launch)?,
            },
            Command::Assign(c) => Self::AssignItems {
                task: at("AssignItems", "task").get(c.task)?,
                batch: c.batch.map(ItemBatch::try_from).transpose()?.unwrap_or_default(),
                open: c.open,
            },
            Command::ReturnItems(c) => Self::ReturnItems { task: at("ReturnItems", "task").get(c.task)?, most: c.most },
            Command::Kill(c) => Self::Kill { task: at("Kill", "task").get(c.task)?, grace: c.grace_ms.map(duration) },
            Command::Acknowledge(key) => Self::Acknowledge(key.try_into()?),
            Command::Lease(c) => Self::Lease { asked: BootTime(c.asked_us), lease: duration(c.lease_ms) },
        })
    }
}

impl From<AgentCommand> for v1::AgentCommand {
    fn from(c: AgentCommand) -> Self {
        use v1::agent_command::Command;
        let command = match c {
            AgentCommand::Launch { framework, role, launch } => {
                Command::Launch(v1::LaunchTask { framework: framework.into(), launch: Some(launch.into()), role: role.into() })
            }
            AgentCommand::LaunchArray { framework, role, launch } => {
                Command::LaunchArray(v1::LaunchArrayPart { framework: framework.into(), launch: Some(launch.into()), role: role.into() })
            }
            AgentCommand::AssignItems { task, batch, open } => {
                Command::Assign(v1::AssignItems { task: Some(task.into()), batch: Some(batch.into()), open })
            }
            AgentCommand::ReturnItems { task, most } => Command::ReturnItems(v1::ReturnItems { task: Some(task.into()), most }),
            AgentCommand::Kill { task, grace } => Command::Kill(v1::Kill { task: Some(task.into()), grace_ms: grace.map(|g| g.0) }),
            AgentCommand::Acknowledge(key) => Command::Acknowledge(key.into()),
            AgentCommand::Lease { asked, lease } => Command::Lease(v1::Lease { asked_us: asked.0, lease_ms: lease.0 }),
        };
        Self { command: Some(command) }
    }
}

impl From<Vec<AgentCommand>> for v1::AgentCommands {
    fn from(commands: Vec<AgentCommand>) -> Self {
        Self { commands: wire(commands) }
    }
}

impl TryFrom<v1::AgentCommands> for Vec<AgentCommand> {
    type Error = ConvertError;
    fn try_from(m: v1::AgentCommands) -> Result<Self> {
        at("AgentCommands", "commands").list(m.commands, MAX_LIST)
    }
}

#[cfg(test)]
mod tests {
    use super::super::strategies::{agent_command, registration};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_sent_is_what_arrives(r in registration(), c in agent_command()) {
            prop_assert_eq!(Registration::try_from(v1::Register::from(r.clone())), Ok(r));
            prop_assert_eq!(AgentCommand::try_from(v1::AgentCommand::from(c.clone())), Ok(c));
        }
    }

    #[test]
    fn an_empty_command_is_refused() {
        assert_eq!(AgentCommand::try_from(v1::AgentCommand::default()).unwrap_err().to_string(), "AgentCommand.command: is missing");
    }
}
