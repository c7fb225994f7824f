//! Single flight: work that several tickets wait for is done once, and stopped when the last of them gives up.
//!
//! Owns no task: a flight is a shared future that lives as long as somebody holds it, so cancelling every ticket drops
//! it, and with it the transfer or the compiler process. Results are not kept here; caches are for that.

use super::Failure;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

/// What is done once.
type Work<V> = BoxFuture<'static, Result<V, Failure>>;

/// One piece of work under way. Await it; drop it to give up.
pub(crate) type Flight<V> = Shared<Work<V>>;

/// Keys of finished flights are swept when there are this many: they are only keys, a few dozen bytes each.
const SWEEP_AT: usize = 1_024;

/// The flights under way, by key.
pub(crate) struct Flights<K, V> {
    map: Mutex<HashMap<K, WeakShared<Work<V>>>>,
}

impl<K: Eq + Hash, V: Clone> Default for Flights<K, V> {
    fn default() -> Self {
        Self { map: Mutex::new(HashMap::new()) }
    }
}

impl<K: Eq + Hash, V: Clone + Send + Sync + 'static> Flights<K, V> {
    /// Joins the flight of `key`, or begins it with `make`.
    pub(crate) fn join(&self, key: K, make: impl FnOnce() -> Work<V>) -> Flight<V> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        // A flight that has landed is not joined: whoever comes later looks in the caches first, and a failure is tried anew.
        if let Some(flight) = map.get(&key).and_then(WeakShared::upgrade).filter(|f| f.peek().is_none()) {
            return flight;
        }
        if map.len() >= SWEEP_AT {
            map.retain(|_, weak| weak.upgrade().is_some());
        }
        let flight = make().shared();
        if let Some(weak) = flight.downgrade() {
            map.insert(key, weak);
        }
        flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::{Notify, oneshot};

    #[tokio::test]
    async fn many_wait_and_one_works() {
        let flights = Flights::<u8, u32>::default();
        let (runs, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let make = || {
            let (runs, gate) = (runs.clone(), gate.clone());
            async move {
                runs.fetch_add(1, Ordering::Relaxed);
                gate.notified().await;
                Ok(7)
            }
            .boxed()
        };
        let waiters: Vec<_> = (0..10).map(|_| flights.join(1, make)).collect();
        gate.notify_one();
        assert!(futures::future::join_all(waiters).await.into_iter().all(|r| r == Ok(7)));
        assert_eq!(runs.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn the_work_stops_when_the_last_waiter_gives_up() {
        let flights = Flights::<u8, ()>::default();
        let (alive, dead) = oneshot::channel::<()>();
        let mut first = flights.join(1, move || {
            async move {
                let _alive = alive;
                std::future::pending().await
            }
            .boxed()
        });
        let second = flights.join(1, || unreachable!("it is under way"));
        assert!((&mut first).now_or_never().is_none());
        drop(first);
        drop(second);
        assert!(dead.await.is_err(), "the future was dropped");
    }
}
