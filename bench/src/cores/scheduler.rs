//! The batch scheduler's core with a master that offers one agent and does everything at once.

use super::{spec, told};
use anyhow::{Context, Result, ensure};
use smalti_scheduler_core::{Admission, Event, JobSpec, MapSpec, Message, Policy, Scheduler, SingleSpec, Work};
use smalti_types::protocol::{Call, FrameworkEvent};
use smalti_types::{
    AgentId, ArrayDelta, ArrayTemplate, Attributes, Bytes, FrameworkId, ItemSet, MasterEpoch, MilliCpus, Offer, OfferId, Operation, Reason,
    Resources, Role, StatusUpdate, TaskId, TaskKey, TaskState, Time,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// An array part that runs.
struct Part {
    seq: u64,
    slots: u32,
    attempt: u32,
}

struct World {
    core: Scheduler,
    now: Time,
    framework: FrameworkId,
    offers: u64,
    parts: BTreeMap<TaskId, Part>,
    handled: u64,
}

impl World {
    fn new() -> Result<Self> {
        let framework = FrameworkId::new("F1-0")?;
        Ok(Self { core: Scheduler::new(), now: Time(1_000_000), framework, offers: 0, parts: BTreeMap::new(), handled: 0 })
    }

    fn submit(&mut self, work: Work) -> Result<()> {
        let Admission::New(id) = self.core.admit("", 0xabcd) else { anyhow::bail!("the job is not admitted") };
        let spec = JobSpec {
            id,
            request: String::new(),
            name: "job".into(),
            role: Role::default(),
            policy: Policy::default(),
            output_store: None,
            work,
        };
        self.play(Event::Submit(Arc::new(spec)))?;
        let offer = self.offer()?;
        self.play(offer)?;
        let state = &self.core.job(id).context("the job is gone")?.state;
        ensure!(state.outcome.is_some(), "job {id} is not over: {state:?}");
        Ok(())
    }

    fn from_master(event: FrameworkEvent) -> Event {
        Event::Framework { role: Role::default(), event }
    }

    fn offer(&mut self) -> Result<Event> {
        self.offers += 1;
        Ok(Self::from_master(FrameworkEvent::Offers(vec![Offer {
            id: OfferId { epoch: MasterEpoch(1), number: self.offers },
            framework: self.framework.clone(),
            role: Role::default(),
            agent: AgentId::new("a")?,
            hostname: "a".into(),
            resources: Resources::new(MilliCpus(2_000), Bytes::gib(2)),
            attributes: Attributes::default(),
            holdings: Vec::new(),
        }])))
    }

    fn play(&mut self, event: Event) -> Result<()> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.now = Time(self.now.0 + 200);
            for message in told(self.core.step(self.now, event)) {
                match message {
                    Message::Connect(_) => events.push_back(Self::from_master(FrameworkEvent::Subscribed {
                        framework: self.framework.clone(),
                        epoch: MasterEpoch(1),
                    })),
                    Message::Call { call, .. } => self.call(call, &mut events)?,
                    Message::Handled { .. } => self.handled += 1,
                    Message::Changed(_) | Message::StoreOutput { .. } => {}
                }
            }
        }
        Ok(())
    }

    fn call(&mut self, call: Call, events: &mut VecDeque<Event>) -> Result<()> {
        match call {
            Call::Accept { operations, .. } => {
                for operation in operations {
                    match operation {
                        Operation::Launch(l) => {
                            for (seq, state) in [(1, TaskState::Running), (2, TaskState::Finished)] {
                                events.push_back(self.update(l.task.clone(), l.attempt, seq, state, None)?);
                            }
                        }
                        Operation::LaunchArray(l) => {
                            self.parts.insert(l.task.clone(), Part { seq: 0, slots: l.slots, attempt: l.attempt });
                            events.extend(self.ran(&l.task, l.batch.items, l.open)?);
                        }
                    }
                }
            }
            Call::AssignItems { task, batch, open, .. } => events.extend(self.ran(&task, batch.items, open)?),
            _ => {}
        }
        Ok(())
    }

    /// The part has run these items; it is over when no more will come.
    fn ran(&mut self, task: &TaskId, finished: ItemSet, open: bool) -> Result<Option<Event>> {
        let Some(part) = self.parts.get_mut(task) else { return Ok(None) };
        part.seq += 1;
        let slots = if open { part.slots } else { 0 };
        let (seq, attempt) = (part.seq, part.attempt);
        let delta = ArrayDelta { finished, slots, ..ArrayDelta::default() };
        let state = if open { TaskState::Running } else { TaskState::Finished };
        if !open {
            self.parts.remove(task);
        }
        self.update(task.clone(), attempt, seq, state, Some(delta)).map(Some)
    }

    fn update(&self, task: TaskId, attempt: u32, seq: u64, state: TaskState, array: Option<ArrayDelta>) -> Result<Event> {
        let key = TaskKey { framework: self.framework.clone(), task, attempt };
        let exit_code = (state == TaskState::Finished && array.is_none()).then_some(0);
        let update = StatusUpdate { array, exit_code, ..StatusUpdate::new(key, seq, state, Reason::None, "", self.now) };
        Ok(Self::from_master(FrameworkEvent::Updates(vec![(Some(AgentId::new("a")?), update)])))
    }
}

pub(super) fn job(rounds: u64) -> Result<u64> {
    let mut world = World::new()?;
    for _ in 0..rounds {
        let resources = Resources::new(MilliCpus(100), Bytes::mib(16));
        world.submit(Work::Single(Box::new(SingleSpec { spec: spec(), resources, ports: 0 })))?;
    }
    ensure!(world.handled == 2 * rounds, "{} updates were taken", world.handled);
    Ok(world.now.0)
}

pub(super) fn items(rounds: u64) -> Result<u64> {
    const ITEMS: u64 = 10_000;
    let mut world = World::new()?;
    for _ in 0..rounds {
        world.submit(Work::Map(Box::new(MapSpec {
            template: ArrayTemplate { spec: spec(), total_items: ITEMS, split_inputs: Vec::new() },
            splits: Vec::new(),
            slot_resources: Resources::new(MilliCpus(1_000), Bytes::mib(16)),
            reduce: None,
            rounds: 1,
            initial_state: None,
        })))?;
    }
    Ok(world.now.0)
}
