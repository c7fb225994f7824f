//! Hands items to parts: how many, when, and when to ask for some back.
//!
//! The first chunk is one item per slot, because nothing is known about the items. After that guided self-scheduling: a part
//! gets its share of half of what is left, so chunks shrink towards the end, and never more than [`WINDOW_US`] of work at its
//! measured speed, so that slow items are not queued deep. When nothing is left to hand out and a part stands idle, it gets
//! what another one has not started yet.

use crate::part::Part;
use crate::pool::Pool;
use crate::trouble::Troubles;
use smalti_types::{ItemSet, TaskState, Time};

/// Work that a part may have queued, in microseconds at its measured speed: long against a round trip, short against a tail.
pub const WINDOW_US: u64 = 150_000;
/// A part's queue grows at most by this factor from one chunk to the next: the first measurements are of few items.
pub const GROWTH: u64 = 4;
/// Most items in one chunk, with splits: those are listed one by one and must fit a message.
pub const MAX_CHUNK_WITH_SPLITS: u64 = 20_000;
/// Most items in one chunk.
pub const MAX_CHUNK: u64 = 1_000_000;
/// Queued work below this is not worth asking back: it would be done before the answer comes.
pub const STEAL_WORTH_US: u64 = 5_000;
/// Queued work beyond this is asked back for new parts although no open part stands idle.
pub const STUCK_US: u64 = 250_000;
/// A part that has not begun to run after this long may lose its items to one that stands idle, or to a new one. Twice as long each time that
/// this was in vain: a new part on the same agent begins from the start with what the last one waited for, a compilation say.
pub const SLOW_START_US: u64 = 500_000;
/// How often it becomes twice as long.
const SLOW_START_DOUBLINGS: u32 = 9;
/// Agents report outcomes at least this often while there are some (their pacing is at most a second).
pub const LONGEST_REPORT_US: u64 = 1_500_000;
/// An answer to a question for items that has not come by now will not come.
pub const ASK_TIMEOUT_US: u64 = 2_000_000;

/// What a part is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// More items.
    Assign {
        /// To which part.
        part: u32,
        /// Attempt number of all of these items.
        attempt: u32,
        /// The items.
        items: ItemSet,
        /// Whether more may follow.
        open: bool,
    },
    /// No more items will follow.
    Close {
        /// Which part.
        part: u32,
    },
    /// Give items back.
    Return {
        /// Which part.
        part: u32,
        /// How many at most.
        most: u64,
    },
}

impl Pool {
    /// Decides what the parts are told now. Called after everything that may have changed the pool.
    pub fn feed(&mut self, now: Time) -> Vec<Order> {
        let mut orders = Vec::new();
        let mut open: Vec<u32> =
            self.parts.iter().filter(|(_, p)| p.open && p.is_running() && p.away_until <= now).map(|(n, _)| *n).collect();
        // The neediest first: returned items must reach the part that stands idle.
        open.sort_by_key(|n| self.parts.get(n).map_or(0, |p| p.outstanding.len() * 1_000 / u64::from(p.slots.max(1))));
        for part in open {
            self.top_up(part, &mut orders);
        }
        if self.ready.is_empty() {
            self.balance(now, &mut orders);
        }
        orders
    }

    /// Parts on agents where items keep failing are closed, and what they have not started goes elsewhere, if there is another part.
    pub(crate) fn leave(&mut self, now: Time, troubles: &Troubles, orders: &mut Vec<Order>) {
        if troubles.is_empty() {
            return;
        }
        let avoided = troubles.avoided(now, self.parts.values().filter(|p| p.is_live() && p.is_running()).map(|p| &p.agent));
        for (number, part) in self.parts.iter_mut().filter(|(_, p)| p.open && p.is_running() && avoided.contains(&p.agent)) {
            part.open = false;
            orders.push(Order::Close { part: *number });
            if part.unstarted() > 0 {
                orders.push(Order::Return { part: *number, most: part.unstarted() });
            }
        }
    }

    /// Splits of the array make chunks smaller.
    fn chunk_limit(&self) -> u64 {
        if self.has_splits { MAX_CHUNK_WITH_SPLITS } else { MAX_CHUNK }
    }

    /// The first items of a part with this many slots.
    pub(crate) fn first_chunk(&mut self, slots: u32) -> Option<(u32, ItemSet)> {
        self.take(u64::from(slots).min(self.chunk_limit()))
    }

    /// Mean time of an item over all parts, weighted equally; zero when no part knows.
    #[must_use]
    pub fn mean_us(&self) -> u64 {
        let known: Vec<u64> = self.parts.values().map(|p| p.pace.mean_us).filter(|m| *m > 0).collect();
        known.iter().sum::<u64>().checked_div(known.len() as u64).unwrap_or(0)
    }

    fn top_up(&mut self, number: u32, orders: &mut Vec<Order>) {
        let ready = self.ready();
        let Some(part) = self.parts.get(&number) else { return };
        let target = self.target(part, ready).min(self.chunk_limit());
        let have = part.outstanding.len();
        if have >= u64::from(part.slots) && have > target / 2 {
            return;
        }
        let mut want = target.saturating_sub(have);
        while want > 0 {
            let Some((attempt, items)) = self.take(want) else { break };
            want = want.saturating_sub(items.len());
            if let Some(part) = self.parts.get_mut(&number) {
                part.outstanding.extend(&items);
                part.pace.last_target = target;
            }
            orders.push(Order::Assign { part: number, attempt, items, open: true });
        }
    }

