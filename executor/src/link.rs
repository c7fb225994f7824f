//! The executor's side of the connection to the agent, for writing: shared by all slots.
//!
//! Owns the connection and the order of what is said. Messages that must not be missed are numbered and kept until they are confirmed
//! ([`crate::outbox`]), whether an agent is there or not; a new one hears all that was not confirmed, then what this executor holds.
//! Nobody waits for the socket under a lock: whoever says something writes what goes in at once, and a thread of its own, which may come
//! later, writes what does not. What slots wait for is room in the outbox, before they make a message.
//!
//! The gate: a statement is made (taken from where it accumulates, numbered, queued) while the gate is held for reading. Who takes stock
//! of all that this executor holds has it for writing: so everything is either still held or was said before, never both, never neither.

use crate::outbox::Outbox;
use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use smalti_executor_protocol::v1::{Hello, Holds, from_executor::Message};
use smalti_executor_protocol::{Draft, FrameError, blocking};
use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

/// Frames that wait for the socket when messages which may be missed are dropped.
const MAX_WAITING: usize = 1024;

/// Bytes on their way, with the descriptors that go with the first of them.
#[derive(Debug)]
struct Frame {
    bytes: Bytes,
    fds: Arc<[OwnedFd]>,
    sent: usize,
}

impl From<Bytes> for Frame {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, fds: Arc::new([]), sent: 0 }
    }
}

/// Who takes frames off the queue and writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Writing {
    #[default]
    Nobody,
    /// Somebody who said something, or the thread after a wait.
    Somebody,
    /// The thread, as soon as the socket has room.
    Later,
}

#[derive(Debug, Default)]
struct State {
    outbox: Outbox,
    /// Counts connections, so that who wrote to an earlier one notices.
    connection: u64,
    stream: Option<Arc<UnixStream>>,
    /// For this connection. Frames with numbers are in the outbox, too.
    queue: VecDeque<Frame>,
    writing: Writing,
    /// Nobody waits for room any more.
    closing: bool,
    /// The thread is to end.
    ended: bool,
}

/// Says things to the agent, whole and in the order of the calls.
#[derive(Debug, Default)]
pub(crate) struct Link {
    gate: RwLock<()>,
    state: Mutex<State>,
    /// The outbox may have room.
    room: Condvar,
    /// The thread has something to do.
    later: Condvar,
    /// Whether an agent is there and reads.
    listening: AtomicBool,
}

/// Leave to say something. Never made twice by one thread at a time: the second would wait for who takes stock, and that one for the
/// first.
#[derive(Debug)]
pub(crate) struct Speech<'a> {
    link: &'a Link,
    _gate: RwLockReadGuard<'a, ()>,
}

