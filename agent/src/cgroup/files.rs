//! Reading and writing control group files, with the path in every error.

use super::Error;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// Longest control file that is read: process lists are the longest.
const MAX_BYTES: u64 = 1 << 20;

pub(super) fn error(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { operation, path, source }
}

/// Names the operation and the group when cgroups-rs fails: its own errors name the file only.
pub(super) fn controller(operation: &'static str, path: &Path) -> impl FnOnce(cgroups_rs::error::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Controller { operation, path, source }
}

pub(super) fn read(path: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let file = fs::File::open(path).map_err(error("opening", path))?;
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(error("reading", path))?;
    Ok(text)
}

/// The text of a file that some kernels do not have.
pub(super) fn read_if_there(path: &Path) -> Result<Option<String>, Error> {
    match read(path) {
        Ok(text) => Ok(Some(text)),
        Err(Error::File { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn read_number(path: &Path) -> Result<u64, Error> {
    let text = read(path)?;
    text.trim().parse().map_err(|_| unreadable(path, &text))
}

pub(super) fn unreadable(path: &Path, text: &str) -> Error {
    Error::Unreadable { path: path.to_owned(), text: text.chars().take(80).collect() }
}

/// One write, without creating the file.
pub(super) fn write(path: &Path, text: &str) -> Result<(), Error> {
    let mut file = fs::OpenOptions::new().write(true).open(path).map_err(error("opening for writing", path))?;
    file.write_all(text.as_bytes()).map_err(error("writing", path))
}

/// The number behind `key` in a file of `key value` lines.
pub(super) fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Makes one directory; it may be there.
pub(super) fn make_dir(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(error("making", path)(e)),
        _ => Ok(()),
    }
}

/// Removes one group; it may be gone.
pub(super) fn remove_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(error("removing", path)(e)),
        _ => Ok(()),
    }
}

/// Groups below a group, with names.
pub(super) fn children(path: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(error("listing", path)(e)),
    };
    let mut out = Vec::new();
    for entry in entries {
        let entry = entry.map_err(error("listing", path))?;
        if entry.file_type().is_ok_and(|t| t.is_dir())
            && let Ok(name) = entry.file_name().into_string()
        {
            out.push((name, entry.path()));
        }
    }
    out.sort();
    Ok(out)
}

/// Process or thread ids in a file of one id a line.
pub(super) fn ids(path: &Path) -> Result<Vec<i32>, Error> {
    Ok(read_if_there(path)?.unwrap_or_default().lines().filter_map(|l| l.trim().parse().ok()).collect())
}
