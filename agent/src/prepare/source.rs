//! Where bytes come from: `http(s)://`, `s3://`, `file://` and the cluster's own store, opened as one kind of stream.
//!
//! Owns the clients (one HTTP client for the world, one without proxy for the master, one per S3 bucket) and the words of
//! each failure. Credentials for S3 come with the agent's options, never from a task. Retries are the caller's.

use super::{Error, Options};
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{ClientOptions, GetOptions, GetRange, ObjectStore, RetryConfig};
use reqwest::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, IF_MATCH, RANGE};
use smalti_types::Digest;
use std::collections::HashMap;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::io::ReaderStream;

/// Buckets whose clients are kept.
const MAX_BUCKETS: usize = 64;
/// Bytes read from a local file at a time.
const FILE_CHUNK: usize = 256 << 10;
/// Time for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where one object lies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Location {
    /// The cluster's own store, at the master.
    Store(Digest),
    /// Any HTTP or HTTPS address.
    Http(String),
    /// An object in a bucket; the key is taken as it is written.
    S3 {
        /// Bucket.
        bucket: String,
        /// Key.
        key: String,
    },
    /// A file on this agent.
    File(PathBuf),
}

/// Why an object cannot be had. The messages name it; callers map them to a reason.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("`{uri}` is not a place to fetch from: {why}")]
    Uri { uri: String, why: String },
    #[error("there is no {at}: {why}")]
    NotFound { at: String, why: String },
    #[error("fetching {at} was refused: {why}")]
    Refused { at: String, why: String },
    #[error("{at} changed since the task was submitted: {why}")]
    Changed { at: String, why: String },
    #[error("cannot fetch {at}: {why}")]
    Transient { at: String, why: String },
    #[error("cannot fetch {at}: {why}")]
    Permanent { at: String, why: String },
}

impl SourceError {
    /// Whether trying again may help.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Transient { .. })
    }
}

/// An object, opened.
pub(crate) struct Opened {
    /// Its bytes from `offset` on.
    pub(crate) stream: BoxStream<'static, Result<Bytes, SourceError>>,
    /// Where the stream begins: what was asked for, or 0 when the server cannot begin elsewhere.
    pub(crate) offset: u64,
    /// Length of the whole object, where the server says it.
    pub(crate) length: Option<u64>,
    /// Its entity tag.
    pub(crate) etag: Option<String>,
    /// Its file name, where the server says it.
    pub(crate) name: Option<String>,
}

/// The clients.
pub(crate) struct Sources {
    master: String,
    world: reqwest::Client,
    cluster: reqwest::Client,
    stall: Duration,
    roots: Vec<PathBuf>,
    s3: Vec<(String, String)>,
    buckets: Mutex<HashMap<String, Arc<AmazonS3>>>,
}

impl Location {
    /// Reads a URI; `None` and `store:` are the cluster's store, which needs a digest. A `#blake3=` pin is for the caller.
    pub(crate) fn parse(uri: Option<&str>, digest: Option<Digest>) -> Result<Self, SourceError> {
        let bad = |uri: &str, why: &str| SourceError::Uri { uri: uri.chars().take(200).collect(), why: why.into() };
        let Some(uri) = uri.filter(|u| *u != "store:") else {
            return digest.map(Self::Store).ok_or_else(|| bad("store:", "an object in the cluster's store is named by its digest"));
        };
        let plain = uri.split('#').next().unwrap_or_default();
        let Some((scheme, rest)) = plain.split_once("://") else {
            return Err(bad(uri, "write it like https://…, http://…, s3://bucket/key or file:///path"));
        };
        match scheme {
            "http" | "https" => Ok(Self::Http(plain.to_owned())),
            "s3" => match rest.split_once('/') {
                Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() => {
                    Ok(Self::S3 { bucket: bucket.to_owned(), key: key.to_owned() })
                }
                _ => Err(bad(uri, "write it like s3://bucket/key")),
            },
            // A `#` may be part of a file's name.
            "file" => match uri.strip_prefix("file://").filter(|p| p.starts_with('/')) {
                Some(path) => Ok(Self::File(path.split("#blake3=").next().unwrap_or_default().into())),
                None => Err(bad(uri, "write it like file:///path")),
            },
            other => Err(bad(uri, &format!("the scheme `{other}` is not known; use https, http, s3 or file"))),
        }
    }

