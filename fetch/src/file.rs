//! `file://`: files of this machine, below directories that the operator allows.
//!
//! Links are resolved first, so that none leads out of them. What is no regular file is not opened: a named pipe would wait for ever.

use crate::error::SourceError;
use crate::location::Location;
use crate::source::{Ask, Opened, Source, boxed};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{StreamExt, TryStreamExt};
use percent_encoding::percent_decode_str;
use smalti_types::Role;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
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

    fn open_file(&self, location: &Location) -> Result<(File, u64, String), SourceError> {
        let at = location.to_string();
        let Location::File(path) = location else { return Err(SourceError::permanent(&at, "it is not a file")) };
        let real = self.real(path, &at)?;
        let meta = std::fs::metadata(&real).map_err(|e| failed(&at, &e))?;
        if !meta.is_file() {
            let what = if meta.is_dir() { "it is a directory" } else { "it is not a regular file" };
            return Err(SourceError::permanent(&at, what));
        }
        Ok((File::open(&real).map_err(|e| failed(&at, &e))?, meta.len(), at))
    }
}

/// The path as somebody meant it who wrote `%20` for a space.
fn decoded(path: &Path) -> Option<PathBuf> {
    let text = path.to_str().filter(|t| t.contains('%'))?;
    Some(percent_decode_str(text).decode_utf8().ok()?.into_owned().into())
}

impl Source for Files {
    fn open<'a>(&'a self, ask: Ask<'a>) -> BoxFuture<'a, Result<Opened, SourceError>> {
        boxed(async move {
            let (mut file, length, at) = self.open_file(ask.location)?;
            // Without a tag, only a digest tells whether it is still the same file.
            let from = ask.have.request(ask.digest_is_known).from();
            let from = if from <= length { from } else { 0 };
            file.seek(SeekFrom::Start(from)).map_err(|e| failed(&at, &e))?;
            let stream = ReaderStream::with_capacity(tokio::fs::File::from_std(file), CHUNK)
                .map_err(move |e| SourceError::permanent(&at, e.to_string()))
                .boxed();
            Ok(Opened { stream, from, total: Some(length), etag: None, name: None, sha256: None })
        })
    }

    fn head<'a>(&'a self, _: &'a Role, location: &'a Location) -> BoxFuture<'a, Result<(u64, Option<String>), SourceError>> {
        boxed(async move { self.open_file(location).map(|(_, length, _)| (length, None)) })
    }

    fn range<'a>(&'a self, _: &'a Role, location: &'a Location, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, SourceError>> {
        boxed(async move {
            let (mut file, _, at) = self.open_file(location)?;
            let read = move || {
                let mut bytes = Vec::new();
                file.seek(SeekFrom::Start(range.start))?;
                file.take(range.end.saturating_sub(range.start)).read_to_end(&mut bytes)?;
                Ok::<_, std::io::Error>(Bytes::from(bytes))
            };
            let joined = tokio::task::spawn_blocking(read).await.map_err(|e| SourceError::permanent(&at, e.to_string()))?;
            joined.map_err(|e| failed(&at, &e))
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
}
