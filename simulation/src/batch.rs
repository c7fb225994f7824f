//! The batch scheduler's core as a handler: jobs that a client would submit, and a store that survives.

use crate::nodes::bundle;
use crate::rng::Rng;
use crate::script::Answers;
use smalti_framework_sdk_core::Delivery;
use smalti_scheduler_core::spec::ReduceSpec;
use smalti_scheduler_core::{Admission, Event, JobId, JobSpec, JobState, MapSpec, Message, Policy, Record, Scheduler, SingleSpec, Work};
use smalti_types::protocol::FrameworkEvent;
use smalti_types::{
    ArrayTemplate, BundleRef, Bytes, Effects, HoldingKey, Input, Isolation, MilliCpus, Offer, Resources, Role, Split, TaskSpec, Time,
};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;

/// Jobs submitted in one run.
const JOBS: u64 = 12;
/// Jobs after this one read inputs, and from then on offers say who holds them. All that is decided by numbers that are there anyway:
/// runs in which something failed before that stay what they were.
const PLAIN_JOBS: u64 = 6;
/// Different inputs.
const INPUTS: u64 = 4;

/// The batch scheduler's process beside its SDK.
#[derive(Debug)]
pub(crate) struct Batch {
    core: Scheduler,
    /// Durable.
    store: BTreeMap<JobId, (JobSpec, JobState)>,
    /// Durable.
    next_number: u64,
    submitted: u64,
    /// Answers of the cluster's store that are on their way.
    stored: Vec<(Time, Event)>,
}

fn spec(rng: &mut Rng) -> TaskSpec {
    let isolation = if rng.chance(25) { Isolation::Process } else { Isolation::Instance };
    TaskSpec { isolation, ..TaskSpec::new(BundleRef { digest: bundle(rng.below(4)), uri: None }) }
}

fn resources(rng: &mut Rng) -> Resources {
    Resources::new(MilliCpus(rng.between(1, 12) * 100), Bytes::mib(rng.between(16, 512)))
}

/// Some are worth waiting for.
fn input(n: u64) -> Input {
    let length = if n == 0 { 2 << 20 } else { 64 << 20 };
    Input { guest_path: Some(format!("/in/{n}")), uri: None, digest: Some(bundle(50 + n)), length, etag: None, packing: None }
}

/// An object of which agents fetch pieces.
fn large() -> Input {
    let (uri, etag) = (Some("s3://bucket/large".to_owned()), Some("\"1\"".to_owned()));
    Input { guest_path: None, uri, digest: None, length: 1 << 40, etag, packing: None }
}

/// What an offer's agent is said to hold: it is hearsay, and changes with every offer.
fn hearsay(offer: &Offer) -> Vec<HoldingKey> {
    let mut rng = Rng::new(offer.id.number);
    (0..INPUTS).filter(|_| rng.chance(40)).filter_map(|n| HoldingKey::of_input(&input(n))).collect()
}

