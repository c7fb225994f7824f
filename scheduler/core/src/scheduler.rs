//! The scheduler: all jobs, what they want, and the frameworks they run under.
//!
//! `step` is total: whatever comes in, it decides something and does not panic. Each event touches the jobs it concerns and
//! nothing else; indexes say which jobs want offers and which wait for a time.

use crate::event::{Event, Message, Record};
use crate::id::{JobId, Target};
use crate::job::{Demand, Job};
use crate::known::Known;
use crate::shunned::Shunned;
use crate::spec::JobSpec;
use crate::waiting::Waiting;
use crate::wanted::LOCALITY_WAIT;
use smalti_types::protocol::{Call, FrameworkEvent};
use smalti_types::{AgentId, DurationMs, Effects, Filters, FrameworkId, Role, StatusUpdate, TaskState, Time, UpdateKey};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Jobs that are not over.
pub const MAX_LIVE_JOBS: usize = 200_000;
/// Jobs that are over and still remembered, however old.
pub const MAX_HISTORY: usize = 1_000;
/// Jobs that are over and remembered because they are young: somebody may be about to ask how they ended.
pub const MAX_YOUNG_HISTORY: usize = 20_000;
/// How long a job that is over counts as young.
pub const YOUNG: DurationMs = DurationMs(60_000);
/// Refusal of what nobody needs: until a revive.
pub const REFUSE_LONG: DurationMs = DurationMs(3_600_000);

/// The batch scheduler's state.
#[derive(Debug, Default)]
pub struct Scheduler {
    pub(crate) jobs: BTreeMap<JobId, Job>,
    pub(crate) next_number: u64,
    pub(crate) by_request: BTreeMap<String, JobId>,
    pub(crate) roles: BTreeMap<Role, RoleState>,
    /// Jobs that are not over.
    pub(crate) live: BTreeSet<JobId>,
    /// Over, in the order in which they ended.
    pub(crate) history: VecDeque<(Time, JobId)>,
    /// Ends of back-offs.
    pub(crate) wakes: BTreeSet<(Time, JobId)>,
    pub(crate) wake_of: BTreeMap<JobId, Time>,
    /// Arrays that are looked at with every tick.
    pub(crate) arrays: BTreeSet<JobId>,
    /// Agents that were offered, and when they were last.
    pub(crate) seen: BTreeMap<AgentId, Time>,
    /// Ports that other programs of agents' machines had lately.
    pub(crate) shunned: Shunned,
    /// Jobs that want something and have nothing, and since when.
    pub(crate) hungry: BTreeMap<JobId, Time>,
    /// How long a job lets offers pass at most.
    pub(crate) locality_wait: DurationMs,
    /// Ends of patience.
    pub(crate) patience: BTreeSet<(Time, JobId)>,
}

/// What a framework's jobs want, and what its master was told.
#[derive(Debug, Default)]
pub(crate) struct RoleState {
    pub(crate) framework: Option<FrameworkId>,
    pub(crate) suppressed: bool,
    /// Something was refused for a while since the last revive.
    pub(crate) filtered: bool,
    /// Came from the store: the master is told again what may have been lost.
    pub(crate) restored: bool,
    /// Something began to want offers since the last revive.
    pub(crate) new_demand: bool,
    /// When a part was last closed for jobs that have nothing.
    pub(crate) made_room: Time,
    pub(crate) tasks: Waiting,
    pub(crate) arrays: BTreeSet<(Reverse<i32>, JobId)>,
    /// What agents hold.
    pub(crate) known: Known,
}

/// Whether a job may be submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// This request was made before and became this job.
    Existing(JobId),
    /// It gets this id.
    New(JobId),
    /// Too many jobs.
    Full,
}

/// What one step gathers before it becomes effects.
#[derive(Debug, Default)]
pub(crate) struct Out {
    pub(crate) records: Vec<Record>,
    pub(crate) messages: Vec<Message>,
    pub(crate) touched: BTreeSet<JobId>,
    /// Touched, and in no way that a restart could miss.
    pub(crate) noted: BTreeSet<JobId>,
    pub(crate) roles: BTreeSet<Role>,
}

