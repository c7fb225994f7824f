//! How many preparations go on at a time when there is no room for all of them, and who goes next.
//!
//! A preparation holds what it has fetched until its task has all. Several that each hold a part and wait for the rest would wait for ever, so
//! nobody waits with something in hand: who finds no room gives up all that it holds and comes back when what it needs could be had.
//! With each that finds none half as many go on at a time, down to one, and with each that gets through one more: one that is alone and finds
//! none although nothing is in use will never find any. Owns places and order. Deliberately absent: rooms and their sizes (the cache's).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, oneshot};

/// Preparations at a time, as long as there is room for all.
const MOST: usize = 1 << 16;

/// The places. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    state: Arc<Mutex<State>>,
    /// Told when a place is free.
    freed: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    limit: usize,
    running: usize,
    next: u64,
    /// By number: who came first goes first.
    waiting: BTreeMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// Bytes without which there is no use in beginning.
    needs: Option<Needs>,
    place: oneshot::Sender<Place>,
}

/// What somebody could not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) kind: super::cache::Kind,
    pub(crate) bytes: u64,
}

/// One that goes on; given back by dropping it.
#[derive(Debug)]
pub(crate) struct Place {
    queue: Queue,
    through: bool,
}

impl Queue {
    /// `freed` is told whenever a place is given back: [`Queue::give_out`] is to be called then.
    pub(crate) fn new(freed: Arc<Notify>) -> Self {
        let state = State { limit: MOST, running: 0, next: 0, waiting: BTreeMap::new() };
        Self { state: Arc::new(Mutex::new(state)), freed }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for somebody who comes now.
    pub(crate) fn number(&self) -> u64 {
        let mut state = self.lock();
        state.next += 1;
        state.next
    }

    /// A place for the one with this number, when it is its turn and `could_have` of what it needs are there.
    pub(crate) fn wait(&self, number: u64, needs: Option<Needs>, could_have: impl Fn(Needs) -> bool) -> oneshot::Receiver<Place> {
        let (place, waits) = oneshot::channel();
        self.lock().waiting.insert(number, Waiting { needs, place });
        self.give_out(could_have);
        waits
    }

    /// Whether anybody waits.
    pub(crate) fn is_waited_for(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// Fills the free places.
    pub(crate) fn give_out(&self, could_have: impl Fn(Needs) -> bool) {
        loop {
            let mut state = self.lock();
            state.waiting.retain(|_, w| !w.place.is_closed());
            if state.running >= state.limit {
                return;
            }
            let ready = state.waiting.iter().find(|(_, w)| w.needs.is_none_or(&could_have)).map(|(n, _)| *n);
            let Some(next) = ready.and_then(|n| state.waiting.remove(&n)) else { return };
            state.running += 1;
            drop(state);
            // Whoever does not want it any more drops it, which takes the lock.
            let _ = next.place.send(Place { queue: self.clone(), through: false });
        }
    }
}

impl Place {
    /// It got through: there is room for more, perhaps.
    pub(crate) fn got_through(mut self) {
        self.through = true;
    }

    /// It found no room; says whether it was alone.
    pub(crate) fn found_none(self) -> bool {
        let mut state = self.queue.lock();
        let was_alone = state.running == 1;
        state.limit = (state.running / 2).clamp(1, MOST);
        was_alone
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.running = state.running.saturating_sub(1);
        if self.through {
            state.limit = state.limit.saturating_add(1).min(MOST);
        }
        drop(state);
        self.queue.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::super::cache::Kind;
    use super::*;
    use futures::FutureExt;

    fn now(waits: &mut oneshot::Receiver<Place>) -> Option<Place> {
        waits.now_or_never().and_then(Result::ok)
    }

    #[test]
    fn fewer_go_on_when_there_is_no_room_and_more_when_there_is() {
        let queue = Queue::new(Arc::default());
        let ask = |number| queue.wait(number, None, |_| true);
        let mut first: Vec<Place> = (0..8).map(|n| now(&mut ask(n)).unwrap()).collect();
        assert!(!first.pop().unwrap().found_none(), "others were there");
        let mut later: Vec<_> = [12, 10, 11].into_iter().map(ask).collect();
        assert!(later.iter_mut().all(|w| now(w).is_none()), "four at a time, and seven are there");
        drop(first.drain(..4).collect::<Vec<_>>());
        queue.give_out(|_| true);
        assert!(now(&mut later[1]).is_some() && now(&mut later[0]).is_none(), "who came first");
        first.into_iter().for_each(Place::got_through);
        queue.give_out(|_| true);
        assert!(now(&mut later[0]).is_some() && now(&mut later[2]).is_some() && !queue.is_waited_for());
    }

    #[test]
    fn who_needs_what_is_not_there_holds_nobody_up() {
        let queue = Queue::new(Arc::default());
        let needs = |bytes| Some(Needs { kind: Kind::Inputs, bytes });
        let mut large = queue.wait(1, needs(100), |n| n.bytes <= 10);
        let place = now(&mut queue.wait(2, needs(5), |n| n.bytes <= 10)).unwrap();
        assert!(now(&mut large).is_none());
        place.got_through();
        assert!(now(&mut queue.wait(3, None, |_| false)).unwrap().found_none(), "nobody else was there");
        queue.give_out(|n| n.bytes <= 100);
        assert!(now(&mut large).is_some());
    }

    #[test]
    fn who_gives_up_leaves_no_place_behind() {
        let queue = Queue::new(Arc::default());
        drop(queue.wait(1, None, |_| false));
        drop(queue.wait(2, Some(Needs { kind: Kind::Inputs, bytes: 1 }), |_| false));
        queue.give_out(|_| true);
        assert!(!queue.is_waited_for() && queue.lock().running == 0);
    }
}
