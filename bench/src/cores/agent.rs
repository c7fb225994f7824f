//! The agent's core with an executor that does everything at once.

use super::{DIGEST, spec, told};
use anyhow::{Result, ensure};
use smalti_agent_core::{Agent, ArrayReport, Event, FromExecutor, Message, Parameters, ToExecutor};
use smalti_types::protocol::AgentCommand;
use smalti_types::{
    ArrayTemplate, Bytes, FrameworkId, ItemBatch, ItemSet, Launch, LaunchArray, MasterEpoch, MilliCpus, Resources, Role, TaskId, TaskState,
    Time, Usage,
};
use std::collections::VecDeque;

/// One agent and what surrounds it.
struct World {
    agent: Agent,
    now: Time,
    finished: u64,
    items: u64,
}

impl World {
    fn new() -> Self {
        let agent = Agent::new(Parameters::new(Resources::new(MilliCpus(8_000), Bytes::gib(8))));
        let mut world = Self { agent, now: Time(1_000_000), finished: 0, items: 0 };
        world.play(Event::MasterConnected { epoch: MasterEpoch(1) });
        world
    }

    /// An event and all that follows from it.
    fn play(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.now = Time(self.now.0 + 50);
            for message in told(self.agent.step(self.now, event)) {
                self.answer(message, &mut events);
            }
        }
    }

    fn answer(&mut self, message: Message, events: &mut VecDeque<Event>) {
        match message {
            Message::Prepare { run, .. } => events.push_back(Event::Prepared { run, result: Ok(DIGEST) }),
            Message::StartExecutor { executor, slots, .. } => events.push_back(Event::ExecutorStarted { executor, slots, cpu_us: None }),
            Message::Updates(updates) => {
                for update in updates {
                    self.finished += u64::from(update.state == TaskState::Finished);
                    self.items += update.array.as_ref().map_or(0, |a| a.finished.len());
                    events.push_back(Event::Command(AgentCommand::Acknowledge(update.key)));
                }
            }
            Message::ToExecutor { executor, message } => {
                for message in executor_says(message) {
                    events.push_back(Event::Executor { executor: executor.clone(), number: 0, message });
                }
            }
            _ => {}
        }
    }
}

fn executor_says(message: ToExecutor) -> Vec<FromExecutor> {
    match message {
        ToExecutor::LoadModule { module, .. } => vec![FromExecutor::ModuleLoaded { module, failure: None }],
        ToExecutor::StartTask { run, .. } => {
            let outcome = FromExecutor::Outcome { run, exit_code: Some(0), failure: None, usage: Usage::default(), result: None };
            vec![FromExecutor::Started { run }, outcome]
        }
        ToExecutor::StartArray { run, .. } => vec![FromExecutor::Started { run }],
        ToExecutor::Lease { run, items, .. } => {
            let report = ArrayReport { finished: items, ..ArrayReport::default() };
            vec![FromExecutor::Report { run, report }]
        }
        ToExecutor::EndArray { run, slots } => vec![FromExecutor::Ended { run, slots }],
        _ => Vec::new(),
    }
}

pub(super) fn task(rounds: u64) -> Result<u64> {
    let mut world = World::new();
    for n in 0..rounds {
        let resources = Resources::new(MilliCpus(100), Bytes::mib(16));
        let launch = Launch { task: TaskId::new(format!("t{n}"))?, attempt: 0, resources, spec: spec() };
        world.play(Event::Command(AgentCommand::Launch { framework: FrameworkId::new("F")?, role: Role::default(), launch }));
    }
    ensure!(world.finished == rounds, "{} of {rounds} tasks finished", world.finished);
    Ok(world.now.0)
}

pub(super) fn items(rounds: u64) -> Result<u64> {
    const ITEMS: u64 = 1_000;
    let mut world = World::new();
    for n in 0..rounds {
        let launch = LaunchArray {
            task: TaskId::new(format!("t{n}"))?,
            attempt: 0,
            slot_resources: Resources::new(MilliCpus(1_000), Bytes::mib(16)),
            slots: 2,
            template: ArrayTemplate { spec: spec(), total_items: ITEMS, split_inputs: vec![] },
            batch: ItemBatch { items: ItemSet::range(0, ITEMS), attempt: 0, splits: vec![] },
            open: false,
        };
        world.play(Event::Command(AgentCommand::LaunchArray { framework: FrameworkId::new("F")?, role: Role::default(), launch }));
        // Pacing of reports hangs on it.
        for _ in 0..5 {
            world.now = Time(world.now.0 + 100_000);
            world.play(Event::Tick);
        }
    }
    ensure!((world.finished, world.items) == (rounds, rounds * ITEMS), "{} parts with {} items finished", world.finished, world.items);
    Ok(world.now.0)
}
