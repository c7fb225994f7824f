//! Records as bytes: each a message with its own length and version, after the wire's messages where there are some.
//!
//! Owns the layout. Fields and kinds may be added; whoever changes what an old one means raises [`RECORD_VERSION`], and older programs then
//! refuse it rather than misread it. Deliberately absent: files, and what records mean.

use prost::Message;
use smalti_agent_core::{
    AttemptState, ExecutorKind, ExecutorRecord, HandOut, KillState, LaneState, LanesState, LaunchedWork, PartState, PlaceState, Record, Run,
};
use smalti_proto::v1;
use smalti_types::{ArrayDelta, DurationMs, ExecutorId, FrameworkId, ItemSet, Launch, LaunchArray, Role, Split, TaskId, Time};
use std::sync::Arc;

/// Version of the records that this program writes. It reads this one and all before.
pub const RECORD_VERSION: u32 = 1;

/// Why bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Of a later version.
    #[error("a record of version {0}, and this program knows {RECORD_VERSION}")]
    Later(u32),
    /// Its checksum was right and its content is not.
    #[error("a record that says nothing sensible: {0}")]
    Bad(String),
}

#[derive(Clone, PartialEq, Message)]
struct Wire {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(oneof = "Kind", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13")]
    kind: Option<Kind>,
}

#[expect(clippy::large_enum_variant, reason = "made, written and dropped one at a time; boxes would only cost allocations")]
#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(message, tag = "2")]
    Numbers(Numbers),
    #[prost(message, tag = "3")]
    Seen(Seen),
    #[prost(message, tag = "4")]
    Launched(Launched),
    #[prost(message, tag = "5")]
    HandOut(WireHandOut),
    #[prost(message, tag = "6")]
    Attempt(Attempt),
    #[prost(message, tag = "7")]
    Delta(Delta),
    #[prost(message, tag = "8")]
    Update(Update),
    #[prost(message, tag = "9")]
    Acknowledged(Acknowledged),
    #[prost(message, tag = "10")]
    Removed(Removed),
    #[prost(message, tag = "11")]
    Executor(Executor),
    #[prost(message, tag = "12")]
    Heard(Heard),
    #[prost(message, tag = "13")]
    Gone(Gone),
}