impl Speech<'_> {
    /// Says something that must not be missed. Never waits.
    pub(crate) fn say(&self, message: Message) {
        match Draft::new(message) {
            Ok(draft) => {
                let mut state = self.link.lock();
                let frame = state.outbox.push(draft);
                if state.stream.is_some() {
                    state.queue.push_back(frame.into());
                    self.link.write(state);
                }
            }
            // Everything in a message is bounded, to less than a frame by an order of magnitude.
            Err(e) => eprintln!("smalti-executor: a message is lost: {e}"),
        }
    }
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while too much is unconfirmed. Not for the thread that hears the agent: it could never confirm anything then.
    pub(crate) fn wait_for_room(&self) {
        let mut state = self.lock();
        while !state.outbox.has_room() && !state.closing {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
    /// Whether nobody would have to wait for room.
    pub(crate) fn has_room(&self) -> bool {
        self.lock().outbox.has_room()
    }
    /// Whether an agent is there and reads: only then it is worth telling it anything early.
    pub(crate) fn is_listening(&self) -> bool {
        self.listening.load(Ordering::Relaxed)
    }

    /// To say something: everything that makes the message true or out of date happens while the answer lives.
    pub(crate) fn speak(&self) -> Speech<'_> {
        Speech { link: self, _gate: self.gate.read().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Says one thing that must not be missed and that changes nothing of what this executor holds.
    pub(crate) fn say(&self, message: Message) {
        self.speak().say(message);
    }

    /// Says something that may be missed: it is, where no agent is there to hear it soon.
    pub(crate) fn mention(&self, message: Message) {
        let Ok(draft) = Draft::new(message) else { return };
        let mut state = self.lock();
        if state.stream.is_some() && state.queue.len() < MAX_WAITING {
            state.queue.push_back(draft.unnumbered().into());
            self.write(state);
        }
    }

    /// Whether nothing waits for the socket, and nobody will say anything, as far as `idle` tells: what somebody is just about to say counts.
    pub(crate) fn is_done(&self, idle: impl FnOnce() -> bool) -> bool {
        let _gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        idle() && self.lock().writing != Writing::Later
    }

    /// These have taken effect.
    pub(crate) fn confirm(&self, number: u64) {
        self.lock().outbox.confirm(number);
        self.room.notify_all();
    }

    /// From now on to this agent, which knows everything up to `confirmed`. `holds` takes stock.
    ///
    /// # Errors
    /// When the first words cannot be encoded.
    pub(crate) fn connect(
        &self,
        stream: UnixStream,
        confirmed: u64,
        (hello, fds): (Hello, Vec<OwnedFd>),
        holds: impl FnOnce() -> Holds,
    ) -> Result<(), FrameError> {
        let gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let message = smalti_executor_protocol::v1::FromExecutor { number: 0, message: Some(Message::Hello(hello)) };
        let hello = Frame { bytes: smalti_executor_protocol::encode(&message, fds.len())?, fds: fds.into(), sent: 0 };
        let holds = Draft::new(Message::Holds(holds()))?.unnumbered();
        let mut state = self.lock();
        state.outbox.confirm(confirmed);
        self.room.notify_all();
        state.queue = std::iter::once(hello).chain(state.outbox.frames().map(Frame::from)).chain([holds.into()]).collect();
        state.connection += 1;
        state.stream = Some(Arc::new(stream));
        self.listening.store(true, Ordering::Relaxed);
        drop(gate);
        self.write(state);
        Ok(())
    }

    /// From now on to nobody.
    pub(crate) fn disconnect(&self) {
        self.cut(&mut self.lock());
    }

    fn cut(&self, state: &mut State) {
        self.listening.store(false, Ordering::Relaxed);
        if let Some(stream) = state.stream.take() {
            // Whoever waits for it wakes up.
            let _ = stream.shutdown(Shutdown::Both);
        }
        state.queue.clear();
    }

    /// This process is about to end: nobody waits for room any more.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.room.notify_all();
    }

    /// Ends [`Link::run`], and the connection with it: what an agent has not read by now it never hears.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        self.cut(&mut state);
        self.later.notify_all();
    }

    /// Writes what is queued, as far as it goes in at once, unless somebody does that already: then that one goes on with it.
    fn write<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        if state.writing != Writing::Nobody {
            return;
        }
        state.writing = Writing::Somebody;
        while let (Some(stream), Some(frame)) = (state.stream.clone(), state.queue.front()) {
            let (connection, bytes, fds, sent) = (state.connection, frame.bytes.clone(), frame.fds.clone(), frame.sent);
            drop(state);
            let result = blocking::transmit_now(&*stream, &bytes[sent..], &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>());
            state = self.lock();
            if state.connection != connection || state.stream.is_none() {
                continue;
            }
            match (result, state.queue.front_mut()) {
                (Ok(n), Some(frame)) if frame.sent + n < frame.bytes.len() => {
                    frame.sent += n;
                    frame.fds = Arc::new([]);
                }
                (Ok(_), _) => drop(state.queue.pop_front()),
                (Err(e), _) if e.is_timeout() => {
                    state.writing = Writing::Later;
                    self.listening.store(false, Ordering::Relaxed);
                    self.later.notify_all();
                    return;
                }
                (Err(e), _) => {
                    eprintln!("smalti-executor: the connection to the agent is lost: {e}");
                    self.cut(&mut state);
                }
            }
        }
        state.writing = Writing::Nobody;
        self.listening.store(state.stream.is_some(), Ordering::Relaxed);
    }

    /// The thread that waits for the socket, until [`Link::end`].
    pub(crate) fn run(&self) {
        let mut state = self.lock();
        while !state.ended {
            if state.writing != Writing::Later {
                state = self.later.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let stream = state.stream.clone();
            drop(state);
            if let Some(stream) = stream {
                // An agent that is gone wakes it, too, and so does the end of this connection.
                let _ = poll(&mut [PollFd::new(&*stream, PollFlags::OUT)], None);
            }
            state = self.lock();
            state.writing = Writing::Nobody;
            self.write(state);
            state = self.lock();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_executor_protocol::Reader;
    use smalti_executor_protocol::v1::{FromExecutor, Progress, Started};
    use std::time::Duration;

    fn started(run: u64) -> Message {
        Message::Started(Started { run })
    }

    /// Connects a new agent; its end, with its first message taken.
    fn connect(link: &Link, confirmed: u64) -> Reader {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        link.connect(theirs, confirmed, (Hello::default(), Vec::new()), Holds::default).unwrap();
        let mut reader = Reader::new(ours);
        assert_eq!(hear(&mut reader), (0, Message::Hello(Hello::default())));
        reader
    }

    fn hear(reader: &mut Reader) -> (u64, Message) {
        let (message, _) = reader.recv::<FromExecutor>().unwrap().unwrap();
        (message.number, message.message.unwrap())
    }

    #[test]
    fn a_new_agent_hears_what_was_not_confirmed_and_then_what_is_held() {
        let link = Link::default();
        link.say(started(1));
        let mut first = connect(&link, 0);
        assert_eq!(hear(&mut first), (1, started(1)));
        assert_eq!(hear(&mut first), (0, Message::Holds(Holds::default())));
        link.say(started(2));
        link.confirm(1);
        assert_eq!(hear(&mut first), (2, started(2)));
        link.disconnect();
        link.mention(Message::Progress(Progress::default()));
        link.say(started(3));
        link.say(started(4));
        let mut second = connect(&link, 2);
        assert_eq!([hear(&mut second), hear(&mut second)], [(3, started(3)), (4, started(4))]);
        assert_eq!(hear(&mut second), (0, Message::Holds(Holds::default())));
        link.mention(Message::Progress(Progress::default()));
        assert_eq!(hear(&mut second), (0, Message::Progress(Progress::default())));
    }

    #[test]
    fn an_agent_that_does_not_read_holds_nobody_up_until_the_outbox_is_full() {
        let link = Arc::new(Link::default());
        let thread = std::thread::spawn({
            let link = link.clone();
            move || link.run()
        });
        let mut agent = connect(&link, 0);
        let mut said = 0;
        while link.has_room() {
            said += 1;
            link.say(started(said));
        }
        assert!(!link.is_listening(), "the socket's buffer is smaller than the outbox");
        let waits = std::thread::spawn({
            let link = link.clone();
            move || {
                link.wait_for_room();
                link.say(started(said + 1));
            }
        });
        assert_eq!(hear(&mut agent).1, Message::Holds(Holds::default()));
        for run in 1..=said {
            assert_eq!(hear(&mut agent), (run, started(run)));
        }
        assert!(!waits.is_finished(), "heard is not confirmed");
        link.confirm(said);
        assert_eq!(hear(&mut agent), (said + 1, started(said + 1)));
        waits.join().unwrap();
        link.end();
        thread.join().unwrap();
    }

    #[test]
    fn the_end_of_this_process_waits_for_nobody() {
        let link = Link::default();
        while link.has_room() {
            link.say(started(1));
        }
        link.close();
        link.wait_for_room();
    }
}
