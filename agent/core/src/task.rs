//! One attempt on this agent: where it is, and what it says about itself.
//!
//! Owns the phases that single tasks and array parts share. Items of array parts are in `array`, the stream's numbers in `updates`.

use crate::array::Part;
use crate::event::Failure;
use crate::parameters::ExecutorKind;
use crate::record::{AttemptState, KillState, PlaceState};
use crate::trust::Bounds;
use crate::updates::Stream;
use smalti_types::{
    Digest, DurationMs, ExecutorId, Launch, MilliCpus, PortSet, Reason, Resources, Role, StatusUpdate, TaskKey, TaskState, Time, Usage,
    status::MAX_RESULT_LEN,
};
use std::sync::Arc;

/// The slots of an executor that are reserved for an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) executor: ExecutorId,
    /// Ascending. Of an array part: those that it still holds.
    pub(crate) slots: Vec<u32>,
}

/// Where an attempt is.
///
/// | from | to |
/// |---|---|
/// | Preparing | Waiting, Spread (parts in class `process`), Ended |
/// | Waiting | Loading, Ended |
/// | Loading | Starting (tasks), Running (parts), Ended |
/// | Starting | Running, Ended |
/// | Running, Spread | Ended |
/// | Ended | removed, when its last update is acknowledged |
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Fetched, verified, compiled.
    Preparing,
    /// Ready; there is no free slot for it yet, or no executor of its own.
    Waiting,
    /// Has its slots; the executor loads its code.
    Loading(Place),
    /// The executor was told to start it.
    Starting(Place),
    /// The executor says that it runs.
    Running(Place),
    /// A part whose items each get an executor of their own: which ones is in its lanes.
    Spread,
    /// Terminal; updates wait for acknowledgement.
    Ended,
}

impl Phase {
    /// The slots that it has.
    pub(crate) const fn place(&self) -> Option<&Place> {
        match self {
            Self::Loading(place) | Self::Starting(place) | Self::Running(place) => Some(place),
            Self::Preparing | Self::Waiting | Self::Spread | Self::Ended => None,
        }
    }
}

/// A kill that was passed on to the executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kill {
    /// How long the guest was given.
    pub(crate) grace: DurationMs,
    /// When it must be over; then the executor is ended.
    pub(crate) deadline: Time,
    /// When the grace period is over, if its slots have not been given enough cpu to end yet.
    pub(crate) hurry: Option<Time>,
}

/// A single task's own part.
#[derive(Debug)]
pub(crate) struct Single {
    pub(crate) launch: Arc<Launch>,
    /// Reported and not yet told to the master.
    pub(crate) progress: Option<(u16, String)>,
    /// No progress is told before this.
    pub(crate) next_progress: Time,
    /// When its executor was told to start it.
    pub(crate) began: Option<Time>,
    /// What it has used so far.
    pub(crate) usage: Usage,
    /// The master does not know this usage, …
    pub(crate) usage_news: bool,
    /// … and is not told before this.
    pub(crate) next_usage: Time,
}

impl Single {
    pub(crate) fn new(launch: Arc<Launch>) -> Self {
        Self {
            launch,
            progress: None,
            next_progress: Time(0),
            began: None,
            usage: Usage::default(),
            usage_news: false,
            next_usage: Time(0),
        }
    }

    /// What it can have used.
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds { since: self.began, slots: 1, memory: self.launch.resources.mem.0, fuel: self.launch.spec.limits.fuel }
    }

    /// Takes in what its executor says that it has used so far.
    pub(crate) fn note_usage(&mut self, now: Time, said: &Usage) {
        let usage = self.bounds().cut(now, said);
        self.usage_news |= usage != self.usage;
        self.usage = usage;
    }

    /// Whether there is something to say that is worth an update.
    fn is_due(&self, now: Time) -> bool {
        (self.progress.is_some() && now >= self.next_progress) || (self.usage_news && now >= self.next_usage)
    }
}

/// What kind of attempt it is.
#[derive(Debug)]
pub(crate) enum Work {
    Single(Single),
    Part(Box<Part>),
}

impl Work {
    /// The digest of what it runs.
    pub(crate) fn bundle(&self) -> Digest {
        match self {
            Self::Single(single) => single.launch.spec.bundle.digest,
            Self::Part(part) => part.launch.template.spec.bundle.digest,
        }
    }
}

/// How an attempt ends.
#[derive(Debug, Clone)]
pub(crate) struct Ending {
    pub(crate) state: TaskState,
    pub(crate) reason: Reason,
    pub(crate) message: String,
    pub(crate) exit_code: Option<i32>,
    /// `None`: what was known before.
    pub(crate) usage: Option<Usage>,
    pub(crate) result: Option<Vec<u8>>,
    pub(crate) ports_in_use: PortSet,
}

