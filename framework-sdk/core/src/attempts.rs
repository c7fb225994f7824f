//! One attempt as the client sees it: which updates were delivered, which were handled, what is still wanted of it.
//!
//! Owns the verdict on a single update. Does not know the connection.

use crate::part::Part;
use crate::record::AttemptRecord;
use smalti_types::{AgentId, DurationMs, Sabotage, StatusUpdate, TaskId, TaskState, Time};

/// An update whose predecessor is missing waits this long for it. Agents repeat what is not acknowledged within 30 s, so
/// what has not come by then is gone with its agent.
const GAP_WAIT: DurationMs = DurationMs(60_000);

/// A task and which execution of it.
pub(crate) type Key = (TaskId, u32);

/// What to do with an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// New to the handler.
    Deliver,
    /// The handler has taken it before: the acknowledgement was lost.
    Acknowledge,
    /// One before it is missing: it is not taken, so both come again, in order.
    Wait,
    /// Says nothing new, and nobody waits for an acknowledgement (or the handler has it right now).
    Drop,
}

/// First wait before a kill is said again; it doubles up to [`LAST_KILL_WAIT`]. A master that has just started does not know
/// the task yet, an agent may be out of its reach.
const FIRST_KILL_WAIT: DurationMs = DurationMs(2_000);
const LAST_KILL_WAIT: DurationMs = DurationMs(30_000);

/// A kill that has not taken effect.
#[derive(Debug)]
pub(crate) struct Kill {
    /// Overrides the grace period of the task's limits.
    pub(crate) grace: Option<DurationMs>,
    again: Time,
    wait: DurationMs,
}

impl Kill {
    pub(crate) fn new(grace: Option<DurationMs>, now: Time) -> Self {
        Self { grace, again: now.after(FIRST_KILL_WAIT), wait: FIRST_KILL_WAIT }
    }

    /// Whether to say it again now.
    pub(crate) fn is_due(&mut self, now: Time) -> bool {
        let due = now >= self.again;
        if due {
            self.wait = DurationMs((self.wait.0 * 2).min(LAST_KILL_WAIT.0));
            self.again = now.after(self.wait);
        }
        due
    }
}

/// What is known of one attempt.
#[derive(Debug, Default)]
pub(crate) struct Attempt {
    /// Where it runs, when that is known.
    pub(crate) agent: Option<AgentId>,
    /// The last state delivered; `None` before the first status.
    pub(crate) state: Option<TaskState>,
    /// The number that the next update must have. `None`: launched in an earlier life, and nothing came yet.
    next: Option<u64>,
    /// The first number delivered, for attempts of an earlier life: one before it may still come, and counts.
    first: u64,
    /// Numbers below `first` that came after it.
    late: Vec<u64>,
    /// The number of the terminal update; 0 when it was the master's word or this client's.
    end: u64,
    /// Since when an update waits for one that is missing.
    gap: Option<Time>,
    /// The highest number that came and had to wait.
    waiting: u64,
    /// Delivered, and the handler has not said anything yet.
    pending: Vec<u64>,
    /// Handled, while an earlier one is still pending: an acknowledgement speaks for all before it.
    done: Vec<u64>,
    /// Delivered, and the handler has let go of it.
    again: Vec<u64>,
    /// Updates without a number (the master's words and this client's) that were delivered and not answered.
    words: u32,
    /// Every number up to this one was taken by the handler, but for those of an earlier life that are listed as late.
    taken: u64,
    /// The state that the handler has taken with it.
    taken_state: Option<TaskState>,
    /// A kill that the handler wants.
    pub(crate) kill: Option<Kill>,
    /// For array parts, what was handed to it.
    pub(crate) part: Option<Part>,
}

impl Attempt {
    /// Launched on `agent` now.
    pub(crate) fn launched(agent: Option<AgentId>, part: Option<Part>) -> Self {
        Self { agent, part, next: Some(1), first: 1, ..Self::default() }
    }

    /// Launched in an earlier life of this process.
    pub(crate) fn adopted(agent: Option<AgentId>) -> Self {
        Self { agent, ..Self::default() }
    }

    /// As it was kept in an earlier life of this process.
    pub(crate) fn restored(record: AttemptRecord) -> Self {
        let AttemptRecord { agent, state, taken, first, late, kill, closed, .. } = record;
        let is_over = state.is_some_and(TaskState::is_terminal);
        Self {
            agent,
            state,
            // Acknowledgements leave after the record is durable: what comes next is exactly the next number.
            next: (first > 0).then_some(first.max(taken + 1)),
            first,
            late,
            // Whose word its end was is not kept: whatever comes of it now is taken for a sign of life. A kill too many ends nothing.
            end: 0,
            taken,
            taken_state: state,
            kill: kill.map(|grace| Kill { grace, again: Time(0), wait: FIRST_KILL_WAIT }),
            part: (closed && !is_over).then(Part::closed),
            ..Self::default()
        }
    }

