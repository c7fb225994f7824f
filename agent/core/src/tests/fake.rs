//! The recording fake: every message must be expected, and silence is demanded at the end.

use crate::{Agent, Event, ExecutorKind, Failure, FromExecutor, Message, ModuleId, Parameters, Record, Run, ToExecutor};
use smalti_types::protocol::AgentCommand;
use smalti_types::*;
use std::collections::VecDeque;

/// An agent, its clock, and what it said that nobody has looked at yet.
pub(super) struct World {
    pub(super) agent: Agent,
    pub(super) now: Time,
    pub(super) said: VecDeque<Message>,
    /// What is durable.
    pub(super) records: Vec<Record>,
    parameters: Parameters,
}

pub(super) fn framework(n: u32) -> FrameworkId {
    FrameworkId::new(format!("F{n}")).unwrap()
}

pub(super) fn key(f: u32, task: &str) -> TaskKey {
    TaskKey { framework: framework(f), task: TaskId::new(task).unwrap(), attempt: 0 }
}

pub(super) fn executor(n: u32) -> ExecutorId {
    ExecutorId::new(format!("E{n}")).unwrap()
}

pub(super) fn spec() -> TaskSpec {
    TaskSpec::new(BundleRef { digest: Digest::of(b"guest"), uri: None })
}

pub(super) fn parameters() -> Parameters {
    Parameters { slots_per_executor: 4, ..Parameters::new(Resources::new(MilliCpus(8_000), Bytes::gib(8))) }
}

/// A task of one cpu.
pub(super) fn launch(f: u32, task: &str) -> Event {
    launch_with(f, task, Resources::new(MilliCpus(1_000), Bytes::mib(1)), spec())
}

pub(super) fn launch_with(f: u32, task: &str, resources: Resources, spec: TaskSpec) -> Event {
    let launch = Launch { task: TaskId::new(task).unwrap(), attempt: 0, resources, spec };
    Event::Command(AgentCommand::Launch { framework: framework(f), role: Role::default(), launch })
}

/// A description that asks for a process of its own.
pub(super) fn own() -> TaskSpec {
    TaskSpec { isolation: Isolation::Process, ..spec() }
}

/// A task of one cpu in a process of its own.
pub(super) fn launch_own(f: u32, task: &str) -> Event {
    launch_with(f, task, Resources::new(MilliCpus(1_000), Bytes::mib(1)), own())
}

/// A part of one cpu per slot with items `0..items`.
pub(super) fn part(f: u32, task: &str, slots: u32, items: u64, total: u64, open: bool) -> Event {
    part_with(f, task, slots, items, total, open, spec())
}

pub(super) fn part_with(f: u32, task: &str, slots: u32, items: u64, total: u64, open: bool, spec: TaskSpec) -> Event {
    let launch = LaunchArray {
        task: TaskId::new(task).unwrap(),
        attempt: 0,
        slot_resources: Resources::new(MilliCpus(1_000), Bytes::mib(1)),
        slots,
        template: ArrayTemplate { spec, total_items: total, split_inputs: vec![] },
        batch: ItemBatch { items: ItemSet::range(0, items), attempt: 0, splits: vec![] },
        open,
    };
    Event::Command(AgentCommand::LaunchArray { framework: framework(f), role: Role::default(), launch })
}

/// An object that is fetched in pieces.
pub(super) fn large() -> Input {
    let uri = Some("s3://bucket/large".to_owned());
    Input { guest_path: None, uri, digest: None, length: 1 << 40, etag: Some("\"1\"".to_owned()), packing: Some(Packing::Plain) }
}

/// A mebibyte of it for each item.
pub(super) fn splits(items: std::ops::Range<u64>) -> Vec<Split> {
    items.map(|item| Split { item, input: 0, offset: item << 20, length: 1 << 20 }).collect()
}