    /// The last part of its path, if it has one: what the object would be called as a file.
    pub(crate) fn file_name(&self) -> Option<String> {
        let path = match self {
            Self::Store(_) => return None,
            Self::Http(url) => url.split_once("://").map_or("", |(_, rest)| rest).split('?').next().unwrap_or_default().split_once('/')?.1,
            Self::S3 { key, .. } => key,
            Self::File(path) => path.to_str()?,
        };
        clean_name(path.rsplit('/').next()?)
    }

    /// How messages call it.
    pub(crate) fn describe(&self, master: &str) -> String {
        match self {
            Self::Store(digest) => format!("{digest} in the cluster's store (http://{master}/v1/bundles/{})", digest.to_hex()),
            Self::Http(url) => url.clone(),
            Self::S3 { bucket, key } => format!("s3://{bucket}/{key}"),
            Self::File(path) => format!("file://{}", path.display()),
        }
    }
}

/// A file name that may become an argument and part of messages.
pub(crate) fn clean_name(name: &str) -> Option<String> {
    let name: String = name.chars().filter(|c| !c.is_control() && *c != '/').take(128).collect();
    (!name.is_empty() && name != "." && name != "..").then_some(name)
}

impl Sources {
    pub(crate) fn new(options: &Options) -> Result<Self, Error> {
        let builder = || {
            reqwest::Client::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(options.fetch_stall)
                .user_agent(concat!("smalti/", env!("CARGO_PKG_VERSION")))
        };
        Ok(Self {
            master: options.master.clone(),
            world: builder().build().map_err(Error::Http)?,
            // The master is named by address and is never behind a proxy or elsewhere.
            cluster: builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().map_err(Error::Http)?,
            stall: options.fetch_stall,
            roots: options.allowed_file_roots.clone(),
            s3: options.s3.clone(),
            buckets: Mutex::default(),
        })
    }

    /// How messages call a location.
    pub(crate) fn describe(&self, location: &Location) -> String {
        location.describe(&self.master)
    }

    /// Opens an object from `offset` on; with `etag`, only if it still is that version.
    pub(crate) async fn open(&self, location: &Location, offset: u64, etag: Option<&str>) -> Result<Opened, SourceError> {
        let at = self.describe(location);
        match location {
            Location::Store(digest) => {
                let url = format!("http://{}/v1/bundles/{}", self.master, digest.to_hex());
                self.http(&self.cluster, &url, at, offset, None).await
            }
            Location::Http(url) => self.http(&self.world, url, at, offset, etag).await,
            Location::S3 { bucket, key } => self.s3(bucket, key, at, offset, etag).await,
            Location::File(path) => self.file(path, at, offset),
        }
    }

    async fn http(&self, client: &reqwest::Client, url: &str, at: String, offset: u64, etag: Option<&str>) -> Result<Opened, SourceError> {
        let mut request = client.get(url);
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        // If-Match compares strongly: a weak tag would never match.
        if let Some(tag) = etag.filter(|t| !t.starts_with("W/")) {
            request = request.header(IF_MATCH, tag);
        }
        let response = request.send().await.map_err(|e| from_reqwest(&at, &e))?;
        let status = response.status();
        let why = || format!("the server says {status}");
        match status.as_u16() {
            200 | 206 => {}
            404 | 410 => return Err(SourceError::NotFound { at, why: why() }),
            401 | 403 => return Err(SourceError::Refused { at, why: why() }),
            412 => return Err(SourceError::Changed { at, why: why() }),
            408 | 425 | 429 | 500..=599 => return Err(SourceError::Transient { at, why: why() }),
            _ => return Err(SourceError::Permanent { at, why: why() }),
        }
        let headers = response.headers();
        let start = if status.as_u16() == 206 { range_start(headers).unwrap_or(offset) } else { 0 };
        let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
        let length = text(CONTENT_LENGTH).and_then(|l| l.parse::<u64>().ok()).map(|l| l.saturating_add(start));
        let etag = text(ETAG).map(str::to_owned);
        // Names may be more than ASCII.
        let name = headers.get(CONTENT_DISPOSITION).and_then(|v| std::str::from_utf8(v.as_bytes()).ok()).and_then(disposition_name);
        let stream = response.bytes_stream().map_err(move |e| from_reqwest(&at, &e)).boxed();
        Ok(Opened { stream, offset: start, length, etag, name })
    }

