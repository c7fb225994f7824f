//! Opens an object wherever it lies.
//!
//! Owns the clients of all kinds of places and the one question that comes before each: may this role? One trait, one implementation a
//! kind. Retries are the transfer's.

use crate::clients::Clients;
use crate::error::SourceError;
use crate::file::Files;
use crate::hosts::Hosts;
use crate::http::Http;
use crate::location::Location;
use crate::oci::Oci;
use crate::options::{Setup, SetupError};
use crate::range::Have;
use crate::rate::Rate;
use crate::s3::S3;
use crate::store::Store;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::ObjectStore;
use smalti_types::Role;
use std::ops::Range;
use std::sync::Arc;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// In whose name.
    pub role: &'a Role,
    /// Where it lies.
    pub location: &'a Location,
    /// What is there already.
    pub have: &'a Have,
    /// The tag of the one version that will do.
    pub version: Option<&'a str>,
    /// Whether the whole is checked against a digest in the end.
    pub digest_is_known: bool,
}

/// Which bytes of an object, and of which version.
#[derive(Debug, Clone)]
pub struct Part<'a> {
    /// From, and up to but not with.
    pub range: Range<u64>,
    /// The tag of the one version that will do.
    pub version: Option<&'a str>,
}

impl Part<'_> {
    /// How many bytes.
    pub(crate) fn length(&self) -> usize {
        usize::try_from(self.range.end.saturating_sub(self.range.start)).unwrap_or(usize::MAX)
    }

    /// As a header says it; not for an empty one.
    pub(crate) fn header(&self) -> String {
        format!("bytes={}-{}", self.range.start, self.range.end.saturating_sub(1))
    }
}

/// What a place without tags says of a version stands behind this: when it was modified last.
pub(crate) const MODIFIED: &str = "modified ";

/// Whether two tags are of the same version, as far as they tell. Weak ones are compared by their value; of a tag and a time nothing follows.
pub(crate) fn same_version(one: &str, other: &str) -> bool {
    if one.starts_with(MODIFIED) != other.starts_with(MODIFIED) {
        return true;
    }
    one.trim_start_matches("W/") == other.trim_start_matches("W/")
}

/// What is said of an object of another version than the one that was asked for.
pub(crate) fn changed(at: &str, expected: &str, found: &str) -> SourceError {
    SourceError::Changed { at: at.to_owned(), why: format!("its version was {expected} and is {found} now") }
}

/// An object, opened.
pub struct Opened {
    /// Its bytes from `from` on.
    pub stream: BoxStream<'static, Result<Bytes, SourceError>>,
    /// Where the stream begins: behind what was there, or at 0.
    pub from: u64,
    /// Length of the whole object, where it is known.
    pub total: Option<u64>,
    /// Its entity tag.
    pub etag: Option<String>,
    /// Its file name, where the server says it.
    pub name: Option<String>,
    /// SHA-256 of the whole, where the place names objects by it.
    pub sha256: Option<[u8; 32]>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("from", &self.from).field("total", &self.total).finish_non_exhaustive()
    }
}

/// A part of an object, opened.
pub(crate) struct OpenedPart {
    /// Its bytes, and perhaps more behind them.
    pub(crate) stream: BoxStream<'static, Result<Bytes, SourceError>>,
    /// Where the stream begins: where it was asked to, or before that if the server does not know parts.
    pub(crate) from: u64,
}

/// One kind of place.
pub(crate) trait Source: Send + Sync {
    /// Opens an object behind what is there of it.
    fn open<'a>(&'a self, ask: Ask<'a>) -> BoxFuture<'a, Result<Opened, SourceError>>;
    /// Its length and its tag.
    fn head<'a>(&'a self, role: &'a Role, location: &'a Location) -> BoxFuture<'a, Result<(u64, Option<String>), SourceError>>;
    /// Opens some bytes of it, not beyond its end; not for none.
    fn part<'a>(&'a self, role: &'a Role, location: &'a Location, part: Part<'a>) -> BoxFuture<'a, Result<OpenedPart, SourceError>>;
}

/// Everything that can be fetched from.
pub struct Sources {
    setup: Arc<Setup>,
    http: Http,
    oci: Oci,
    pub(crate) s3: S3,
    files: Files,
    store: Store,
    /// Of all transfers together.
    pub(crate) rate: Rate,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("setup", &self.setup).finish_non_exhaustive()
    }
}

impl Sources {
    /// Sets the clients up.
    ///
    /// # Errors
    /// Certificates or a proxy that cannot be used.
    pub fn new(setup: Setup) -> Result<Self, SetupError> {
        let setup = Arc::new(setup);
        let clients = Arc::new(Clients::new(setup.clone())?);
        let hosts = Arc::new(Hosts::new(setup.per_host));
        let http = Http::new(setup.clone(), clients.clone(), hosts.clone());
        Ok(Self {
            oci: Oci::new(http.clone(), setup.registry_auth.clone()),
            s3: S3::new(setup.clone(), hosts),
            files: Files { roots: setup.file_roots.clone() },
            store: Store { http: http.clone(), client: clients.cluster.clone(), master: setup.master.clone() },
            http,
            rate: Rate::new(setup.rate),
            setup,
        })
    }