    /// How many items a part should have.
    fn target(&self, part: &Part, ready: u64) -> u64 {
        let slots = u64::from(part.slots.max(1));
        if part.pace.mean_us == 0 {
            return slots;
        }
        let mean_of_all = self.mean_us();
        let rate = |p: &Part| {
            let mean = if p.pace.mean_us == 0 { mean_of_all } else { p.pace.mean_us };
            (u64::from(p.slots) * 1_000_000 / mean.max(1)).max(1)
        };
        let all: u64 = self.parts.values().filter(|p| p.open).map(rate).sum();
        let guided = u128::from(ready) * u128::from(rate(part)) / (2 * u128::from(all.max(1)));
        let by_time = slots * WINDOW_US / part.pace.mean_us;
        let by_growth = part.pace.last_target.max(slots).saturating_mul(GROWTH);
        u64::try_from(guided).unwrap_or(u64::MAX).min(by_time).min(by_growth).max(slots)
    }

    /// Nothing is left to hand out: idle parts get what others have not started, or are closed.
    fn balance(&mut self, now: Time, orders: &mut Vec<Order>) {
        let fallback = self.mean_us();
        if self.parts.values().any(Part::is_running) {
            self.slow_starts = 0;
        }
        let patience = SLOW_START_US << self.slow_starts.min(SLOW_START_DOUBLINGS);
        for part in self.parts.values_mut() {
            if part.asked_back.is_some_and(|t| now.micros_since(t) > ASK_TIMEOUT_US) || part.unstarted() == 0 {
                part.asked_back = None;
            }
        }
        let asked = self.parts.values().any(|p| p.asked_back.is_some());
        let idle = self.parts.values().filter(|p| p.open && p.is_live()).map(Part::idle_slots).sum::<u64>();
        let victim = self
            .parts
            .iter()
            .filter(|(_, p)| p.asked_back.is_none())
            .map(|(n, p)| (queued_us(p, now, fallback, patience), *n))
            .filter(|(us, _)| *us > STEAL_WORTH_US)
            .max_by_key(|(us, n)| (*us, std::cmp::Reverse(*n)));
        match victim {
            Some((us, number)) if idle > 0 || us > STUCK_US => self.ask_back(now, number, idle, orders),
            Some(_) => {}
            None if asked => {}
            None => self.close_all(orders),
        }
    }

    /// Asks for the share of the queue that the idle slots can do in the same time as the part itself; without idle slots,
    /// half, for parts that are not there yet.
    fn ask_back(&mut self, now: Time, number: u32, idle: u64, orders: &mut Vec<Order>) {
        let Some(part) = self.parts.get_mut(&number) else { return };
        let (queued, own) = (part.unstarted(), u64::from(part.slots.max(1)));
        let thieves = if idle == 0 { own } else { idle };
        let most = if part.is_running() { (queued * thieves).div_ceil(thieves + own) } else { queued.min(thieves) };
        if most > 0 {
            part.asked_back = Some(now);
            self.slow_starts = self.slow_starts.saturating_add(u32::from(!part.is_running()));
            orders.push(Order::Return { part: number, most });
        }
    }

    /// No part can ever get more: their slots may go as soon as they find nothing.
    pub(crate) fn close_all(&mut self, orders: &mut Vec<Order>) {
        for (number, part) in self.parts.iter_mut().filter(|(_, p)| p.open && p.is_live()) {
            part.open = false;
            let last = orders.iter_mut().rev().find_map(|o| match o {
                Order::Assign { part, open, .. } if part == number => Some(open),
                _ => None,
            });
            match last {
                Some(open) => *open = false,
                None => orders.push(Order::Close { part: *number }),
            }
        }
    }

    /// Whether more slots would help: there is something to hand out, and it will not be gone before they are there.
    #[must_use]
    pub fn wants_slots(&self) -> u64 {
        let ready = self.ready();
        let slots = u64::from(self.slots());
        let soon = slots > 0 && self.mean_us() > 0 && ready.saturating_mul(self.mean_us()) / slots < STEAL_WORTH_US;
        if soon { 0 } else { ready }
    }
}

/// How long the unstarted items of a part will wait, in microseconds; zero for a part that could not answer. A part that has
/// been silent for longer than agents take to report is as slow as its silence says.
fn queued_us(part: &Part, now: Time, fallback: u64, patience: u64) -> u64 {
    match part.state {
        TaskState::Running => {
            let silent = Some(now.micros_since(part.pace.progressed)).filter(|s| *s > LONGEST_REPORT_US).unwrap_or(0);
            let mean = if part.pace.mean_us == 0 { fallback } else { part.pace.mean_us };
            part.unstarted().saturating_mul(mean.max(silent).max(1)) / u64::from(part.slots.max(1))
        }
        TaskState::Staging | TaskState::Starting if part.unstarted() > 0 => {
            Some(now.micros_since(part.launched)).filter(|w| *w > patience).unwrap_or(0)
        }
        _ => 0,
    }
}
