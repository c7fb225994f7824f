//! `s3://`: Amazon's, and every server that speaks the same.
//!
//! Owns a client a bucket; endpoint, region and credentials are the cluster's, so no address of theirs is checked. The words of failures are
//! taken out of what the server says, never the whole of it: such answers repeat signatures and key ids.

use crate::clients::CONNECT_TIMEOUT;
use crate::error::{SourceError, disconnected, root_cause};
use crate::hosts::{Hosts, Place};
use crate::location::Location;
use crate::options::Setup;
use crate::source::{Ask, MODIFIED, Opened, OpenedPart, Part, Source, boxed, changed, same_version};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path as Key;
use object_store::{Certificate, ClientOptions, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig};
use smalti_types::Role;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// A time of modification that is longer ago stands for one version: times are told to the second, and clocks differ.
const SETTLED: Duration = Duration::from_secs(3);
/// Buckets whose clients are kept.
const MAX_BUCKETS: usize = 64;
/// Longest part of a server's words in a message.
const MOST_WORDS: usize = 200;
/// What a server calls a refusal, whatever status it comes with.
const REFUSALS: [&str; 12] = [
    "AccessDenied",
    "AuthorizationHeaderMalformed",
    "AuthorizationQueryParametersError",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "NotSignedUp",
    "PermanentRedirect",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnauthorizedAccess",
];

/// What a server says of a bucket that is not there.
const NO_BUCKET: &str = "NoSuchBucket";
/// Where machines and containers of a cloud learn their credentials.
const METADATA_HOSTS: [&str; 3] = ["169.254.169.254", "169.254.170.2", "fd00:ec2::254"];

/// All buckets.
pub(crate) struct S3 {
    setup: Arc<Setup>,
    pub(crate) hosts: Arc<Hosts>,
    buckets: Mutex<HashMap<String, Arc<AmazonS3>>>,
}

impl S3 {
    pub(crate) fn new(setup: Arc<Setup>, hosts: Arc<Hosts>) -> Self {
        Self { setup, hosts, buckets: Mutex::default() }
    }

    /// The client of a bucket.
    pub(crate) fn bucket(&self, bucket: &str, at: &str) -> Result<Arc<AmazonS3>, SourceError> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = buckets.get(bucket) {
            return Ok(store.clone());
        }
        let store = Arc::new(self.build(bucket).map_err(|e| from_store(at, &e))?);
        if buckets.len() >= MAX_BUCKETS {
            buckets.clear();
        }
        buckets.insert(bucket.to_owned(), store.clone());
        Ok(store)
    }

    fn build(&self, bucket: &str) -> object_store::Result<AmazonS3> {
        let setup = &self.setup;
        // An endpoint that is written with http:// is meant so.
        let plain = setup.s3.iter().any(|(name, value)| name.starts_with("AWS_ENDPOINT") && value.starts_with("http://"));
        let mut client = ClientOptions::new()
            .with_allow_http(plain)
            .with_timeout_disabled()
            .with_read_timeout(setup.stall)
            .with_connect_timeout(CONNECT_TIMEOUT);
        for pem in &setup.ca {
            for certificate in Certificate::from_pem_bundle(pem)? {
                client = client.with_root_certificate(certificate);
            }
        }
        if let Some(proxy) = &setup.proxy {
            let except: Vec<String> = setup.no_proxy.iter().cloned().chain(credential_hosts(&setup.s3)).collect();
            client = client.with_proxy_url(proxy).with_proxy_excludes(except.join(","));
        }
        // Tries are counted in one place, which is not here; a few go to where credentials come from.
        let retry = RetryConfig { max_retries: 1, retry_timeout: Duration::from_secs(20), ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::new().with_client_options(client);
        for (name, value) in &setup.s3 {
            // What is not for S3 is not known here.
            if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        if is_set(&setup.s3, "AWS_VIRTUAL_HOSTED_STYLE_REQUEST") {
            // The library takes the endpoint for that of one bucket then, and this process speaks of many.
            for key in [AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::S3Endpoint] {
                if let Some(endpoint) = builder.get_config_value(&key).and_then(|endpoint| of_bucket(&endpoint, bucket)) {
                    builder = builder.with_config(key, endpoint);
                }
            }
        }
        builder.with_bucket_name(bucket).with_retry(retry).build()
    }

    fn object(&self, location: &Location) -> Result<(Arc<AmazonS3>, Key, String), SourceError> {
        let at = location.to_string();
        let Location::S3 { bucket, key } = location else { return Err(SourceError::permanent(&at, "it is not in a bucket")) };
        let path = Key::parse(key).map_err(|e| SourceError::Uri { uri: at.clone(), why: format!("the key is not usable: {e}") })?;
        Ok((self.bucket(bucket, &at)?, path, at))
    }

    fn host(location: &Location) -> String {
        match location {
            Location::S3 { bucket, .. } => format!("s3://{bucket}"),
            other => other.to_string(),
        }
    }
}

fn is_set(settings: &[(String, String)], name: &str) -> bool {
    settings.iter().any(|(n, value)| n == name && matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "on" | "yes" | "y"))
}

