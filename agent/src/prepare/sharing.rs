//! Fetches from other agents where the master knows some that have the content, else from where it comes.
//!
//! What another agent sends is checked like anything else and kept apart until then: what it began nobody goes on with, and what it gets wrong
//! costs time and nothing more. Owns the order in which that is tried. Deliberately absent: the question to the master (`peers`).

use super::download::{Fetched, Fetcher, Keep, Unfetched};
use super::meters::Meter;
use super::peers::Place;
use smalti_fetch::{Location, Wanted};
use smalti_types::{Digest, FrameworkId, LocateOutcome};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Agents that are tried before the origin.
const MOST_PEERS: usize = 4;
/// So often an agent that sends is looked at …
const LOOKS_EVERY: Duration = Duration::from_secs(10);
/// … and so many bytes are the least that it must have sent by then: who is slower may as well not have it.
const LEAST_BYTES: u64 = 640 << 10;

impl Fetcher {
    /// As [`Fetcher::fetch`], after others were asked. The answer's place is to be ended once others can fetch from here.
    pub(crate) async fn fetch_shared(&self, wanted: &[Wanted], keep: Keep, tenant: &FrameworkId) -> Result<Fetched, Unfetched> {
        let mut place = None;
        if let Some((first, digest)) = wanted.first().and_then(|first| Some((first, self.shareable(first)?))) {
            for _ in 0..MOST_PEERS {
                let asked = self.ask(first, &digest).await;
                let Some(peer) = asked.from() else {
                    place = Some(asked);
                    break;
                };
                match self.fetch_from(peer, first, &digest, tenant).await {
                    Ok(mut fetched) => {
                        fetched.place = Some(asked);
                        return Ok(fetched);
                    }
                    Err(no_room @ Unfetched::NoRoom(_)) => return Err(no_room),
                    Err(Unfetched::Failed(error)) => {
                        tracing::info!(%peer, %digest, %error, "not had from another agent, trying elsewhere");
                        asked.end(LocateOutcome::Failed);
                    }
                }
            }
        }
        match self.fetch(wanted, keep, tenant).await {
            Ok(mut fetched) => {
                fetched.place = place;
                Ok(fetched)
            }
            Err(unfetched) => {
                if let (Some(place), Unfetched::Failed(_)) = (place, &unfetched) {
                    place.end(LocateOutcome::Failed);
                }
                Err(unfetched)
            }
        }
    }

    /// The digest of what others may have, and the role may fetch.
    fn shareable(&self, wanted: &Wanted) -> Option<Digest> {
        let elsewhere = !matches!(wanted.location, Location::File(_));
        wanted.digest.filter(|_| elsewhere && self.sources.setup().policy.check(&wanted.role, &wanted.location).is_ok())
    }

    /// Asks the master; meanwhile people are told that others have it in hand.
    async fn ask(&self, wanted: &Wanted, digest: &Digest) -> Place {
        let meter = Arc::new(Meter::default());
        meter.waits.store(true, Ordering::Relaxed);
        let _shown = self.meters.show([wanted.location.clone()].into_iter(), &meter);
        self.locator.ask(&wanted.role, digest).await
    }

    async fn fetch_from(&self, peer: SocketAddr, first: &Wanted, digest: &Digest, tenant: &FrameworkId) -> Result<Fetched, Unfetched> {
        let wanted = [Wanted { location: Location::Peer(peer, *digest), etag: None, sha256: None, ..first.clone() }];
        let meter = Arc::new(Meter::default());
        let fetch = self.fetch_as((&wanted, std::slice::from_ref(first)), Keep::Nothing, tenant, meter.clone());
        tokio::select! {
            fetched = fetch => fetched,
            () = too_slow(&meter) => Err(Unfetched::Failed(super::download::too_slow(&wanted[0].location))),
        }
    }
}

/// Resolves when too little has come for a while.
async fn too_slow(meter: &Meter) {
    let mut before = 0;
    loop {
        tokio::time::sleep(LOOKS_EVERY).await;
        let (done, total) = (meter.done.load(Ordering::Relaxed), meter.total.load(Ordering::Relaxed));
        // What is all there is being checked and written.
        if (total == 0 || done < total) && done < before + LEAST_BYTES {
            return;
        }
        before = done;
    }
}
