//! Bytes of an executor that was taken over, through everything that stands between its socket and the agent's decisions: decoder,
//! bounds, conversion, core. And bytes that it may leave in a ledger, through the reader.
//!
//! Owns the checks: whatever comes, the core's invariants hold after each message, and another framework's tasks are not touched. The
//! tests here feed fixed seeds; the fuzz target `fuzz/fuzz_targets/frames.rs` feeds what libFuzzer finds interesting. Nothing here is
//! part of an agent.

use crate::executor_link::scan;
use crate::outputs::{PartOutput, Stream};
use crate::sandbox::Sandboxes;
use crate::wire;
use smalti_agent_core::{Agent, Event, FromExecutor, Message, ModuleId, Parameters, Run};
use smalti_executor_protocol::v1::{self, ToExecutor, from_executor};
use smalti_executor_protocol::{Decoder, Frame, encode};
use smalti_types::protocol::AgentCommand;
use smalti_types::{
    ArrayTemplate, BundleRef, Bytes, Digest, ExecutorId, FrameworkId, ItemBatch, ItemSet, Launch, LaunchArray, MasterEpoch, MilliCpus,
    Resources, Role, StatusUpdate, TaskId, TaskKey, TaskSpec, Time,
};

/// Time between two messages.
const STEP_US: u64 = 7_000;
/// Runs of the attacker and of the victim: a task and a part each.
const ATTACKER: (u32, [u64; 2]) = (1, [1, 2]);
const VICTIM: (u32, [u64; 2]) = (2, [3, 4]);
const ITEMS: u64 = 50;

/// An agent with two executors: one speaks the bytes, the other is somebody else's.
#[derive(Debug)]
pub struct World {
    agent: Agent,
    now: Time,
    /// Statements that had an effect or were ignored.
    pub messages: u64,
}

fn framework(n: u32) -> FrameworkId {
    FrameworkId::new(format!("F{n}")).expect("valid")
}

fn executor(n: u32) -> ExecutorId {
    ExecutorId::new(format!("E{n}")).expect("valid")
}

fn key(f: u32, task: &str) -> TaskKey {
    TaskKey { framework: framework(f), task: TaskId::new(task).expect("valid"), attempt: 0 }
}

fn spec() -> TaskSpec {
    TaskSpec::new(BundleRef { digest: Digest::of(b"guest"), uri: None })
}

fn launch(f: u32) -> [Event; 2] {
    let resources = Resources::new(MilliCpus(1_000), Bytes::mib(1));
    let task = Launch { task: key(f, "t").task, attempt: 0, resources: resources.clone(), spec: spec() };
    let part = LaunchArray {
        task: key(f, "p").task,
        attempt: 0,
        slot_resources: resources,
        slots: 2,
        template: ArrayTemplate { spec: spec(), total_items: ITEMS, split_inputs: Vec::new() },
        batch: ItemBatch { items: ItemSet::range(0, ITEMS), attempt: 0, splits: Vec::new() },
        open: true,
    };
    let (framework, other) = (framework(f), framework(f));
    [
        Event::Command(AgentCommand::Launch { framework, role: Role::default(), launch: task }),
        Event::Command(AgentCommand::LaunchArray { framework: other, role: Role::default(), launch: part }),
    ]
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// Both executors run a task and an array part.
    ///
    /// # Panics
    /// When that is not so.
    #[must_use]
    pub fn new() -> Self {
        let total = Resources::new(MilliCpus(16_000), Bytes::gib(1));
        let agent = Agent::new(Parameters { slots_per_executor: 4, ..Parameters::new(total) });
        let mut world = Self { agent, now: Time(1_000_000), messages: 0 };
        world.step(Event::MasterConnected { epoch: MasterEpoch(1) });
        for (n, runs) in [ATTACKER, VICTIM] {
            for event in launch(n) {
                world.step(event);
            }
            for run in runs {
                world.step(Event::Prepared { run: Run(run), result: Ok(Digest::of(b"guest")) });
            }
            world.step(Event::ExecutorStarted { executor: executor(n), slots: 4, cpu_us: None });
            world.step(from(n, FromExecutor::ModuleLoaded { module: ModuleId(1), failure: None }));
            world.step(from(n, FromExecutor::Started { run: Run(runs[0]) }));
        }
        assert_eq!(world.agent.live(), 4);
        world
    }

    /// One event; what was decided, with the invariants checked.
    fn step(&mut self, event: Event) -> Vec<Message> {
        self.now = Time(self.now.0 + STEP_US);
        let Ok(messages) = self.agent.step(self.now, event).commit(|_| Ok::<(), std::convert::Infallible>(()));
        if let Err(e) = self.agent.check_invariants() {
            panic!("{e}");
        }
        messages
    }

    /// The attacker's executor says this.
    fn say(&mut self, message: FromExecutor) {
        self.messages += 1;
        let mut decided = self.step(from(ATTACKER.0, message));
        if self.messages.is_multiple_of(8) {
            decided.extend(self.step(Event::Tick));
        }
        for message in decided {
            match message {
                Message::Updates(updates) => updates.into_iter().for_each(|update| self.told(&update)),
                Message::ToExecutor { executor: id, .. } | Message::KillExecutor { executor: id, .. } => {
                    assert_ne!(id, executor(VICTIM.0), "the victim's executor is spoken to");
                }
                Message::Ended { key, .. } => assert_ne!(key.framework, framework(VICTIM.0), "the victim's task ended"),
                _ => {}
            }
        }
    }

    /// The master took an update.
    fn told(&mut self, update: &StatusUpdate) {
        assert_ne!(update.key.task.framework, framework(VICTIM.0), "the master is told about the victim");
        assert!(update.message.len() <= smalti_types::status::MAX_MESSAGE_LEN);
        self.step(Event::Command(AgentCommand::Acknowledge(update.key.clone())));
    }

    /// The victim's tasks are as they were, and can still end well.
    ///
    /// # Panics
    /// When not.
    pub fn finish(mut self) {
        for task in ["t", "p"] {
            assert!(self.agent.is_live(&key(VICTIM.0, task)), "{task} of the victim is gone");
        }
        let outcome =
            FromExecutor::Outcome { run: Run(VICTIM.1[0]), exit_code: Some(0), failure: None, usage: Default::default(), result: None };
        self.step(from(VICTIM.0, outcome));
        assert!(!self.agent.is_live(&key(VICTIM.0, "t")));
    }
}