impl Scheduler {
    /// A scheduler without jobs.
    #[must_use]
    pub fn new() -> Self {
        Self { next_number: 1, locality_wait: LOCALITY_WAIT, ..Self::default() }
    }

    /// How long a job lets offers pass at most while another agent holds its inputs; zero: never.
    #[must_use]
    pub fn with_locality_wait(self, locality_wait: DurationMs) -> Self {
        Self { locality_wait, ..self }
    }

    /// The id that a job with this request would get.
    #[must_use]
    pub fn admit(&self, request: &str, suffix: u16) -> Admission {
        match self.by_request.get(request) {
            Some(job) => Admission::Existing(*job),
            None if self.live.len() >= MAX_LIVE_JOBS => Admission::Full,
            None => Admission::New(JobId::new(self.next_number, suffix)),
        }
    }

    /// Takes in one event.
    pub fn step(&mut self, now: Time, event: Event) -> Effects<Record, Message> {
        let mut out = Out::default();
        match event {
            Event::Submit(spec) => self.submit(now, spec, &mut out),
            Event::Kill { job, grace } => self.with_job(job, &mut out, |job, messages| job.kill(now, grace, messages)),
            Event::OutputStored { job, round, result } => {
                self.with_job(job, &mut out, |job, messages| job.on_stored(now, round, result, messages));
            }
            Event::Delivered { job, what } => self.with_job(job, &mut out, |job, messages| {
                job.on_delivered(now, what);
                job.advance(now, messages);
            }),
            Event::Framework { role, event } => self.on_framework(now, role, event, &mut out),
            Event::Tick => self.tick(now, &mut out),
        }
        self.settle(now, out)
    }

    /// The job with this id.
    #[must_use]
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// All jobs, oldest first.
    pub fn jobs(&self) -> impl DoubleEndedIterator<Item = &Job> {
        self.jobs.values()
    }

    /// Roles that have or had jobs: each needs its framework.
    pub fn roles(&self) -> impl Iterator<Item = &Role> {
        self.roles.keys()
    }

    fn submit(&mut self, now: Time, spec: Arc<JobSpec>, out: &mut Out) {
        let id = spec.id;
        if self.jobs.contains_key(&id) || id.number() < self.next_number || spec.check().is_err() {
            return;
        }
        self.next_number = id.number() + 1;
        if !spec.request.is_empty() {
            self.by_request.insert(spec.request.clone(), id);
        }
        let role = spec.role.clone();
        if !self.roles.contains_key(&role) {
            self.roles.insert(role.clone(), RoleState::default());
            out.messages.push(Message::Connect(role));
        }
        self.live.insert(id);
        self.jobs.insert(id, Job::new(now, spec));
        out.records.push(Record::Submitted(id));
        // An array without items is done before it has begun.
        self.with_job(id, out, |job, messages| job.advance(now, messages));
    }

    fn with_job(&mut self, id: JobId, out: &mut Out, act: impl FnOnce(&mut Job, &mut Vec<Message>)) {
        if let Some(job) = self.jobs.get_mut(&id) {
            act(job, &mut out.messages);
            out.touched.insert(id);
        }
    }

    fn on_framework(&mut self, now: Time, role: Role, event: FrameworkEvent, out: &mut Out) {
        match event {
            FrameworkEvent::Subscribed { framework, .. } => self.on_subscribed(&role, framework, out),
            FrameworkEvent::Offers(offers) => self.on_offers(now, &role, offers, out),
            FrameworkEvent::Updates(updates) => {
                for (_, update) in updates {
                    self.on_update(now, &role, &update, out);
                }
            }
            FrameworkEvent::AgentLost { agent, .. } => self.on_agent_lost(now, &role, &agent, out),
            // Offers are answered in the step that brings them, so none is held that could be rescinded; what became of a
            // refused launch comes as an update.
            FrameworkEvent::Rescind(_) | FrameworkEvent::Refused { .. } | FrameworkEvent::Error(_) | FrameworkEvent::Fenced { .. } => {}
        }
    }

