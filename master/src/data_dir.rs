//! The master's directory: made at the start, locked for one master, and the epoch, which must rise with every life.
//!
//! The epoch is kept here beside the registry, so that it rises for a master without one, too. What else must be remembered is in
//! [`crate::registry`].

use crate::StartError;
use smalti_types::{MasterEpoch, Time};
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// An open data directory. The lock lasts as long as this value.
#[derive(Debug)]
pub(crate) struct DataDir {
    pub(crate) path: PathBuf,
    _lock: File,
}

impl DataDir {
    pub(crate) fn open(path: &Path) -> Result<Self, StartError> {
        let fail = |action| move |cause| StartError::DataDir { action, dir: path.to_owned(), cause };
        std::fs::create_dir_all(path).map_err(fail("create"))?;
        let lock = File::options().create(true).truncate(false).write(true).open(path.join("lock")).map_err(fail("write to"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StartError::InUse(path.to_owned())),
            Err(TryLockError::Error(cause)) => Err(fail("lock")(cause)),
        }
    }

    /// Opens a new epoch: the time, or one more than the last epoch if the clock was set back since.
    pub(crate) fn next_epoch(&self, now: Time) -> Result<MasterEpoch, StartError> {
        let file = self.path.join("epoch");
        let last: u64 = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let epoch = now.0.max(last.saturating_add(1));
        let write = || {
            let fresh = self.path.join("epoch.new");
            let mut out = File::create(&fresh)?;
            writeln!(out, "{epoch}")?;
            out.sync_all()?;
            std::fs::rename(&fresh, &file)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|cause| StartError::DataDir { action: "write to", dir: self.path.clone(), cause })?;
        Ok(MasterEpoch(epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_master_at_a_time_and_epochs_rise() {
        let dir = tempfile::tempdir().unwrap();
        let open = DataDir::open(&dir.path().join("a/b")).unwrap();
        assert!(matches!(DataDir::open(&open.path), Err(StartError::InUse(_))));
        assert_eq!(open.next_epoch(Time(100)).unwrap(), MasterEpoch(100));
        assert_eq!(open.next_epoch(Time(50)).unwrap(), MasterEpoch(101));
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = DataDir::open(&dir.path().join("file/data")).unwrap_err().to_string();
        assert!(error.contains("file/data") && error.contains("--data-dir"), "{error}");
    }
}
