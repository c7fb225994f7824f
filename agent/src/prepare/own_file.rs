//! Files that only this agent writes: opened as such, hashed, and looked at again later.
//!
//! Deliberately absent: what is in them.

use smalti_types::Digest;
use std::fs::{self, File};
use std::io::{self, Seek};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// What changes when somebody writes into a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    length: u64,
    modified: (i64, i64),
    /// Changes with the number of names, too: of use while that is the same.
    changed: (i64, i64),
    names: u64,
}

impl Stamp {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            length: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            names: meta.nlink(),
        })
    }

    /// Whether the bytes are the same, as far as that shows.
    pub(super) fn agrees(&self, now: &Self) -> bool {
        self.length == now.length && self.modified == now.modified && (self.names != now.names || self.changed == now.changed)
    }
}

/// Opens a file of which this process's user is the owner and the only one who can write it.
pub(super) fn open_own(path: &Path) -> Result<File, String> {
    let file = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path).map_err(|e| e.to_string())?;
    let meta = file.metadata().map_err(|e| e.to_string())?;
    if !meta.is_file() || meta.uid() != nix::unistd::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
        return Err("it is not a file that only this agent can write".into());
    }
    Ok(file)
}

/// Hashes a file from its beginning, and leaves its cursor there.
pub(super) fn hash(mut file: &File) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    file.rewind()?;
    io::copy(&mut file, &mut hasher)?;
    file.rewind()?;
    Ok(hasher.finalize().into())
}
