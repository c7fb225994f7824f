//! One transfer: an object through broken connections into a sink, bounded, verified.
//!
//! Owns the loop: what is asked next, when to wait, when to begin anew, when to give up. The decisions are `range`'s and `retry`'s; where the
//! bytes go is the sink's. What was put together from several answers and is not what it must be is fetched once more in one piece before
//! anybody is told that it is wrong.

use crate::error::SourceError;
use crate::location::Location;
use crate::range::Have;
use crate::retry::Tries;
use crate::source::{Ask, Opened, Sources, changed, same_version};
use bytes::Bytes;
use futures::StreamExt;
use sha2::{Digest as _, Sha256};
use smalti_types::{Digest, Role};
use std::io;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Fewer bytes a second than this, over the time limit for a stall, are a stall.
const SLOWEST: u64 = 64;

/// What to fetch and what it must be.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// In whose name.
    pub role: Role,
    /// Where it lies.
    pub location: Location,
    /// Its digest, where it is known.
    pub digest: Option<Digest>,
    /// Its SHA-256, where somebody gave that.
    pub sha256: Option<[u8; 32]>,
    /// Its length, where it is known.
    pub length: Option<u64>,
    /// Its entity tag, where it is known.
    pub etag: Option<String>,
    /// Most bytes.
    pub limit: smalti_types::Bytes,
}

/// What became known of an object on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its entity tag.
    pub etag: Option<String>,
    /// Its length.
    pub total: Option<u64>,
    /// Its file name.
    pub name: Option<String>,
}

/// Why a transfer failed for good.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failed {
    /// The place does not give it.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// More than may be.
    #[error("{at} is larger than the limit of {limit}")]
    TooLarge {
        /// The object.
        at: String,
        /// The limit.
        limit: smalti_types::Bytes,
    },
    /// Not the length that it had.
    #[error("{at} changed since the task was submitted: it had {expected} bytes and has {found} now")]
    Length {
        /// The object.
        at: String,
        /// At submission.
        expected: u64,
        /// Now.
        found: u64,
    },
    /// Not the bytes that were asked for.
    #[error("{at} has the digest {found}, but {expected} was asked for")]
    Digest {
        /// The object.
        at: String,
        /// What was asked for.
        expected: String,
        /// What came.
        found: String,
    },
    /// Our own side.
    #[error("cannot write {path}: {why}")]
    Disk {
        /// What is written.
        path: String,
        /// Why not.
        why: String,
        /// There is no room: with room it works.
        full: bool,
    },
}

/// Where the bytes go.
pub trait Sink: Send {
    /// What is there already.
    fn have(&self) -> Have;
    /// What is known of the object that the next bytes are of.
    fn note(&mut self, facts: &Facts) -> impl Future<Output = io::Result<()>> + Send;
    /// Takes the next bytes.
    fn write(&mut self, bytes: Bytes) -> impl Future<Output = io::Result<()>> + Send;
    /// Forgets everything.
    fn restart(&mut self) -> impl Future<Output = io::Result<()>> + Send;
    /// BLAKE3, and SHA-256 if it counts that, of all that was written.
    fn digests(&mut self) -> (Digest, Option<[u8; 32]>);
    /// What messages call it.
    fn describe(&self) -> String;
}

/// Keeps nothing but digests.
#[derive(Debug, Default)]
pub struct Hashing {
    blake3: blake3::Hasher,
    sha256: Sha256,
    bytes: u64,
    facts: Facts,
}

impl Hashing {
    /// How many bytes there were.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Sink for Hashing {
    fn have(&self) -> Have {
        Have { bytes: self.bytes, etag: self.facts.etag.clone(), total: self.facts.total }
    }

    async fn note(&mut self, facts: &Facts) -> io::Result<()> {
        self.facts = facts.clone();
        Ok(())
    }

    async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.blake3.update(&bytes);
        self.sha256.update(&bytes);
        Ok(())
    }

    async fn restart(&mut self) -> io::Result<()> {
        *self = Self::default();
        Ok(())
    }

    fn digests(&mut self) -> (Digest, Option<[u8; 32]>) {
        (self.blake3.finalize().into(), Some(self.sha256.clone().finalize().into()))
    }

    fn describe(&self) -> String {
        "nothing".into()
    }
}

