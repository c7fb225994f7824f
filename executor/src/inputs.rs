//! The objects that an array's splits refer to: files of one directory, named by their index and how they are packed, or by the piece that
//! one has there. What the agent could not get has a file that says why: only the items that read it fail.
//!
//! Owns the directory's descriptor and the file that was read last: neighbouring items mostly read the same one. An array may
//! have far more inputs than a process may have open files, so they are opened when an item needs them.

use crate::streams::Source;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use smalti_types::{Packing, Split, pieces};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// The inputs of one array part.
#[derive(Debug)]
pub(crate) struct SplitInputs {
    directory: OwnedFd,
    count: u32,
    last: Mutex<Option<Opened>>,
}

/// One file.
#[derive(Debug)]
struct Opened {
    input: u32,
    /// Which bytes of the input it has.
    bytes: Range<u64>,
    file: Arc<File>,
    packing: Packing,
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

    /// What a split reads. Its file is only ever read at absolute positions, so items share it.
    ///
    /// # Errors
    /// There is no such input, the agent could not get it, or it cannot be opened.
    pub(crate) fn open(&self, split: &Split) -> Result<Source, String> {
        let index = split.input;
        if index >= self.count {
            return Err(format!("its split refers to input {index} of {}", self.count));
        }
        let piece = split.piece();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = match last.take().filter(|l| l.input == index && l.bytes.start <= piece.start && piece.end <= l.bytes.end) {
            Some(opened) => opened,
            None => self.find(index, &piece)?,
        };
        let offset = split.offset.saturating_sub(opened.bytes.start);
        let source = Source { file: opened.file.clone(), offset, length: split.length, packing: opened.packing };
        *last = Some(opened);
        Ok(source)
    }

    /// The file that has a piece of an input, or the whole.
    fn find(&self, input: u32, piece: &Range<u64>) -> Result<Opened, String> {
        for (suffix, packing) in NAMES {
            if let Some(file) = self.file(&format!("{input}{suffix}"), input)? {
                return Ok(Opened { input, bytes: 0..u64::MAX, file: Arc::new(file), packing });
            }
        }
        let name = pieces::file_name(input, piece);
        if let Some(file) = self.file(&name, input)? {
            return Ok(Opened { input, bytes: piece.clone(), file: Arc::new(file), packing: Packing::Plain });
        }
        let why = match self.file(&format!("{input}{FAILED}"), input)? {
            Some(why) => Some(why),
            None => self.file(&format!("{name}{FAILED}"), input)?,
        };
        let why = why.ok_or_else(|| format!("input {input} is not there"))?;
        let mut text = String::new();
        why.take(MAX_WORDS).read_to_string(&mut text).map_err(|e| format!("input {input} cannot be had: {e}"))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn split(input: u32, offset: u64, length: u64) -> Split {
        Split { item: 0, input, offset, length }
    }

    fn read(inputs: &SplitInputs, split: &Split) -> Result<String, String> {
        let source = inputs.open(split)?;
        let mut bytes = vec![0; usize::try_from(source.length).unwrap()];
        source.file.read_exact_at(&mut bytes, source.offset).unwrap();
        Ok(String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn a_split_is_read_from_its_piece_or_from_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let block = pieces::BLOCK;
        write("0", "the whole");
        write(&pieces::file_name(1, &(0..block)), "first block");
        write(&pieces::file_name(1, &(block..2 * block)), "second block");
        write(&pieces::file_name(2, &(7..block + 7)), "large");
        write(&format!("{}.failed", pieces::file_name(2, &(0..block))), "no such luck");
        write("3.failed", "nor here");
        let inputs = SplitInputs::new(File::open(dir.path()).unwrap().into(), 4);
        for _ in 0..2 {
            assert_eq!(read(&inputs, &split(0, 4, 5)).unwrap(), "whole");
            assert_eq!(read(&inputs, &split(1, 6, 5)).unwrap(), "block");
            assert_eq!(read(&inputs, &split(1, block + 7, 5)).unwrap(), "block");
            assert_eq!(read(&inputs, &split(1, block, 6)).unwrap(), "second");
            let large = inputs.open(&split(2, 7, block)).unwrap();
            assert_eq!((large.offset, large.length), (0, block));
            assert_eq!(read(&inputs, &split(2, 3, 1)).unwrap_err(), "no such luck");
            assert_eq!(read(&inputs, &split(3, 3, 1)).unwrap_err(), "nor here");
        }
        assert_eq!(read(&inputs, &split(1, 2 * block, 1)).unwrap_err(), "input 1 is not there");
        assert!(read(&inputs, &split(4, 0, 1)).unwrap_err().contains("input 4 of 4"));
    }
}