fn from(n: u32, message: FromExecutor) -> Event {
    Event::Executor { executor: executor(n), number: 0, message }
}

/// A stream of bytes as an executor sends them, cut into reads of `chunk` bytes.
///
/// # Panics
/// When anything is found: that is the result of fuzzing.
pub fn frames(data: &[u8], chunk: usize) -> u64 {
    let (mut world, mut decoder) = (World::new(), Decoder::new());
    'stream: for read in data.chunks(chunk.max(1)) {
        if decoder.push(read, Vec::new()).is_err() {
            break;
        }
        loop {
            match decoder.next() {
                Ok(Some(frame)) => {
                    if scan::check(&frame.message).is_err() {
                        break 'stream;
                    }
                    // The other direction has the same decoder; its messages are larger.
                    let _ = Frame { message: frame.message.clone(), fds: Vec::new() }.decode::<ToExecutor>();
                    let Ok((message, _)) = frame.decode::<v1::FromExecutor>() else { break 'stream };
                    if let Some(message) = message.message.and_then(wire::from_executor) {
                        world.say(message);
                    }
                }
                Ok(None) => break,
                Err(_) => break 'stream,
            }
        }
    }
    let _ = decoder.finish();
    let messages = world.messages;
    world.finish();
    messages
}

/// Messages made from `data`: each well-formed, about runs, items and slots that exist or nearly do.
#[must_use]
pub fn messages(data: &[u8]) -> Vec<u8> {
    let mut source = Source(data);
    let mut out = Vec::new();
    while !source.0.is_empty() && out.len() < 1 << 20 {
        let message = v1::FromExecutor { number: 0, message: Some(source.message()) };
        if let Ok(frame) = encode(&message, 0) {
            out.extend_from_slice(&frame);
        }
    }
    out
}

