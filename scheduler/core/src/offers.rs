//! Answers offers: gathers who wants what, lets [`crate::placing`] plan, and turns the plan into accepts and declines.

use crate::event::Message;
use crate::id::JobId;
use crate::job::Demand;
use crate::known;
use crate::near::Near;
use crate::placing::{OpenOffer, Pass, WaitingArray, WaitingTask, place_arrays, place_tasks};
use crate::scheduler::{Out, Scheduler};
use crate::wanted::{Patience, patience};
use smalti_types::protocol::Call;
use smalti_types::{DurationMs, Offer, OfferId, Operation, Role, Time};
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// An agent that was offered this long ago may be offered again soon.
const SEEN: DurationMs = DurationMs(600_000);

/// The greatest key of a priority.
const LAST_JOB: JobId = JobId::new(u64::MAX, u16::MAX);

impl Scheduler {
    /// Every offer is answered in the same step: held offers are resources that nobody uses.
    pub(crate) fn on_offers(&mut self, now: Time, role: &Role, mut offers: Vec<Offer>, out: &mut Out) {
        self.work_out_avoided(now, role, &offers);
        self.learn(now, role, &mut offers);
        let open = offers.into_iter().map(|offer| {
            let shunned = self.shunned.of(now, &offer.agent);
            OpenOffer::new(offer, shunned)
        });
        let mut open: Vec<OpenOffer<JobId>> = open.collect();
        let (passes, ahead) = self.plan(now, role, &mut open);
        for pass in passes {
            self.let_pass(now, pass);
        }
        if let Some(state) = self.roles.get_mut(role) {
            state.tasks.went_ahead(ahead);
        }
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

    /// What the agents of these offers hold.
    fn learn(&mut self, now: Time, role: &Role, offers: &mut [Offer]) {
        let Some(state) = self.roles.get_mut(role) else { return };
        if !state.known.is_empty() {
            state.known.forget_before(Time(now.0.saturating_sub(SEEN.0 * 1_000)));
        }
        for offer in offers {
            state.tasks.add_fresh(now, offer);
            known::tidy(offer);
            state.known.note(now, offer);
        }
    }

    /// A job let an offer pass that it could have had: its patience begins, or goes on.
    fn let_pass(&mut self, now: Time, pass: Pass<JobId>) {
        let Some(job) = self.jobs.get_mut(&pass.key) else { return };
        let (of, (agent, bytes)) = (job.turn(), pass.best);
        if let Some(patience) = job.patience.as_mut().filter(|p| p.of == of) {
            (patience.agent, patience.bytes) = (agent, bytes);
            return;
        }
        let until = now.after(patience(self.locality_wait, pass.gain));
        let begun = Patience { of, since: now, until, agent, bytes, over: false };
        if let Some(last) = job.patience.replace(Box::new(begun)) {
            self.patience.remove(&(last.until, pass.key));
        }
        self.patience.insert((until, pass.key));
    }

    /// Where patience is over, offers that were let pass are wanted after all.
    pub(crate) fn end_patience(&mut self, now: Time, out: &mut Out) {
        let later = self.patience.split_off(&(Time(now.0.saturating_add(1)), JobId::new(0, 0)));
        for (_, id) in std::mem::replace(&mut self.patience, later) {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let Some(patience) = job.patience.as_mut() else { continue };
            patience.over = true;
            let (since, agent) = (patience.since, patience.agent.clone());
            if job.demand(now) == Demand::Nothing {
                continue;
            }
            let Some(state) = self.roles.get_mut(&job.spec.role) else { continue };
            state.new_demand = true;
            out.roles.insert(job.spec.role.clone());
            // Whoever has had nothing to offer for as long as anybody waits is not waited for again before it has.
            if now >= since.after(self.locality_wait) && state.known.is_silent_since(&agent, since) {
                state.known.forget(&agent);
            }
        }
    }

    /// Who gets what. Returns who let offers pass, and how many went ahead of older ones.
    fn plan(&self, now: Time, role: &Role, open: &mut [OpenOffer<JobId>]) -> (Vec<Pass<JobId>>, usize) {
        let (mut passes, mut gone) = (Vec::new(), BTreeSet::new());
        let Some(state) = self.roles.get(role) else { return (passes, 0) };
        let mut near = Near::new(&state.known, open);
        let waits = self.locality_wait > DurationMs(0) && !state.known.is_empty();
        let mut next = state.tasks.first().into_iter().chain(state.arrays.first()).map(|(p, _)| *p).min();
        while let Some(priority) = next {
            let level = (priority, JobId::new(0, 0))..=(priority, LAST_JOB);
            let waiting = |id: JobId| {
                let job = self.jobs.get(&id)?;
                (job.demand(now) == Demand::Task).then(|| WaitingTask {
                    key: id,
                    request: job.request(),
                    wanted: job.wanted(),
                    patient: waits && job.is_patient(now),
                })
            };
            let ahead = state.tasks.ahead(level.clone(), open);
            if !ahead.is_empty() {
                passes.extend(place_tasks(open, &mut near, ahead.into_iter().filter_map(waiting)));
                gone.extend(open.iter().flat_map(|o| o.singles.iter().map(|(id, _)| *id)));
            }
            let others = state.tasks.level(level.clone()).filter(|id| !gone.contains(id));
            passes.extend(place_tasks(open, &mut near, others.filter_map(waiting)));
            let arrays = state.arrays.range(level).filter_map(|(_, id)| {
                let job = self.jobs.get(id)?;
                let held = job.state.pool.as_ref().map_or(0, crate::pool::Pool::slots);
                match job.demand(now) {
                    Demand::Slots(want) => {
                        let (request, wanted, patient) = (job.request(), job.wanted(), waits && job.is_patient(now));
                        Some(WaitingArray { key: *id, request, wanted, patient, want, held })
                    }
                    _ => None,
                }
            });
            passes.extend(place_arrays(open, &mut near, arrays.collect()));
            let Reverse(p) = priority;
            let Some(lower) = p.checked_sub(1) else { break };
            let below = (Reverse(lower), JobId::new(0, 0))..;
            next = state.tasks.first_from(below.start).into_iter().chain(state.arrays.range(below).next()).map(|(p, _)| *p).min();
        }
        (passes, gone.len())
    }

    fn launch(&mut self, now: Time, offer: OpenOffer<JobId>, out: &mut Out) -> Vec<Operation> {
        let Offer { agent, role, holdings, .. } = offer.offer;
        let mut operations = Vec::new();
        for (id, resources) in offer.singles {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let bundle = job.wanted().bundle;
            if let Some(operation) = job.launch_task(&agent, resources) {
                if holdings.binary_search(&bundle).is_err()
                    && let Some(state) = self.roles.get_mut(&role)
                {
                    state.tasks.fetches(now, &agent, bundle);
                }
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
