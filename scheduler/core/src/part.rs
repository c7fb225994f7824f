//! One part of an array: what was handed to one agent with one launch, and how fast it gets on.

use serde::{Deserialize, Serialize};
use smalti_types::{AgentId, ArrayDelta, DurationMs, ItemSet, Reason, StatusUpdate, TaskState, Time, Usage};

/// A part, from its launch until its array is forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Where.
    pub agent: AgentId,
    /// Slots it still holds.
    pub slots: u32,
    /// As last reported.
    pub state: TaskState,
    /// Why.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// Whether it may get more items.
    pub open: bool,
    /// Handed out, without an outcome yet.
    pub outstanding: ItemSet,
    /// Finished here: their output is here.
    pub finished: ItemSet,
    /// Failed here for good: their output is here, too.
    pub failed: ItemSet,
    /// Its outputs died with its agent.
    pub lost: bool,
    /// What its items used.
    pub usage: Usage,
    /// When it was launched.
    pub launched: Time,
    /// How fast it gets on.
    pub pace: Pace,
    /// Items were asked back at this time and have not come yet.
    pub asked_back: Option<Time>,
    /// Its agent was out of reach: no items before this time, or they would come straight back, again and again.
    #[serde(default)]
    pub away_until: Time,
}

/// How long a part gets no items after the master gave some back because its agent was out of reach.
const AWAY_WAIT: DurationMs = DurationMs(500);

/// The measured speed of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pace {
    /// Mean time of one item in a slot, in microseconds; zero: not known yet.
    pub mean_us: u64,
    /// How many items it was meant to have when it last got some: chunks grow by a bounded factor.
    pub last_target: u64,
    /// Agent's clock at the last outcome.
    reported: Time,
    /// Our clock at the last outcome.
    pub progressed: Time,
}

impl Part {
    /// A part that is being launched with these items.
    #[must_use]
    pub fn launched(now: Time, agent: AgentId, slots: u32, items: ItemSet, open: bool) -> Self {
        Self {
            agent,
            slots,
            state: TaskState::Staging,
            reason: Reason::None,
            message: String::new(),
            open,
            pace: Pace { last_target: items.len(), progressed: now, ..Pace::default() },
            outstanding: items,
            finished: ItemSet::default(),
            failed: ItemSet::default(),
            lost: false,
            usage: Usage::default(),
            launched: now,
            asked_back: None,
            away_until: Time(0),
        }
    }

    /// Whether it may still do something.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.state.is_terminal()
    }

    /// Whether its guest code is there and its slots run items.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.state, TaskState::Running | TaskState::Killing)
    }

    /// Items it has beyond one per slot. Before it runs, all of them: none has started.
    #[must_use]
    pub fn unstarted(&self) -> u64 {
        let busy = if self.is_running() { u64::from(self.slots) } else { 0 };
        self.outstanding.len().saturating_sub(busy)
    }

    /// Slots without an item.
    #[must_use]
    pub fn idle_slots(&self) -> u64 {
        u64::from(self.slots).saturating_sub(self.outstanding.len())
    }

    /// Takes over what an update says about the part itself; items are the pool's affair.
    pub fn heard(&mut self, now: Time, update: &StatusUpdate) {
        self.state = update.state;
        self.reason = update.reason;
        self.message.clone_from(&update.message);
        let is_away = update.key.seq == 0 && update.reason == Reason::AgentDisconnected;
        self.away_until = if is_away { now.after(AWAY_WAIT) } else { Time(0) };
        if update.key.seq > 0 {
            self.usage = update.usage;
        }
        if let Some(delta) = &update.array {
            self.slots = delta.slots.min(self.slots);
            self.pace.note(now, update.time, delta, self.slots);
            if !delta.returned.is_empty() {
                self.asked_back = None;
            }
        }
        if update.state == TaskState::Unreachable {
            // For this array it is over: its items go elsewhere.
            self.state = TaskState::Lost;
        }
        if self.state.is_terminal() {
            self.slots = 0;
            self.open = false;
            self.asked_back = None;
        }
    }
}

impl Pace {
    /// The means of two reports count equally: speed may change within an array, and one report is one sample of many items.
    fn note(&mut self, now: Time, reported: Time, delta: &ArrayDelta, slots: u32) {
        let n = delta.finished.len() + delta.failed.len() as u64;
        if n == 0 {
            return;
        }
        let mut mean = (delta.usage.wall_us / n).max(1);
        // What lies between two items counts, too. Only while the queue was never empty does the clock measure the part and not us.
        if delta.outstanding > 0 && self.reported.0 > 0 {
            mean = mean.max(reported.micros_since(self.reported).saturating_mul(u64::from(slots.max(1))) / n);
        }
        self.mean_us = if self.mean_us == 0 { mean } else { self.mean_us.midpoint(mean).max(1) };
        self.reported = reported;
        self.progressed = now;
    }
}