/// One transfer.
#[derive(Debug, Clone, Copy)]
pub struct Transfer<'a> {
    /// From where.
    pub sources: &'a Sources,
    /// What.
    pub wanted: &'a Wanted,
}

/// How one try went.
#[derive(Default)]
struct Seen {
    /// It went on from something, or nobody said where it ends: what is wrong may be the joint.
    doubtful: bool,
    sha256: Option<[u8; 32]>,
    facts: Facts,
}

/// So often another agent is tried: there are others, and the origin.
const PEER_ATTEMPTS: u32 = 2;

impl Transfer<'_> {
    fn at(&self) -> String {
        self.wanted.location.to_string()
    }

    /// Takes it through; `sink` has the bytes then, and they are what they must be. After a failure `sink` has what came so far: whether
    /// that is of use is what the failure says.
    ///
    /// # Errors
    /// [`Failed`], when no further try makes sense.
    pub async fn run<S: Sink>(&self, sink: &mut S) -> Result<Facts, Failed> {
        let mut limits = self.sources.setup().retries;
        if matches!(self.wanted.location, Location::Peer(..)) {
            limits.attempts = limits.attempts.min(PEER_ATTEMPTS);
        }
        let mut tries = Tries::new(limits);
        let mut seen = Seen::default();
        let mut once_more = true;
        loop {
            let before = sink.have().bytes;
            let failure = match self.once(sink, &mut seen).await {
                Ok(()) => match self.check(sink, &seen) {
                    Ok(()) => return Ok(seen.facts),
                    Err(_) if seen.doubtful && once_more => {
                        once_more = false;
                        self.restart(sink).await?;
                        seen = Seen::default();
                        continue;
                    }
                    Err(e) => return Err(e),
                },
                Err(failure) => failure,
            };
            let (wait, gained) = match &failure {
                Failed::Source(SourceError::Transient { wait, .. }) => (*wait, sink.have().bytes.saturating_sub(before)),
                Failed::Source(SourceError::Discontinued { .. }) => {
                    self.restart(sink).await?;
                    (None, 0)
                }
                _ => return Err(failure),
            };
            let Some(pause) = tries.failed(gained, wait, fastrand::u64(..)) else { return Err(failure) };
            tracing::debug!(error = %failure, have = sink.have().bytes, ?pause, "transfer broke, trying again");
            tokio::time::sleep(pause).await;
        }
    }

    async fn restart<S: Sink>(&self, sink: &mut S) -> Result<(), Failed> {
        sink.restart().await.map_err(|e| disk(sink, &e))
    }

    /// One try, from where the last one broke off where that can be.
    async fn once<S: Sink>(&self, sink: &mut S, seen: &mut Seen) -> Result<(), Failed> {
        let (wanted, stall) = (self.wanted, self.sources.setup().stall);
        let have = sink.have();
        if have.bytes > 0 && have.total == Some(have.bytes) && (wanted.digest.is_some() || wanted.etag.is_some()) {
            seen.doubtful = true;
            return Ok(());
        }
        let ask = Ask {
            role: &wanted.role,
            location: &wanted.location,
            have: &have,
            version: wanted.etag.as_deref(),
            digest_is_known: wanted.digest.is_some(),
        };
        // Until an answer begins, the clients have the same limit; waiting for a place at the host is no stall.
        let opened = self.sources.open(ask).await?;
        self.admit(&opened)?;
        if opened.from != have.bytes {
            self.restart(sink).await?;
        }
        seen.doubtful |= opened.from > 0 || opened.total.is_none();
        seen.sha256 = opened.sha256;
        seen.facts = Facts { etag: opened.etag, total: opened.total, name: opened.name };
        sink.note(&seen.facts).await.map_err(|e| disk(sink, &e))?;
        let (total, mut stream, mut done) = (opened.total, opened.stream, opened.from);
        let mut pace = Pace::new(stall);
        while let Some(chunk) = timeout(stall, stream.next()).await.map_err(|_| stalled(&self.at(), stall))? {
            let chunk = chunk?;
            let length = chunk.len() as u64;
            done += length;
            if done > wanted.limit.0 {
                return Err(Failed::TooLarge { at: self.at(), limit: wanted.limit });
            }
            if let Some(expected) = wanted.length.filter(|l| done > *l) {
                return Err(Failed::Length { at: self.at(), expected, found: total.unwrap_or(done) });
            }
            sink.write(chunk).await.map_err(|e| disk(sink, &e))?;
            self.sources.rate.take(length).await;
            if pace.is_too_slow(Instant::now(), length) && total.is_none_or(|t| done < t) {
                return Err(trickles(&self.at()).into());
            }
        }
        match total {
            Some(total) if done < total => {
                Err(SourceError::transient(&self.at(), format!("the transfer ended after {done} of {total} bytes")).into())
            }
            Some(total) if done > total => {
                Err(SourceError::permanent(&self.at(), format!("the server sends more than the {total} bytes that it speaks of")).into())
            }
            _ => Ok(()),
        }
    }

    /// Refuses by what the server says before a byte is taken.
    fn admit(&self, opened: &Opened) -> Result<(), Failed> {
        if let (Some(found), Some(expected)) = (&opened.etag, &self.wanted.etag)
            && !same_version(found, expected)
        {
            return Err(changed(&self.at(), expected, found).into());
        }
        let Some(found) = opened.total else { return Ok(()) };
        if found > self.wanted.limit.0 {
            return Err(Failed::TooLarge { at: self.at(), limit: self.wanted.limit });
        }
        match self.wanted.length {
            Some(expected) if expected != found => Err(Failed::Length { at: self.at(), expected, found }),
            _ => Ok(()),
        }
    }

    fn check<S: Sink>(&self, sink: &mut S, seen: &Seen) -> Result<(), Failed> {
        let found = sink.have().bytes;
        if let Some(expected) = self.wanted.length.filter(|l| *l != found) {
            return Err(Failed::Length { at: self.at(), expected, found });
        }
        let (blake3, sha256) = sink.digests();
        let differs = |expected: String, found: String| Failed::Digest { at: self.at(), expected, found };
        if let Some(expected) = self.wanted.digest.filter(|d| *d != blake3) {
            return Err(differs(expected.to_string(), blake3.to_string()));
        }
        let Some(sha256) = sha256 else { return Ok(()) };
        match self.wanted.sha256.into_iter().chain(seen.sha256).find(|expected| *expected != sha256) {
            Some(expected) => {
                Err(differs(format!("sha256:{}", crate::pin::hex(&expected)), format!("sha256:{}", crate::pin::hex(&sha256))))
            }
            None => Ok(()),
        }
    }
}

