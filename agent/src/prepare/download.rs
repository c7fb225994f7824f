//! Brings one object to the disk: from the first of its places that has it, into a partial file that outlives broken connections, cancelled
//! tasks and this process; the caller moves it into place.
//!
//! Whoever asks holds a turn among the transfers; what arrives is hashed and written in turns of its own, counted in bytes, so that a tenant
//! with large inputs takes no more of the agent than one with small ones. Owns which failure ends the search, and what stays of a partial
//! file after it. How one place is read, and what is worth a retry, is `smalti-fetch`'s; never decides what a digest means.

use super::Error;
use super::cache::{Cache, Dirs, NoRoom, PARTIAL_PREFIX};
use super::meters::{Meter, Meters};
use super::partial::Partial;
use super::peers::{Locator, Place};
use super::turns::Turns;
use smalti_fetch::{Failed, Got, Location, PieceTransfer, Setup, SourceError, Sources, Transfer, Wanted};
use smalti_types::{Digest, FrameworkId};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A finished transfer, verified and on disk, under a temporary name.
pub(crate) struct Fetched {
    pub(crate) file: Partial,
    pub(crate) length: u64,
    pub(crate) name: Option<String>,
    /// To be ended once it is where other agents can fetch it.
    pub(crate) place: Option<Place>,
}

/// What may go on with a part that is left: only one at a time may write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The next fetch of the bundle.
    Bundle,
    /// The next fetch of the input.
    Input,
    /// Nobody.
    Nothing,
}

/// Why nothing came.
#[derive(Debug)]
pub(crate) enum Unfetched {
    Failed(Failed),
    /// Not now.
    NoRoom(NoRoom),
}

/// Lengths that are remembered.
const MOST_LENGTHS: usize = 65_536;

/// Fetches.
pub(crate) struct Fetcher {
    pub(crate) sources: Sources,
    /// Which agents have what.
    pub(super) locator: Locator,
    cache: Arc<Cache>,
    dir: PathBuf,
    /// For hashing and writing what arrives.
    chunks: Turns,
    /// How far transfers are.
    pub(crate) meters: Meters,
    /// Names what no other try may go on with.
    unpinned: AtomicU64,
    /// Lengths of what was asked for before: room is taken before anybody is asked again.
    lengths: Mutex<HashMap<Digest, u64>>,
    /// Partial files that are being written.
    files: Mutex<HashMap<PathBuf, Weak<tokio::sync::Mutex<()>>>>,
}

impl Fetcher {
    /// `chunks` is counted in bytes.
    pub(crate) fn new(setup: Setup, locator: Locator, dirs: &Dirs, cache: Arc<Cache>, chunks: Turns) -> Result<Self, Error> {
        let sources = Sources::new(setup).map_err(Error::Fetch)?;
        Ok(Self {
            sources,
            locator,
            cache,
            dir: dirs.partial.clone(),
            chunks,
            meters: Meters::default(),
            unpinned: AtomicU64::new(0),
            lengths: Mutex::default(),
            files: Mutex::default(),
        })
    }

    /// Fetches an object from the first of these places that has it, and checks its length and digest.
    ///
    /// They are the same object: `wanted` differ in their locations only. What one place began another goes on with, where a digest tells
    /// whether that fits.
    pub(crate) async fn fetch(&self, wanted: &[Wanted], keep: Keep, tenant: &FrameworkId) -> Result<Fetched, Unfetched> {
        self.fetch_as((wanted, wanted), keep, tenant, Arc::default()).await
    }

