//! The cluster's content-addressed store: a directory or an S3 bucket, through one interface.
//!
//! Owns the names: `blake3/<64 hex digits>` is a bundle, `names/<64 hex digits>` the name a person gave it. What is in
//! the store has been hashed on its way in, and appears whole or not at all.

use crate::StartError;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{GetOptions, GetRange, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt};
use smalti_types::Digest;
use std::path::Path;
use std::sync::Arc;

/// Parts of an upload: S3 wants at least 5 MiB each.
const PART: usize = 8 << 20;
/// Bundles up to this size are read in one go.
const SMALL: u64 = 4 << 20;
/// Longest name kept with a bundle.
const MAX_NAME: usize = 256;
/// Bundles in one listing.
const MAX_LISTED: usize = 100_000;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("there is no bundle {0} in the cluster's store")]
    NotFound(Digest),
    #[error("bundle {wanted} has {length} bytes, at most {most} are taken in; see --max-bundle of the master")]
    TooLarge { wanted: Digest, length: u64, most: u64 },
    #[error("the bytes sent for bundle {wanted} are {what}: nothing was stored")]
    Mismatch { wanted: Digest, what: String },
    #[error("cannot {action} bundle {digest}: {cause}")]
    Store { action: &'static str, digest: Digest, cause: object_store::Error },
    #[error("cannot list bundles: {0}")]
    List(object_store::Error),
}

/// A bundle in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) digest: Digest,
    pub(crate) length: u64,
    pub(crate) name: String,
    pub(crate) created_us: u64,
}

/// Part of a bundle, being read.
pub(crate) struct Reading {
    /// Of the whole bundle.
    pub(crate) length: u64,
    /// Which bytes come.
    pub(crate) range: std::ops::Range<u64>,
    pub(crate) bytes: BoxStream<'static, Result<Bytes, object_store::Error>>,
}

/// The store.
#[derive(Debug, Clone)]
pub(crate) struct BundleStore {
    objects: Arc<dyn ObjectStore>,
    max_bytes: u64,
}

impl BundleStore {
    /// Opens a directory (`None`: `bundles` below the data directory), `file:///DIR` or `s3://BUCKET/PREFIX`.
    pub(crate) fn open(url: Option<&str>, data_dir: &Path, max_bytes: u64) -> Result<Self, StartError> {
        let default = data_dir.join("bundles").display().to_string();
        let url = url.unwrap_or(&default);
        let fail = |cause: String| StartError::BundleStore { url: url.to_owned(), cause };
        let objects: Arc<dyn ObjectStore> = if let Some(rest) = url.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let s3 = object_store::aws::AmazonS3Builder::from_env().with_bucket_name(bucket).build().map_err(|e| fail(e.to_string()))?;
            Arc::new(PrefixStore::new(s3, Key::from(prefix)))
        } else {
            let dir = Path::new(url.strip_prefix("file://").unwrap_or(url));
            if url.contains("://") && !url.starts_with("file://") {
                return Err(fail("unknown kind of store".to_owned()));
            }
            std::fs::create_dir_all(dir).map_err(|e| fail(e.to_string()))?;
            Arc::new(LocalFileSystem::new_with_prefix(dir).map_err(|e| fail(e.to_string()))?.with_fsync(true))
        };
        Ok(Self { objects, max_bytes })
    }

    fn key(digest: &Digest) -> Key {
        Key::from(format!("blake3/{}", digest.to_hex()))
    }

    fn name_key(digest: &Digest) -> Key {
        Key::from(format!("names/{}", digest.to_hex()))
    }

    async fn meta(&self, digest: &Digest) -> Result<ObjectMeta, StoreError> {
        self.objects.head(&Self::key(digest)).await.map_err(|e| store_error("look up", *digest, e))
    }

    pub(crate) async fn stat(&self, digest: Digest) -> Result<Stored, StoreError> {
        let meta = self.meta(&digest).await?;
        Ok(self.describe(digest, &meta).await)
    }

    async fn describe(&self, digest: Digest, meta: &ObjectMeta) -> Stored {
        let name = match self.objects.get(&Self::name_key(&digest)).await {
            Ok(found) => found.bytes().await.map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default(),
            Err(_) => String::new(), // A name is a courtesy.
        };
        let created_us = u64::try_from(meta.last_modified.timestamp_micros()).unwrap_or(0);
        Stored { digest, length: meta.size, name, created_us }
    }

    pub(crate) async fn list(&self) -> Result<Vec<Stored>, StoreError> {
        let prefix = Key::from("blake3");
        let mut objects = self.objects.list(Some(&prefix)).take(MAX_LISTED);
        let mut all = Vec::new();
        while let Some(meta) = objects.next().await {
            let meta = meta.map_err(StoreError::List)?;
            let Some(digest) = meta.location.filename().and_then(|name| Digest::from_hex(name).ok()) else { continue };
            all.push(self.describe(digest, &meta).await);
        }
        all.sort_by_key(|stored| stored.digest);
        Ok(all)
    }

    pub(crate) async fn remove(&self, digest: Digest) -> Result<(), StoreError> {
        self.meta(&digest).await?;
        let _ = self.objects.delete(&Self::name_key(&digest)).await;
        self.objects.delete(&Self::key(&digest)).await.map_err(|e| store_error("remove", digest, e))
    }

    /// Reads a bundle or a part of it.
    pub(crate) async fn read(&self, digest: Digest, range: Option<GetRange>) -> Result<Reading, StoreError> {
        let options = GetOptions { range, ..GetOptions::default() };
        let found = self.objects.get_opts(&Self::key(&digest), options).await.map_err(|e| store_error("read", digest, e))?;
        let (length, range) = (found.meta.size, found.range.clone());
        let bytes = if range.end - range.start <= SMALL {
            let bytes = found.bytes().await.map_err(|e| store_error("read", digest, e))?;
            futures::stream::iter([Ok(bytes)]).boxed()
        } else {
            found.into_stream()
        };
        Ok(Reading { length, range, bytes })
    }

    /// Begins to take in a bundle of `length` bytes (0: not known).
    pub(crate) fn begin(&self, wanted: Digest, length: u64, name: &str) -> Result<Incoming, StoreError> {
        if length > self.max_bytes {
            return Err(StoreError::TooLarge { wanted, length, most: self.max_bytes });
        }
        let mut kept = name.to_owned();
        smalti_types::status::truncate(&mut kept, MAX_NAME);
        Ok(Incoming {
            store: self.clone(),
            wanted,
            announced: length,
            name: kept,
            hasher: blake3::Hasher::new(),
            received: 0,
            part: BytesMut::new(),
            upload: None,
        })
    }
}