/// The same part, whose items read splits.
pub(super) fn part_of_splits(f: u32, task: &str, slots: u32, items: u64, total: u64, open: bool, spec: TaskSpec) -> Event {
    let mut event = part_with(f, task, slots, items, total, open, spec);
    if let Event::Command(AgentCommand::LaunchArray { launch, .. }) = &mut event {
        launch.template.split_inputs = vec![large()];
        launch.batch.splits = splits(0..items);
    }
    event
}

pub(super) fn assign(f: u32, task: &str, first: u64, end: u64, open: bool) -> Event {
    let batch = ItemBatch { items: ItemSet::range(first, end), attempt: 0, splits: vec![] };
    Event::Command(AgentCommand::AssignItems { task: key(f, task), batch, open })
}

pub(super) fn kill(f: u32, task: &str) -> Event {
    Event::Command(AgentCommand::Kill { task: key(f, task), grace: None })
}

pub(super) fn prepared(run: u64) -> Event {
    Event::Prepared { run: Run(run), result: Ok(Digest::of(b"guest")) }
}

pub(super) fn from(e: u32, message: FromExecutor) -> Event {
    Event::Executor { executor: executor(e), number: 0, message }
}

pub(super) fn numbered(e: u32, number: u64, message: FromExecutor) -> Event {
    Event::Executor { executor: executor(e), number, message }
}

pub(super) fn exited(e: u32, cause: &str) -> Event {
    Event::ExecutorExited { executor: executor(e), cause: cause.into(), out_of_memory: false }
}

pub(super) fn loaded(e: u32, module: u32) -> Event {
    from(e, FromExecutor::ModuleLoaded { module: ModuleId(module), failure: None })
}

pub(super) fn started(e: u32, run: u64) -> Event {
    from(e, FromExecutor::Started { run: Run(run) })
}

pub(super) fn outcome(e: u32, run: u64, exit_code: Option<i32>, failure: Option<Failure>) -> Event {
    from(e, FromExecutor::Outcome { run: Run(run), exit_code, failure, usage: Usage::default(), result: None })
}

impl World {
    pub(super) fn new(parameters: Parameters) -> Self {
        let agent = Agent::new(parameters.clone());
        let mut world = Self { agent, now: Time(1_000_000), said: VecDeque::new(), records: Vec::new(), parameters };
        world.event(Event::MasterConnected { epoch: MasterEpoch(1) });
        world
    }

    /// Steps, checks everything, records.
    pub(super) fn event(&mut self, event: Event) {
        let shown = format!("{event:?}");
        let effects = self.agent.step(self.now, event);
        self.take(effects, &shown);
    }

    fn take(&mut self, effects: Effects<Record, Message>, shown: &str) {
        let messages = effects.commit(|records| {
            self.records.extend(records);
            Ok::<_, ()>(())
        });
        self.said.extend(messages.unwrap());
        if let Err(e) = self.agent.check_invariants() {
            panic!("after {shown}: {e}\n{:#?}", self.agent);
        }
    }

    /// The agent's process dies and another takes its place, with the records that were written or with a snapshot: both are the same.
    pub(super) fn restart(&mut self, same_boot: bool) {
        let again = Agent::restore(self.parameters.clone(), std::mem::take(&mut self.records), same_boot);
        let short = Agent::restore(self.parameters.clone(), self.agent.checkpoint(), same_boot);
        assert_eq!(again.checkpoint(), short.checkpoint(), "a snapshot says something else than the log");
        self.records = again.checkpoint();
        let twice = Agent::restore(self.parameters.clone(), self.records.iter().chain(&self.records).cloned(), same_boot);
        assert_eq!(twice.checkpoint(), self.records, "records that are written twice mean something else");
        self.agent = again;
        let effects = self.agent.resume(self.now);
        self.take(effects, "a restart");
    }

    /// The new agent reaches its master.
    pub(super) fn register(&mut self) -> (Vec<smalti_types::protocol::RunningTask>, Vec<StatusUpdate>) {
        let registration = self.agent.registration(self.now);
        self.event(Event::MasterConnected { epoch: MasterEpoch(1) });
        registration
    }

    pub(super) fn after_ms(&mut self, ms: u64) {
        self.now = Time(self.now.0 + ms * 1_000);
        self.event(Event::Tick);
    }