fn job(id: JobId, rng: &mut Rng) -> JobSpec {
    let mut work = if rng.chance(50) {
        Work::Single(Box::new(SingleSpec { spec: spec(rng), resources: resources(rng), ports: u32::from(rng.chance(20)) }))
    } else {
        let reduce = rng.chance(50).then(|| ReduceSpec { spec: spec(rng), resources: resources(rng) });
        Work::Map(Box::new(MapSpec {
            template: ArrayTemplate { spec: spec(rng), total_items: rng.below(150), split_inputs: Vec::new() },
            splits: Vec::new(),
            slot_resources: resources(rng),
            rounds: if reduce.is_some() && rng.chance(30) { 2 } else { 1 },
            reduce,
            initial_state: None,
        }))
    };
    if let Work::Map(map) = &mut work
        && id.number() % 4 == 1
    {
        map.template.split_inputs = vec![large()];
        map.splits = (0..map.template.total_items).map(|item| Split { item, input: 0, offset: item << 20, length: 1 << 20 }).collect();
    }
    if id.number() > PLAIN_JOBS {
        let read = match &mut work {
            Work::Single(single) => &mut single.spec.inputs,
            Work::Map(map) => &mut map.template.spec.inputs,
        };
        read.push(input(id.number() % INPUTS));
    }
    let policy = Policy {
        retries: u32::try_from(rng.below(3)).unwrap_or(0),
        max_parallel: rng.chance(20).then_some(2),
        fail_fast: rng.chance(20),
        constraints: Vec::new(),
        priority: 0,
    };
    JobSpec { id, request: String::new(), name: "job".into(), role: Role::default(), policy, work, output_store: None }
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self { core: Scheduler::new(), store: BTreeMap::new(), next_number: 1, submitted: 0, stored: Vec::new() }
    }

    /// What is durable of it.
    pub(crate) fn copy(&self) -> Self {
        let (store, next_number, submitted) = (self.store.clone(), self.next_number, self.submitted);
        Self { core: Scheduler::new(), store, next_number, submitted, stored: Vec::new() }
    }

    /// The process starts again from its store.
    pub(crate) fn restarted(&mut self, now: Time) {
        self.core = Scheduler::restore(now, self.next_number, self.store.values().cloned().collect());
        self.stored.clear();
    }

    pub(crate) fn unsettled(&self) -> Option<String> {
        if self.submitted < JOBS {
            return Some(format!("{} of {JOBS} jobs were submitted", self.submitted));
        }
        let job = self.core.jobs().find(|j| j.is_live());
        job.map(|j| format!("job {} lives: {:?}", j.id(), j.state))
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        self.core.check_invariants()
    }

    pub(crate) fn take(&mut self, now: Time, mut delivery: Delivery, rng: &mut Rng, answers: &mut Answers) {
        if let Delivery::Offers(offers) = &mut delivery
            && self.submitted > PLAIN_JOBS
        {
            offers.iter_mut().for_each(|offer| offer.holdings = hearsay(offer));
        }
        let event = match delivery {
            Delivery::Subscribed { framework, epoch } => FrameworkEvent::Subscribed { framework, epoch },
            Delivery::Offers(offers) => FrameworkEvent::Offers(offers),
            Delivery::Rescind(offers) => FrameworkEvent::Rescind(offers),
            Delivery::Update { agent, update } => FrameworkEvent::Updates(vec![(agent, update)]),
            Delivery::AgentLost { agent, reason } => FrameworkEvent::AgentLost { agent, reason },
            Delivery::Refused { call, message } => FrameworkEvent::Refused { call, message },
            Delivery::Disconnected | Delivery::Error(_) => return,
        };
        let effects = self.core.step(now, Event::Framework { role: Role::default(), event });
        self.commit(now, effects, rng, answers);
    }

    pub(crate) fn tick(&mut self, now: Time, calm: bool, rng: &mut Rng, answers: &mut Answers) {
        let effects = self.core.step(now, Event::Tick);
        self.commit(now, effects, rng, answers);
        if self.submitted < JOBS
            && (calm || rng.chance(20))
            && let Admission::New(id) = self.core.admit("", u16::try_from(rng.below(1000)).unwrap_or(0))
        {
            self.submitted += 1;
            let effects = self.core.step(now, Event::Submit(Arc::new(job(id, rng))));
            self.commit(now, effects, rng, answers);
        }
        for (_, event) in self.stored.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            let effects = self.core.step(now, event);
            self.commit(now, effects, rng, answers);
        }
        let live: Vec<JobId> = self.core.jobs().filter(|j| j.is_live()).map(smalti_scheduler_core::Job::id).collect();
        if !calm && !live.is_empty() && rng.chance(1) {
            let effects = self.core.step(now, Event::Kill { job: live[rng.index(live.len())], grace: None });
            self.commit(now, effects, rng, answers);
        }
    }

    fn commit(&mut self, now: Time, effects: Effects<Record, Message>, rng: &mut Rng, answers: &mut Answers) {
        let persist = |records: Vec<Record>| {
            let mut changed = BTreeSet::new();
            for record in records {
                match record {
                    Record::Submitted(id) | Record::Changed(id) | Record::Noted(id) => drop(changed.insert(id)),
                    Record::Forgotten(id) => drop(self.store.remove(&id)),
                }
            }
            for id in changed {
                if let Some((spec, state)) = self.core.record(id) {
                    self.store.insert(id, (spec.clone(), state.clone()));
                }
            }
            self.next_number = self.core.next_number();
            Ok::<_, Infallible>(())
        };
        let messages = effects.commit(persist).unwrap_or_else(|never| match never {});
        for message in messages {
            match message {
                Message::Call { call, .. } => answers.calls.push(call),
                Message::StoreOutput { job, round, .. } => {
                    let state = Input { guest_path: None, uri: None, digest: Some(bundle(99)), length: 1, etag: None, packing: None };
                    let result = if rng.chance(5) { Err("the agent is gone".into()) } else { Ok(state) };
                    let at = Time(now.0 + rng.between(1_000, 300_000));
                    self.stored.push((at, Event::OutputStored { job, round, result }));
                }
                // All that is delivered counts as taken with the transaction.
                Message::Handled { .. } | Message::Connect(_) | Message::Changed(_) => {}
            }
        }
    }
}
