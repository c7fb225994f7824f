//! The cluster's content-addressed store: a directory or an S3 bucket, through one interface.
//!
//! Owns the names: `blake3/<64 hex digits>` is a bundle, `names/<64 hex digits>` the name a person gave it first. What is in
//! the store has been hashed on its way in, and appears whole or not at all. Whoever asks does so in a role, or as the operator (`None`); for
//! a role, what it has no right to (`bundle_rights`) is not there.

use crate::StartError;
use crate::bundle_rights::{Right, Rights, if_there};
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{GetOptions, GetRange, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt};
use smalti_types::{Digest, Role};
use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{RwLock, RwLockWriteGuard};

/// Parts of an upload: S3 wants at least 5 MiB each.
const PART: usize = 8 << 20;
/// Bundles up to this size are read in one go.
const SMALL: u64 = 4 << 20;
/// Longest name kept with a bundle.
const MAX_NAME: usize = 256;
/// Bundles in one listing.
const MAX_LISTED: usize = 100_000;
/// Bundles of a listing that are looked at in one go.
const LOOKS: usize = 16;
/// Locks against changes of what is being looked at, by the first bits of the digest.
const LOCKS: usize = 64;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("there is no bundle {0} in the cluster's store")]
    NotFound(Digest),
    #[error("bundle {0} is for all roles: only the operator can remove it, by removing it without a role")]
    Everybodys(Digest),
    #[error("bundle {wanted} has {length} bytes, at most {most} are taken in; see --max-bundle of the master")]
    TooLarge { wanted: Digest, length: u64, most: u64 },
    #[error("the bytes sent for bundle {wanted} are {what}: nothing was stored")]
    Mismatch { wanted: Digest, what: String },
    #[error("cannot {action} bundle {digest}: {cause}")]
    Store { action: &'static str, digest: Digest, cause: object_store::Error },
    #[error("cannot list bundles: {0}")]
    List(object_store::Error),
}

/// A bundle in the store, as it is for whoever asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) digest: Digest,
    pub(crate) length: u64,
    pub(crate) name: String,
    /// For a role: since when it has its right.
    pub(crate) created_us: u64,
}

/// Who may use a bundle; `None`: everybody.
pub(crate) type Roles = Option<BTreeSet<Role>>;

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
    rights: Rights,
    max_bytes: u64,
    /// Nobody sees a bundle between two steps of a change.
    locks: Arc<[RwLock<()>; LOCKS]>,
}