/// The endpoint of a bucket that has a host of its own, unless it is one already.
fn of_bucket(endpoint: &str, bucket: &str) -> Option<String> {
    let (scheme, rest) = endpoint.split_once("://")?;
    (!rest.starts_with(&format!("{bucket}."))).then(|| format!("{scheme}://{bucket}.{rest}"))
}

/// Where credentials come from on this machine or beside it: no proxy can ask there, or may be told.
fn credential_hosts(settings: &[(String, String)]) -> impl Iterator<Item = String> {
    let named = settings.iter().filter(|(name, _)| matches!(name.as_str(), "AWS_METADATA_ENDPOINT" | "AWS_CONTAINER_CREDENTIALS_FULL_URI"));
    let named = named.filter_map(|(_, uri)| Some(reqwest::Url::parse(uri).ok()?.host_str()?.to_owned()));
    METADATA_HOSTS.map(str::to_owned).into_iter().chain(named)
}

impl Source for S3 {
    fn open<'a>(&'a self, ask: Ask<'a>) -> BoxFuture<'a, Result<Opened, SourceError>> {
        boxed(async move {
            let (store, path, at) = self.object(ask.location)?;
            let place = self.hosts.place(&Self::host(ask.location)).await;
            let request = ask.have.request(ask.digest_is_known);
            let goes_on = request.from() > 0;
            let version = ask.version.or_else(|| ask.have.etag.as_deref().filter(|_| goes_on));
            let options = GetOptions { range: goes_on.then_some(GetRange::Offset(request.from())), ..condition(version) };
            let result = store.get_opts(&path, options).await.map_err(|e| match (from_store(&at, &e), ask.version) {
                // Not what was promised, but what we have the beginning of.
                (SourceError::Changed { at, why }, None) => SourceError::Discontinued { at, why },
                (other, _) => other,
            })?;
            let (from, total, etag) = (result.range.start, result.meta.size, version_sent(&result.meta, version));
            Ok(Opened { stream: watched(result, place, at), from, total: Some(total), etag, name: None, sha256: None })
        })
    }

    fn head<'a>(&'a self, _: &'a Role, location: &'a Location) -> BoxFuture<'a, Result<(u64, Option<String>), SourceError>> {
        boxed(async move {
            let (store, path, at) = self.object(location)?;
            let meta = store.head(&path).await.map_err(|e| from_store(&at, &e))?;
            Ok((meta.size, object_version(&meta)))
        })
    }

    fn part<'a>(&'a self, _: &'a Role, location: &'a Location, part: Part<'a>) -> BoxFuture<'a, Result<OpenedPart, SourceError>> {
        boxed(async move {
            let (store, path, at) = self.object(location)?;
            let place = self.hosts.place(&Self::host(location)).await;
            let options = GetOptions { range: Some(GetRange::Bounded(part.range)), ..condition(part.version) };
            let result = store.get_opts(&path, options).await.map_err(|e| from_store(&at, &e))?;
            if let (Some(expected), Some(found)) = (part.version, version_sent(&result.meta, part.version))
                && !same_version(expected, &found)
            {
                return Err(changed(&at, expected, &found));
            }
            let from = result.range.start;
            Ok(OpenedPart { stream: watched(result, place, at), from })
        })
    }
}

/// The bytes of an answer; as long as they come, the host is busy with it.
fn watched(result: GetResult, place: Place, at: String) -> BoxStream<'static, Result<Bytes, SourceError>> {
    let chunks = result.into_stream().map(move |chunk| {
        let _place = &place;
        chunk.map_err(|e| from_store(&at, &e))
    });
    chunks.boxed()
}

/// Which version a server sends: its tag, or when it was modified last, to the second. The latter also where the version that was asked for
/// is one: a listing may have no tags although an answer has one.
fn version_sent(meta: &ObjectMeta, asked: Option<&str>) -> Option<String> {
    let modified = || {
        let time = SystemTime::from(meta.last_modified);
        (time > SystemTime::UNIX_EPOCH).then(|| format!("{MODIFIED}{}", httpdate::fmt_http_date(time)))
    };
    let by_time = asked.is_some_and(|v| v.starts_with(MODIFIED));
    meta.e_tag.clone().filter(|_| !by_time).or_else(modified)
}

