//! A task that runs by itself, over all its attempts: the task of a `run` job, or the reduce of a `map` job.

use crate::pool::{Failure, Rules};
use crate::retry::{self, Blame, Tries, Verdict};
use serde::{Deserialize, Serialize};
use smalti_types::{AgentId, PortSet, Reason, StatusUpdate, TaskId, TaskState, Time, Usage};

/// One task and its current attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRun {
    /// Its id, the same in all attempts.
    pub task: TaskId,
    /// Failures so far; their sum is the number of the current attempt.
    pub tries: Tries,
    /// Where it stands.
    pub standing: Standing,
    /// Of the current attempt.
    pub state: TaskState,
    /// Of the current attempt; while it waits for a retry, of the one before.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// The guest's.
    pub exit_code: Option<i32>,
    /// Where it is or was last.
    pub agent: Option<AgentId>,
    /// Chosen from the offer.
    pub ports: PortSet,
    /// Of the current attempt.
    pub usage: Usage,
    /// Thousandths and the guest's words.
    pub progress: Option<(u16, String)>,
    /// The guest's result value.
    pub result: Option<Vec<u8>>,
    /// When the current attempt began to run.
    pub started: Option<Time>,
    /// When it ended for good.
    pub ended: Option<Time>,
    /// How the attempt before failed.
    #[serde(default)]
    pub previous: Option<Failure>,
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// For an offer, not before this time.
    Waiting {
        /// End of the back-off.
        not_before: Time,
    },
    /// On an agent, or on its way there.
    Placed,
    /// For good.
    Over,
}

/// What an update means for the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing that decides anything.
    Goes,
    /// It finished with exit code 0.
    Finished,
    /// The attempt failed and there will be another.
    Again,
    /// It failed for good.
    Failed,
}

impl TaskRun {
    /// A task that has not been placed yet.
    #[must_use]
    pub fn new(task: TaskId) -> Self {
        Self {
            task,
            tries: Tries::default(),
            standing: Standing::Waiting { not_before: Time(0) },
            state: TaskState::Staging,
            reason: Reason::None,
            message: String::new(),
            exit_code: None,
            agent: None,
            ports: PortSet::default(),
            usage: Usage::default(),
            progress: None,
            result: None,
            started: None,
            ended: None,
            previous: None,
        }
    }

    /// Number of the current attempt.
    #[must_use]
    pub const fn attempt(&self) -> u32 {
        self.tries.attempt()
    }

    /// Whether an agent has it.
    #[must_use]
    pub fn is_placed(&self) -> bool {
        self.standing == Standing::Placed
    }

    /// It is being launched there.
    pub fn place(&mut self, agent: AgentId, ports: PortSet) {
        self.standing = Standing::Placed;
        self.state = TaskState::Staging;
        (self.reason, self.message, self.exit_code) = (Reason::None, String::new(), None);
        (self.usage, self.progress, self.result, self.started) = (Usage::default(), None, None, None);
        self.agent = Some(agent);
        self.ports = ports;
    }

    /// An update about attempt `update.key.task.attempt`.
    ///
    /// `exclusive`: another attempt only after the end of this one. `ours`: it failed of what other tasks of the job had
    /// left it to read, so it is not to blame.
    pub fn apply(&mut self, now: Time, update: &StatusUpdate, rules: Rules, exclusive: bool, ours: bool) -> Turn {
        let Rules { retries, ending } = rules;
        if !self.is_placed() || update.key.task.attempt != self.attempt() {
            return Turn::Goes;
        }
        self.state = update.state;
        self.reason = update.reason;
        self.message.clone_from(&update.message);
        if update.key.seq > 0 {
            self.usage = update.usage;
        }
        if update.state == TaskState::Running && self.started.is_none() {
            self.started = Some(update.time);
            // What was told before was about fetching.
            self.progress = None;
        }
        if update.progress.is_some() {
            self.progress.clone_from(&update.progress);
        }
        if update.result.is_some() {
            self.result.clone_from(&update.result);
        }
        if update.state == TaskState::Unreachable && (!exclusive || update.reason == Reason::LeaseExpired) {
            // Its agent may come back with it: then it is told to stop. A guest whose lease is over has stopped.
            return self.failed(now, Blame::Infrastructure, retries, ending);
        }
        if !update.state.is_terminal() {
            return Turn::Goes;
        }
        self.exit_code = update.exit_code;
        if update.state == TaskState::Finished {
            (self.standing, self.ended) = (Standing::Over, Some(now));
            return Turn::Finished;
        }
        let blame = if ours { Blame::Infrastructure } else { retry::blame(update.state, update.reason) };
        self.failed(now, blame, retries, ending)
    }

    /// The current attempt ended otherwise than FINISHED.
    pub fn failed(&mut self, now: Time, blame: Blame, retries: u32, ending: bool) -> Turn {
        match retry::verdict(now, blame, self.tries, retries) {
            Verdict::Again(at, next) if !ending => {
                self.previous = Some(self.failure());
                self.tries = next;
                self.standing = Standing::Waiting { not_before: at };
                self.state = TaskState::Staging;
                Turn::Again
            }
            _ => {
                (self.standing, self.ended) = (Standing::Over, Some(now));
                Turn::Failed
            }
        }
    }

    /// It will not be placed: somebody asked for its end while it waited.
    pub fn cancel(&mut self, now: Time) {
        (self.standing, self.ended) = (Standing::Over, Some(now));
        (self.state, self.reason) = (TaskState::Killed, Reason::KilledByRequest);
        self.message = "killed before it was placed".into();
    }

    /// How it failed.
    #[must_use]
    pub fn failure(&self) -> Failure {
        Failure {
            state: self.state,
            reason: self.reason,
            message: self.message.clone(),
            exit_code: self.exit_code,
            attempt: self.attempt(),
            agent: self.agent.clone(),
        }
    }

    /// Whether it waits for an offer and its back-off is over.
    #[must_use]
    pub fn is_ready(&self, now: Time) -> bool {
        matches!(self.standing, Standing::Waiting { not_before } if not_before <= now)
    }

    /// When its back-off ends.
    #[must_use]
    pub fn next_wake(&self) -> Option<Time> {
        match self.standing {
            Standing::Waiting { not_before } => Some(not_before),
            _ => None,
        }
    }
}
