//! Messages that an agent must not miss, kept until one has said that they took effect. Pure: no locks, no socket, no clock.
//!
//! Owns their numbers, which count from 1 without a gap, and the bounds of what is kept. Where they are sent is [`crate::link`]'s.

use bytes::Bytes;
use smalti_executor_protocol::Draft;
use std::collections::VecDeque;

/// Above this many bytes, or messages, nothing new is begun: slots wait. What is being said at that moment still comes in: a report for
/// each part (about a MiB each at most), an answer for each thing that the agent asks.
pub(crate) const MAX_BYTES: usize = 8 << 20;
pub(crate) const MAX_MESSAGES: usize = 32 << 10;

/// What is not confirmed.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// The number of the newest message.
    last: u64,
    /// The newest ones, up to `last`.
    kept: VecDeque<Bytes>,
    bytes: usize,
}

impl Outbox {
    /// Numbers a message and keeps it; gives its frame.
    pub(crate) fn push(&mut self, draft: Draft) -> Bytes {
        self.last += 1;
        let frame = draft.numbered(self.last);
        self.bytes += frame.len();
        self.kept.push_back(frame.clone());
        frame
    }

    /// Forgets the messages up to `number`.
    pub(crate) fn confirm(&mut self, number: u64) {
        while self.last - (self.kept.len() as u64) < number
            && let Some(frame) = self.kept.pop_front()
        {
            self.bytes -= frame.len();
        }
    }

    /// All that is kept, in order.
    pub(crate) fn frames(&self) -> impl Iterator<Item = Bytes> + '_ {
        self.kept.iter().cloned()
    }

    /// Whether more may be begun.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes < MAX_BYTES && self.kept.len() < MAX_MESSAGES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_executor_protocol::Decoder;
    use smalti_executor_protocol::v1::{FromExecutor, Progress, Started, from_executor::Message};

    fn started(run: u64) -> Draft {
        Draft::new(Message::Started(Started { run })).expect("short")
    }

    fn numbers(outbox: &Outbox) -> Vec<u64> {
        let mut decoder = Decoder::new();
        let mut numbers = Vec::new();
        for frame in outbox.frames() {
            decoder.push(&frame, Vec::new()).expect("a frame");
            let (message, _) = decoder.next().expect("whole").expect("one").decode::<FromExecutor>().expect("a message");
            assert_eq!(message.message, Some(Message::Started(Started { run: message.number })));
            numbers.push(message.number);
        }
        numbers
    }

    #[test]
    fn what_is_confirmed_is_forgotten_and_the_rest_stays_in_order() {
        let mut outbox = Outbox::default();
        (1..=5).for_each(|run| drop(outbox.push(started(run))));
        assert_eq!(numbers(&outbox), [1, 2, 3, 4, 5]);
        outbox.confirm(0);
        outbox.confirm(3);
        outbox.confirm(2);
        assert_eq!(numbers(&outbox), [4, 5]);
        // More than there ever was: nothing is left, and the numbers go on.
        outbox.confirm(u64::MAX);
        outbox.push(started(6));
        assert_eq!(numbers(&outbox), [6]);
        outbox.confirm(6);
        assert_eq!(outbox.bytes, 0);
    }

    #[test]
    fn it_is_bounded_by_number_and_by_size() {
        let mut outbox = Outbox::default();
        for run in 0..MAX_MESSAGES as u64 {
            assert!(outbox.has_room());
            outbox.push(started(run));
        }
        assert!(!outbox.has_room());
        outbox.confirm(1);
        assert!(outbox.has_room());
        let large = Draft::new(Message::Progress(Progress { text: "x".repeat(MAX_BYTES), ..Progress::default() })).expect("short enough");
        let mut outbox = Outbox::default();
        outbox.push(large);
        assert!(!outbox.has_room());
        outbox.confirm(1);
        assert!(outbox.has_room());
    }
}
