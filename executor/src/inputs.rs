//! The objects that an array's splits refer to: files of one directory, named by their index and how they are packed. One that the agent
//! could not get has a file that says why: only the items that read it fail.
//!
//! Owns the directory's descriptor and the file that was read last: neighbouring items mostly read the same one. An array may
//! have far more inputs than a process may have open files, so they are opened when an item needs them.

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use smalti_types::Packing;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// The inputs of one array part.
#[derive(Debug)]
pub(crate) struct SplitInputs {
    directory: OwnedFd,
    count: u32,
    last: Mutex<Option<(u32, Arc<File>, Packing)>>,
}

/// What stands behind the index in a file's name.
const NAMES: [(&str, Packing); 3] = [("", Packing::Plain), (".gz", Packing::Gzip), (".zst", Packing::Zstd)];
/// The same for a file that says why the input is not there.
const FAILED: &str = ".failed";
/// Longest such text in bytes.
const MAX_WORDS: u64 = 4096;

impl SplitInputs {
    pub(crate) const fn new(directory: OwnedFd, count: u32) -> Self {
        Self { directory, count, last: Mutex::new(None) }
    }

    /// The file of input `index`, and how it is packed. It is only ever read at absolute positions, so items share it.
    ///
    /// # Errors
    /// There is no such input, the agent could not get it, or it cannot be opened.
    pub(crate) fn open(&self, index: u32) -> Result<(Arc<File>, Packing), String> {
        if index >= self.count {
            return Err(format!("its split refers to input {index} of {}", self.count));
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((kept, file, packing)) = &*last
            && *kept == index
        {
            return Ok((file.clone(), *packing));
        }
        for (suffix, packing) in NAMES {
            let Some(file) = self.file(&format!("{index}{suffix}"), index)? else { continue };
            let file = Arc::new(file);
            *last = Some((index, file.clone(), packing));
            return Ok((file, packing));
        }
        let why = self.file(&format!("{index}{FAILED}"), index)?.ok_or_else(|| format!("input {index} is not there"))?;
        let mut text = String::new();
        why.take(MAX_WORDS).read_to_string(&mut text).map_err(|e| format!("input {index} cannot be had: {e}"))?;
        Err(text)
    }

    fn file(&self, name: &str, index: u32) -> Result<Option<File>, String> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&self.directory, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(format!("input {index} cannot be opened: {e}")),
        }
    }
}
