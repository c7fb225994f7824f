//! What must hold after every event. Tests and the simulation ask after each one.

use crate::job::{Job, Stage};
use crate::pool::Pool;
use crate::scheduler::Scheduler;
use smalti_types::ItemSet;

impl Scheduler {
    /// Checks the whole state.
    ///
    /// # Errors
    /// The first thing that does not hold, in words.
    pub fn check_invariants(&self) -> Result<(), String> {
        for (id, job) in &self.jobs {
            job.check().map_err(|e| format!("job {id}: {e}"))?;
            if self.live.contains(id) != job.state.outcome.is_none() {
                return Err(format!("job {id}: in the wrong list of live jobs"));
            }
            let Some(p) = &job.patience else { continue };
            if p.until > p.since.after(self.locality_wait) || (!p.over && !self.patience.contains(&(p.until, *id))) {
                return Err(format!("job {id}: its patience does not end: {p:?}"));
            }
        }
        if self.jobs.len() != self.live.len() + self.history.len() {
            return Err(format!("{} jobs, {} live, {} in the history", self.jobs.len(), self.live.len(), self.history.len()));
        }
        for (role, state) in &self.roles {
            state.known.check().and_then(|()| state.tasks.check()).map_err(|e| format!("role {role}: {e}"))?;
            for (_, id) in state.tasks.iter().chain(&state.arrays) {
                if !self.jobs.get(id).is_some_and(|j| j.spec.role == *role && j.state.outcome.is_none()) {
                    return Err(format!("role {role}: {id} wants offers and is not a live job of it"));
                }
            }
        }
        if let Some(id) = self.hungry.keys().find(|id| !self.live.contains(id)) {
            return Err(format!("job {id} is hungry and over"));
        }
        Ok(())
    }
}

impl Job {
    fn check(&self) -> Result<(), String> {
        if (self.state.stage == Stage::Over) != self.state.outcome.is_some()
            || self.state.outcome.is_some() != self.state.finished.is_some()
        {
            return Err(format!("stage {:?} with outcome {:?}", self.state.stage, self.state.outcome));
        }
        if let Some(pool) = &self.state.pool {
            pool.check()?;
            if matches!(self.state.stage, Stage::Reduce | Stage::Storing) && !pool.is_settled() {
                return Err("a reduce with items open".into());
            }
        }
        match (self.state.stage, self.state.run.is_some()) {
            (Stage::Delivering, _) if self.spec.output_store.is_none() || self.state.delivery.outcome.is_none() => {
                Err("outputs are delivered to no store, or for no outcome".into())
            }
            (Stage::Single | Stage::Reduce | Stage::Storing, false) => Err(format!("stage {:?} without a task", self.state.stage)),
            _ => Ok(()),
        }
    }
}

impl Pool {
    /// Every item is in exactly one place.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut all = ItemSet::default();
        let mut count = 0;
        let places = self
            .ready
            .values()
            .chain(self.delayed.values())
            .chain([&self.finished, &self.failed, &self.cancelled])
            .chain(self.parts.values().map(|p| &p.outstanding));
        for set in places {
            count += set.len();
            all.extend(set);
        }
        if all != ItemSet::range(0, self.total) || count != self.total {
            return Err(format!("{count} items in all places, {} different ones, {} there should be", all.len(), self.total));
        }
        let mut at_parts = ItemSet::default();
        for (n, part) in &self.parts {
            if !part.is_live() && !part.outstanding.is_empty() {
                return Err(format!("part {n} is over and has items"));
            }
            if !at_parts.is_disjoint(&part.finished) {
                return Err(format!("part {n}: an item finished twice"));
            }
            at_parts.extend(&part.finished);
        }
        if at_parts != self.finished {
            return Err("finished items and parts' finished items differ".into());
        }
        Ok(())
    }
}