impl BundleStore {
    /// Opens a directory (`None`: `bundles` below the data directory), `file:///DIR` or `s3://BUCKET/PREFIX`.
    pub(crate) fn open(url: Option<&str>, data_dir: &Path, max_bytes: u64) -> Result<Self, StartError> {
        let default = data_dir.join("bundles").display().to_string();
        let url = url.unwrap_or(&default);
        let fail = |cause: String| StartError::BundleStore { url: url.to_owned(), cause };
        let mut directory = None;
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
            directory = Some(dir.to_owned());
            Arc::new(LocalFileSystem::new_with_prefix(dir).map_err(|e| fail(e.to_string()))?.with_fsync(true))
        };
        let rights = Rights { objects: objects.clone(), directory };
        Ok(Self { objects, rights, max_bytes, locks: Arc::new(std::array::from_fn(|_| RwLock::default())) })
    }

    fn key(digest: &Digest) -> Key {
        Key::from(format!("blake3/{}", digest.to_hex()))
    }

    fn name_key(digest: &Digest) -> Key {
        Key::from(format!("names/{}", digest.to_hex()))
    }

    fn lock(&self, digest: Digest) -> &RwLock<()> {
        &self.locks[usize::from(digest.as_bytes()[0]) % LOCKS]
    }

    async fn changing(&self, digest: Digest) -> RwLockWriteGuard<'_, ()> {
        self.lock(digest).write().await
    }

    async fn meta(&self, digest: Digest) -> Result<Option<ObjectMeta>, StoreError> {
        if_there(self.objects.head(&Self::key(&digest)).await).map_err(|e| store_error("look up", digest, e))
    }

    /// A bundle, if it is there for this role.
    pub(crate) async fn stat(&self, digest: Digest, role: Option<&Role>) -> Result<Stored, StoreError> {
        let _still = self.lock(digest).read().await;
        self.look(digest, role).await.map(|(stored, _)| stored)
    }

    async fn look(&self, digest: Digest, role: Option<&Role>) -> Result<(Stored, Right), StoreError> {
        let right = async {
            match role {
                Some(role) => self.rights.of(digest, role).await.map_err(|e| store_error("look up", digest, e)),
                None => Ok(Some(Right::Everybodys)),
            }
        };
        // Both are asked for in any case, so that the time tells no more than the answer.
        let (meta, right) = futures::join!(self.meta(digest), right);
        let (Some(meta), Some(right)) = (meta?, right?) else { return Err(StoreError::NotFound(digest)) };
        let stored = match &right {
            Right::Own { name, since_us } => Stored { digest, length: meta.size, name: name.clone(), created_us: *since_us },
            Right::Everybodys => self.describe(digest, &meta).await,
        };
        Ok((stored, right))
    }

    async fn describe(&self, digest: Digest, meta: &ObjectMeta) -> Stored {
        let created_us = u64::try_from(meta.last_modified.timestamp_micros()).unwrap_or(0);
        Stored { digest, length: meta.size, name: self.name(digest).await, created_us }
    }

    /// A name is a courtesy.
    async fn name(&self, digest: Digest) -> String {
        match self.objects.get(&Self::name_key(&digest)).await {
            Ok(found) => found.bytes().await.map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    /// Who may use a bundle: for the operator's eyes.
    pub(crate) async fn roles(&self, digest: Digest) -> Result<Roles, StoreError> {
        self.rights.roles(digest).await.map_err(|e| store_error("look up", digest, e))
    }

    /// What is there for this role, sorted by digest; for the operator with who may use it.
    pub(crate) async fn list(&self, role: Option<&Role>) -> Result<Vec<(Stored, Roles)>, StoreError> {
        let others = match role {
            Some(role) => self.rights.of_others(role).await.map_err(StoreError::List)?,
            None => HashSet::new(),
        };
        let objects = self.objects.list(Some(&Key::from("blake3"))).map_err(StoreError::List);
        let digests = objects.try_filter_map(async |meta| Ok(meta.location.filename().and_then(|name| Digest::from_hex(name).ok())));
        let looked =
            digests.try_filter(|digest| std::future::ready(!others.contains(digest))).take(MAX_LISTED).map_ok(|digest| async move {
                let looked = match role {
                    Some(_) => self.stat(digest, role).await.map(|stored| (stored, None)),
                    None => futures::try_join!(self.stat(digest, None), self.roles(digest)),
                };
                match looked {
                    // It is not the role's, or no longer there.
                    Err(StoreError::NotFound(_)) => Ok(None),
                    other => other.map(Some),
                }
            });
        let mut all: Vec<_> =
            looked.try_buffer_unordered(LOOKS).try_filter_map(|found| std::future::ready(Ok(found))).try_collect().await?;
        all.sort_by_key(|(stored, _)| stored.digest);
        Ok(all)
    }

    /// Takes a role's right away, and the bundle with the last one; without a role, the bundle and all rights.
    pub(crate) async fn remove(&self, digest: Digest, role: Option<&Role>) -> Result<(), StoreError> {
        let _change = self.changing(digest).await;
        let fail = |e| store_error("remove", digest, e);
        let (_, right) = self.look(digest, role).await?;
        if let Some(role) = role {
            if right == Right::Everybodys {
                return Err(StoreError::Everybodys(digest));
            }
            self.rights.withdraw(digest, role).await.map_err(fail)?;
            if self.roles(digest).await?.is_none_or(|roles| !roles.is_empty()) {
                return Ok(());
            }
        }
        // At no point in between is it there for somebody who had no right.
        self.rights.withdraw_all(digest).await.map_err(fail)?;
        let _ = self.objects.delete(&Self::name_key(&digest)).await;
        self.objects.delete(&Self::key(&digest)).await.map_err(fail)?;
        self.rights.forget(digest).await.map_err(fail)
    }

    /// Lets a role use a bundle, or no longer. The first such word leaves a bundle that is for all roles to those that are recorded.
    pub(crate) async fn allow(&self, digest: Digest, role: &Role, may: bool) -> Result<(Stored, Roles), StoreError> {
        let _change = self.changing(digest).await;
        let (stored, _) = self.look(digest, None).await?;
        let done = if may {
            self.rights.grant(digest, role, &stored.name).await
        } else {
            // In this order: it is never everybody's.
            match self.rights.record(digest).await {
                Ok(()) => self.rights.withdraw(digest, role).await,
                failed => failed,
            }
        };
        done.map_err(|e| store_error(if may { "grant" } else { "revoke" }, digest, e))?;
        Ok((stored, self.roles(digest).await?))
    }

    /// Reads a bundle or a part of it, for whom it was looked up.
    pub(crate) async fn read(&self, stored: &Stored, range: Option<GetRange>) -> Result<Reading, StoreError> {
        let digest = stored.digest;
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

    /// Begins to take in a bundle of `length` bytes (0: not known). Whoever sends all of them has the right to use it.
    pub(crate) fn begin(&self, wanted: Digest, length: u64, name: &str, role: Option<Role>) -> Result<Incoming, StoreError> {
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
            role,
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
    role: Option<Role>,
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
        let store = self.store.clone();
        let _change = store.changing(digest).await;
        let fail = |e| store_error("store", digest, e);
        let is_there = store.meta(digest).await?.is_some();
        // Before the bytes, which would be everybody's without. What is everybody's already stays so.
        if let Some(role) = &self.role
            && !(is_there && store.roles(digest).await?.is_none())
        {
            store.rights.grant(digest, role, &self.name).await.map_err(fail)?;
        }
        if is_there {
            self.abort().await;
        } else {
            self.put().await?;
        }
        store.look(digest, self.role.as_ref()).await.map(|(stored, _)| stored)
    }

    /// Lets the bundle appear.
    async fn put(&mut self) -> Result<(), StoreError> {
        let wanted = self.wanted;
        let fail = |e| store_error("store", wanted, e);
        let rest = self.part.split().freeze();
        if self.upload.is_none() {
            self.store.objects.put(&BundleStore::key(&wanted), rest.into()).await.map_err(fail)?;
        } else {
            if !rest.is_empty() {
                self.put_part(rest).await?;
            }
            if let Some(mut upload) = self.upload.take() {
                upload.complete().await.map_err(fail)?;
            }
        }
        if !self.name.is_empty() {
            let name = Bytes::copy_from_slice(self.name.as_bytes());
            let _ = self.store.objects.put(&BundleStore::name_key(&wanted), name.into()).await;
        }
        Ok(())
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

#[cfg(test)]
mod tests;
