//! The objects that an array's splits refer to: files of one directory, named by their index.
//!
//! Owns the directory's descriptor and the file that was read last: neighbouring items mostly read the same one. An array may
//! have far more inputs than a process may have open files, so they are opened when an item needs them.

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// The inputs of one array part.
#[derive(Debug)]
pub(crate) struct SplitInputs {
    directory: OwnedFd,
    count: u32,
    last: Mutex<Option<(u32, Arc<File>)>>,
}

impl SplitInputs {
    pub(crate) const fn new(directory: OwnedFd, count: u32) -> Self {
        Self { directory, count, last: Mutex::new(None) }
    }

    /// The file of input `index`. It is only ever read at absolute positions, so items share it.
    ///
    /// # Errors
    /// There is no such input, or it cannot be opened.
    pub(crate) fn open(&self, index: u32) -> Result<Arc<File>, String> {
        if index >= self.count {
            return Err(format!("its split refers to input {index} of {}", self.count));
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((kept, file)) = &*last
            && *kept == index
        {
            return Ok(file.clone());
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.directory, index.to_string().as_str(), flags, Mode::empty());
        let file = Arc::new(File::from(fd.map_err(|e| format!("input {index} cannot be opened: {e}"))?));
        *last = Some((index, file.clone()));
        Ok(file)
    }
}
