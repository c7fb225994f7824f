//! Connections to one host at a time.
//!
//! Owns the counts. A place is held as long as the body comes. Deliberately absent: fairness between tenants; turns are taken before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Hosts that nobody is connected to are forgotten when there are this many.
const SWEEP_AT: usize = 1_024;

/// Places by host.
#[derive(Debug)]
pub(crate) struct Hosts {
    each: usize,
    places: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// A place; dropped, it is free again.
pub(crate) type Place = Option<OwnedSemaphorePermit>;

impl Hosts {
    pub(crate) fn new(each: usize) -> Self {
        Self { each: each.max(1), places: Mutex::default() }
    }

    /// Waits for a place at `host`.
    pub(crate) async fn place(&self, host: &str) -> Place {
        let places = {
            let mut all = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() >= SWEEP_AT {
                all.retain(|_, places| Arc::strong_count(places) > 1);
            }
            all.entry(host.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(self.each))).clone()
        };
        // Nobody closes it.
        places.acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn a_host_has_so_many_places_and_another_host_its_own() {
        let hosts = Hosts::new(2);
        let (first, _second) = (hosts.place("a").await, hosts.place("a").await);
        let mut third = Box::pin(hosts.place("a"));
        assert!((&mut third).now_or_never().is_none());
        assert!(hosts.place("b").now_or_never().is_some());
        drop(first);
        assert!(third.await.is_some());
    }
}
