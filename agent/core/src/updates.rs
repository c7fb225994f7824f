//! The status stream of one attempt: numbers its updates, keeps them until they are acknowledged, sends them again with back-off.
//!
//! Owns sequence numbers and what is in flight. Does not decide when there is something to say: tasks and array parts do.

use smalti_types::{DurationMs, StatusUpdate, Time};
use std::collections::{BTreeMap, VecDeque};

/// First wait before an unacknowledged update is sent again.
const FIRST_RESEND: DurationMs = DurationMs(1_000);
/// The wait doubles up to this.
const LAST_RESEND: DurationMs = DurationMs(30_000);

/// An update that is not acknowledged.
#[derive(Debug)]
struct Unacknowledged {
    update: StatusUpdate,
    /// When it was last handed to the connection; `None`: not yet on this one.
    sent: Option<Time>,
    wait: DurationMs,
}

/// Updates of one attempt, in order.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    last_seq: u64,
    /// How many of the last ones are in no record yet.
    unrecorded: usize,
    /// Up to this number all are acknowledged, …
    acknowledged: u64,
    /// … which is in no record yet.
    acknowledged_news: bool,
    unacknowledged: VecDeque<Unacknowledged>,
}

impl Stream {
    /// The number that the next update must carry.
    pub(crate) const fn next_seq(&self) -> u64 {
        self.last_seq + 1
    }

    /// Adds an update that carries [`Self::next_seq`].
    pub(crate) fn push(&mut self, update: StatusUpdate) {
        debug_assert_eq!(update.key.seq, self.next_seq(), "updates are numbered without gaps");
        self.last_seq = update.key.seq;
        self.unrecorded += 1;
        // Most attempts never have more than two; of thousands that run, each has this.
        if self.unacknowledged.capacity() == 0 {
            self.unacknowledged.reserve_exact(2);
        }
        self.unacknowledged.push_back(Unacknowledged { update, sent: None, wait: FIRST_RESEND });
    }

    /// How many are not acknowledged, sent or not.
    pub(crate) fn in_flight(&self) -> usize {
        self.unacknowledged.len()
    }

    /// The framework has number `seq`, and with it all before: it takes them in order. An acknowledgement that was lost is made good
    /// by the next, so an attempt never ends with an earlier update left over. False when it was not waited for (a repeat).
    pub(crate) fn acknowledge(&mut self, seq: u64) -> bool {
        let before = self.unacknowledged.len();
        self.unacknowledged.retain(|u| u.update.key.seq > seq);
        let taken = self.unacknowledged.len() < before;
        if taken {
            self.acknowledged = seq.min(self.last_seq);
            self.acknowledged_news = true;
        }
        taken
    }

    /// Updates that no record has, and the last acknowledged number, if that is news.
    pub(crate) fn take_news(&mut self) -> (impl Iterator<Item = &StatusUpdate>, Option<u64>) {
        let new = std::mem::take(&mut self.unrecorded).min(self.unacknowledged.len());
        let acknowledged = std::mem::take(&mut self.acknowledged_news).then_some(self.acknowledged);
        (self.unacknowledged.iter().skip(self.unacknowledged.len() - new).map(|u| &u.update), acknowledged)
    }

    /// Whether [`Self::take_news`] has nothing.
    pub(crate) const fn is_recorded(&self) -> bool {
        self.unrecorded == 0 && !self.acknowledged_news
    }

    /// Everything that is not acknowledged, and the last number that is, for a snapshot.
    pub(crate) fn all(&self) -> (impl Iterator<Item = &StatusUpdate>, u64) {
        (self.unacknowledged.iter().map(|u| &u.update), self.acknowledged)
    }

    /// A stream as records describe it.
    pub(crate) fn restore(acknowledged: u64, updates: BTreeMap<u64, StatusUpdate>) -> Self {
        let mut stream = Self { last_seq: acknowledged, acknowledged, ..Self::default() };
        for (seq, update) in updates.into_iter().filter(|(seq, _)| *seq > acknowledged) {
            stream.last_seq = seq;
            stream.unacknowledged.push_back(Unacknowledged { update, sent: None, wait: FIRST_RESEND });
        }
        stream
    }

    /// Updates that have not been handed to the connection, or wait for their acknowledgement for too long.
    pub(crate) fn take_due(&mut self, now: Time, to: &mut Vec<StatusUpdate>) {
        for u in &mut self.unacknowledged {
            match u.sent {
                None => {
                    u.sent = Some(now);
                    to.push(u.update.clone());
                }
                Some(sent) if now >= sent.after(u.wait) => {
                    u.sent = Some(now);
                    u.wait = DurationMs((u.wait.0 * 2).min(LAST_RESEND.0));
                    to.push(u.update.clone());
                }
                Some(_) => {}
            }
        }
    }

    /// All of them, for a registration: they count as sent with it.
    pub(crate) fn register(&mut self, now: Time, to: &mut Vec<StatusUpdate>) {
        for u in &mut self.unacknowledged {
            u.sent = Some(now);
            u.wait = FIRST_RESEND;
            to.push(u.update.clone());
        }
    }

    /// The numbers not acknowledged, ascending: for invariants.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.unacknowledged.iter().map(|u| u.update.key.seq)
    }

    /// The last update not acknowledged.
    pub(crate) fn last(&self) -> Option<&StatusUpdate> {
        self.unacknowledged.back().map(|u| &u.update)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_types::{FrameworkId, Reason, TaskId, TaskKey, TaskState};

    fn update(seq: u64) -> StatusUpdate {
        let key = TaskKey { framework: FrameworkId::new("F").unwrap(), task: TaskId::new("t").unwrap(), attempt: 0 };
        StatusUpdate::new(key, seq, TaskState::Running, Reason::None, "", Time(0))
    }

    fn due(stream: &mut Stream, ms: u64) -> Vec<u64> {
        let mut out = Vec::new();
        stream.take_due(Time(ms * 1_000), &mut out);
        out.iter().map(|u| u.key.seq).collect()
    }

    #[test]
    fn an_update_is_sent_again_with_growing_waits_until_it_is_acknowledged() {
        let mut stream = Stream::default();
        stream.push(update(1));
        assert_eq!(due(&mut stream, 0), [1]);
        assert_eq!(due(&mut stream, 999), [] as [u64; 0]);
        assert_eq!(due(&mut stream, 1_000), [1]);
        assert_eq!(due(&mut stream, 2_999), [] as [u64; 0]);
        assert_eq!(due(&mut stream, 3_000), [1]);
        stream.push(update(2));
        assert_eq!(due(&mut stream, 3_001), [2]);
        assert!(stream.acknowledge(1));
        assert!(!stream.acknowledge(1));
        assert_eq!(stream.numbers().collect::<Vec<_>>(), [2]);
        let mut all = Vec::new();
        stream.register(Time(10_000_000), &mut all);
        assert_eq!(all.len(), 1);
        assert_eq!(due(&mut stream, 10_999), [] as [u64; 0]);
        assert_eq!(due(&mut stream, 11_000), [2]);
        assert!(stream.acknowledge(2));
        assert_eq!(stream.in_flight(), 0);
    }
}
