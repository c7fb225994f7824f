//! `file://`: files of this machine, below directories that the operator allows.
//!
//! Links are resolved first, so that none leads out of them. What is no regular file is not opened: a named pipe would wait for ever.

use crate::error::SourceError;
use crate::location::Location;
use crate::source::{Ask, Opened, OpenedPart, Part, Source, boxed, changed};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{StreamExt, TryStreamExt};
use percent_encoding::percent_decode_str;
use smalti_types::Role;
use std::fs::{File, Metadata};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;

/// Files below these directories.
pub(crate) struct Files {
    pub(crate) roots: Vec<PathBuf>,
}

fn failed(at: &str, e: &std::io::Error) -> SourceError {
    let at = at.to_owned();
    match e.kind() {
        std::io::ErrorKind::NotFound => SourceError::NotFound { at, why: "no such file on this machine".into() },
        std::io::ErrorKind::PermissionDenied => SourceError::Refused { at, why: e.to_string() },
        _ => SourceError::Permanent { at, why: e.to_string() },
    }
}

impl Files {
    /// Where a path really leads, if that is allowed.
    pub(crate) fn real(&self, path: &Path, at: &str) -> Result<PathBuf, SourceError> {
        if self.roots.is_empty() {
            let why = "no file:// paths are allowed here (the operator lists the directories that may be read with --file-root)";
            return Err(SourceError::refused(at, why));
        }
        let real = path.canonicalize().or_else(|e| match decoded(path) {
            Some(decoded) => decoded.canonicalize(),
            None => Err(e),
        });
        let outside = || SourceError::refused(at, "it is not below a directory that the operator allows");
        let allowed = |real: &Path| self.roots.iter().filter_map(|r| r.canonicalize().ok()).any(|root| real.starts_with(root));
        match real {
            Ok(real) if allowed(&real) => Ok(real),
            Ok(_) => Err(outside()),
            // Whether something is there is nobody's business outside.
            Err(e) if path.ancestors().find_map(|p| p.canonicalize().ok()).is_some_and(|p| allowed(&p)) => Err(failed(at, &e)),
            Err(_) => Err(outside()),
        }
    }

    /// The file, its length, its version, and what messages call it.
    fn open_file(&self, location: &Location) -> Result<(File, u64, String, String), SourceError> {
        let at = location.to_string();
        let Location::File(path) = location else { return Err(SourceError::permanent(&at, "it is not a file")) };
        let real = self.real(path, &at)?;
        let meta = std::fs::metadata(&real).map_err(|e| failed(&at, &e))?;
        if !meta.is_file() {
            let what = if meta.is_dir() { "it is a directory" } else { "it is not a regular file" };
            return Err(SourceError::permanent(&at, what));
        }
        let file = File::open(&real).map_err(|e| failed(&at, &e))?;
        // Of what was opened: another file may have taken the name.
        let meta = file.metadata().map_err(|e| failed(&at, &e))?;
        Ok((file, meta.len(), tag(&meta), at))
    }
}

/// The version of a file: when it was modified, and its length. Not where it lies on its disk: an agent may have a copy of its own, which
/// keeps the time if it was made to (`cp -p`, `rsync -a`, a shared file system).
#[must_use]
pub fn tag(meta: &Metadata) -> String {
    format!("\"{}.{:09}-{}\"", meta.mtime(), meta.mtime_nsec(), meta.len())
}

/// The end of a stream: nothing, if nobody wrote to the file while it was read.
fn unchanged(file: &File, before: &str, at: &str) -> Result<Bytes, SourceError> {
    let now = file.metadata().map(|meta| tag(&meta)).map_err(|e| failed(at, &e))?;
    if now == before {
        return Ok(Bytes::new());
    }
    Err(SourceError::Discontinued { at: at.to_owned(), why: "somebody wrote to it while it was read".into() })
}

/// The path as somebody meant it who wrote `%20` for a space.
fn decoded(path: &Path) -> Option<PathBuf> {
    let text = path.to_str().filter(|t| t.contains('%'))?;
    Some(percent_decode_str(text).decode_utf8().ok()?.into_owned().into())
}