impl Ending {
    pub(crate) fn new(state: TaskState, reason: Reason, message: impl Into<String>) -> Self {
        Self { state, reason, message: message.into(), exit_code: None, usage: None, result: None, ports_in_use: PortSet::default() }
    }

    /// The end of an attempt that was killed on request.
    pub(crate) fn killed() -> Self {
        Self::new(TaskState::Killed, Reason::KilledByRequest, "killed on request")
    }

    /// The end of an attempt whose guest never ran.
    pub(crate) fn not_started(failure: Failure) -> Self {
        let state = if failure.reason == Reason::LaunchFailed { TaskState::Dropped } else { TaskState::Failed };
        Self { ports_in_use: failure.ports_in_use, ..Self::new(state, failure.reason, failure.message) }
    }
}

/// One attempt.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) key: TaskKey,
    /// Its framework's role.
    pub(crate) role: Role,
    /// What kind of executor runs it.
    pub(crate) kind: ExecutorKind,
    pub(crate) phase: Phase,
    /// The code it runs, once it is known.
    pub(crate) digest: Option<Digest>,
    pub(crate) work: Work,
    /// What one slot's disk takes of its executor's memory.
    pub(crate) disk_memory: u64,
    pub(crate) stream: Stream,
    pub(crate) kill: Option<Kill>,
    /// A single task's executor should have ended it by now: the limit plus a wide margin.
    pub(crate) overdue: Option<Time>,
    /// A part of class `process` that goes on after a restart: what its next items need is not ready yet.
    pub(crate) unprepared: bool,
    /// What the last record says.
    pub(crate) recorded: AttemptState,
}

impl Task {
    /// The state that the master is told.
    pub(crate) const fn state(&self) -> TaskState {
        match (&self.phase, &self.kill) {
            (Phase::Ended, _) => TaskState::Unknown,
            (_, Some(_)) => TaskState::Killing,
            (Phase::Running(_) | Phase::Spread, None) => TaskState::Running,
            _ => TaskState::Staging,
        }
    }

    /// Executors that have something of it, each with the slots that are its there.
    pub(crate) fn places(&self) -> Vec<(ExecutorId, Vec<u32>)> {
        match (&self.phase, &self.work) {
            (Phase::Spread, Work::Part(part)) => part.lanes.executors().map(|id| (id.clone(), vec![0])).collect(),
            (phase, _) => phase.place().map(|p| (p.executor.clone(), p.slots.clone())).into_iter().collect(),
        }
    }

    /// Whether this executor has something of it.
    pub(crate) fn is_in(&self, id: &ExecutorId) -> bool {
        match (&self.phase, &self.work) {
            (Phase::Spread, Work::Part(part)) => part.lanes.has(id),
            (phase, _) => phase.place().is_some_and(|p| p.executor == *id),
        }
    }

    /// What has to be known of it after a restart.
    pub(crate) fn attempt_state(&self) -> AttemptState {
        let place = match &self.phase {
            Phase::Starting(place) | Phase::Running(place) => {
                let running = matches!(self.phase, Phase::Running(_));
                Some(PlaceState { executor: place.executor.clone(), slots: place.slots.clone(), running })
            }
            Phase::Preparing | Phase::Waiting | Phase::Loading(_) | Phase::Spread | Phase::Ended => None,
        };
        let (began, part) = match &self.work {
            Work::Single(single) => (single.began, None),
            Work::Part(part) => (None, Some(part.state())),
        };
        let kill = self.kill.map(|k| KillState { grace: k.grace, deadline: k.deadline });
        AttemptState { place, began, overdue: self.overdue, kill, part }
    }

    /// Whether the last record says all that has to be known. Compares in place: this is asked at every step. What has ended has its
    /// terminal update, and nothing else counts.
    pub(crate) fn is_recorded(&self) -> bool {
        let (place, running) = match &self.phase {
            Phase::Ended => return true,
            Phase::Starting(place) => (Some(place), false),
            Phase::Running(place) => (Some(place), true),
            Phase::Preparing | Phase::Waiting | Phase::Loading(_) | Phase::Spread => (None, false),
        };
        let told = &self.recorded;
        let same_place = match (place, &told.place) {
            (None, None) => true,
            (Some(is), Some(was)) => is.executor == was.executor && is.slots == was.slots && running == was.running,
            _ => false,
        };
        let same_work = match (&self.work, &told.part) {
            (Work::Single(single), None) => single.began == told.began,
            (Work::Part(part), Some(was)) => part.is_recorded(was),
            _ => false,
        };
        let kill = self.kill.map(|k| (k.grace, k.deadline));
        same_place && same_work && self.overdue == told.overdue && kill == told.kill.map(|k| (k.grace, k.deadline))
    }

    /// How much processor time each of its slots may use.
    pub(crate) fn cpus(&self) -> MilliCpus {
        match &self.work {
            Work::Single(single) => single.launch.resources.cpus,
            Work::Part(part) => part.launch.slot_resources.cpus,
        }
    }