    fn on_subscribed(&mut self, role: &Role, framework: FrameworkId, out: &mut Out) {
        let state = self.roles.entry(role.clone()).or_default();
        state.framework = Some(framework.clone());
        // The master may be a new one: it knows nothing of what was said to the last.
        (state.suppressed, state.filtered) = (false, false);
        let restored = std::mem::take(&mut state.restored);
        out.roles.insert(role.clone());
        if !restored {
            return;
        }
        for job in self.jobs.values_mut().filter(|j| j.spec.role == *role) {
            job.resume(&mut out.messages);
        }
    }

    fn on_update(&mut self, now: Time, role: &Role, update: &StatusUpdate, out: &mut Out) {
        // A name that is not ours: the update is taken, for nobody else will.
        if let Ok(Target { job, task: Some(name) }) = update.key.task.task.as_str().parse() {
            let (id, attempt) = (&update.key.task.task, update.key.task.attempt);
            let is_wanted = self.jobs.get(&job).is_some_and(|j| j.has_live(name, id, attempt));
            if !is_wanted && !update.state.is_terminal() && update.state != TaskState::Unknown {
                // Given up (its agent was removed, say), and brought back by its agent: it must not go on taking resources.
                out.messages.push(Message::Call { role: role.clone(), call: Call::Kill { task: id.clone(), attempt, grace: None } });
            }
            // Only what the attempt was given can have been in its way: an agent cannot speak about other ports.
            if let Some((agent, ports)) = self.jobs.get(&job).filter(|_| is_wanted).and_then(Job::listens) {
                self.shunned.note(now, agent, &update.ports_in_use.intersection(ports));
            }
            self.with_job(job, out, |job, messages| job.on_update(now, name, update, messages));
            // That a task runs is said again by whoever runs it. Everything else an agent forgets once it is acknowledged.
            if !update.state.is_terminal() && update.array.is_none() {
                out.noted.insert(job);
            }
        }
        // Also of the master's own words: that they were taken is kept with what they changed.
        let key = UpdateKey { task: update.key.task.clone(), seq: update.key.seq };
        out.messages.push(Message::Handled { role: role.clone(), key });
    }

    fn on_agent_lost(&mut self, now: Time, role: &Role, agent: &AgentId, out: &mut Out) {
        self.seen.remove(agent);
        if let Some(state) = self.roles.get_mut(role)
            && state.known.forget(agent)
            && !self.patience.is_empty()
        {
            // Somebody may have waited for it, and let others pass.
            state.new_demand = true;
            out.roles.insert(role.clone());
        }
        let concerned: Vec<JobId> =
            self.live.iter().filter(|id| self.jobs.get(id).is_some_and(|j| j.spec.role == *role)).copied().collect();
        for id in concerned {
            self.with_job(id, out, |job, messages| job.on_agent_lost(now, agent, messages));
        }
    }

    fn tick(&mut self, now: Time, out: &mut Out) {
        let later = self.wakes.split_off(&(Time(now.0.saturating_add(1)), JobId::new(0, 0)));
        let due = std::mem::replace(&mut self.wakes, later);
        for (_, id) in due {
            self.wake_of.remove(&id);
            if let Some(job) = self.jobs.get_mut(&id) {
                job.tick(now, &mut out.messages);
                out.touched.insert(id);
            }
        }
        for id in &self.arrays {
            if let Some(job) = self.jobs.get_mut(id)
                && job.tick(now, &mut out.messages)
            {
                out.touched.insert(*id);
            }
        }
        self.end_patience(now, out);
        self.make_room(now, out);
        self.forget_old(now, out);
    }

    /// Turns what was gathered into effects: indexes first, because they decide about revive and suppress.
    fn settle(&mut self, now: Time, mut out: Out) -> Effects<Record, Message> {
        for id in std::mem::take(&mut out.touched) {
            self.index(now, id, &mut out);
            out.records.push(if out.noted.contains(&id) { Record::Noted(id) } else { Record::Changed(id) });
            out.messages.push(Message::Changed(id));
        }
        if self.history.len() > MAX_YOUNG_HISTORY {
            self.forget_old(now, &mut out);
        }
        for role in std::mem::take(&mut out.roles) {
            self.ask_for_offers(role, &mut out);
        }
        let mut effects = Effects::default();
        out.records.into_iter().for_each(|r| effects.persist(r));
        out.messages.into_iter().for_each(|m| effects.send(m));
        effects
    }