    /// What must be kept of it.
    pub(crate) fn record(&self, key: &Key) -> AttemptRecord {
        let open = |s: &u64| self.pending.contains(s) || self.again.contains(s);
        AttemptRecord {
            task: key.0.clone(),
            attempt: key.1,
            agent: self.agent.clone(),
            state: self.taken_state,
            taken: self.taken,
            first: self.first,
            late: self.late.iter().filter(|s| !open(s)).copied().collect(),
            kill: self.kill.as_ref().map(|kill| kill.grace),
            closed: self.part.as_ref().is_some_and(Part::is_closed_late),
        }
    }

    /// Whether its terminal update was delivered.
    pub(crate) fn is_ended(&self) -> bool {
        self.state.is_some_and(TaskState::is_terminal)
    }

    /// Whether an update came that could not be taken yet: its maker may be gone, so it must be asked for.
    pub(crate) fn is_behind(&self) -> bool {
        !self.is_ended() && self.next.is_some_and(|next| next <= self.waiting)
    }

    /// Whether it was launched in this life of the process.
    pub(crate) const fn is_own(&self) -> bool {
        self.first == 1
    }

    /// Whether the handler still has updates of it in its hands.
    pub(crate) const fn is_busy(&self) -> bool {
        !self.pending.is_empty() || self.words > 0
    }

    /// Whether the handler may take these numbers (0: an update without one) for good, leaving what it has besides: a
    /// later life takes everything up to a number for known, so the order must be kept.
    pub(crate) fn in_order(&self, seqs: &[u64]) -> Result<(), u64> {
        let words = u32::try_from(seqs.iter().filter(|s| **s == 0).count()).unwrap_or(u32::MAX);
        // Only a word that was the end speaks of all before it: one that an agent's own updates came after says nothing about those.
        let is_end = words > 0 && words >= self.words && self.is_ended() && self.end == 0;
        let most = if is_end { u64::MAX } else { seqs.iter().copied().max().unwrap_or(0) };
        let open = self.pending.iter().filter(|s| !seqs.contains(s)).chain(&self.again);
        open.filter(|s| **s < most).min().map_or(Ok(()), |missing| Err(*missing))
    }

    /// Judges an update, and remembers it as delivered when it is to be.
    ///
    /// A state that may not follow the one delivered before is replaced by that one: what the update says of items
    /// must arrive, and the handler never sees a state go backwards.
    pub(crate) fn judge(&mut self, update: &mut StatusUpdate, now: Time) -> Verdict {
        let seq = update.key.seq;
        if seq == 0 {
            let news = match self.state {
                None => true,
                Some(state) => state != update.state && (state.may_become(update.state) || Sabotage::SdkEndsTwice.is_on()),
            };
            return match self.state {
                _ if news => {
                    self.state = Some(update.state);
                    self.words = self.words.saturating_add(1);
                    Verdict::Deliver
                }
                // The master itself gives items back when a part's agent is away.
                Some(state) if update.array.is_some() && !state.is_terminal() => {
                    update.state = state;
                    self.words = self.words.saturating_add(1);
                    Verdict::Deliver
                }
                _ => Verdict::Drop,
            };
        }
        if self.pending.contains(&seq) {
            return Verdict::Drop;
        }
        if let Some(i) = self.again.iter().position(|s| *s == seq) {
            self.again.swap_remove(i);
            self.pending.push(seq);
            return Verdict::Deliver;
        }
        if self.is_ended() || update.state == TaskState::Unknown {
            return Verdict::Acknowledge;
        }
        match self.next {
            Some(next) if seq > next => {
                self.waiting = self.waiting.max(seq);
                if now < self.gap.get_or_insert(now).after(GAP_WAIT) {
                    return Verdict::Wait;
                }
            }
            Some(next) if seq < next => {
                if (seq >= self.first || self.late.contains(&seq)) && !Sabotage::SdkDeliversRepeats.is_on() {
                    return Verdict::Acknowledge;
                }
                self.late.push(seq);
            }
            Some(_) => {}
            None => self.first = seq,
        }
        match self.state {
            Some(state) if !state.may_become(update.state) => update.state = state,
            _ => self.state = Some(update.state),
        }
        if update.state.is_terminal() {
            self.end = seq;
        }
        self.next = self.next.max(Some(seq + 1));
        self.gap = None;
        self.pending.push(seq);
        Verdict::Deliver
    }