/// A bundle on its way in. Dropped before [`Incoming::finish`], it leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Incoming {
    store: BundleStore,
    wanted: Digest,
    announced: u64,
    name: String,
    hasher: blake3::Hasher,
    received: u64,
    part: BytesMut,
    upload: Option<Box<dyn MultipartUpload>>,
}

impl Incoming {
    pub(crate) async fn take(&mut self, data: &[u8]) -> Result<(), StoreError> {
        self.received += data.len() as u64;
        if self.received > self.store.max_bytes {
            self.abort().await;
            return Err(StoreError::TooLarge { wanted: self.wanted, length: self.received, most: self.store.max_bytes });
        }
        if self.announced > 0 && self.received > self.announced {
            self.abort().await;
            return Err(self.mismatch(format!("more than the {} announced", self.announced)));
        }
        self.hasher.update(data);
        self.part.extend_from_slice(data);
        while self.part.len() >= PART {
            let part = self.part.split_to(PART).freeze();
            self.put_part(part).await?;
        }
        Ok(())
    }

    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        let wanted = self.wanted;
        let fail = |e| store_error("store", wanted, e);
        if self.upload.is_none() {
            self.upload = Some(self.store.objects.put_multipart(&BundleStore::key(&wanted)).await.map_err(fail)?);
        }
        match &mut self.upload {
            Some(upload) => upload.put_part(part.into()).await.map_err(fail),
            None => Ok(()),
        }
    }

    /// Checks length and digest, and only then lets the bundle appear.
    pub(crate) async fn finish(mut self) -> Result<Stored, StoreError> {
        let digest = Digest::from(self.hasher.finalize());
        if self.announced > 0 && self.received != self.announced {
            self.abort().await;
            return Err(self.mismatch(format!("{} of {} announced", self.received, self.announced)));
        }
        if digest != self.wanted {
            self.abort().await;
            return Err(self.mismatch(format!("those of {digest}")));
        }
        let rest = self.part.split().freeze();
        let fail = |e| store_error("store", digest, e);
        if self.upload.is_none() {
            self.store.objects.put(&BundleStore::key(&digest), rest.into()).await.map_err(fail)?;
        } else {
            if !rest.is_empty() {
                self.put_part(rest).await?;
            }
            if let Some(mut upload) = self.upload.take() {
                upload.complete().await.map_err(fail)?;
            }
        }
        if !self.name.is_empty() {
            let name = Bytes::from(std::mem::take(&mut self.name));
            let _ = self.store.objects.put(&BundleStore::name_key(&digest), name.into()).await;
        }
        self.store.stat(digest).await
    }

    async fn abort(&mut self) {
        if let Some(mut upload) = self.upload.take() {
            let _ = upload.abort().await;
        }
    }

    fn mismatch(&self, what: String) -> StoreError {
        StoreError::Mismatch { wanted: self.wanted, what }
    }
}

fn store_error(action: &'static str, digest: Digest, cause: object_store::Error) -> StoreError {
    match cause {
        object_store::Error::NotFound { .. } => StoreError::NotFound(digest),
        cause => StoreError::Store { action, digest, cause },
    }
}
