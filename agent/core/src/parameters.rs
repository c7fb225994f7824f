//! What the operator or the machine fixes: resources, bounds, and which tasks get a process of their own.
//!
//! Owns the defaults and the choice of an executor's kind. Pure values.

use smalti_types::{DurationMs, Isolation, MilliCpus, Resources, Role, TaskSpec};
use std::collections::BTreeSet;

/// What an executor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExecutorKind {
    /// Class `instance`: many slots, all of one framework's tasks.
    Shared,
    /// Class `process`: one slot, started before anybody knows for whom, used for one task or item.
    Pooled,
    /// Class `process` with a network: one slot, started for one task that was granted ports or endpoints.
    Networked,
}

impl ExecutorKind {
    /// Whether an executor of this kind has one task in its life.
    #[must_use]
    pub const fn is_used_once(self) -> bool {
        matches!(self, Self::Pooled | Self::Networked)
    }

    /// `shared`, `pooled` or `networked`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Pooled => "pooled",
            Self::Networked => "networked",
        }
    }
}

/// Whose tasks run in class `process` whatever they ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessPolicy {
    /// Everybody's.
    pub everything: bool,
    /// Those of frameworks with these roles.
    pub roles: BTreeSet<Role>,
}

impl ProcessPolicy {
    /// The kind of executor that a task of `role` runs in.
    #[must_use]
    pub fn kind(&self, role: &Role, spec: &TaskSpec, resources: &Resources) -> ExecutorKind {
        if spec.is_networked(resources) {
            ExecutorKind::Networked
        } else if self.everything || self.roles.contains(role) || spec.isolation == Isolation::Process {
            ExecutorKind::Pooled
        } else {
            ExecutorKind::Shared
        }
    }
}

/// Starting executors may take a tenth of what tasks have, and on the smallest nodes a tenth of a core. What one takes itself is about
/// a third of what it costs the machine: the forge, the agent and the kernel have their part.
const fn start_cpus(cpus: MilliCpus) -> MilliCpus {
    let part = cpus.0 / 10;
    MilliCpus(if part > LEAST_START_CPUS { part } else { LEAST_START_CPUS })
}

const LEAST_START_CPUS: u64 = 100;

/// What the operator or the machine fixes.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// What the agent has for tasks.
    pub total: Resources,
    /// Slots of a framework's first shared executor, unless an array part needs more.
    pub slots_per_executor: u32,
    /// A further one has as many as those that the framework has already, but no more than this: many small tasks do not need many processes.
    pub grown_slots: u32,
    /// An array part that wants more slots than this gets this many and gives the rest back.
    pub most_slots_per_executor: u32,
    /// Shared executors alive at once, over all frameworks.
    pub most_executors: u32,
    /// Slots of all of them together: each is a thread of the host's.
    pub most_slots: u32,
    /// A shared executor without work is stopped after this long.
    pub idle_stop: DurationMs,
    /// Whether disks of tasks lie in their executors' memory.
    pub disk_in_memory: bool,
    /// Launches remembered per framework, so that none starts twice.
    pub seen_per_framework: usize,
    /// Whose tasks get a process of their own.
    pub process: ProcessPolicy,
    /// Pooled executors that are kept ready.
    pub pool: u32,
    /// Whether the pool is filled from the start; else with the first task of class `process`.
    pub pool_from_start: bool,
    /// Executors of class `process` alive at once, in the pool or not: what more there is to run waits.
    pub most_processes: u32,
    /// Executors of class `process` that start at once: more would only slow each other down.
    pub most_starting: u32,
    /// Cpus that starting executors of class `process` may take, beside what tasks have.
    pub start_cpus: MilliCpus,
    /// Slots that run nothing are named ([`crate::Message::SlotsIdle`]): where cpu time is lent, they must not count.
    pub lend_cpu: bool,
}

impl Parameters {
    /// The defaults for an agent with `total` for its tasks.
    #[must_use]
    pub const fn new(total: Resources) -> Self {
        Self {
            start_cpus: start_cpus(total.cpus),
            total,
            slots_per_executor: 32,
            grown_slots: 64,
            most_slots_per_executor: 128,
            most_executors: 64,
            most_slots: 4_096,
            idle_stop: DurationMs(60_000),
            disk_in_memory: false,
            lend_cpu: false,
            seen_per_framework: 100_000,
            process: ProcessPolicy { everything: false, roles: BTreeSet::new() },
            pool: 2,
            pool_from_start: false,
            most_processes: 64,
            most_starting: 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_types::{BundleRef, Bytes, Digest};

    #[test]
    fn the_operator_and_the_network_decide_before_the_task() {
        let spec = TaskSpec::new(BundleRef { digest: Digest::of(b"x"), uri: None });
        let plain = Resources::new(MilliCpus(100), Bytes(1));
        let listening = Resources { ports: "80".parse().unwrap(), ..plain.clone() };
        let dialling = TaskSpec { connect: vec!["h:1".parse().unwrap()], ..spec.clone() };
        let own = TaskSpec { isolation: Isolation::Process, ..spec.clone() };
        let (role, other) = (Role::default(), Role::new("other").unwrap());
        let open = ProcessPolicy::default();
        assert_eq!(open.kind(&role, &spec, &plain), ExecutorKind::Shared);
        assert_eq!(open.kind(&role, &own, &plain), ExecutorKind::Pooled);
        assert_eq!(open.kind(&role, &own, &listening), ExecutorKind::Networked);
        assert_eq!(open.kind(&role, &dialling, &plain), ExecutorKind::Networked);
        let for_role = ProcessPolicy { roles: BTreeSet::from([role.clone()]), ..open };
        assert_eq!(for_role.kind(&role, &spec, &plain), ExecutorKind::Pooled);
        assert_eq!(for_role.kind(&other, &spec, &plain), ExecutorKind::Shared);
        let all = ProcessPolicy { everything: true, ..ProcessPolicy::default() };
        assert_eq!(all.kind(&other, &spec, &plain), ExecutorKind::Pooled);
        assert_eq!(all.kind(&other, &spec, &listening), ExecutorKind::Networked);
    }
}
