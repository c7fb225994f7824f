//! Which roles may use which bundle of the store.
//!
//! Owns `roles/<64 hex digits>/`: an object for each role that may, called like the role and holding the name that the role knows the bundle
//! by, and `-` as soon as anything is recorded. Without that a bundle is every role's, as those of builds that recorded nothing.
//! Deliberately absent: who somebody is. A role is taken at its word.

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{Error, ObjectStore, ObjectStoreExt};
use smalti_types::{Digest, Role};
use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Says that roles are recorded. No role is called so.
const RECORDED: &str = "-";
/// Records that are looked at for one listing. What is beyond is asked for one by one.
const MAX_LISTED: usize = 1_000_000;

/// What lets a role use a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Right {
    /// It has pushed the bundle or was granted it.
    Own { name: String, since_us: u64 },
    /// Nobody has recorded anything.
    Everybodys,
}

/// The records.
#[derive(Debug, Clone)]
pub(crate) struct Rights {
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// Where the store is a directory of this machine: its empty ones are removed.
    pub(crate) directory: Option<PathBuf>,
}

fn directory(digest: Digest) -> String {
    format!("roles/{}", digest.to_hex())
}

fn key(digest: Digest, of: &str) -> Key {
    Key::from(format!("{}/{of}", directory(digest)))
}

/// Nothing is there: that is an answer.
pub(crate) fn if_there<T>(found: Result<T, Error>) -> Result<Option<T>, Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

impl Rights {
    /// What lets `role` use a bundle, if it is there and anything does. Asks the store the same whatever the answer is.
    pub(crate) async fn of(&self, digest: Digest, role: &Role) -> Result<Option<Right>, Error> {
        let (own, recorded) = (key(digest, role.as_str()), key(digest, RECORDED));
        let (own, recorded) = futures::join!(self.objects.get(&own), self.objects.head(&recorded));
        let (own, recorded) = (if_there(own)?, if_there(recorded)?);
        let Some(own) = own else { return Ok(recorded.is_none().then_some(Right::Everybodys)) };
        let since_us = u64::try_from(own.meta.last_modified.timestamp_micros()).unwrap_or(0);
        let name = String::from_utf8_lossy(&own.bytes().await?).into_owned();
        Ok(Some(Right::Own { name, since_us }))
    }

    /// Who may use a bundle; `None`: everybody.
    pub(crate) async fn roles(&self, digest: Digest) -> Result<Option<BTreeSet<Role>>, Error> {
        let found: Vec<_> = self.objects.list(Some(&Key::from(directory(digest)))).try_collect().await?;
        let roles = found.iter().filter_map(|meta| Role::new(meta.location.filename()?).ok()).collect();
        Ok((!found.is_empty()).then_some(roles))
    }

    /// Bundles that are others' for sure: there may be more.
    pub(crate) async fn of_others(&self, role: &Role) -> Result<HashSet<Digest>, Error> {
        let (mut own, mut recorded) = (HashSet::new(), HashSet::new());
        let mut all = self.objects.list(Some(&Key::from("roles"))).take(MAX_LISTED);
        while let Some(meta) = all.try_next().await? {
            let mut parts = meta.location.parts().skip(1);
            let digest = parts.next().and_then(|hex| Digest::from_hex(hex.as_ref()).ok());
            let (Some(digest), Some(of)) = (digest, parts.next()) else { continue };
            if of.as_ref() == role.as_str() {
                own.insert(digest)
            } else {
                recorded.insert(digest)
            };
        }
        // Of the last one a part may have been seen.
        Ok(if own.len() + recorded.len() < MAX_LISTED { recorded.difference(&own).copied().collect() } else { HashSet::new() })
    }

    /// From now on only roles that are recorded may use the bundle.
    pub(crate) async fn record(&self, digest: Digest) -> Result<(), Error> {
        self.objects.put(&key(digest, RECORDED), bytes::Bytes::new().into()).await.map(drop)
    }

    /// `name` is what the role will see as the bundle's.
    pub(crate) async fn grant(&self, digest: Digest, role: &Role, name: &str) -> Result<(), Error> {
        self.record(digest).await?;
        self.objects.put(&key(digest, role.as_str()), bytes::Bytes::copy_from_slice(name.as_bytes()).into()).await.map(drop)
    }

    /// Takes one role's record away.
    pub(crate) async fn withdraw(&self, digest: Digest, role: &Role) -> Result<(), Error> {
        if_there(self.objects.delete(&key(digest, role.as_str())).await).map(drop)
    }

    /// Takes all roles' records away: the bundle is nobody's.
    pub(crate) async fn withdraw_all(&self, digest: Digest) -> Result<(), Error> {
        for role in self.roles(digest).await?.unwrap_or_default() {
            self.withdraw(digest, &role).await?;
        }
        Ok(())
    }

    /// After the bundle itself: forgets that anything was recorded.
    pub(crate) async fn forget(&self, digest: Digest) -> Result<(), Error> {
        if_there(self.objects.delete(&key(digest, RECORDED)).await)?;
        if let Some(root) = &self.directory {
            // It stays if somebody put something there.
            let _ = std::fs::remove_dir(root.join(directory(digest)));
        }
        Ok(())
    }
}
