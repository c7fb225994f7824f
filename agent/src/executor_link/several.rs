//! Messages that go to one executor in the same moment, joined into few frames.
//!
//! A frame for each wakes the executor for each, and as often as not the kernel lets it run before the agent has told it the next.

use super::Outgoing;
use smalti_executor_protocol::MAX_FDS;
use smalti_executor_protocol::v1::{Several, ToExecutor, to_executor};

/// Bytes of a frame above which nothing is added to it.
const MOST_BYTES: usize = 32 << 10;

/// The same messages in the same order, in as few frames as hold them. Long ones stay by themselves.
pub(crate) fn join(messages: Vec<Outgoing>) -> Vec<Outgoing> {
    let mut frames = Vec::new();
    let (mut joined, mut bytes, mut fds) = (Vec::new(), 0, 0);
    for next in messages {
        let length = next.message.encoded_len();
        if bytes + length > MOST_BYTES || fds + next.fds.len() > MAX_FDS {
            frames.extend(frame(std::mem::take(&mut joined)));
            (bytes, fds) = (0, 0);
        }
        (bytes, fds) = (bytes + length, fds + next.fds.len());
        joined.push(next);
    }
    frames.extend(frame(joined));
    frames
}

fn frame(mut messages: Vec<Outgoing>) -> Option<Outgoing> {
    if messages.len() < 2 {
        return messages.pop();
    }
    let mut all = Outgoing { message: to_executor::Message::Several(Several::default()), fds: Vec::new() };
    let to_executor::Message::Several(several) = &mut all.message else { return None };
    for Outgoing { message, fds } in messages {
        several.messages.push(ToExecutor { message: Some(message) });
        // At most as many as a frame may carry.
        several.fds.push(u32::try_from(fds.len()).unwrap_or(u32::MAX));
        all.fds.extend(fds);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smalti_executor_protocol::v1::{Confirm, StartTask};
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    proptest! {
        #[test]
        fn all_arrive_in_order_with_their_descriptors(messages in prop::collection::vec((0_usize..5, 0_usize..12_000), 0..100)) {
            let file: Arc<OwnedFd> = Arc::new(File::open("/dev/null").unwrap().into());
            let start = |(run, (fds, length)): (usize, &(usize, usize))| {
                let grace_us = u64::MAX >> (length % 64);
                let task = StartTask { run: run as u64, grace_us, guest: None, slot: 0, ..StartTask::default() };
                let message = if length % 7 == 0 { to_executor::Message::Confirm(Confirm { number: run as u64 }) } else { to_executor::Message::Start(task) };
                Outgoing { message, fds: vec![file.clone(); *fds] }
            };
            let sent: Vec<Outgoing> = messages.iter().enumerate().map(start).collect();
            let frames = join(messages.iter().enumerate().map(start).collect());
            prop_assert!(frames.len() <= 1 + sent.iter().map(|m| m.fds.len()).sum::<usize>() / (MAX_FDS - 4));
            let mut arrived = Vec::new();
            for frame in frames {
                prop_assert!(frame.fds.len() <= MAX_FDS);
                match frame.message {
                    to_executor::Message::Several(several) => {
                        prop_assert_eq!(several.fds.iter().sum::<u32>() as usize, frame.fds.len());
                        arrived.extend(several.messages.into_iter().map(|m| m.message.unwrap()).zip(several.fds));
                    }
                    message => arrived.push((message, u32::try_from(frame.fds.len()).unwrap())),
                }
            }
            let sent: Vec<_> = sent.into_iter().map(|m| (m.message, u32::try_from(m.fds.len()).unwrap())).collect();
            prop_assert_eq!(arrived, sent);
        }
    }

    #[test]
    fn long_ones_stay_by_themselves() {
        let text = |length: usize| {
            to_executor::Message::Load(smalti_executor_protocol::v1::LoadModule { name: "x".repeat(length), ..Default::default() })
        };
        let frames = join([10, MOST_BYTES * 2, 20, 30].map(text).map(Outgoing::from).into());
        let several = |frame: &Outgoing| matches!(frame.message, to_executor::Message::Several(_));
        assert_eq!(frames.iter().map(several).collect::<Vec<_>>(), [false, false, true]);
    }
}
