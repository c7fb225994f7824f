//! How many preparations go on at a time when there is no room for all of them, and who goes next.
//!
//! A preparation holds what it has fetched until its task has all. Several that each hold a part and wait for the rest would wait for ever, so
//! nobody waits with something in hand: who finds no room gives up all that it holds and comes back when what it needs could be had.
//! With each that finds none half as many go on at a time, down to one, and with each that gets through one more: one that is alone and finds
//! none although nothing is in use will never find any.
//!
//! Who needs nothing but a bundle that is at hand takes no room, and goes first: so a bundle that had to be fetched serves all who wait for it
//! before it makes room for another. Among those who need room, frameworks take turns. Who was passed over too often by users of bundles that
//! stay for their sake claims the busiest of these: its next users wait behind the claim, until what is left lets go of enough.
//! Owns places, order and claims. Deliberately absent: rooms and their sizes (the cache's), and clocks.

use smalti_types::{BundleRef, Digest, FrameworkId, Role};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// Preparations at a time, as long as there is room for all.
const MOST: usize = 1 << 16;
/// Who waits for room claims a bundle when this many went past it with bundles that were there…
const MOST_PASSED: u64 = 256;
/// … or some did for so long.
const LONGEST_PASSED: Duration = Duration::from_secs(10);
/// Another bundle is claimed when those before did not help for so long.
const CLAIMS_EVERY: Duration = Duration::from_secs(1);
/// Accounts of frameworks and bundles that are kept, at most.
const MOST_ACCOUNTS: usize = 4_096;

/// Tickets that are ready at the same moment: same bytes from the same place, for the same role.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Group {
    pub(crate) bundle: BundleRef,
    /// Whether its code counts fuel.
    pub(crate) fuel: bool,
    pub(crate) role: Role,
}

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    number: u64,
    tenant: FrameworkId,
    group: Arc<Group>,
    /// Needs nothing but the bundle.
    plain: bool,
    came: Instant,
    /// How many had passed others when it came.
    passed: u64,
}

/// What is there, and what could be.
pub(crate) trait Rooms {
    /// Whether so much could be had.
    fn could_have(&self, needs: Needs) -> bool;
    /// Whether a bundle is ready to run, in memory or on the disk, and the role's to use.
    fn is_at_hand(&self, group: &Group) -> bool;
}

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
    /// What is being made ready by those who have a place, and what room they came for.
    opening: HashMap<u64, (Arc<Group>, Option<Needs>)>,
    /// When each framework had its last turn, counted in turns.
    served: HashMap<FrameworkId, u64>,
    turn: u64,
    /// How often each bundle went past somebody, and all together.
    passes: HashMap<Digest, u64>,
    passed: u64,
    claim: Option<Claim>,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    /// Bytes without which there is no use in beginning.
    needs: Option<Needs>,
    place: oneshot::Sender<Place>,
}

/// Bundles that nobody else begins to use until somebody has had room.
#[derive(Debug)]
struct Claim {
    number: u64,
    digests: HashSet<Digest>,
    grown: Instant,
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
    number: u64,
    /// Whether it is one of those that are limited.
    is_counted: bool,
    /// Whether it was turned away before.
    came_back: bool,
    through: bool,
}