    /// Whether `update` shows that an attempt which ended for the handler is alive all the same. After the agent's own word on
    /// its end, an earlier update is a mere repeat; after anybody else's it is a sign of life.
    pub(crate) fn is_undead(&self, update: &StatusUpdate) -> bool {
        let seq = update.key.seq;
        self.is_ended() && (seq == 0 || seq > self.end) && !update.state.is_terminal() && update.state != TaskState::Unknown
    }

    /// The handler has taken update `seq` (0: one without a number). Returns what may be acknowledged now.
    pub(crate) fn handled(&mut self, seq: u64) -> Vec<u64> {
        if seq == 0 {
            self.words = self.words.saturating_sub(1);
            self.note_taken();
            return Vec::new();
        }
        let before = self.pending.len();
        self.pending.retain(|s| *s != seq);
        if self.pending.len() < before {
            self.done.push(seq);
        }
        let oldest = self.pending.iter().chain(&self.again).copied().min().unwrap_or(u64::MAX);
        let (mut ready, kept): (Vec<u64>, Vec<u64>) = self.done.iter().partition(|s| **s < oldest);
        self.done = kept;
        ready.sort_unstable();
        self.taken = ready.last().copied().unwrap_or(0).max(self.taken);
        self.note_taken();
        ready
    }

    /// The handler knows the present state once it has taken all that was delivered, or the update that ended it.
    fn note_taken(&mut self) {
        let all = self.pending.is_empty() && self.again.is_empty() && self.words == 0;
        if all || (self.end > 0 && self.taken >= self.end) {
            self.taken_state = self.state;
        }
    }

    /// The handler has let go of update `seq`.
    pub(crate) fn not_handled(&mut self, seq: u64) {
        if seq == 0 {
            // It does not come again, and a later life asks for the state anyway.
            self.words = self.words.saturating_sub(1);
            return;
        }
        let before = self.pending.len();
        self.pending.retain(|s| *s != seq);
        if self.pending.len() < before {
            self.again.push(seq);
        }
    }

    /// What must hold of any attempt.
    pub(crate) fn check(&self) -> Result<(), String> {
        let known = |list: &[u64]| list.iter().all(|s| *s > 0 && self.next.is_some_and(|next| *s < next));
        if !known(&self.pending) || !known(&self.again) || !known(&self.done) {
            return Err(format!("updates in hand {:?} or let go {:?} are not below the next, {:?}", self.pending, self.again, self.next));
        }
        if self.pending.iter().any(|s| self.again.contains(s)) {
            return Err(format!("updates both in hand and let go: {:?}", self.pending));
        }
        if self.state == Some(TaskState::Unknown) {
            return Err("UNKNOWN was taken for a state".into());
        }
        if self.next.is_some_and(|next| self.taken >= next) {
            return Err(format!("{} is taken, and the next is {:?}", self.taken, self.next));
        }
        self.part.as_ref().map_or(Ok(()), Part::check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_types::{FrameworkId, Reason, TaskKey};

    fn update(seq: u64, state: TaskState) -> StatusUpdate {
        let key = TaskKey { framework: FrameworkId::new("F1").unwrap(), task: TaskId::new("t").unwrap(), attempt: 0 };
        StatusUpdate::new(key, seq, state, Reason::None, "", Time(0))
    }

    fn delivered(updates: &[(u64, TaskState)]) -> Attempt {
        let mut attempt = Attempt::launched(None, None);
        for (seq, state) in updates {
            assert_eq!(attempt.judge(&mut update(*seq, *state), Time(0)), Verdict::Deliver);
        }
        attempt
    }

    #[test]
    fn a_word_on_the_way_is_taken_before_what_came_after_it() {
        let mut attempt =
            delivered(&[(1, TaskState::Running), (0, TaskState::Unreachable), (2, TaskState::Running), (3, TaskState::Finished)]);
        for seq in [1, 0, 2, 3] {
            assert_eq!(attempt.in_order(&[seq]), Ok(()), "update {seq}");
            attempt.handled(seq);
        }
    }

    #[test]
    fn a_word_that_was_the_end_is_taken_last() {
        let attempt = delivered(&[(1, TaskState::Running), (0, TaskState::Lost)]);
        assert_eq!(attempt.in_order(&[0]), Err(1));
        assert_eq!(attempt.in_order(&[1, 0]), Ok(()));
    }
}