    async fn s3(&self, bucket: &str, key: &str, at: String, offset: u64, etag: Option<&str>) -> Result<Opened, SourceError> {
        let store = self.bucket(bucket).map_err(|e| from_store(&at, &e))?;
        let path = object_store::path::Path::parse(key)
            .map_err(|e| SourceError::Uri { uri: at.clone(), why: format!("the key is not usable: {e}") })?;
        let options = GetOptions {
            if_match: etag.map(str::to_owned),
            range: (offset > 0).then_some(GetRange::Offset(offset)),
            ..GetOptions::default()
        };
        let result = store.get_opts(&path, options).await.map_err(|e| from_store(&at, &e))?;
        let (offset, length, etag) = (result.range.start, result.meta.size, result.meta.e_tag.clone());
        let stream = result.into_stream().map_err(move |e| from_store(&at, &e)).boxed();
        Ok(Opened { stream, offset, length: Some(length), etag, name: None })
    }

    /// The client of a bucket; endpoint, region and credentials are the cluster's.
    fn bucket(&self, bucket: &str) -> object_store::Result<Arc<AmazonS3>> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = buckets.get(bucket) {
            return Ok(store.clone());
        }
        // An endpoint that is written with http:// is meant so.
        let plain = self.s3.iter().any(|(name, value)| name.starts_with("AWS_ENDPOINT") && value.starts_with("http://"));
        let client = ClientOptions::new()
            .with_allow_http(plain)
            .with_timeout_disabled()
            .with_read_timeout(self.stall)
            .with_connect_timeout(CONNECT_TIMEOUT);
        let retry = RetryConfig { max_retries: 2, retry_timeout: Duration::from_secs(20), ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::new().with_client_options(client);
        for (name, value) in &self.s3 {
            // What is not for S3 is not known here.
            if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        let store = Arc::new(builder.with_bucket_name(bucket).with_retry(retry).build()?);
        if buckets.len() >= MAX_BUCKETS {
            buckets.clear();
        }
        buckets.insert(bucket.to_owned(), store.clone());
        Ok(store)
    }

    fn file(&self, path: &Path, at: String, offset: u64) -> Result<Opened, SourceError> {
        let fail = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => SourceError::NotFound { at: at.clone(), why: "no such file on this agent".into() },
            std::io::ErrorKind::PermissionDenied => SourceError::Refused { at: at.clone(), why: e.to_string() },
            _ => SourceError::Permanent { at: at.clone(), why: e.to_string() },
        };
        // Links are resolved first, so that none leads out of the allowed directories.
        let refused = || {
            let why = if self.roots.is_empty() {
                "this agent allows no file:// paths (its operator lists the directories that may be read)"
            } else {
                "it is not below a directory that this agent's operator allows"
            };
            SourceError::Refused { at: at.clone(), why: why.into() }
        };
        if !path.is_absolute() || self.roots.is_empty() {
            return Err(refused());
        }
        let real = path.canonicalize().map_err(fail)?;
        let allowed = self.roots.iter().filter_map(|r| r.canonicalize().ok()).any(|root| real.starts_with(root));
        if !allowed {
            return Err(refused());
        }
        let meta = std::fs::metadata(&real).map_err(fail)?;
        if !meta.is_file() {
            return Err(SourceError::Permanent { at, why: "it is not a regular file".into() });
        }
        let mut file = std::fs::File::open(&real).map_err(fail)?;
        file.seek(SeekFrom::Start(offset)).map_err(fail)?;
        let stream = ReaderStream::with_capacity(tokio::fs::File::from_std(file), FILE_CHUNK)
            .map_err(move |e| SourceError::Permanent { at: at.clone(), why: e.to_string() })
            .boxed();
        Ok(Opened { stream, offset, length: Some(meta.len()), etag: None, name: None })
    }
}

