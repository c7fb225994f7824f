//! Makes room for jobs that have nothing: an array that holds slots of the same role gives some back, at an item boundary.
//!
//! Slots of an open part never come back by themselves while items remain, so a long array would keep out every later job.
//! A part of the array that holds the most is closed: its slots leave as they end their items, the offers that follow go to
//! whoever has least, and the array takes up what is left. Nothing is killed. A job that lets offers pass has room, and is not helped.

use crate::feed::Order;
use crate::id::JobId;
use crate::job::Job;
use crate::scheduler::{Out, Scheduler};
use smalti_types::{DurationMs, Role, Time};
use std::collections::BTreeMap;

/// How long a job waits before room is made: offers that come by themselves come much sooner.
pub(crate) const PATIENCE: DurationMs = DurationMs(300);

impl Scheduler {
    /// For each role, and at most once per [`PATIENCE`], closes one part if a job has waited for so long.
    pub(crate) fn make_room(&mut self, now: Time, out: &mut Out) {
        let mut waiting: BTreeMap<Role, i32> = BTreeMap::new();
        for (id, since) in &self.hungry {
            if let Some(job) = self.jobs.get(id).filter(|j| now >= since.after(PATIENCE) && j.waits_for(now).is_none()) {
                let best = waiting.entry(job.spec.role.clone()).or_insert(job.spec.policy.priority);
                *best = (*best).max(job.spec.policy.priority);
            }
        }
        for (role, priority) in waiting {
            let Some(state) = self.roles.get_mut(&role) else { continue };
            if now < state.made_room.after(PATIENCE) {
                continue;
            }
            state.made_room = now;
            if let Some(victim) = self.victim(&role, priority) {
                self.close_one(victim, out);
            }
        }
    }

    /// The array of this role that holds the most open slots, and is of no higher priority than who waits.
    fn victim(&self, role: &Role, priority: i32) -> Option<JobId> {
        let open = |job: &Job| -> u32 {
            job.state.pool.iter().flat_map(|p| p.parts.values()).filter(|p| p.open && p.is_running()).map(|p| p.slots).sum()
        };
        self.arrays
            .iter()
            .filter_map(|id| self.jobs.get(id))
            .filter(|j| j.spec.role == *role && j.spec.policy.priority <= priority)
            .map(|j| (open(j), j.id()))
            .filter(|(slots, _)| *slots > 0)
            .max()
            .map(|(_, id)| id)
    }

    fn close_one(&mut self, id: JobId, out: &mut Out) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let parts = job.state.pool.iter_mut().flat_map(|p| &mut p.parts);
        let Some((number, part)) = parts.filter(|(_, p)| p.open && p.is_running()).max_by_key(|(n, p)| (p.slots, **n)) else { return };
        part.open = false;
        let (number, unstarted) = (*number, part.unstarted());
        job.send_order(Order::Close { part: number }, &mut out.messages);
        if unstarted > 0 {
            job.send_order(Order::Return { part: number, most: unstarted }, &mut out.messages);
        }
        out.touched.insert(id);
    }
}