/// Takes small numbers out of bytes; zeros at the end.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Mostly what exists, sometimes what does not, rarely what cannot.
    fn number(&mut self, most: u64) -> u64 {
        match self.byte() {
            255 => u64::MAX,
            254 => u64::from(u32::MAX),
            253 => 1 << 63,
            n => u64::from(n) % (most + 2),
        }
    }

    fn small(&mut self, most: u64) -> u32 {
        u32::try_from(self.number(most)).unwrap_or(u32::MAX)
    }

    fn usage(&mut self) -> Option<v1::Usage> {
        let fuel = (self.byte() > 128).then(|| self.number(200));
        let [cpu_us, wall_us, peak_memory, bytes_read, bytes_written] = std::array::from_fn(|_| self.number(200));
        (self.byte() > 32).then_some(v1::Usage { cpu_us, wall_us, peak_memory, bytes_read, bytes_written, fuel })
    }

    fn failure(&mut self) -> Option<v1::Failure> {
        let reason = match self.byte() % 6 {
            0 => return None,
            1 => "NONSENSE".to_owned(),
            n => smalti_types::Reason::ALL[usize::from(n) * 3].as_str().to_owned(),
        };
        Some(v1::Failure { reason, message: "m".repeat(usize::from(self.byte()) * 64) })
    }

    fn ranges(&mut self) -> Vec<v1::ItemRange> {
        let one = |s: &mut Self| v1::ItemRange { first: s.number(ITEMS), end: s.number(ITEMS) };
        (0..self.byte() % 4).map(|_| one(self)).collect()
    }

    fn exit_code(&mut self) -> Option<i32> {
        let code = i32::from(self.byte());
        (code > 64).then_some(code - 66)
    }

    fn message(&mut self) -> from_executor::Message {
        use from_executor::Message;
        let run = |s: &mut Self| s.number(5);
        match self.byte() % 9 {
            0 => Message::Loaded(v1::ModuleLoaded { module: self.small(2), failure: self.failure() }),
            1 => Message::Started(v1::Started { run: run(self) }),
            2 => Message::Outcome(v1::Outcome {
                run: run(self),
                exit_code: self.exit_code(),
                failure: self.failure(),
                usage: self.usage(),
                result: (self.byte() > 200).then(|| vec![0; usize::from(self.byte()) * 128].into()),
            }),
            3 => Message::Progress(v1::Progress { run: run(self), permille: self.small(1_001), text: "ä".repeat(self.byte().into()) }),
            4 => Message::ArrayEnded(v1::ArrayEnded { run: run(self), slots: (0..self.byte() % 6).map(|_| self.small(4)).collect() }),
            5 => Message::Usages(v1::RunningUsage {
                runs: (0..self.byte() % 6).map(|_| v1::RunUsage { run: run(self), usage: self.usage() }).collect(),
            }),
            6 => Message::Hello(v1::Hello::default()),
            _ => {
                let failed = (0..self.byte() % 4).map(|_| v1::FailedItem {
                    item: self.number(ITEMS),
                    attempt: self.small(2),
                    exit_code: self.exit_code(),
                    failure: self.failure(),
                });
                let failed = failed.collect();
                let results =
                    (0..self.byte() % 3).map(|_| v1::ItemResult { item: self.number(ITEMS), value: vec![1; 40].into() }).collect();
                Message::Report(v1::ArrayReport {
                    run: run(self),
                    finished: self.ranges(),
                    failed,
                    returned: self.ranges(),
                    results,
                    usage: self.usage(),
                    unstarted: self.number(ITEMS),
                    busy_slots: self.small(3),
                })
            }
        }
    }
}

/// What an executor left in a slot's three files, read as a user would.
///
/// # Panics
/// When anything is found, or the temporary directory cannot be used.
pub fn ledger(directory: &std::path::Path, data: &[u8]) {
    const MOST: usize = 1 << 20;
    let (all, _collector) = Sandboxes::start(directory, Bytes::gib(1), &std::collections::BTreeMap::new()).expect("a sandbox directory");
    let key = key(1, "p");
    let path = all.make(&key, crate::sandbox::Kind::Array, false).expect("made");
    std::fs::write(path.join("slot-0.ledger"), data).expect("written");
    std::fs::write(path.join("slot-0.out"), b"some output").expect("written");
    let mut given = 0;
    let mut part = PartOutput::new(key, None, vec![Stream::Out, Stream::Err]);
    let _ = part.poll(&all, &mut |_, _, bytes| {
        given += bytes.len();
        if given > MOST { Err(crate::outputs::Error::Closed) } else { Ok(()) }
    });
    // No record can name more than its file has, and no item is given twice.
    assert!(given <= 11 * (data.len() / smalti_executor_protocol::ledger::RECORD_LEN), "{given} bytes were read");
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_executor_protocol::ledger::Record;

    const SEEDS: u64 = 4_000;

    /// `n` bytes that follow from `seed` alone (SplitMix64).
    fn bytes(seed: u64, n: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)).to_le_bytes()
        };
        (0..n.div_ceil(8)).flat_map(|_| next()).take(n).collect()
    }

    #[test]
    fn well_formed_lies_and_damaged_frames_touch_nobody_else() {
        let mut understood = 0;
        for seed in 0..SEEDS {
            let random = bytes(seed, 200);
            let mut stream = messages(&random);
            if seed % 4 == 0 {
                // One damaged byte.
                let at = usize::from(random[0]) * 7 % stream.len();
                stream[at] ^= random[1] | 1;
            }
            let fed = std::panic::catch_unwind(|| frames(&stream, 1 + usize::from(random[2])));
            understood += fed.unwrap_or_else(|_| panic!("seed {seed}"));
        }
        assert!(understood > 2 * SEEDS, "{understood} messages were understood");
    }

    #[test]
    fn garbage_touches_nobody() {
        for seed in 0..2_000 {
            frames(&bytes(seed, 300), 50);
            // A frame of garbage, rightly framed.
            let garbage = bytes(seed, 100);
            frames(&[&[100, 0, 0, 0, 0][..], &garbage].concat(), 1_000);
        }
    }

    #[test]
    fn a_ledger_of_anything_is_read_to_an_end() {
        let dir = tempfile::tempdir().unwrap();
        for seed in 0..200 {
            let random = bytes(seed, 96 * 4);
            let mut source = Source(&random);
            let mut data = Vec::new();
            for _ in 0..source.byte() % 8 {
                let record = Record {
                    item: source.number(5),
                    attempt: source.small(3),
                    out_offset: source.number(11),
                    out_length: source.number(11),
                    err_length: source.number(1),
                    ..Record::default()
                };
                data.extend(record.encode());
            }
            data.extend(&random[..usize::from(random[0]) % 200]);
            ledger(dir.path(), &data);
        }
    }
}