    pub(super) fn next(&mut self) -> Message {
        self.said.pop_front().expect("a message was expected")
    }

    pub(super) fn silent(&self) {
        assert!(self.said.is_empty(), "nobody expected {:#?}", self.said);
    }

    /// The next message must be updates: (task, sequence, state, reason) of each; acknowledges them.
    pub(super) fn updates(&mut self) -> Vec<StatusUpdate> {
        let updates = self.updates_unacknowledged();
        for u in &updates {
            self.event(Event::Command(AgentCommand::Acknowledge(u.key.clone())));
        }
        updates
    }

    pub(super) fn updates_unacknowledged(&mut self) -> Vec<StatusUpdate> {
        match self.next() {
            Message::Updates(updates) => updates,
            other => panic!("expected updates, not {other:?}"),
        }
    }

    /// The next message must be one update.
    pub(super) fn update(&mut self) -> StatusUpdate {
        let mut updates = self.updates();
        assert_eq!(updates.len(), 1, "{updates:?}");
        updates.remove(0)
    }

    /// The next message must go to this executor.
    pub(super) fn told(&mut self, e: u32) -> ToExecutor {
        match self.next() {
            Message::ToExecutor { executor: id, message } if id == executor(e) => message,
            other => panic!("expected a message to E{e}, not {other:?}"),
        }
    }

    pub(super) fn ended(&mut self, f: u32, task: &str) {
        assert!(matches!(self.next(), Message::Ended { key: k, .. } if k == key(f, task)));
    }

    /// Starts executor `e` and loads module 1 in it for the task `name`, which becomes run `run`, up to its StartTask.
    pub(super) fn launch_cold(&mut self, f: u32, name: &str, run: u64, e: u32) {
        self.event(launch(f, name));
        assert!(matches!(self.next(), Message::Prepare { run: r, .. } if r == Run(run)));
        self.event(prepared(run));
        let Message::StartExecutor { executor: id, kind, framework: whose, slots: 4, .. } = self.next() else { panic!("no executor") };
        assert_eq!((id, kind, whose), (executor(e), ExecutorKind::Shared, Some(framework(f))));
        self.event(Event::ExecutorStarted { executor: executor(e), slots: 4, cpu_us: None });
        assert!(matches!(self.told(e), ToExecutor::LoadModule { run: r, .. } if r == Run(run)));
        self.event(loaded(e, 1));
        assert!(matches!(self.next(), Message::SetSlotCpus { cpus: MilliCpus(1_000), .. }));
        assert!(matches!(self.told(e), ToExecutor::StartTask { run: r, .. } if r == Run(run)));
    }

    /// The same up to RUNNING.
    pub(super) fn run_cold(&mut self, f: u32, name: &str, run: u64, e: u32) {
        self.launch_cold(f, name, run, e);
        self.event(started(e, run));
        assert_eq!(self.update().state, TaskState::Running);
        self.silent();
    }

    /// Launches a part as run 1 in a new executor 1, up to its StartArray.
    pub(super) fn start_part(&mut self, launch: Event, slots: u32) {
        self.event(launch);
        assert!(matches!(self.next(), Message::Prepare { run: Run(1), .. }));
        self.event(prepared(1));
        assert!(matches!(self.next(), Message::StartExecutor { .. }));
        self.event(Event::ExecutorStarted { executor: executor(1), slots: 4, cpu_us: None });
        assert!(matches!(self.told(1), ToExecutor::LoadModule { .. }));
        self.event(loaded(1, 1));
        for _ in 0..slots {
            assert!(matches!(self.next(), Message::SetSlotCpus { .. }));
        }
        assert!(matches!(self.told(1), ToExecutor::StartArray { .. }));
    }

    /// Nothing is left over.
    pub(super) fn empty(&self) {
        self.silent();
        assert_eq!(self.agent.live(), 0);
        assert!(self.agent.tasks.is_empty(), "{:#?}", self.agent.tasks);
        assert!(self.agent.held().is_empty());
    }
}
