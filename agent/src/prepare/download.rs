//! One transfer: into a partial file, hashed as it streams, bounded, resumed and retried; the caller moves it into place.
//!
//! Whoever asks holds a turn among the transfers; what arrives is hashed and written in turns of its own, counted in bytes, so
//! that a tenant with large inputs takes no more of the agent than one with small ones. Decides what is worth a retry; never
//! what a digest means.

use super::cache::PARTIAL_PREFIX;
use super::source::{Location, Opened, SourceError, Sources};
use super::turns::Turns;
use super::{Error, Options};
use futures::StreamExt;
use smalti_types::{Digest, FrameworkId};
use std::path::Path;
use std::time::Duration;
use tempfile::NamedTempFile;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why a transfer failed for good.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("{at} is larger than the limit of {limit}")]
    TooLarge { at: String, limit: smalti_types::Bytes },
    #[error("{at} changed since the task was submitted: it had {expected} bytes and has {found} now")]
    Length { at: String, expected: u64, found: u64 },
    #[error("{at} has the digest {found}, but {expected} was asked for")]
    Digest { at: String, expected: Digest, found: Digest },
    #[error("cannot write {path}: {why}")]
    Disk { path: String, why: String },
}

/// What to fetch and what it must be.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) location: Location,
    /// Its digest, where it is known.
    pub(crate) digest: Option<Digest>,
    /// Its length, where it is known.
    pub(crate) length: Option<u64>,
    /// Its entity tag, where it is known.
    pub(crate) etag: Option<String>,
    /// Most bytes.
    pub(crate) limit: smalti_types::Bytes,
}

/// A finished transfer, verified and on disk, under a temporary name.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) file: NamedTempFile,
    pub(crate) length: u64,
    pub(crate) name: Option<String>,
}

/// Fetches.
pub(crate) struct Fetcher {
    pub(crate) sources: Sources,
    /// For hashing and writing what arrives.
    chunks: Turns,
    attempts: u32,
    backoff: Duration,
}

/// How far a transfer has come.
struct Progress {
    file: tokio::fs::File,
    hasher: blake3::Hasher,
    done: u64,
    etag: Option<String>,
    name: Option<String>,
}

impl Fetcher {
    /// `chunks` is counted in bytes.
    pub(crate) fn new(options: &Options, chunks: Turns) -> Result<Self, Error> {
        Ok(Self { sources: Sources::new(options)?, chunks, attempts: options.fetch_attempts.max(1), backoff: options.fetch_backoff })
    }

    /// Fetches `wanted` into a partial file in `dir`, and checks its length and digest.
    pub(crate) async fn fetch(&self, wanted: &Wanted, dir: &Path, tenant: &FrameworkId) -> Result<Fetched, FetchError> {
        let disk = |e: std::io::Error| FetchError::Disk { path: dir.display().to_string(), why: e.to_string() };
        let file = tempfile::Builder::new().prefix(PARTIAL_PREFIX).tempfile_in(dir).map_err(disk)?;
        let handle = tokio::fs::File::from_std(file.as_file().try_clone().map_err(disk)?);
        let mut progress = Progress { file: handle, hasher: blake3::Hasher::new(), done: 0, etag: wanted.etag.clone(), name: None };
        let mut pause = self.backoff;
        for attempt in 1.. {
            match self.transfer(wanted, &mut progress, tenant).await {
                Ok(()) => break,
                Err(FetchError::Source(e)) if e.is_transient() && attempt < self.attempts => {
                    tracing::debug!(error = %e, attempt, done = progress.done, "transfer broke, trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(e) => return Err(e),
            }
        }
        self.check(wanted, &progress)?;
        // Before the rename: after a crash of the machine a file under its final name must be whole.
        progress.file.sync_data().await.map_err(disk)?;
        Ok(Fetched { file, length: progress.done, name: progress.name })
    }

    /// One try, from where the last one broke off where the server can do that.
    async fn transfer(&self, wanted: &Wanted, progress: &mut Progress, tenant: &FrameworkId) -> Result<(), FetchError> {
        let at = || self.sources.describe(&wanted.location);
        let opened = self.sources.open(&wanted.location, progress.done, progress.etag.as_deref()).await?;
        self.admit(wanted, &opened)?;
        if opened.offset != progress.done {
            progress.rewind(opened.offset).await.map_err(|e| FetchError::Disk { path: at(), why: e.to_string() })?;
        }
        progress.etag = progress.etag.take().or(opened.etag);
        progress.name = progress.name.take().or(opened.name);
        let total = opened.length;
        let mut stream = opened.stream;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            progress.done += chunk.len() as u64;
            if progress.done > wanted.limit.0 {
                return Err(FetchError::TooLarge { at: at(), limit: wanted.limit });
            }
            if let Some(expected) = wanted.length.filter(|l| progress.done > *l) {
                return Err(FetchError::Length { at: at(), expected, found: total.unwrap_or(progress.done) });
            }
            let mut turn = self.chunks.take(tenant).await;
            turn.charge(chunk.len() as u64);
            progress.hasher.update(&chunk);
            progress.file.write_all(&chunk).await.map_err(|e| FetchError::Disk { path: at(), why: e.to_string() })?;
        }
        progress.file.flush().await.map_err(|e| FetchError::Disk { path: at(), why: e.to_string() })?;
        match total.filter(|t| progress.done < *t) {
            Some(total) => {
                let why = format!("the transfer ended after {} of {total} bytes", progress.done);
                Err(SourceError::Transient { at: at(), why }.into())
            }
            None => Ok(()),
        }
    }

    /// Refuses by what the server says before a byte is taken.
    fn admit(&self, wanted: &Wanted, opened: &Opened) -> Result<(), FetchError> {
        let at = || self.sources.describe(&wanted.location);
        if let (Some(found), Some(expected)) = (&opened.etag, &wanted.etag)
            && found.trim_start_matches("W/") != expected.trim_start_matches("W/")
        {
            let why = format!("its version was {expected} and is {found} now");
            return Err(SourceError::Changed { at: at(), why }.into());
        }
        let Some(found) = opened.length else { return Ok(()) };
        if found > wanted.limit.0 {
            return Err(FetchError::TooLarge { at: at(), limit: wanted.limit });
        }
        match wanted.length {
            Some(expected) if expected != found => Err(FetchError::Length { at: at(), expected, found }),
            _ => Ok(()),
        }
    }

    fn check(&self, wanted: &Wanted, progress: &Progress) -> Result<(), FetchError> {
        let at = || self.sources.describe(&wanted.location);
        if let Some(expected) = wanted.length.filter(|l| *l != progress.done) {
            return Err(FetchError::Length { at: at(), expected, found: progress.done });
        }
        let found = Digest::from(progress.hasher.finalize());
        match wanted.digest.filter(|d| *d != found) {
            Some(expected) => Err(FetchError::Digest { at: at(), expected, found }),
            None => Ok(()),
        }
    }
}

impl Progress {
    /// Begins again: the server cannot go on where the last try broke off. (No server answers with a later offset than
    /// it was asked for; one that does gets its bytes refused by the digest.)
    async fn rewind(&mut self, offset: u64) -> std::io::Result<()> {
        if offset != 0 {
            return Err(std::io::Error::other("the server answers with another range than it was asked for"));
        }
        self.file.seek(std::io::SeekFrom::Start(0)).await?;
        self.file.set_len(0).await?;
        self.hasher.reset();
        self.done = 0;
        Ok(())
    }
}
