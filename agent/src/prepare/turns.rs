//! Fair turns: a bounded number of places for work, given out tenant by tenant and not in the order of asking.
//!
//! Who has used least of it goes first, counted in what the work really cost (processor time, bytes), so that a tenant with a
//! thousand pieces of work waits behind its own and not in front of others. Who comes back after a pause begins level with those
//! who are there: idleness earns nothing. One piece of work may be wanted by several tenants; it is begun at the first turn of
//! any of them. Owns the places and the accounts. Deliberately absent: clocks, and what the work is.

use smalti_types::FrameworkId;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Accounts of tenants that want nothing are dropped beyond this number.
const MOST_IDLE_ACCOUNTS: usize = 1_024;
/// Queues are cleared of what nobody waits for any more when one has grown to a multiple of this.
const SWEEP_AT: usize = 256;

/// How many places there are, and what one piece of work is taken to cost until it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Places {
    /// In all.
    pub(crate) total: usize,
    /// Most for one tenant.
    pub(crate) per_tenant: usize,
    /// Counted at the beginning of a turn and corrected by [`Turn::charge`], so that two turns at once are two turns.
    pub(crate) estimate: u64,
}

/// Gives out turns. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Turns(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    places: Places,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    accounts: HashMap<FrameworkId, Account>,
    /// Where the last one who got a turn stood: newcomers begin here.
    level: u64,
    /// Orders those who stand equal: who waited longer for a turn goes first.
    clock: u64,
}

#[derive(Debug, Default)]
struct Account {
    used: u64,
    taken: usize,
    served: u64,
    queue: VecDeque<Arc<Claim>>,
}

/// One piece of work that waits for its turn, in the queues of all who want it.
#[derive(Debug)]
pub(crate) struct Claim(Mutex<Option<oneshot::Sender<Turn>>>);

/// Resolves when it is the work's turn.
#[derive(Debug)]
pub(crate) struct Waiting {
    granted: oneshot::Receiver<Turn>,
    /// For the case that the queue is gone, which only happens at the agent's end.
    shared: Arc<Shared>,
}

/// A place, held while the work goes on; given back by dropping it.
#[derive(Debug)]
pub(crate) struct Turn {
    shared: Arc<Shared>,
    /// Whose account it is on; `None` for a turn outside of all accounts.
    tenant: Option<FrameworkId>,
    charged: u64,
}