pub(crate) fn stalled(at: &str, stall: Duration) -> SourceError {
    SourceError::transient(at, format!("nothing arrives any more (time limit of the transfer, {} s)", stall.as_secs()))
}

pub(crate) fn trickles(at: &str) -> SourceError {
    SourceError::transient(at, format!("next to nothing arrives (less than {SLOWEST} bytes a second)"))
}

pub(crate) fn disk<S: Sink>(sink: &S, error: &io::Error) -> Failed {
    Failed::disk(sink.describe(), error)
}

impl Failed {
    /// What `path` cannot take.
    #[must_use]
    pub fn disk(path: String, error: &io::Error) -> Self {
        let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        Self::Disk { path, why: error.to_string(), full }
    }
}

/// How fast bytes come, over spans of the time limit.
pub(crate) struct Pace {
    span: Duration,
    began: Instant,
    bytes: u64,
}

impl Pace {
    pub(crate) fn new(span: Duration) -> Self {
        Self { span, began: Instant::now(), bytes: 0 }
    }

    /// Takes in what came until `now`; whether it was too little for too long.
    pub(crate) fn is_too_slow(&mut self, now: Instant, bytes: u64) -> bool {
        self.bytes = self.bytes.saturating_add(bytes);
        let took = now.saturating_duration_since(self.began);
        if took < self.span {
            return false;
        }
        let least = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).saturating_mul(SLOWEST) / 1_000;
        let slow = self.bytes < least;
        (self.began, self.bytes) = (now, 0);
        slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_is_a_stall() {
        let (mut pace, began) = (Pace::new(Duration::from_secs(10)), Instant::now());
        assert!(!pace.is_too_slow(began + Duration::from_secs(5), 1), "too early to say");
        assert!(pace.is_too_slow(began + Duration::from_secs(12), 1));
        assert!(!pace.is_too_slow(began + Duration::from_secs(23), 64 * 12));
    }
}