    /// Brings the indexes up to date with one job.
    pub(crate) fn index(&mut self, now: Time, id: JobId, out: &mut Out) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(role) = self.roles.get_mut(&job.spec.role) else { return };
        // Before a restored role has subscribed, a job's tasks are those of the framework that it knows.
        if job.is_live() && role.framework.is_some() && job.state.framework != role.framework {
            job.state.framework.clone_from(&role.framework);
        }
        let key = (Reverse(job.spec.policy.priority), id);
        let demand = job.demand(now);
        let tasks = demand == Demand::Task;
        let arrays = matches!(demand, Demand::Slots(_));
        let keep = |set: &mut BTreeSet<_>, wanted: bool| {
            if wanted {
                set.insert(key)
            } else {
                set.remove(&key);
                false
            }
        };
        let mut is_new = keep(&mut role.arrays, arrays);
        if tasks {
            is_new |= role.tasks.insert(key, job.wanted().bundle);
        } else {
            role.tasks.remove(&key);
        }
        role.new_demand |= is_new;
        out.roles.insert(job.spec.role.clone());
        let slots = job.state.pool.as_ref().map_or(0, crate::pool::Pool::slots);
        if tasks || (arrays && slots == 0) {
            self.hungry.entry(id).or_insert(now);
        } else {
            self.hungry.remove(&id);
        }
        let wake = job.next_wake().filter(|t| *t > now);
        if let Some(old) = self.wake_of.remove(&id) {
            self.wakes.remove(&(old, id));
        }
        if let Some(at) = wake {
            self.wakes.insert((at, id));
            self.wake_of.insert(id, at);
        }
        if job.state.pool.is_some() && job.state.outcome.is_none() {
            self.arrays.insert(id);
        } else {
            self.arrays.remove(&id);
        }
        if let Some(at) = job.state.finished
            && self.live.remove(&id)
        {
            self.history.push_back((at, id));
        }
    }

    /// Tells the master whether this role wants offers.
    fn ask_for_offers(&mut self, role: Role, out: &mut Out) {
        let Some(state) = self.roles.get_mut(&role).filter(|s| s.framework.is_some()) else { return };
        let wants = !state.tasks.is_empty() || !state.arrays.is_empty();
        let new = std::mem::take(&mut state.new_demand);
        if !wants && !state.suppressed {
            state.suppressed = true;
            out.messages.push(Message::Call { role, call: Call::Suppress });
        } else if wants && (state.suppressed || (new && state.filtered)) {
            (state.suppressed, state.filtered) = (false, false);
            out.messages.push(Message::Call { role, call: Call::Revive });
        }
    }

    /// Answers one offer: what is left over nobody needs now, or nothing of what waits fits it.
    pub(crate) fn refusal(&mut self, role: &Role) -> Filters {
        let Some(state) = self.roles.get_mut(role) else { return Filters::default() };
        state.filtered = true;
        if state.tasks.is_empty() && state.arrays.is_empty() { Filters { refuse: REFUSE_LONG } } else { Filters::default() }
    }

    fn forget_old(&mut self, now: Time, out: &mut Out) {
        while let Some((ended, id)) = self.history.front().copied() {
            let young = now < ended.after(YOUNG);
            let live = self.jobs.get(&id).is_some_and(Job::is_live);
            if self.history.len() <= MAX_HISTORY || (young && self.history.len() <= MAX_YOUNG_HISTORY) {
                return;
            }
            self.history.pop_front();
            if live && young {
                // Its parts are still on their way out.
                self.history.push_back((now, id));
                return;
            }
            if let Some(job) = self.jobs.remove(&id) {
                self.by_request.remove(&job.spec.request);
                self.arrays.remove(&id);
                out.records.push(Record::Forgotten(id));
            }
        }
    }
}