/// The version of an object as a listing or a look at it tells, if it lasts: without a tag, not one of the last seconds, for the next may be
/// of the same one.
#[must_use]
pub fn object_version(meta: &ObjectMeta) -> Option<String> {
    let age = SystemTime::now().duration_since(SystemTime::from(meta.last_modified)).unwrap_or_default();
    version_sent(meta, None).filter(|_| meta.e_tag.is_some() || age > SETTLED)
}

/// Asks for this version or none.
fn condition(version: Option<&str>) -> GetOptions {
    let time = |v: &str| httpdate::parse_http_date(v.strip_prefix(MODIFIED)?).ok();
    match version {
        None => GetOptions::default(),
        Some(v) if v.starts_with(MODIFIED) => GetOptions { if_unmodified_since: time(v).map(Into::into), ..GetOptions::default() },
        Some(v) => GetOptions { if_match: Some(v.to_owned()), ..GetOptions::default() },
    }
}

/// What a server of S3 says, without what it repeats of the request.
fn words(text: &str) -> String {
    let between = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        Some(rest.split_once(&format!("</{tag}>"))?.0.trim().to_owned())
    };
    let cut = |text: &str| text.chars().take(MOST_WORDS).collect::<String>();
    match (between("Code"), between("Message")) {
        (Some(code), Some(message)) if !message.is_empty() => cut(&format!("{code}: {message}")),
        (Some(code), _) => cut(&code),
        // A status, or words of a library; whatever follows a status is a server's page.
        (None, _) => match text.split_once("status code: ") {
            Some((_, status)) => cut(&format!("the server says {}", status.split(": ").next().unwrap_or_default())),
            None => cut(text),
        },
    }
}

/// The status in the words of the client.
fn status(text: &str) -> Option<u16> {
    text.split_once("status code: ")?.1.get(..3)?.parse().ok()
}

/// What a failure of a bucket's client means.
#[must_use]
pub fn from_store(at: &str, error: &object_store::Error) -> SourceError {
    use object_store::Error as E;
    let cause = root_cause(error);
    let (at, why) = (at.to_owned(), words(&cause));
    if REFUSALS.iter().any(|code| why == *code || why.starts_with(&format!("{code}: "))) {
        return SourceError::Refused { at, why };
    }
    // The library knows this only where it asks for an object.
    if why == NO_BUCKET || why.starts_with(&format!("{NO_BUCKET}: ")) {
        return SourceError::NotFound { at, why };
    }
    match error {
        E::NotFound { .. } => SourceError::NotFound { at, why },
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => SourceError::Refused { at, why },
        E::Precondition { .. } | E::NotModified { .. } => SourceError::Changed { at, why },
        // Without a status it is a connection that broke, or could not be made.
        E::Generic { .. } => match status(&cause).map(crate::retry::meaning) {
            None => disconnected(&at, why),
            Some(crate::retry::Meaning::Transient) => SourceError::Transient { at, why, wait: None },
            Some(_) => SourceError::Permanent { at, why },
        },
        _ => SourceError::Permanent { at, why },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> SourceError {
        from_store("s3://b/k", &object_store::Error::Generic { store: "S3", source: text.to_owned().into() })
    }

    #[test]
    fn a_servers_words_are_told_without_what_it_repeats() {
        let said = "Server returned non-2xx status code: 403 Forbidden: <?xml?><Error><Code>SignatureDoesNotMatch</Code><Message>No.</Message>\
                    <AWSAccessKeyId>AKIAHUSH</AWSAccessKeyId><StringToSign>hush</StringToSign></Error>";
        assert_eq!(words(said), "SignatureDoesNotMatch: No.");
        assert_eq!(words("Server returned non-2xx status code: 404 Not Found: <html>hush"), "the server says 404 Not Found");
        assert_eq!(words("connection refused"), "connection refused");
    }

    #[test]
    fn what_may_pass_is_told_from_what_stays() {
        let with = |status: &str, code: &str| {
            generic(&format!("Server returned non-2xx status code: {status}: <Error><Code>{code}</Code></Error>"))
        };
        assert!(matches!(with("400 Bad Request", "ExpiredToken"), SourceError::Refused { .. }));
        assert!(matches!(with("400 Bad Request", "InvalidRequest"), SourceError::Permanent { .. }));
        assert!(matches!(with("301 Moved", "PermanentRedirect"), SourceError::Refused { .. }));
        assert!(matches!(with("404 Not Found", "NoSuchBucket"), SourceError::NotFound { .. }));
        assert!(matches!(with("503 Slow Down", "SlowDown"), SourceError::Transient { .. }));
        assert!(matches!(with("500 Internal", "InternalError"), SourceError::Transient { .. }));
        assert!(matches!(generic("connection refused"), SourceError::Transient { .. }));
    }
}
