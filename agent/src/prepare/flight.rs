//! Single flight: work that several tickets wait for is done once, and stopped when the last of them gives up.
//!
//! Owns no task: a flight is a shared future that lives as long as somebody holds it, so cancelling every ticket drops
//! it, and with it the transfer or the compiler process. A flight waits for its turn in the queue of every tenant that joined
//! it, so nobody waits longer because somebody else asked first. Results are not kept here; caches are for that.

use super::Stop;
use super::turns::{Claim, Turns, Waiting};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use smalti_types::FrameworkId;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// What is done once.
type Work<V> = BoxFuture<'static, Result<V, Stop>>;

/// One piece of work under way. Await it; drop it to give up.
pub(crate) type Flight<V> = Shared<Work<V>>;

/// Keys of finished flights are swept when there are this many: they are only keys, a few dozen bytes each.
const SWEEP_AT: usize = 1_024;

/// The flights under way, by key.
pub(crate) struct Flights<K, V> {
    turns: Turns,
    map: Mutex<HashMap<K, Begun<V>>>,
}

/// A flight, and what stands in line for it.
struct Begun<V> {
    flight: WeakShared<Work<V>>,
    claim: Arc<Claim>,
}

impl<K: Eq + Hash, V: Clone + Send + Sync + 'static> Flights<K, V> {
    /// Flights whose work begins in `turns`.
    pub(crate) fn new(turns: Turns) -> Self {
        Self { turns, map: Mutex::new(HashMap::new()) }
    }

    /// Joins the flight of `key` in the name of `tenant`, or begins it with `make`, which gets what to wait for.
    pub(crate) fn join(&self, key: K, tenant: &FrameworkId, make: impl FnOnce(Waiting) -> Work<V>) -> Flight<V> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        // A flight that has landed is not joined: whoever comes later looks in the caches first, and a failure is tried anew.
        if let Some(begun) = map.get(&key)
            && let Some(flight) = begun.flight.upgrade().filter(|f| f.peek().is_none())
        {
            self.turns.queue(tenant, &begun.claim);
            return flight;
        }
        if map.len() >= SWEEP_AT {
            map.retain(|_, begun| begun.flight.upgrade().is_some());
        }
        let (claim, waiting) = self.turns.claim();
        let flight = make(waiting).shared();
        self.turns.queue(tenant, &claim);
        if let Some(weak) = flight.downgrade() {
            map.insert(key, Begun { flight: weak, claim });
        }
        flight
    }
}

#[cfg(test)]
mod tests {
    use super::super::turns::Places;
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::{Notify, oneshot};

    fn flights<V: Clone + Send + Sync + 'static>() -> Flights<u8, V> {
        Flights::new(Turns::new(Places { total: 1, per_tenant: 1, estimate: 1 }))
    }

    fn tenant(name: &str) -> FrameworkId {
        FrameworkId::new(name).unwrap()
    }

    #[tokio::test]
    async fn many_wait_and_one_works() {
        let flights = flights::<u32>();
        let (runs, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let make = |waiting: Waiting| {
            let (runs, gate) = (runs.clone(), gate.clone());
            async move {
                let _turn = waiting.turn().await;
                runs.fetch_add(1, Ordering::Relaxed);
                gate.notified().await;
                Ok(7)
            }
            .boxed()
        };
        let waiters: Vec<_> = (0..10).map(|_| flights.join(1, &tenant("a"), make)).collect();
        gate.notify_one();
        assert!(futures::future::join_all(waiters).await.into_iter().all(|r| r == Ok(7)));
        assert_eq!(runs.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn the_work_stops_when_the_last_waiter_gives_up() {
        let flights = flights::<()>();
        let (alive, dead) = oneshot::channel::<()>();
        let mut first = flights.join(1, &tenant("a"), move |_| {
            async move {
                let _alive = alive;
                std::future::pending().await
            }
            .boxed()
        });
        let second = flights.join(1, &tenant("a"), |_| unreachable!("it is under way"));
        assert!((&mut first).now_or_never().is_none());
        drop(first);
        drop(second);
        assert!(dead.await.is_err(), "the future was dropped");
    }

    #[tokio::test]
    async fn a_joiner_brings_its_own_place_in_line() {
        let flights = flights::<FrameworkId>();
        let work = |waiting: Waiting| async move { Ok(waiting.turn().await.tenant(&tenant("nobody"))) }.boxed();
        let held = flights.turns.take(&tenant("attacker")).await;
        let mut flood: Vec<_> = (0..100).map(|n| flights.join(n, &tenant("attacker"), work)).collect();
        let shared = flights.join(99, &tenant("victim"), |_| unreachable!("it is under way"));
        drop(held);
        assert_eq!(shared.now_or_never(), Some(Ok(tenant("victim"))));
        assert_eq!((&mut flood[0]).now_or_never(), Some(Ok(tenant("attacker"))));
    }
}
