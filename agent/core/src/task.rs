//! One attempt on this agent: where it is, and what it says about itself.
//!
//! Owns the phases that single tasks and array parts share. Items of array parts are in `array`, the stream's numbers in `updates`.

use crate::array::Part;
use crate::event::Failure;
use crate::parameters::ExecutorKind;
use crate::updates::Stream;
use smalti_types::{
    Digest, DurationMs, ExecutorId, Launch, MilliCpus, Reason, Resources, Role, StatusUpdate, TaskKey, TaskState, Time, Usage,
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
}

/// What kind of attempt it is.
#[derive(Debug)]
pub(crate) enum Work {
    Single(Single),
    Part(Box<Part>),
}

/// How an attempt ends.
#[derive(Debug, Clone)]
pub(crate) struct Ending {
    pub(crate) state: TaskState,
    pub(crate) reason: Reason,
    pub(crate) message: String,
    pub(crate) exit_code: Option<i32>,
    pub(crate) usage: Usage,
    pub(crate) result: Option<Vec<u8>>,
}

impl Ending {
    pub(crate) fn new(state: TaskState, reason: Reason, message: impl Into<String>) -> Self {
        Self { state, reason, message: message.into(), exit_code: None, usage: Usage::default(), result: None }
    }

    /// The end of an attempt that was killed on request.
    pub(crate) fn killed() -> Self {
        Self::new(TaskState::Killed, Reason::KilledByRequest, "killed on request")
    }

    /// The end of an attempt whose guest never ran.
    pub(crate) fn not_started(failure: Failure) -> Self {
        let state = if failure.reason == Reason::LaunchFailed { TaskState::Dropped } else { TaskState::Failed };
        Self::new(state, failure.reason, failure.message)
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
    pub(crate) stream: Stream,
    pub(crate) kill: Option<Kill>,
    /// A single task's executor should have ended it by now: the limit plus a wide margin.
    pub(crate) overdue: Option<Time>,
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

    /// How much processor time each of its slots may use.
    pub(crate) fn cpus(&self) -> MilliCpus {
        match &self.work {
            Work::Single(single) => single.launch.resources.cpus,
            Work::Part(part) => part.launch.slot_resources.cpus,
        }
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
        let update = StatusUpdate::new(self.key.clone(), self.stream.next_seq(), state, reason, message, now);
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
        if update.array.is_none() {
            update.usage = ending.usage;
        }
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
                if self.stream.in_flight() > 0 || now < single.next_progress {
                    return;
                }
                if let Some(progress) = single.progress.take() {
                    single.next_progress = now.after(PROGRESS_PACE);
                    let mut update = StatusUpdate::new(self.key.clone(), self.stream.next_seq(), state, Reason::None, String::new(), now);
                    update.progress = Some(progress);
                    self.stream.push(update);
                }
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
