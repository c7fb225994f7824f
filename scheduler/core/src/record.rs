//! What is kept of a job, so that a scheduler that starts again goes on where the last one stopped.

use crate::event::Message;
use crate::id::JobId;
use crate::job::{Job, JobState};
use crate::pool::Pool;
use crate::scheduler::{Out, RoleState, Scheduler};
use crate::spec::JobSpec;
use smalti_types::protocol::Call;
use smalti_types::{ItemBatch, ItemSet, Time};
use std::sync::Arc;

impl Scheduler {
    /// What the store keeps of a job: its specification, written once, and its state, written with every change.
    #[must_use]
    pub fn record(&self, id: JobId) -> Option<(&JobSpec, &JobState)> {
        self.jobs.get(&id).map(|job| (&*job.spec, &job.state))
    }

    /// Starts from what the store has. `next_number` is above every number ever given out, also of jobs long forgotten.
    #[must_use]
    pub fn restore(now: Time, next_number: u64, jobs: Vec<(JobSpec, JobState)>) -> Self {
        let mut scheduler = Self::new();
        let mut over = Vec::new();
        for (spec, state) in jobs {
            let id = spec.id;
            scheduler.next_number = scheduler.next_number.max(id.number() + 1);
            if !spec.request.is_empty() {
                scheduler.by_request.insert(spec.request.clone(), id);
            }
            scheduler.roles.entry(spec.role.clone()).or_insert_with(|| RoleState { restored: true, ..RoleState::default() });
            match state.finished {
                Some(at) => over.push((at, id)),
                None => {
                    scheduler.live.insert(id);
                }
            }
            scheduler.jobs.insert(id, Job::restored(Arc::new(spec), state));
        }
        over.sort_unstable();
        scheduler.history = over.into();
        scheduler.next_number = scheduler.next_number.max(next_number);
        let ids: Vec<JobId> = scheduler.live.iter().copied().collect();
        for id in ids {
            scheduler.index(now, id, &mut Out::default());
        }
        scheduler
    }

    /// The number that the next job gets: the store keeps it beside the jobs.
    #[must_use]
    pub const fn next_number(&self) -> u64 {
        self.next_number
    }
}

impl Job {
    /// Says again to the master what may not have left the last life of this process: who it has, what they were given,
    /// what was killed. Agents ignore items that they were given before.
    pub(crate) fn resume(&self, out: &mut Vec<Message>) {
        let mut tasks = Vec::new();
        if let Some(run) = self.state.run.as_ref().filter(|r| r.is_placed()) {
            tasks.push((run.task.clone(), run.attempt(), run.agent.clone()));
        }
        for (number, part) in self.state.pool.iter().flat_map(|p| &p.parts).filter(|(_, p)| p.is_live()) {
            tasks.push((self.part_id(*number), 0, Some(part.agent.clone())));
        }
        if !tasks.is_empty() {
            self.call(Call::Reconcile(tasks), out);
        }
        if let Some(pool) = &self.state.pool {
            self.assign_again(pool, out);
        }
        if self.state.ending.is_some() {
            self.send_kills(None, out);
        }
        self.store_output(out);
    }

    fn assign_again(&self, pool: &Pool, out: &mut Vec<Message>) {
        for (number, part) in pool.parts.iter().filter(|(_, p)| p.is_live()) {
            let mut rest = part.outstanding.clone();
            let mut classes: Vec<(u32, ItemSet)> = Vec::new();
            for (tries, items) in &pool.tried {
                let common = rest.intersection(items);
                rest = rest.difference(&common);
                classes.push((tries.attempt(), common));
            }
            classes.push((0, rest));
            for (attempt, items) in classes.into_iter().filter(|(_, items)| !items.is_empty()) {
                let batch = self.batch(attempt, items);
                self.call(Call::AssignItems { task: self.part_id(*number), attempt: 0, batch, open: true }, out);
            }
            // Last, and by itself: a part that never hears it would wait for items for ever.
            if !part.open {
                self.call(Call::AssignItems { task: self.part_id(*number), attempt: 0, batch: ItemBatch::default(), open: false }, out);
            }
        }
    }
}
