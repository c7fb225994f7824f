//! One object at a URI: its length, its version, ranges of it, its digest.

use super::ResolveError;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt};
use smalti_types::Digest;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

/// Where it is.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub(crate) uri: String,
    pub(crate) place: Place,
}

/// What kind of place.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// A path on every node, this one included.
    File(PathBuf),
    /// Behind HTTP or S3.
    Remote(Arc<dyn ObjectStore>, Path),
}

impl Object {
    /// Reads a URI; looks at nothing.
    pub(crate) fn parse(uri: &str) -> Result<Self, ResolveError> {
        let bad = || ResolveError::Uri(uri.chars().take(200).collect());
        let (scheme, rest) = uri.split_once("://").ok_or_else(bad)?;
        let place = match scheme {
            "file" => Place::File(local(rest).ok_or_else(bad)?),
            "s3" => {
                let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() {
                    return Err(bad());
                }
                Place::Remote(s3(uri, bucket)?, Path::parse(key).map_err(|_| bad())?)
            }
            "http" | "https" => {
                let (host, path) = rest.split_once('/').ok_or_else(bad)?;
                if path.contains('?') {
                    return Err(ResolveError::Unsupported {
                        uri: uri.into(),
                        problem: "URIs with a query cannot be read; name the object itself",
                    });
                }
                Place::Remote(http(uri, &format!("{scheme}://{host}"))?, Path::from_url_path(path).map_err(|_| bad())?)
            }
            _ => return Err(bad()),
        };
        Ok(Self { uri: uri.into(), place })
    }

    /// Length and ETag.
    pub(crate) async fn head(&self) -> Result<(u64, Option<String>), ResolveError> {
        match &self.place {
            Place::File(path) => {
                let meta = tokio::fs::metadata(path).await.map_err(|e| self.io(&e))?;
                if meta.is_file() { Ok((meta.len(), None)) } else { Err(self.failed("it is not a file")) }
            }
            Place::Remote(store, path) => store.head(path).await.map(|m| (m.size, m.e_tag)).map_err(|e| self.remote(&e)),
        }
    }

    /// Some bytes of it.
    pub(crate) async fn range(&self, range: Range<u64>) -> Result<Bytes, ResolveError> {
        match &self.place {
            Place::File(path) => {
                let mut file = tokio::fs::File::open(path).await.map_err(|e| self.io(&e))?;
                file.seek(std::io::SeekFrom::Start(range.start)).await.map_err(|e| self.io(&e))?;
                let mut bytes = Vec::new();
                file.take(range.end.saturating_sub(range.start)).read_to_end(&mut bytes).await.map_err(|e| self.io(&e))?;
                Ok(bytes.into())
            }
            Place::Remote(store, path) => store.get_range(path, range).await.map_err(|e| self.remote(&e)),
        }
    }

    /// BLAKE3 of the whole, as long as that is not too long.
    pub(crate) async fn digest(&self, limit: u64) -> Result<Digest, ResolveError> {
        let too_large = || ResolveError::TooLarge { uri: self.uri.clone(), limit };
        let mut hasher = blake3::Hasher::new();
        match &self.place {
            Place::File(path) => {
                let mut file = tokio::fs::File::open(path).await.map_err(|e| self.io(&e))?.take(limit + 1);
                let mut buffer = vec![0; 256 << 10];
                let mut length = 0;
                loop {
                    let n = file.read(&mut buffer).await.map_err(|e| self.io(&e))?;
                    if n == 0 {
                        break;
                    }
                    length += n as u64;
                    hasher.update(buffer.get(..n).unwrap_or_default());
                }
                if length > limit {
                    return Err(too_large());
                }
            }
            Place::Remote(store, path) => {
                let mut stream = store.get(path).await.map_err(|e| self.remote(&e))?.into_stream();
                let mut length = 0;
                while let Some(bytes) = stream.try_next().await.map_err(|e| self.remote(&e))? {
                    length += bytes.len() as u64;
                    if length > limit {
                        return Err(too_large());
                    }
                    hasher.update(&bytes);
                }
            }
        }
        Ok(hasher.finalize().into())
    }

    pub(crate) fn failed(&self, cause: impl Into<String>) -> ResolveError {
        ResolveError::Read { uri: self.uri.clone(), cause: cause.into() }
    }

    fn io(&self, error: &std::io::Error) -> ResolveError {
        match error.kind() {
            std::io::ErrorKind::NotFound => ResolveError::NotFound { uri: self.uri.clone() },
            _ => self.failed(error.to_string()),
        }
    }

    pub(crate) fn remote(&self, error: &object_store::Error) -> ResolveError {
        match error {
            object_store::Error::NotFound { .. } => ResolveError::NotFound { uri: self.uri.clone() },
            other => self.failed(other.to_string()),
        }
    }
}

/// `file://` has an absolute path after an empty host.
pub(crate) fn local(rest: &str) -> Option<PathBuf> {
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    path.starts_with('/').then(|| PathBuf::from(path))
}

fn http(uri: &str, origin: &str) -> Result<Arc<dyn ObjectStore>, ResolveError> {
    let options = ClientOptions::new().with_allow_http(true);
    let store = HttpBuilder::new().with_url(origin).with_client_options(options).build();
    store.map(|s| Arc::new(s) as _).map_err(|e| ResolveError::Read { uri: uri.into(), cause: e.to_string() })
}

/// Region, endpoint and credentials come from the usual AWS variables of this process.
pub(crate) fn s3(uri: &str, bucket: &str) -> Result<Arc<dyn ObjectStore>, ResolveError> {
    let store = AmazonS3Builder::from_env().with_bucket_name(bucket).build();
    store.map(|s| Arc::new(s) as _).map_err(|e| ResolveError::Read { uri: uri.into(), cause: e.to_string() })
}