impl Queue {
    /// `freed` is told whenever a place is given back: [`Queue::give_out`] is to be called then.
    pub(crate) fn new(freed: Arc<Notify>) -> Self {
        let state = State {
            limit: MOST,
            running: 0,
            next: 0,
            waiting: BTreeMap::new(),
            opening: HashMap::new(),
            served: HashMap::new(),
            turn: 0,
            passes: HashMap::new(),
            passed: 0,
            claim: None,
        };
        Self { state: Arc::new(Mutex::new(state)), freed }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ticket for somebody who comes now. `plain`: it needs nothing but its bundle.
    pub(crate) fn ticket(&self, tenant: FrameworkId, group: Group, plain: bool, now: Instant) -> Ticket {
        let mut state = self.lock();
        state.next += 1;
        Ticket { number: state.next, tenant, group: Arc::new(group), plain, came: now, passed: state.passed }
    }

    /// A place for this ticket, when it is its turn and what it needs could be had.
    pub(crate) fn wait(&self, ticket: &Ticket, needs: Option<Needs>, rooms: &impl Rooms) -> oneshot::Receiver<Place> {
        let (place, waits) = oneshot::channel();
        let number = ticket.number;
        let chosen = {
            let mut state = self.lock();
            state.waiting.insert(number, Waiting { ticket: ticket.clone(), needs, place });
            state.choose((number, number), rooms)
        };
        self.send(chosen);
        waits
    }

    /// Whether anybody waits.
    pub(crate) fn is_waited_for(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// Whether somebody who needs nothing but this bundle, which is ready, may go on at once.
    pub(crate) fn may_pass(&self, digest: Digest) -> bool {
        let mut state = self.lock();
        let may = !state.is_claimed(digest);
        if may {
            state.pass(digest);
        }
        may
    }

    /// Fills the free places.
    pub(crate) fn give_out(&self, now: Instant, rooms: &impl Rooms) {
        let chosen = {
            let mut state = self.lock();
            state.waiting.retain(|_, w| !w.place.is_closed());
            state.see_to_claim(now, rooms);
            state.choose((0, u64::MAX), rooms)
        };
        self.send(chosen);
    }

    /// Whoever does not want it any more drops it, which takes the lock.
    fn send(&self, chosen: Vec<(Waiting, bool)>) {
        for (Waiting { ticket, needs, place }, is_counted) in chosen {
            let given = Place { queue: self.clone(), number: ticket.number, is_counted, came_back: needs.is_some(), through: false };
            let _ = place.send(given);
        }
    }
}

impl State {
    fn is_claimed(&self, digest: Digest) -> bool {
        self.claim.as_ref().is_some_and(|claim| claim.digests.contains(&digest))
    }

    /// Whether the ticket's bundle is somebody else's claim.
    fn is_held_back(&self, ticket: &Ticket) -> bool {
        self.claim.as_ref().is_some_and(|claim| claim.number != ticket.number) && self.is_claimed(ticket.group.bundle.digest)
    }

    /// Somebody goes past those who wait.
    fn pass(&mut self, digest: Digest) {
        if self.waiting.is_empty() {
            self.passes.clear();
            return;
        }
        self.passed += 1;
        if self.passes.len() < MOST_ACCOUNTS || self.passes.contains_key(&digest) {
            *self.passes.entry(digest).or_default() += 1;
        }
    }

    /// Takes those out of the queue, numbered from `first` to `last`, who may go on, and says whether each is counted.
    fn choose(&mut self, (first, last): (u64, u64), rooms: &impl Rooms) -> Vec<(Waiting, bool)> {
        let mut chosen = Vec::new();
        let mut at_hand: HashMap<&Group, bool> = HashMap::new();
        let mut ready = Vec::new();
        for (number, w) in self.waiting.range(first..=last).filter(|(_, w)| w.ticket.plain && !self.is_held_back(&w.ticket)) {
            let group = &*w.ticket.group;
            if *at_hand.entry(group).or_insert_with(|| rooms.is_at_hand(group)) {
                ready.push(*number);
            }
        }
        for waiting in ready.iter().filter_map(|number| self.waiting.remove(number)).collect::<Vec<_>>() {
            self.pass(waiting.ticket.group.bundle.digest);
            chosen.push((waiting, false));
        }
        while self.running < self.limit {
            let Some(next) = self.next_with_room((first, last), rooms).and_then(|number| self.waiting.remove(&number)) else { break };
            self.running += 1;
            self.turn += 1;
            if self.served.len() >= MOST_ACCOUNTS {
                self.served.clear();
            }
            self.served.insert(next.ticket.tenant.clone(), self.turn);
            self.opening.insert(next.ticket.number, (next.ticket.group.clone(), next.needs));
            chosen.push((next, true));
        }
        chosen
    }

    /// Who needs room and could have it: the claimant, else one of the framework that had no turn for the longest time, the oldest of its.
    fn next_with_room(&self, (first, last): (u64, u64), rooms: &impl Rooms) -> Option<u64> {
        let is_short = self.limit < MOST;
        let opened: HashSet<&Group> = if is_short { self.opening.values().map(|(group, _)| &**group).collect() } else { HashSet::new() };
        let mut promised = [0_u64; 3];
        for needs in self.opening.values().filter_map(|(_, needs)| *needs) {
            promised[needs.kind as usize] += needs.bytes;
        }
        // Those who have a place may not have taken yet what they came for.
        let could_have = |needs: Needs| rooms.could_have(Needs { bytes: needs.bytes + promised[needs.kind as usize], ..needs });
        let may_begin = |w: &Waiting| {
            // Who waits for what another one makes ready goes on when it is.
            let is_made_ready = w.ticket.plain && opened.contains(&*w.ticket.group);
            !is_made_ready && !self.is_held_back(&w.ticket) && w.needs.is_none_or(could_have)
        };
        let order = |(number, w): &(&u64, &Waiting)| {
            let is_other = self.claim.as_ref().is_none_or(|claim| claim.number != **number);
            (is_other, self.served.get(&w.ticket.tenant).copied().unwrap_or_default(), **number)
        };
        self.waiting.range(first..=last).filter(|(_, w)| may_begin(w)).min_by_key(order).map(|(number, _)| *number)
    }

    /// Begins a claim for who was passed over too often, lets it grow, and ends it when nobody needs it any more.
    fn see_to_claim(&mut self, now: Instant, rooms: &impl Rooms) {
        if let Some(claim) = &self.claim
            && !self.waiting.contains_key(&claim.number)
            && !self.opening.contains_key(&claim.number)
        {
            self.claim = None;
        }
        let in_vain = |w: &Waiting| w.needs.is_some_and(|needs| !rooms.could_have(needs));
        let number = match &self.claim {
            Some(claim) if now.saturating_duration_since(claim.grown) < CLAIMS_EVERY => return,
            Some(claim) => self.waiting.get(&claim.number).filter(|w| in_vain(w)).map(|w| w.ticket.number),
            None => self.waiting.values().find(|w| self.was_passed_too_often(&w.ticket, now) && in_vain(w)).map(|w| w.ticket.number),
        };
        let Some(number) = number else { return };
        let mut digests = self.claim.take().map(|claim| claim.digests).unwrap_or_default();
        let busiest = self.passes.iter().filter(|(digest, _)| !digests.contains(digest)).max_by_key(|(digest, n)| (**n, **digest));
        digests.extend(busiest.map(|(digest, _)| *digest));
        self.claim = Some(Claim { number, digests, grown: now });
    }

    fn was_passed_too_often(&self, ticket: &Ticket, now: Instant) -> bool {
        let passed = self.passed.saturating_sub(ticket.passed);
        passed >= MOST_PASSED || (passed > 0 && now.saturating_duration_since(ticket.came) >= LONGEST_PASSED)
    }
}

impl Place {
    /// It got through: there is room for more, perhaps.
    pub(crate) fn got_through(mut self) {
        self.through = true;
    }

    /// It found no room; says whether it was alone.
    pub(crate) fn found_none(self) -> bool {
        if !self.is_counted {
            return false;
        }
        let mut state = self.queue.lock();
        let was_alone = state.running == 1;
        // While others wait, that newcomers find none is no news.
        if self.came_back || state.waiting.is_empty() {
            state.limit = (state.running / 2).clamp(1, MOST);
        }
        was_alone
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        if self.is_counted {
            state.running = state.running.saturating_sub(1);
            state.opening.remove(&self.number);
            if self.through {
                state.limit = state.limit.saturating_add(1).min(MOST);
            }
        }
        if self.through && state.claim.as_ref().is_some_and(|claim| claim.number == self.number) {
            state.claim = None;
        }
        drop(state);
        self.queue.freed.notify_one();
    }
}

#[cfg(test)]
mod tests;
