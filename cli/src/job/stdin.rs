//! The guest's stdin: what this process reads on its own, a file, or nothing.

use crate::bundle::{Source, resolve_input, store};
use crate::cluster::Bundles;
use crate::failure::{Failure, Result, io_text};
use smalti_proto::v1::{Empty, Input, Stdin, stdin};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use tempfile::SpooledTempFile;

/// Most that is read from a pipe, in bytes: it is kept here until all of it is hashed.
const MAX_PIPED: u64 = 1 << 30;
/// Up to this size it is kept in memory, then in a temporary file.
const IN_MEMORY: usize = 8 << 20;

/// End of file at once.
pub(crate) fn empty() -> Stdin {
    Stdin { source: Some(stdin::Source::Empty(Empty {})) }
}

/// Brings stdin to the cluster. `automatic`: without `--stdin`, what this process has on its stdin is passed through
/// when it is a pipe or a file.
pub(crate) async fn resolve(bundles: &Bundles, option: Option<&OsStr>, automatic: bool) -> Result<Stdin> {
    let input = match option.map(OsStr::as_encoded_bytes) {
        Some(b"none") => None,
        Some(b"-") => piped(bundles).await?,
        Some(_) => Some(named(bundles, option.unwrap_or_default()).await?),
        None if automatic && is_data(std::io::stdin()) => piped(bundles).await?,
        None => None,
    };
    Ok(input.map_or_else(empty, |input| Stdin { source: Some(stdin::Source::Object(input)) }))
}

async fn named(bundles: &Bundles, name: &OsStr) -> Result<Input> {
    resolve_input(bundles, &Source::parse(name)?, None).await
}

/// Reads this process's stdin to its end; `None` when there is nothing.
async fn piped(bundles: &Bundles) -> Result<Option<Input>> {
    let spooled = tokio::task::block_in_place(|| spool(std::io::stdin().lock(), MAX_PIPED))?;
    let Some(file) = spooled else { return Ok(None) };
    let stored = store::put(bundles, file, "stdin").await?;
    let digest = Some(bytes::Bytes::copy_from_slice(stored.digest.as_bytes()));
    Ok(Some(Input { digest, length: stored.length, ..Input::default() }))
}

/// Keeps what `reader` gives, at most `limit` bytes.
fn spool(reader: impl Read, limit: u64) -> Result<Option<SpooledTempFile>> {
    let mut file = SpooledTempFile::new(IN_MEMORY);
    let copied = std::io::copy(&mut reader.take(limit + 1), &mut file).and_then(|n| file.flush().map(|()| n));
    match copied.map_err(|e| Failure::new(format!("reading stdin: {}", io_text(&e))))? {
        0 => Ok(None),
        n if n > limit => Err(Failure::new(format!(
            "stdin is longer than {}: put it in a file and pass it with --stdin FILE, or use `smalti map --inputs`",
            smalti_types::Bytes(limit)
        ))),
        _ => Ok(Some(file)),
    }
}

/// Whether a descriptor gives data that ends: a pipe, a socket (what some parents use as pipe) or a file.
fn is_data(descriptor: impl AsFd) -> bool {
    let kind = descriptor.as_fd().try_clone_to_owned().map(std::fs::File::from).and_then(|f| f.metadata()).map(|m| m.file_type());
    kind.is_ok_and(|kind| kind.is_fifo() || kind.is_file() || kind.is_socket())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_and_files_are_data_and_devices_are_not() {
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(is_data(reader));
        assert!(is_data(tempfile::tempfile().unwrap()));
        assert!(!is_data(std::fs::File::open("/dev/null").unwrap()));
    }

    #[test]
    fn what_is_piped_is_bounded() {
        assert!(spool(&b""[..], 4).unwrap().is_none());
        assert!(spool(&b"1234"[..], 4).unwrap().is_some());
        assert!(spool(&b"12345"[..], 4).unwrap_err().to_string().contains("longer than 4B"));
    }
}