    /// Of a single task in an executor of its own: since when it ran, and how much processor time it used.
    pub(crate) fn used_in_process(&self, ending: &Ending) -> Option<(Time, u64)> {
        let Work::Single(single) = &self.work else { return None };
        let began = single.began.filter(|_| self.kind.is_used_once())?;
        Some((began, ending.usage.unwrap_or(single.usage).cpu_us))
    }

    /// What it holds now.
    pub(crate) fn resources(&self) -> Resources {
        match (&self.phase, &self.work) {
            (Phase::Ended, _) => Resources::default(),
            (_, Work::Single(single)) => single.launch.resources.clone(),
            (_, Work::Part(part)) => part.resources(part.slots),
        }
    }

    /// How many slots it needs.
    pub(crate) fn slots_needed(&self) -> u32 {
        match &self.work {
            Work::Single(_) => 1,
            Work::Part(part) => part.slots,
        }
    }

    /// Whether its fuel is counted.
    pub(crate) fn fuel(&self) -> bool {
        match &self.work {
            Work::Single(single) => single.launch.spec.limits.fuel.is_some(),
            Work::Part(part) => part.launch.template.spec.limits.fuel.is_some(),
        }
    }

    /// The grace period of its description.
    pub(crate) fn grace(&self) -> DurationMs {
        match &self.work {
            Work::Single(single) => single.launch.spec.limits.grace,
            Work::Part(part) => part.launch.template.spec.limits.grace,
        }
    }

    /// Says something new about a single task.
    pub(crate) fn say(&mut self, now: Time, state: TaskState, reason: Reason, message: &str) {
        let mut update = StatusUpdate::new(self.key.clone(), self.stream.next_seq(), state, reason, message, now);
        if let Work::Single(single) = &self.work {
            update.usage = single.usage;
        }
        self.stream.push(update);
    }

    /// Says that it has ended: for parts, after everything that its items had to say.
    pub(crate) fn say_end(&mut self, now: Time, ending: Ending) {
        let state = self.state();
        if let Work::Part(part) = &mut self.work {
            while part.chunks() > 1 {
                let update = part.take_update(now, &self.key, self.stream.next_seq(), state);
                self.stream.push(update);
            }
        }
        let mut update = match &mut self.work {
            Work::Single(single) => {
                let seq = self.stream.next_seq();
                let mut update = StatusUpdate::new(self.key.clone(), seq, ending.state, Reason::None, ending.message, now);
                // What the guest said last and nobody has been told yet: there is no later update.
                update.progress = single.progress.take();
                // An executor that died has said nothing later.
                update.usage = ending.usage.unwrap_or(single.usage);
                update
            }
            Work::Part(part) => {
                let mut update = part.take_update(now, &self.key, self.stream.next_seq(), ending.state);
                update.message = ending.message;
                smalti_types::status::truncate(&mut update.message, smalti_types::status::MAX_MESSAGE_LEN);
                update
            }
        };
        update.reason = ending.reason;
        update.exit_code = ending.exit_code;
        update.ports_in_use = ending.ports_in_use;
        update.result = ending.result.filter(|r| r.len() <= MAX_RESULT_LEN);
        self.stream.push(update);
    }

    /// Says what is due: progress of a task, or what happened to a part's items.
    pub(crate) fn say_due(&mut self, now: Time) {
        let state = self.state();
        if self.phase == Phase::Ended {
            return;
        }
        match &mut self.work {
            Work::Single(single) => {
                if self.stream.in_flight() > 0 || !single.is_due(now) {
                    return;
                }
                single.next_progress = now.after(PROGRESS_PACE);
                single.next_usage = now.after(usage_pace(now, single.began));
                single.usage_news = false;
                let mut update = StatusUpdate::new(self.key.clone(), self.stream.next_seq(), state, Reason::None, String::new(), now);
                update.progress = single.progress.take();
                update.usage = single.usage;
                self.stream.push(update);
            }
            Work::Part(part) => {
                while part.is_due(now, self.stream.in_flight()) {
                    let update = part.take_update(now, &self.key, self.stream.next_seq(), state);
                    self.stream.push(update);
                }
            }
        }
    }
}

/// A guest's progress is told at most this often.
const PROGRESS_PACE: DurationMs = DurationMs(1_000);
/// What a run has used so far is told after a twentieth of its age, but never more and never less often than this.
const USAGE_PACE_MS: (u64, u64) = (1_000, 30_000);

/// How long to wait until its usage is told again: every task of a large cluster says something, so old ones say it rarely.
pub(crate) fn usage_pace(now: Time, began: Option<Time>) -> DurationMs {
    let age_ms = began.map_or(0, |began| now.micros_since(began) / 1_000);
    DurationMs((age_ms / 20).clamp(USAGE_PACE_MS.0, USAGE_PACE_MS.1))
}
