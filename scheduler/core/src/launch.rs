//! Turns a job's next task or part into the operation that starts it.

use crate::id::JobId;
use crate::job::{Job, Stage};
use crate::part::Part;
use crate::pool::Pool;
use crate::spec::{MapSpec, Work};
use smalti_types::task::OutputSource;
use smalti_types::{AgentId, Input, Launch, LaunchArray, Operation, Resources, Stdin, TaskSpec, Time};

/// Where a guest finds the result of the round before.
pub const STATE_PATH: &str = "/smalti/state";
/// Tells a guest which round it is in, from 0.
pub const ROUND_VARIABLE: &str = "SMALTI_ROUND";

impl Job {
    /// Starts its one task or its reduce on this agent.
    pub(crate) fn launch_task(&mut self, agent: &AgentId, resources: Resources) -> Option<Operation> {
        let spec = match (&self.spec.work, self.state.stage) {
            (Work::Single(single), Stage::Single) => single.spec.clone(),
            (Work::Map(map), Stage::Reduce) => self.reduce_spec(map)?,
            _ => return None,
        };
        let run = self.state.run.as_mut()?;
        run.place(agent.clone(), resources.ports.clone());
        self.state.begun = true;
        Some(Operation::Launch(Launch { task: run.task.clone(), attempt: run.attempt(), resources, spec }))
    }

    /// Starts a part with this many slots on this agent; `None` when no item is left.
    pub(crate) fn launch_part(&mut self, now: Time, agent: &AgentId, slots: u32) -> Option<Operation> {
        let template = self.spec.map().map(|map| {
            let mut template = map.template.clone();
            self.add_round(map, &mut template.spec);
            template
        })?;
        let slot_resources = self.spec.map()?.slot_resources.clone();
        let pool = self.state.pool.as_mut()?;
        let (attempt, items) = pool.first_chunk(slots)?;
        let slots = slots.min(u32::try_from(items.len()).unwrap_or(u32::MAX));
        // Nothing left and nobody to take work over from: its slots may go one by one.
        let open = pool.ready() > 0 || pool.parts.values().any(|p| p.is_live() && p.unstarted() > 0);
        let number = pool.next_part;
        pool.next_part += 1;
        pool.parts.insert(number, Part::launched(now, agent.clone(), slots, items.clone(), open));
        self.state.begun = true;
        let (task, batch) = (self.part_id(number), self.batch(attempt, items));
        Some(Operation::LaunchArray(LaunchArray { task, attempt: 0, slot_resources, slots, template, batch, open }))
    }

    fn reduce_spec(&self, map: &MapSpec) -> Option<TaskSpec> {
        let mut spec = map.reduce.as_ref()?.spec.clone();
        spec.stdin = Stdin::Outputs(sources(self.id(), self.state.round, self.state.pool.as_ref()?, false));
        self.add_round(map, &mut spec);
        Some(spec)
    }

    /// What a guest needs to know about its round.
    fn add_round(&self, map: &MapSpec, spec: &mut TaskSpec) {
        if map.rounds > 1 || map.initial_state.is_some() {
            spec.env.push((ROUND_VARIABLE.into(), self.state.round.to_string()));
        }
        if let Some(state) = &self.state.state_input {
            spec.inputs.push(Input { guest_path: Some(STATE_PATH.into()), ..state.clone() });
        }
    }
}

/// Where the outputs of a round's items lie: of those that finished, and if asked of those that failed.
pub(crate) fn sources(job: JobId, round: u32, pool: &Pool, failed: bool) -> Vec<OutputSource> {
    let of = |part: &Part| if failed { part.finished.union(&part.failed) } else { part.finished.clone() };
    let task = |part| job.task(crate::id::TaskName::Part { round, part });
    pool.parts
        .iter()
        .filter(|(_, p)| !p.lost)
        .map(|(n, p)| OutputSource { agent: p.agent.clone(), task: task(*n), attempt: 0, items: of(p) })
        .filter(|s| !s.items.is_empty())
        .collect()
}