    /// The same, shown to people as a fetch from other places.
    pub(super) async fn fetch_as(
        &self,
        (wanted, shown): (&[Wanted], &[Wanted]),
        keep: Keep,
        tenant: &FrameworkId,
        meter: Arc<Meter>,
    ) -> Result<Fetched, Unfetched> {
        let Some(first) = wanted.first() else { return Err(Unfetched::Failed(nowhere())) };
        let _shown = self.meters.show(shown.iter().map(|w| w.location.clone()), &meter);
        let mut file = self.open(self.dir.join(self.name(first, keep)), tenant, meter).await?;
        // Before anybody is asked for it, who would then wait with it.
        let length = first.length.or_else(|| self.lengths().get(&first.digest?).copied());
        if let Some(length) = length.filter(|length| *length <= first.limit.0) {
            file.reserve(length).await.map_err(Unfetched::NoRoom)?;
        }
        let mut failures: Vec<Failed> = Vec::new();
        for wanted in wanted {
            file.comes_from(&wanted.location);
            match (Transfer { sources: &self.sources, wanted }).run(&mut file).await {
                Ok(facts) => {
                    return whole(file, facts.name).await;
                }
                Err(failed) => {
                    if let Some(no_room) = file.no_room() {
                        let no_room = no_room.clone();
                        self.remember(first.digest, file.total());
                        return Err(Unfetched::NoRoom(no_room));
                    }
                    let goes_on = may_be_elsewhere(&failed);
                    failures.push(failed);
                    if !goes_on {
                        break;
                    }
                }
            }
        }
        if !failures.iter().any(is_of_use_later) {
            file.discard();
        }
        Err(Unfetched::Failed(summary(failures)))
    }

    /// Fetches some bytes of an object, and of no other version of it; `None`: its place gives the whole or nothing.
    pub(crate) async fn fetch_piece(&self, wanted: &Wanted, range: Range<u64>, tenant: &FrameworkId) -> Result<Option<Fetched>, Unfetched> {
        let meter = Arc::default();
        let _shown = self.meters.show(std::iter::once(wanted.location.clone()), &meter);
        let what = format!("{}\0{:?}\0{:?}\0{range:?}", wanted.role, wanted.location, wanted.etag);
        let mut file = self.open(self.dir.join(format!("p{}", Digest::of(what.as_bytes()).to_hex())), tenant, meter).await?;
        file.reserve(range.end.saturating_sub(range.start)).await.map_err(Unfetched::NoRoom)?;
        file.comes_from(&wanted.location);
        match (PieceTransfer { sources: &self.sources, wanted, range }).run(&mut file).await {
            Ok(Got::Piece) => whole(file, None).await.map(Some),
            Ok(Got::NoPieces) => {
                file.discard();
                Ok(None)
            }
            Err(failed) => {
                if let Some(no_room) = file.no_room() {
                    return Err(Unfetched::NoRoom(no_room.clone()));
                }
                if !is_of_use_later(&failed) {
                    file.discard();
                }
                Err(Unfetched::Failed(failed))
            }
        }
    }

    /// A partial file, once nobody else writes it.
    async fn open(&self, path: PathBuf, tenant: &FrameworkId, meter: Arc<Meter>) -> Result<Partial, Unfetched> {
        let alone = self.alone(&path).await;
        let opened = Partial::open(path, alone, self.cache.clone(), (self.chunks.clone(), tenant.clone()), meter).await;
        opened.map_err(|e| Unfetched::Failed(Failed::disk(self.dir.display().to_string(), &e)))
    }

    fn lengths(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, u64>> {
        self.lengths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, digest: Option<Digest>, length: Option<u64>) {
        let (Some(digest), Some(length)) = (digest, length) else { return };
        let mut lengths = self.lengths();
        if lengths.len() >= MOST_LENGTHS {
            lengths.clear();
        }
        lengths.insert(digest, length);
    }

    /// Waits until nobody writes this file any more.
    async fn alone(&self, path: &Path) -> tokio::sync::OwnedMutexGuard<()> {
        let file = {
            let mut all = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, file| file.strong_count() > 0);
            let open = all.get(path).and_then(Weak::upgrade);
            open.unwrap_or_else(|| {
                let file = Arc::default();
                all.insert(path.to_owned(), Arc::downgrade(&file));
                file
            })
        };
        file.lock_owned().await
    }