#[derive(Clone, PartialEq, Message)]
struct Numbers {
    #[prost(uint64, tag = "1")]
    runs: u64,
    #[prost(uint64, tag = "2")]
    executors: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Seen {
    #[prost(string, tag = "1")]
    framework: String,
    #[prost(string, repeated, tag = "2")]
    tasks: Vec<String>,
    #[prost(uint32, repeated, tag = "3")]
    attempts: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct Launched {
    #[prost(uint64, tag = "1")]
    run: u64,
    #[prost(string, tag = "2")]
    framework: String,
    #[prost(string, tag = "3")]
    role: String,
    #[prost(uint32, tag = "4")]
    kind: u32,
    #[prost(uint64, tag = "5")]
    disk_memory: u64,
    #[prost(message, optional, tag = "6")]
    single: Option<v1::Launch>,
    #[prost(message, optional, tag = "7")]
    part: Option<v1::LaunchArray>,
}

#[derive(Clone, PartialEq, Message)]
struct WireHandOut {
    #[prost(uint64, tag = "1")]
    run: u64,
    #[prost(uint64, tag = "2")]
    number: u64,
    #[prost(uint32, tag = "3")]
    attempt: u32,
    #[prost(message, repeated, tag = "4")]
    splits: Vec<v1::Split>,
}

#[derive(Clone, PartialEq, Message)]
struct Attempt {
    #[prost(uint64, tag = "1")]
    run: u64,
    #[prost(message, optional, tag = "2")]
    place: Option<Place>,
    #[prost(uint64, optional, tag = "3")]
    began: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    overdue: Option<u64>,
    #[prost(message, optional, tag = "5")]
    kill: Option<Kill>,
    #[prost(message, optional, tag = "6")]
    part: Option<Part>,
}

#[derive(Clone, PartialEq, Message)]
struct Place {
    #[prost(string, tag = "1")]
    executor: String,
    #[prost(uint32, repeated, tag = "2")]
    slots: Vec<u32>,
    #[prost(bool, tag = "3")]
    running: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Kill {
    #[prost(uint64, tag = "1")]
    grace_ms: u64,
    #[prost(uint64, tag = "2")]
    deadline_us: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Part {
    #[prost(uint32, tag = "1")]
    slots: u32,
    #[prost(bool, tag = "2")]
    open: bool,
    #[prost(bool, tag = "3")]
    ending: bool,
    #[prost(uint64, optional, tag = "4")]
    started: Option<u64>,
    #[prost(uint32, tag = "5")]
    told_slots: u32,
    #[prost(message, optional, tag = "6")]
    told_usage: Option<v1::Usage>,
    #[prost(uint64, tag = "7")]
    told: u64,
    #[prost(message, repeated, tag = "8")]
    queued: Vec<Items>,
    #[prost(message, repeated, tag = "9")]
    leased: Vec<Items>,
    #[prost(message, optional, tag = "10")]
    lanes: Option<Lanes>,
}

#[derive(Clone, PartialEq, Message)]
struct Items {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(message, optional, tag = "2")]
    items: Option<v1::ItemSet>,
}

#[derive(Clone, PartialEq, Message)]
struct Lanes {
    #[prost(uint32, repeated, tag = "1")]
    free: Vec<u32>,
    #[prost(message, repeated, tag = "2")]
    busy: Vec<Lane>,
}

#[derive(Clone, PartialEq, Message)]
struct Lane {
    #[prost(string, tag = "1")]
    executor: String,
    #[prost(uint32, tag = "2")]
    number: u32,
    #[prost(uint64, tag = "3")]
    item: u64,
    #[prost(bool, tag = "4")]
    started: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Delta {
    #[prost(uint64, tag = "1")]
    run: u64,
    #[prost(uint64, tag = "2")]
    number: u64,
    #[prost(message, optional, tag = "3")]
    delta: Option<v1::ArrayDelta>,
}

#[derive(Clone, PartialEq, Message)]
struct Update {
    #[prost(uint64, tag = "1")]
    run: u64,
    #[prost(message, optional, tag = "2")]
    update: Option<v1::StatusUpdate>,
}

#[derive(Clone, PartialEq, Message)]
struct Acknowledged {
    #[prost(uint64, tag = "1")]
    run: u64,
    #[prost(uint64, tag = "2")]
    seq: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Removed {
    #[prost(uint64, tag = "1")]
    run: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Executor {
    #[prost(string, tag = "1")]
    executor: String,
    #[prost(uint32, tag = "2")]
    kind: u32,
    #[prost(string, optional, tag = "3")]
    framework: Option<String>,
    #[prost(uint64, optional, tag = "4")]
    only: Option<u64>,
    #[prost(bool, tag = "5")]
    used: bool,
    #[prost(uint32, tag = "6")]
    slots: u32,
    #[prost(uint32, tag = "7")]
    modules: u32,
    #[prost(bool, tag = "8")]
    stopping: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Heard {
    #[prost(string, tag = "1")]
    executor: String,
    #[prost(uint64, tag = "2")]
    number: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Gone {
    #[prost(string, tag = "1")]
    executor: String,
}

/// The bytes of a record.
#[must_use]
pub fn encode(record: Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_into(record, &mut bytes);
    bytes
}

/// Appends the bytes of a record.
pub(crate) fn encode_into(record: Record, bytes: &mut Vec<u8>) {
    let wire = Wire { version: RECORD_VERSION, kind: Some(kind(record)) };
    // A vector takes any length.
    let _ = wire.encode_length_delimited(bytes);
}

/// Takes one record from the front of `bytes`.
///
/// # Errors
/// When there is none, or one of a later version.
pub fn decode(bytes: &mut &[u8]) -> Result<Record, RecordError> {
    let wire = Wire::decode_length_delimited(bytes).map_err(|e| RecordError::Bad(e.to_string()))?;
    if wire.version > RECORD_VERSION {
        return Err(RecordError::Later(wire.version));
    }
    // A kind that is not known was added by a later program without a later version.
    record(wire.kind.ok_or(RecordError::Later(wire.version))?).map_err(RecordError::Bad)
}

fn kind(record: Record) -> Kind {
    match record {
        Record::Numbers { runs, executors } => Kind::Numbers(Numbers { runs, executors }),
        Record::Seen { framework, keys } => Kind::Seen(Seen {
            framework: framework.to_string(),
            tasks: keys.iter().map(|(task, _)| task.to_string()).collect(),
            attempts: keys.iter().map(|(_, attempt)| *attempt).collect(),
        }),
        Record::Launched { run, key, role, kind, disk_memory, work } => {
            let (single, part) = match work {
                LaunchedWork::Single(launch) => (Some(v1::Launch::from(Arc::unwrap_or_clone(launch))), None),
                LaunchedWork::Part(launch) => (None, Some(v1::LaunchArray::from(Arc::unwrap_or_clone(launch)))),
            };
            let (framework, role) = (key.framework.to_string(), role.to_string());
            Kind::Launched(Launched { run: run.0, framework, role, kind: kind_number(kind), disk_memory, single, part })
        }
        Record::HandOut { run, number, hand_out } => Kind::HandOut(WireHandOut {
            run: run.0,
            number,
            attempt: hand_out.attempt,
            splits: hand_out.splits.iter().map(|s| (*s).into()).collect(),
        }),
        Record::Attempt { run, state } => Kind::Attempt(attempt(run, &state)),
        Record::Delta { run, number, delta } => Kind::Delta(Delta { run: run.0, number, delta: Some(delta.into()) }),
        Record::Update { run, update } => Kind::Update(Update { run: run.0, update: Some((*update).into()) }),
        Record::Acknowledged { run, seq } => Kind::Acknowledged(Acknowledged { run: run.0, seq }),
        Record::Removed { run } => Kind::Removed(Removed { run: run.0 }),
        Record::Executor { executor, state } => Kind::Executor(Executor {
            executor: executor.to_string(),
            kind: kind_number(state.kind),
            framework: state.framework.as_ref().map(ToString::to_string),
            only: state.only.map(|run| run.0),
            used: state.used,
            slots: state.slots,
            modules: state.modules,
            stopping: state.stopping,
        }),
        Record::Heard { executor, number } => Kind::Heard(Heard { executor: executor.to_string(), number }),
        Record::ExecutorGone { executor } => Kind::Gone(Gone { executor: executor.to_string() }),
    }
}

fn attempt(run: Run, state: &AttemptState) -> Attempt {
    let items =
        |of: &[(u64, ItemSet)]| of.iter().map(|(number, items)| Items { number: *number, items: Some(items.clone().into()) }).collect();
    let lane = |l: &LaneState| Lane { executor: l.executor.to_string(), number: l.number, item: l.item, started: l.started };
    Attempt {
        run: run.0,
        place: state.place.as_ref().map(|p| Place { executor: p.executor.to_string(), slots: p.slots.clone(), running: p.running }),
        began: state.began.map(|t| t.0),
        overdue: state.overdue.map(|t| t.0),
        kill: state.kill.map(|k| Kill { grace_ms: k.grace.0, deadline_us: k.deadline.0 }),
        part: state.part.as_ref().map(|p| Part {
            slots: p.slots,
            open: p.open,
            ending: p.ending,
            started: p.started.map(|t| t.0),
            told_slots: p.told_slots,
            told_usage: Some(p.told_usage.into()),
            told: p.told,
            queued: items(&p.queued),
            leased: items(&p.leased),
            lanes: p.lanes.as_ref().map(|l| Lanes { free: l.free.clone(), busy: l.busy.iter().map(lane).collect() }),
        }),
    }
}

const fn kind_number(kind: ExecutorKind) -> u32 {
    match kind {
        ExecutorKind::Shared => 0,
        ExecutorKind::Pooled => 1,
        ExecutorKind::Networked => 2,
    }
}

fn kind_of(number: u32) -> Result<ExecutorKind, String> {
    match number {
        0 => Ok(ExecutorKind::Shared),
        1 => Ok(ExecutorKind::Pooled),
        2 => Ok(ExecutorKind::Networked),
        other => Err(format!("{other} is no kind of executor")),
    }
}

/// Something with its reason, where that is not right.
fn text<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<T, String> {
    result.map_err(|e| e.to_string())
}

fn executor_id(id: String) -> Result<ExecutorId, String> {
    text(ExecutorId::new(id))
}

fn record(kind: Kind) -> Result<Record, String> {
    Ok(match kind {
        Kind::Numbers(m) => Record::Numbers { runs: m.runs, executors: m.executors },
        Kind::Seen(m) => {
            let keys = m.tasks.into_iter().zip(m.attempts).map(|(task, attempt)| Ok((text(TaskId::new(task))?, attempt)));
            Record::Seen { framework: text(FrameworkId::new(m.framework))?, keys: keys.collect::<Result<_, String>>()? }
        }
        Kind::Launched(m) => launched(m)?,
        Kind::HandOut(m) => {
            let splits = text(m.splits.into_iter().map(Split::try_from).collect())?;
            Record::HandOut { run: Run(m.run), number: m.number, hand_out: Arc::new(HandOut { attempt: m.attempt, splits }) }
        }
        Kind::Attempt(m) => Record::Attempt { run: Run(m.run), state: attempt_state(m)? },
        Kind::Delta(m) => {
            Record::Delta { run: Run(m.run), number: m.number, delta: text(ArrayDelta::try_from(m.delta.unwrap_or_default()))? }
        }
        Kind::Update(m) => Record::Update { run: Run(m.run), update: Box::new(text(m.update.unwrap_or_default().try_into())?) },
        Kind::Acknowledged(m) => Record::Acknowledged { run: Run(m.run), seq: m.seq },
        Kind::Removed(m) => Record::Removed { run: Run(m.run) },
        Kind::Executor(m) => Record::Executor {
            executor: executor_id(m.executor)?,
            state: ExecutorRecord {
                kind: kind_of(m.kind)?,
                framework: text(m.framework.map(FrameworkId::new).transpose())?,
                only: m.only.map(Run),
                used: m.used,
                slots: m.slots,
                modules: m.modules,
                stopping: m.stopping,
            },
        },
        Kind::Heard(m) => Record::Heard { executor: executor_id(m.executor)?, number: m.number },
        Kind::Gone(m) => Record::ExecutorGone { executor: executor_id(m.executor)? },
    })
}

fn launched(m: Launched) -> Result<Record, String> {
    let work = match (m.single, m.part) {
        (Some(launch), None) => LaunchedWork::Single(Arc::new(text(Launch::try_from(launch))?)),
        (None, Some(launch)) => LaunchedWork::Part(Arc::new(text(LaunchArray::try_from(launch))?)),
        _ => return Err(format!("run {} is neither a task nor a part", m.run)),
    };
    let (task, attempt) = match &work {
        LaunchedWork::Single(launch) => (launch.task.clone(), launch.attempt),
        LaunchedWork::Part(launch) => (launch.task.clone(), launch.attempt),
    };
    let key = smalti_types::TaskKey { framework: text(FrameworkId::new(m.framework))?, task, attempt };
    let (role, kind) = (text(Role::new(m.role))?, kind_of(m.kind)?);
    Ok(Record::Launched { run: Run(m.run), key, role, kind, disk_memory: m.disk_memory, work })
}

fn attempt_state(m: Attempt) -> Result<AttemptState, String> {
    let place = |p: Place| Ok::<_, String>(PlaceState { executor: executor_id(p.executor)?, slots: p.slots, running: p.running });
    Ok(AttemptState {
        place: m.place.map(place).transpose()?,
        began: m.began.map(Time),
        overdue: m.overdue.map(Time),
        kill: m.kill.map(|k| KillState { grace: DurationMs(k.grace_ms), deadline: Time(k.deadline_us) }),
        part: m.part.map(part_state).transpose()?,
    })
}

fn part_state(m: Part) -> Result<PartState, String> {
    let items = |of: Vec<Items>| {
        let one = |i: Items| Ok((i.number, text(ItemSet::try_from(i.items.unwrap_or_default()))?));
        of.into_iter().map(one).collect::<Result<Vec<_>, String>>()
    };
    let lane =
        |l: Lane| Ok::<_, String>(LaneState { executor: executor_id(l.executor)?, number: l.number, item: l.item, started: l.started });
    let lanes = |l: Lanes| {
        let busy = l.busy.into_iter().map(lane).collect::<Result<_, String>>()?;
        Ok::<_, String>(LanesState { free: l.free, busy })
    };
    Ok(PartState {
        slots: m.slots,
        open: m.open,
        ending: m.ending,
        started: m.started.map(Time),
        told_slots: m.told_slots,
        told_usage: text(m.told_usage.unwrap_or_default().try_into())?,
        told: m.told,
        queued: items(m.queued)?,
        leased: items(m.leased)?,
        lanes: m.lanes.map(lanes).transpose()?,
    })
}