impl Source for Files {
    fn open<'a>(&'a self, ask: Ask<'a>) -> BoxFuture<'a, Result<Opened, SourceError>> {
        boxed(async move {
            let (mut file, length, tag, at) = self.open_file(ask.location)?;
            let from = ask.have.request(ask.digest_is_known).from();
            let same = ask.have.etag.as_ref().is_none_or(|before| *before == tag);
            let from = if same && from <= length { from } else { 0 };
            file.seek(SeekFrom::Start(from)).map_err(|e| failed(&at, &e))?;
            let watched = file.try_clone().map_err(|e| failed(&at, &e))?;
            let (before, place) = (tag.clone(), at.clone());
            let stream = ReaderStream::with_capacity(tokio::fs::File::from_std(file), CHUNK)
                .map_err(move |e| SourceError::permanent(&at, e.to_string()))
                .chain(futures::stream::once(async move { unchanged(&watched, &before, &place) }));
            Ok(Opened { stream: stream.boxed(), from, total: Some(length), etag: Some(tag), name: None, sha256: None })
        })
    }

    fn head<'a>(&'a self, _: &'a Role, location: &'a Location) -> BoxFuture<'a, Result<(u64, Option<String>), SourceError>> {
        boxed(async move { self.open_file(location).map(|(_, length, tag, _)| (length, Some(tag))) })
    }

    fn part<'a>(&'a self, _: &'a Role, location: &'a Location, part: Part<'a>) -> BoxFuture<'a, Result<OpenedPart, SourceError>> {
        boxed(async move {
            let (mut file, _, tag, at) = self.open_file(location)?;
            if let Some(expected) = part.version.filter(|v| *v != tag) {
                return Err(changed(&at, expected, &tag));
            }
            let from = part.range.start;
            file.seek(SeekFrom::Start(from)).map_err(|e| failed(&at, &e))?;
            let stream = ReaderStream::with_capacity(tokio::fs::File::from_std(file).take(part.length() as u64), CHUNK)
                .map_err(move |e| SourceError::permanent(&at, e.to_string()));
            Ok(OpenedPart { stream: stream.boxed(), from })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leads_out_of_the_roots_and_nothing_is_told_about_outside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join("a b"), b"x").unwrap();
        std::fs::write(dir.path().join("secret"), b"x").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), root.join("link")).unwrap();
        let files = Files { roots: vec![root.clone()] };
        assert!(files.real(&root.join("a b"), "it").is_ok() && files.real(&root.join("a%20b"), "it").is_ok());
        for bad in
            [root.join("link"), root.join("../secret"), dir.path().join("secret"), dir.path().join("none"), root.join("%2e%2e/secret")]
        {
            assert!(matches!(files.real(&bad, "it"), Err(SourceError::Refused { .. })), "{}", bad.display());
        }
        assert!(matches!(files.real(&root.join("none"), "it"), Err(SourceError::NotFound { .. })));
        assert!(files.open_file(&Location::File(root)).unwrap_err().to_string().contains("directory"));
        assert!(Files { roots: vec![] }.real(dir.path(), "it").unwrap_err().to_string().contains("--file-root"));
    }

    #[tokio::test]
    async fn a_file_that_is_written_to_is_another_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"0123456789").unwrap();
        let (files, role, place) = (Files { roots: vec![dir.path().into()] }, Role::default(), Location::File(path.clone()));
        let (length, tag) = files.head(&role, &place).await.unwrap();
        assert_eq!(length, 10);
        let part = |version| Part { range: 2..5, version };
        let read = async |version| {
            let opened = files.part(&role, &place, part(version)).await?;
            opened.stream.try_fold(Vec::new(), async |all, chunk| Ok([all, chunk.to_vec()].concat())).await
        };
        assert_eq!(read(tag.as_deref()).await.unwrap(), b"234");
        let have = crate::range::Have::default();
        let ask = Ask { role: &role, location: &place, have: &have, version: None, digest_is_known: false };
        let opened = files.open(ask).await.unwrap();
        assert_eq!(opened.etag, tag);
        // The same length, a moment later.
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
        std::fs::write(&path, b"9876543210").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert!(matches!(read(tag.as_deref()).await, Err(SourceError::Changed { .. })));
        assert_eq!(read(None).await.unwrap(), b"765");
        let all: Vec<_> = opened.stream.collect().await;
        assert!(matches!(all.last(), Some(Err(SourceError::Discontinued { .. }))), "{all:?}");
    }
}