impl Claim {
    fn is_dead(&self) -> bool {
        lock(&self.0).as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

impl Turns {
    pub(crate) fn new(places: Places) -> Self {
        let places = Places { total: places.total.max(1), per_tenant: places.per_tenant.max(1), ..places };
        Self(Arc::new(Shared { places, state: Mutex::default() }))
    }

    /// A new piece of work. It gets its turn once it is in somebody's queue: see [`Self::queue`].
    pub(crate) fn claim(&self) -> (Arc<Claim>, Waiting) {
        let (grant, granted) = oneshot::channel();
        (Arc::new(Claim(Mutex::new(Some(grant)))), Waiting { granted, shared: self.0.clone() })
    }

    /// Puts a piece of work into the queue of a tenant that wants it.
    pub(crate) fn queue(&self, tenant: &FrameworkId, claim: &Arc<Claim>) {
        let mut state = lock(&self.0.state);
        let level = state.level;
        let account = state.accounts.entry(tenant.clone()).or_default();
        if account.is_idle() {
            account.used = account.used.max(level);
        }
        if account.queue.len() % SWEEP_AT == SWEEP_AT - 1 {
            account.queue.retain(|c| !c.is_dead());
        }
        account.queue.push_back(claim.clone());
        self.0.give_out(state);
    }

    /// Waits for a turn of work that only `tenant` wants.
    pub(crate) async fn take(&self, tenant: &FrameworkId) -> Turn {
        let (claim, waiting) = self.claim();
        self.queue(tenant, &claim);
        waiting.turn().await
    }
}

impl Waiting {
    /// The turn, when it comes.
    pub(crate) async fn turn(self) -> Turn {
        // Not granted and not in any queue cannot be; a turn on nobody's account is better than work that never begins.
        self.granted.await.unwrap_or(Turn { shared: self.shared, tenant: None, charged: 0 })
    }
}

impl Turn {
    /// Whose turn it is, to take further turns in the same name; `fallback` when it is nobody's.
    pub(crate) fn tenant(&self, fallback: &FrameworkId) -> FrameworkId {
        self.tenant.clone().unwrap_or_else(|| fallback.clone())
    }

    /// Says what the work cost, in place of the estimate.
    pub(crate) fn charge(&mut self, cost: u64) {
        let Some(tenant) = &self.tenant else { return };
        let mut state = lock(&self.shared.state);
        if let Some(account) = state.accounts.get_mut(tenant) {
            account.used = account.used.saturating_sub(self.charged).saturating_add(cost);
            self.charged = cost;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(tenant) = &self.tenant else { return };
        let mut state = lock(&self.shared.state);
        state.taken = state.taken.saturating_sub(1);
        if let Some(account) = state.accounts.get_mut(tenant) {
            account.taken = account.taken.saturating_sub(1);
        }
        self.shared.give_out(state);
    }
}

impl Account {
    fn is_idle(&self) -> bool {
        self.taken == 0 && self.queue.is_empty()
    }
}

impl Shared {
    /// Fills the free places. What is granted is sent after the lock is given back: whoever does not want it any more drops it,
    /// which takes the lock again.
    fn give_out(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let mut granted = Vec::new();
        while state.taken < self.places.total
            && let Some((tenant, grant)) = state.next(self.places)
        {
            granted.push((grant, Turn { shared: self.clone(), tenant: Some(tenant), charged: self.places.estimate }));
        }
        state.forget_idle();
        drop(state);
        for (grant, turn) in granted {
            // Taken back by the drop, if nobody waits any more.
            let _ = grant.send(turn);
        }
    }
}

impl State {
    /// The next one to begin, entered as begun.
    fn next(&mut self, places: Places) -> Option<(FrameworkId, oneshot::Sender<Turn>)> {
        loop {
            let ready = self.accounts.iter().filter(|(_, a)| !a.queue.is_empty() && a.taken < places.per_tenant);
            let tenant = ready.min_by_key(|(_, a)| (a.used, a.served)).map(|(tenant, _)| tenant.clone())?;
            let account = self.accounts.get_mut(&tenant)?;
            let claim = account.queue.pop_front()?;
            let Some(grant) = lock(&claim.0).take().filter(|grant| !grant.is_closed()) else { continue };
            self.level = self.level.max(account.used);
            self.clock += 1;
            account.served = self.clock;
            account.used = account.used.saturating_add(places.estimate);
            account.taken += 1;
            self.taken += 1;
            return Some((tenant, grant));
        }
    }

    /// Accounts at or below the level say nothing; those above it are debts, kept while there are few.
    fn forget_idle(&mut self) {
        let level = self.level;
        self.accounts.retain(|_, a| !a.is_idle() || a.used > level);
        if self.accounts.len() > MOST_IDLE_ACCOUNTS {
            self.accounts.retain(|_, a| !a.is_idle());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use proptest::prelude::*;

    fn turns(total: usize, per_tenant: usize) -> Turns {
        Turns::new(Places { total, per_tenant, estimate: 10 })
    }

    fn tenant(name: &str) -> FrameworkId {
        FrameworkId::new(name).unwrap()
    }

    fn ask(turns: &Turns, name: &str) -> Waiting {
        let (claim, waiting) = turns.claim();
        turns.queue(&tenant(name), &claim);
        waiting
    }

    /// The turn, if it is there already.
    fn now(waiting: &mut Waiting) -> Option<Turn> {
        (&mut waiting.granted).now_or_never().map(Result::unwrap)
    }

    #[test]
    fn one_piece_of_work_waits_for_one_of_a_thousand() {
        let turns = turns(1, 1);
        let mut flood: Vec<Waiting> = (0..1_000).map(|_| ask(&turns, "attacker")).collect();
        let first = now(&mut flood[0]).unwrap();
        let mut victim = ask(&turns, "victim");
        assert!(now(&mut victim).is_none(), "the place is taken");
        drop(first);
        let turn = now(&mut victim);
        assert!(turn.is_some() && now(&mut flood[1]).is_none());
    }

    #[test]
    fn turns_follow_what_was_used_and_not_how_often() {
        let turns = turns(1, 1);
        let (mut a, mut b): (Vec<_>, Vec<_>) = (0..40).map(|_| (ask(&turns, "a"), ask(&turns, "b"))).unzip();
        let (mut a_done, mut b_done) = (0, 0);
        for _ in 0..40 {
            if let Some(mut turn) = a.get_mut(a_done).and_then(now) {
                turn.charge(30);
                a_done += 1;
            } else if let Some(mut turn) = b.get_mut(b_done).and_then(now) {
                turn.charge(10);
                b_done += 1;
            }
        }
        assert_eq!((a_done, b_done), (10, 30), "equal amounts: 300 each");
    }

    #[test]
    fn idleness_earns_nothing_and_debts_are_kept() {
        let turns = turns(1, 1);
        for _ in 0..100 {
            ask(&turns, "a").turn().now_or_never().unwrap().charge(1_000);
        }
        // `b` was never there. It begins level with `a`, and does not get a hundred turns in a row.
        let (mut a, mut b): (Vec<_>, Vec<_>) = (0..4).map(|_| (ask(&turns, "a"), ask(&turns, "b"))).unzip();
        let mut order = String::new();
        for _ in 0..8 {
            for (name, queue) in [("a", &mut a), ("b", &mut b)] {
                if let Some(mut turn) = queue.first_mut().and_then(now) {
                    turn.charge(1_000);
                    order.push_str(name);
                    drop(turn);
                    queue.remove(0);
                }
            }
        }
        assert!(order.contains("ab") && order.contains("ba") && !order.contains("bbb"), "{order}");
    }

    #[test]
    fn nobody_takes_all_places() {
        let turns = turns(8, 2);
        let mut flood: Vec<Waiting> = (0..100).map(|_| ask(&turns, "attacker")).collect();
        let held: Vec<Turn> = flood.iter_mut().filter_map(now).collect();
        assert_eq!(held.len(), 2);
        assert!(now(&mut ask(&turns, "victim")).is_some());
    }

    #[test]
    fn work_that_two_want_begins_at_the_first_turn_of_either() {
        let turns = turns(1, 1);
        let mut flood: Vec<Waiting> = (0..10).map(|_| ask(&turns, "attacker")).collect();
        let (claim, mut shared) = turns.claim();
        turns.queue(&tenant("attacker"), &claim);
        turns.queue(&tenant("victim"), &claim);
        drop(now(&mut flood[0]));
        let turn = now(&mut shared).unwrap();
        assert_eq!(turn.tenant(&tenant("x")), tenant("victim"));
        drop(turn);
        // Its other place in line means nothing any more.
        for waiting in &mut flood[1..] {
            drop(now(waiting).unwrap());
        }
        assert_eq!(lock(&turns.0.state).taken, 0);
    }

    #[test]
    fn who_gives_up_gives_the_place_back() {
        let turns = turns(1, 1);
        let first = now(&mut ask(&turns, "a")).unwrap();
        drop(ask(&turns, "a"));
        let mut last = ask(&turns, "a");
        drop(first);
        let held = now(&mut last);
        assert!(held.is_some());
        for _ in 0..10 * SWEEP_AT {
            drop(ask(&turns, "b"));
        }
        assert!(lock(&turns.0.state).accounts.get(&tenant("b")).is_none_or(|a| a.queue.len() < SWEEP_AT));
    }

    proptest! {
        /// Whoever asks, gives up, works and ends: never more than the places, and nothing waits while there is one.
        #[test]
        fn places_are_neither_lost_nor_exceeded(
            steps in proptest::collection::vec((0_usize..4, 0_u8..4, 1_u64..100), 1..200), total in 1_usize..4, per_tenant in 1_usize..4,
        ) {
            let turns = turns(total, per_tenant);
            let (mut waiting, mut held): (Vec<Waiting>, Vec<Turn>) = (Vec::new(), Vec::new());
            for (who, what, cost) in steps {
                match what {
                    0 | 1 => waiting.push(ask(&turns, ["a", "b", "c", "d"][who])),
                    2 if !waiting.is_empty() => drop(waiting.remove(who % waiting.len())),
                    _ if !held.is_empty() => {
                        let mut turn = held.remove(who % held.len());
                        turn.charge(cost);
                    }
                    _ => {}
                }
                waiting.retain_mut(|w| match now(w) {
                    Some(turn) => { held.push(turn); false }
                    None => true,
                });
                let mut per: HashMap<FrameworkId, usize> = HashMap::new();
                for turn in &held {
                    *per.entry(turn.tenant(&tenant("x"))).or_default() += 1;
                }
                prop_assert!(held.len() <= total && per.values().all(|n| *n <= per_tenant));
                prop_assert_eq!(lock(&turns.0.state).taken, held.len());
                prop_assert!(waiting.is_empty() || held.len() == total || per.values().any(|n| *n == per_tenant));
            }
            held.clear();
            waiting.into_iter().for_each(|mut w| { let _ = now(&mut w); });
        }
    }
}
