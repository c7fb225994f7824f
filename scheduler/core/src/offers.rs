//! Answers offers: gathers who wants what, lets [`crate::placing`] plan, and turns the plan into accepts and declines.

use crate::event::Message;
use crate::id::JobId;
use crate::job::Demand;
use crate::placing::{OpenOffer, WaitingArray, WaitingTask, place_arrays, place_tasks};
use crate::scheduler::{Out, Scheduler};
use smalti_types::protocol::Call;
use smalti_types::{DurationMs, Offer, OfferId, Operation, Role, Time};
use std::cmp::Reverse;

/// An agent that was offered this long ago may be offered again soon.
const SEEN: DurationMs = DurationMs(600_000);

/// The greatest key of a priority.
const LAST_JOB: JobId = JobId::new(u64::MAX, u16::MAX);

impl Scheduler {
    /// Every offer is answered in the same step: held offers are resources that nobody uses.
    pub(crate) fn on_offers(&mut self, now: Time, role: &Role, offers: Vec<Offer>, out: &mut Out) {
        self.work_out_avoided(now, role, &offers);
        let open = offers.into_iter().map(|offer| {
            let shunned = self.shunned.of(now, &offer.agent);
            OpenOffer::new(offer, shunned)
        });
        let mut open: Vec<OpenOffer<JobId>> = open.collect();
        self.plan(now, role, &mut open);
        let mut unused: Vec<OfferId> = Vec::new();
        let mut accepts: Vec<(OfferId, Vec<Operation>)> = Vec::new();
        for offer in open {
            let id = offer.offer.id;
            let operations = self.launch(now, offer, out);
            if operations.is_empty() { unused.push(id) } else { accepts.push((id, operations)) }
        }
        let touched: Vec<JobId> = out.touched.iter().copied().collect();
        for id in touched {
            self.index(now, id, out);
        }
        // Only now is it known whether anything still waits.
        out.roles.insert(role.clone());
        let filters = self.refusal(role);
        for (id, operations) in accepts {
            let call = Call::Accept { offers: vec![id], operations, filters };
            out.messages.push(Message::Call { role: role.clone(), call });
        }
        if !unused.is_empty() {
            out.messages.push(Message::Call { role: role.clone(), call: Call::Decline { offers: unused, filters } });
        }
    }

    /// Which agents each job that wants something must not go to.
    fn work_out_avoided(&mut self, now: Time, role: &Role, offers: &[Offer]) {
        self.seen.retain(|_, at| now < at.after(SEEN));
        for offer in offers {
            self.seen.insert(offer.agent.clone(), now);
        }
        let Some(state) = self.roles.get(role) else { return };
        for (_, id) in state.tasks.iter().chain(&state.arrays) {
            if let Some(job) = self.jobs.get_mut(id).filter(|j| !j.state.troubles.is_empty() || !j.avoided.is_empty()) {
                let parts = job.state.pool.iter().flat_map(|p| p.parts.values()).filter(|p| p.is_live()).map(|p| &p.agent);
                job.avoided = job.state.troubles.avoided(now, self.seen.keys().chain(parts));
            }
        }
    }

    fn plan(&self, now: Time, role: &Role, open: &mut [OpenOffer<JobId>]) {
        let Some(state) = self.roles.get(role) else { return };
        let mut next = state.tasks.first().into_iter().chain(state.arrays.first()).map(|(p, _)| *p).min();
        while let Some(priority) = next {
            let level = (priority, JobId::new(0, 0))..=(priority, LAST_JOB);
            let waiting = state.tasks.range(level.clone()).filter_map(|(_, id)| {
                let job = self.jobs.get(id)?;
                (job.demand(now) == Demand::Task).then(|| WaitingTask { key: *id, request: job.request() })
            });
            place_tasks(open, waiting);
            let arrays = state.arrays.range(level).filter_map(|(_, id)| {
                let job = self.jobs.get(id)?;
                let held = job.state.pool.as_ref().map_or(0, crate::pool::Pool::slots);
                match job.demand(now) {
                    Demand::Slots(want) => Some(WaitingArray { key: *id, request: job.request(), want, held }),
                    _ => None,
                }
            });
            place_arrays(open, arrays.collect());
            let Reverse(p) = priority;
            let Some(lower) = p.checked_sub(1) else { return };
            let below = (Reverse(lower), JobId::new(0, 0))..;
            next = state.tasks.range(below.clone()).next().into_iter().chain(state.arrays.range(below).next()).map(|(p, _)| *p).min();
        }
    }

    fn launch(&mut self, now: Time, offer: OpenOffer<JobId>, out: &mut Out) -> Vec<Operation> {
        let agent = offer.offer.agent;
        let mut operations = Vec::new();
        for (id, resources) in offer.singles {
            if let Some(operation) = self.jobs.get_mut(&id).and_then(|j| j.launch_task(&agent, resources)) {
                operations.push(operation);
                out.touched.insert(id);
            }
        }
        for (id, slots) in offer.slots {
            if let Some(operation) = self.jobs.get_mut(&id).and_then(|j| j.launch_part(now, &agent, slots)) {
                operations.push(operation);
                out.touched.insert(id);
            }
        }
        operations
    }
}
