//! What the operator can say about class `process`: who gets it, and how many processes are kept ready.
//!
//! Owns these flags, for the agent and for whoever starts agents. Deliberately absent: what a task asks for itself.

use smalti_agent_core::{Parameters, ProcessPolicy};
use smalti_types::{Bytes, Role};

/// Flags of class `process`.
#[derive(Debug, Clone, clap::Args)]
pub struct ProcessOptions {
    /// What tasks run in that ask for nothing else: slots of a shared executor, or a process each [default: process on aarch64, where
    /// Wasmtime's compiler is less well tested, else instance]
    #[arg(long, value_enum)]
    pub class: Option<Class>,
    /// Role whose tasks always get a process of their own; * for all (repeatable)
    #[arg(long, value_name = "ROLE")]
    pub process_for_role: Vec<RoleChoice>,
    /// Processes kept ready for tasks of class process; their memory is part of the agent's overhead [default: 2, from the first such
    /// task on]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=MOST_POOLED))]
    pub process_pool: Option<u32>,
}

/// The class of tasks that ask for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Class {
    /// A slot of the framework's executor.
    Instance,
    /// A process of its own.
    Process,
}

/// See `--class`.
const DEFAULT_CLASS: Class = if cfg!(target_arch = "aarch64") { Class::Process } else { Class::Instance };
/// Most pooled executors: each takes memory from the machine.
const MOST_POOLED: i64 = 64;
/// Pooled executors when nothing is said.
const DEFAULT_POOL: u32 = 2;
/// What a pooled executor takes of the machine's memory before it has a task: its group counts about 2 MiB, it has 7 MiB resident with
/// the code that all share, and the kernel keeps page tables, groups and namespaces for it.
const POOLED_MEMORY: Bytes = Bytes::mib(8);

/// One role or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoleChoice {
    /// Written `*`.
    All,
    /// This one.
    One(Role),
}

impl std::str::FromStr for RoleChoice {
    type Err = smalti_types::id::IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "*" { Ok(Self::All) } else { Role::new(text).map(Self::One) }
    }
}

impl std::fmt::Display for RoleChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::One(role) => role.fmt(f),
        }
    }
}

impl ProcessOptions {
    /// Whose tasks get a process of their own whatever they ask for.
    #[must_use]
    pub fn policy(&self) -> ProcessPolicy {
        let everything = self.class.unwrap_or(DEFAULT_CLASS) == Class::Process || self.process_for_role.contains(&RoleChoice::All);
        let role = |choice: &RoleChoice| if let RoleChoice::One(role) = choice { Some(role.clone()) } else { None };
        ProcessPolicy { everything, roles: self.process_for_role.iter().filter_map(role).collect() }
    }

    /// These parameters with what is said here.
    #[must_use]
    pub fn apply(&self, parameters: Parameters) -> Parameters {
        let process = self.policy();
        // Somebody who says how many, or who will use them, wants them to be there from the start.
        let pool_from_start = self.process_pool.is_some() || process != ProcessPolicy::default();
        Parameters { pool: self.pool(), pool_from_start, process, ..parameters }
    }

    /// What the processes that are kept ready take of the machine's memory.
    #[must_use]
    pub fn pool_memory(&self) -> Bytes {
        Bytes(POOLED_MEMORY.0.saturating_mul(self.pool().into()))
    }

    /// The same as flags for another process.
    #[must_use]
    pub fn flags(&self) -> Vec<(&'static str, String)> {
        let class = self.class.and_then(|c| clap::ValueEnum::to_possible_value(&c)).map(|v| ("class", v.get_name().to_owned()));
        let roles = self.process_for_role.iter().map(|role| ("process-for-role", role.to_string()));
        let pool = self.process_pool.map(|n| ("process-pool", n.to_string()));
        class.into_iter().chain(roles).chain(pool).collect()
    }

    fn pool(&self) -> u32 {
        self.process_pool.unwrap_or(DEFAULT_POOL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_types::Resources;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        options: ProcessOptions,
    }

    fn parse(args: &[&str]) -> Result<ProcessOptions, clap::Error> {
        <Command as clap::Parser>::try_parse_from(std::iter::once(&"x").chain(args)).map(|c| c.options)
    }

    fn applied(args: &[&str]) -> Parameters {
        parse(args).unwrap().apply(Parameters::new(Resources::default()))
    }

    #[test]
    fn the_pool_is_filled_for_those_who_will_use_it() {
        let plain = applied(&["--class", "instance"]);
        assert_eq!((plain.process, plain.pool, plain.pool_from_start), (ProcessPolicy::default(), 2, false));
        let four = applied(&["--process-pool", "4"]);
        assert_eq!((four.pool, four.pool_from_start), (4, true));
        let roles = applied(&["--process-for-role", "a", "--process-for-role", "b", "--class", "instance"]);
        assert!(roles.pool_from_start && !roles.process.everything && roles.process.roles.len() == 2);
        for all in [["--process-for-role", "*"], ["--class", "process"]] {
            assert!(applied(&all).process.everything);
        }
        assert!(parse(&["--process-pool", "65"]).is_err() && parse(&["--process-for-role", "a/b"]).is_err());
    }

    #[test]
    fn the_pools_memory_is_overhead() {
        assert_eq!(parse(&[]).unwrap().pool_memory(), Bytes(2 * POOLED_MEMORY.0));
        assert_eq!(parse(&["--process-pool", "0"]).unwrap().pool_memory(), Bytes(0));
    }

    #[test]
    fn flags_are_passed_on_as_they_were_given() {
        let args = ["--class", "process", "--process-for-role", "a", "--process-for-role", "*", "--process-pool", "3"];
        let flags = parse(&args).unwrap().flags();
        let again: Vec<String> = flags.into_iter().flat_map(|(name, value)| [format!("--{name}"), value]).collect();
        assert_eq!(again, args);
        assert_eq!(parse(&[]).unwrap().flags(), []);
    }
}