/// The first byte that a 206 answer really begins at.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// The file name of `attachment; filename="hello.wasm"`.
fn disposition_name(header: &str) -> Option<String> {
    let (_, rest) = header.split_once("filename=")?;
    match rest.strip_prefix('"') {
        Some(quoted) => clean_name(&unquoted(quoted)),
        None => clean_name(rest.split(';').next()?.trim()),
    }
}

/// A quoted string of HTTP up to its end, without the escapes.
fn unquoted(text: &str) -> String {
    let (mut out, mut chars) = (String::new(), text.chars());
    loop {
        match chars.next() {
            None | Some('"') => return out,
            Some('\\') => out.extend(chars.next()),
            Some(c) => out.push(c),
        }
    }
}

/// The innermost cause says what happened; the outer layers only repeat the address.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn from_reqwest(at: &str, error: &reqwest::Error) -> SourceError {
    let (at, why) = (at.to_owned(), root_cause(error));
    if error.is_builder() {
        return SourceError::Uri { uri: at, why };
    }
    if error.is_timeout() {
        return SourceError::Transient { at, why: "nothing arrives any more (time limit of the transfer)".into() };
    }
    if error.is_redirect() {
        return SourceError::Permanent { at, why };
    }
    SourceError::Transient { at, why }
}

fn from_store(at: &str, error: &object_store::Error) -> SourceError {
    use object_store::Error as E;
    let (at, why) = (at.to_owned(), root_cause(error));
    match error {
        E::NotFound { .. } => SourceError::NotFound { at, why },
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => SourceError::Refused { at, why },
        E::Precondition { .. } | E::NotModified { .. } => SourceError::Changed { at, why },
        // Requests were retried below already; what is left is a stream that broke, or a configuration that never works.
        E::Generic { .. } => SourceError::Transient { at, why },
        _ => SourceError::Permanent { at, why },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_the_rest_is_refused_with_what_to_write() {
        let digest = Digest::of(b"x");
        assert_eq!(Location::parse(None, Some(digest)).unwrap(), Location::Store(digest));
        assert_eq!(Location::parse(Some("store:"), Some(digest)).unwrap(), Location::Store(digest));
        let s3 = Location::parse(Some("s3://b/k/l.wasm#blake3=00"), None).unwrap();
        assert_eq!(s3, Location::S3 { bucket: "b".into(), key: "k/l.wasm".into() });
        assert_eq!(Location::parse(Some("file:///a#b"), None).unwrap(), Location::File("/a#b".into()));
        for bad in ["", "x", "ftp://h/x", "s3://b", "s3:///k", "file://host/x", "store:"] {
            assert!(matches!(Location::parse(Some(bad), None), Err(SourceError::Uri { .. })), "{bad}");
        }
    }

    #[test]
    fn an_object_is_called_by_the_last_part_of_its_path() {
        for (uri, name) in [
            ("http://h/a/b.wasm?x=/y", Some("b.wasm")),
            ("http://h", None),
            ("http://h/", None),
            ("s3://b/k/l.tar.gz", Some("l.tar.gz")),
            ("file:///x/y", Some("y")),
        ] {
            assert_eq!(Location::parse(Some(uri), None).unwrap().file_name().as_deref(), name, "{uri}");
        }
        assert_eq!(disposition_name("attachment; filename=\"hello.wasm\"").as_deref(), Some("hello.wasm"));
        assert_eq!(disposition_name("attachment; filename=a/../b; x=y").as_deref(), Some("a..b"));
        assert_eq!(disposition_name("attachment; filename=\"a \\\"b\\\\ \u{e4}.wasm\"; x=y").as_deref(), Some("a \"b\\ \u{e4}.wasm"));
    }
}