    /// What the partial file is called: the same for whoever may go on with it.
    fn name(&self, wanted: &Wanted, keep: Keep) -> String {
        let role = wanted.role.as_str();
        let (kind, digest, etag) = match keep {
            Keep::Bundle => ("b", wanted.digest, wanted.etag.as_ref()),
            Keep::Input => ("i", wanted.digest, wanted.etag.as_ref()),
            // Of a bundle, if no length says that it is an input.
            Keep::Nothing => (if wanted.length.is_none() { "b" } else { "" }, None, None),
        };
        match (digest, etag) {
            (Some(digest), _) => format!("{kind}{}-{}", digest.to_hex(), &Digest::of(role.as_bytes()).to_hex()[..16]),
            (None, Some(etag)) => {
                let pinned = format!("{role}\0{:?}\0{etag}\0{}", wanted.location, wanted.length.unwrap_or_default());
                format!("u{}", Digest::of(pinned.as_bytes()).to_hex())
            }
            // Nothing tells whether it is still the same.
            (None, None) => format!("{PARTIAL_PREFIX}{kind}{}", self.unpinned.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

/// Nothing is missing. Made sure of before the rename: after a crash of the machine a file under its final name must be whole.
async fn whole(mut file: Partial, name: Option<String>) -> Result<Fetched, Unfetched> {
    let closed = file.close().await.map_err(|e| Failed::disk(file.path().display().to_string(), &e));
    let length = closed.map_err(Unfetched::Failed)?;
    Ok(Fetched { file, length, name, place: None })
}

/// Said of an agent that sends next to nothing.
pub(super) fn too_slow(at: &Location) -> Failed {
    SourceError::Transient { at: at.to_string(), why: "next to nothing comes from there".into(), wait: None }.into()
}

fn nowhere() -> Failed {
    SourceError::NotFound { at: "object".into(), why: "no place is named".into() }.into()
}

/// Whether the next place may do better. Wrong bytes are told and not glossed over, and who may not fetch here is not helped around it.
fn may_be_elsewhere(failed: &Failed) -> bool {
    matches!(
        failed,
        Failed::Source(
            SourceError::NotFound { .. } | SourceError::Transient { .. } | SourceError::Discontinued { .. } | SourceError::Permanent { .. }
        )
    )
}

/// Whether what is there may be gone on with.
fn is_of_use_later(failed: &Failed) -> bool {
    matches!(failed, Failed::Source(SourceError::Transient { .. }))
}

/// One failure for all: the one that ended the search if it did, else the first, with what the others said.
fn summary(mut failures: Vec<Failed>) -> Failed {
    if let Some(last) = failures.pop_if(|f| !may_be_elsewhere(f)) {
        return last;
    }
    let others: Vec<String> = failures.iter().skip(1).map(ToString::to_string).collect();
    let Some(first) = failures.into_iter().next() else { return nowhere() };
    match first {
        Failed::Source(SourceError::NotFound { at, why }) if !others.is_empty() => {
            SourceError::NotFound { at, why: format!("{why}; and {}", others.join("; ")) }.into()
        }
        Failed::Source(SourceError::Transient { at, why, wait }) if !others.is_empty() => {
            SourceError::Transient { at, why: format!("{why}; and {}", others.join("; ")), wait }.into()
        }
        Failed::Source(SourceError::Permanent { at, why }) if !others.is_empty() => {
            SourceError::Permanent { at, why: format!("{why}; and {}", others.join("; ")) }.into()
        }
        other => other,
    }
}

/// The places of an object: the one that is named, and the cluster's store where a digest says what it would have to be.
pub(crate) fn candidates(location: Location, digest: Option<Digest>) -> Vec<Location> {
    let store = digest.map(Location::Store).filter(|store| *store != location);
    std::iter::once(location).chain(store).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn not_found(at: &str) -> Failed {
        SourceError::NotFound { at: at.into(), why: "404".into() }.into()
    }

    #[test]
    fn a_failure_tells_of_all_places_unless_one_ended_the_search() {
        let all = summary(vec![not_found("a"), not_found("b")]).to_string();
        assert!(all.contains("no a: 404") && all.contains("no b: 404"), "{all}");
        let wrong = Failed::Digest { at: "b".into(), expected: "x".into(), found: "y".into() };
        assert!(matches!(summary(vec![not_found("a"), wrong]), Failed::Digest { .. }));
        assert!(!may_be_elsewhere(&SourceError::Refused { at: "a".into(), why: String::new() }.into()));
    }

    #[test]
    fn the_store_is_a_place_of_what_has_a_digest() {
        let (digest, named) = (Digest::of(b"x"), Location::File("/x".into()));
        assert_eq!(candidates(named.clone(), Some(digest)), [named.clone(), Location::Store(digest)]);
        assert_eq!(candidates(named.clone(), None), [named]);
        assert_eq!(candidates(Location::Store(digest), Some(digest)), [Location::Store(digest)]);
    }
}