    /// How it was set up.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    fn kind(&self, location: &Location) -> &dyn Source {
        match location {
            Location::Store(_) | Location::Peer(..) => &self.store,
            Location::Http(_) => &self.http,
            Location::S3 { .. } => &self.s3,
            Location::Oci(_) => &self.oci,
            Location::File(_) => &self.files,
        }
    }

    /// Opens an object.
    ///
    /// # Errors
    /// [`SourceError`], also when the role may not.
    pub async fn open(&self, ask: Ask<'_>) -> Result<Opened, SourceError> {
        self.setup.policy.check(ask.role, ask.location)?;
        self.kind(ask.location).open(ask).await
    }

    /// Length and tag of an object.
    ///
    /// # Errors
    /// [`SourceError`], also when the role may not.
    pub async fn head(&self, role: &Role, location: &Location) -> Result<(u64, Option<String>), SourceError> {
        self.setup.policy.check(role, location)?;
        self.kind(location).head(role, location).await
    }

    /// Some bytes of an object, not beyond its end. They are held in memory: ask for few.
    ///
    /// # Errors
    /// [`SourceError`], also when the role may not.
    pub async fn range(&self, role: &Role, location: &Location, part: Part<'_>) -> Result<Bytes, SourceError> {
        let (start, length) = (part.range.start, part.length());
        if length == 0 {
            return self.setup.policy.check(role, location).map(|()| Bytes::new());
        }
        let opened = self.part(role, location, part).await?;
        collect(opened.stream, (start.saturating_sub(opened.from), length), &location.to_string()).await
    }

    /// Opens some bytes of an object.
    pub(crate) async fn part(&self, role: &Role, location: &Location, part: Part<'_>) -> Result<OpenedPart, SourceError> {
        self.setup.policy.check(role, location)?;
        self.kind(location).part(role, location, part).await
    }

    /// The same place in words that cannot come to mean something else: the manifest's digest in place of a tag.
    ///
    /// # Errors
    /// [`SourceError`], also when the role may not.
    pub async fn exact(&self, role: &Role, location: &Location) -> Result<Location, SourceError> {
        self.setup.policy.check(role, location)?;
        match location {
            Location::Oci(reference) if !reference.is_exact() => Ok(Location::Oci(self.oci.exact(role, reference).await?)),
            other => Ok(other.clone()),
        }
    }

    /// A bucket, for listings; what is listed is checked when it is opened.
    ///
    /// # Errors
    /// When the role may not list there, or the cluster's settings cannot be used.
    pub fn bucket(&self, role: &Role, bucket: &str, prefix: &str) -> Result<Arc<dyn ObjectStore>, SourceError> {
        // A listing shows what lies below the prefix, so that is what the role must be allowed.
        let key = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let place = Location::S3 { bucket: bucket.to_owned(), key };
        self.setup.policy.check(role, &place)?;
        self.s3.bucket(bucket, &place.to_string()).map(|b| b as Arc<dyn ObjectStore>)
    }

    /// The real path of a file or directory that the role may read.
    ///
    /// # Errors
    /// [`SourceError`] when it may not, or there is nothing.
    pub fn local(&self, role: &Role, path: &std::path::Path) -> Result<std::path::PathBuf, SourceError> {
        let place = Location::File(path.to_owned());
        self.setup.policy.check(role, &place)?;
        self.files.real(path, &place.to_string())
    }
}

/// Reads a stream to its end, as long as it is not longer than `most`.
pub(crate) async fn collect(
    mut stream: BoxStream<'static, Result<Bytes, SourceError>>,
    (skip, most): (u64, usize),
    at: &str,
) -> Result<Bytes, SourceError> {
    let (mut skip, mut all) = (skip, Vec::new());
    while let Some(chunk) = stream.next().await {
        let mut chunk = chunk?;
        let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
        let _ = chunk.split_to(passed);
        skip -= passed as u64;
        all.extend_from_slice(&chunk[..chunk.len().min(most - all.len())]);
        if all.len() >= most {
            return Ok(all.into());
        }
    }
    if skip > 0 {
        return Err(SourceError::permanent(at, "it is shorter than what is asked for"));
    }
    Ok(all.into())
}

/// The same for all kinds: `open` as a boxed future.
pub(crate) fn boxed<'a, T>(future: impl Future<Output = T> + Send + 'a) -> BoxFuture<'a, T> {
    future.boxed()
}
