//! Outputs into a store of the user's: a prefix of a bucket, or a directory below one that the operator allows.
//!
//! An output appears under its name whole or not at all: a file is written beside its place and renamed, an object is put in one request, or
//! in parts that are put together at the end. Writing one again replaces it. Owns tries, and what is worth one. What may be written where is
//! the policy's and the operator's (`store`, `--output-root`); what outputs are called is the caller's.

use crate::error::SourceError;
use crate::hosts::Hosts;
use crate::location::{Location, shown};
use crate::s3::from_store;
use crate::source::Sources;
use bytes::{Bytes, BytesMut};
use object_store::path::Path as Key;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};
use smalti_types::Role;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Bytes that are gathered before they are sent: what one part of an object must have at least.
const PART: usize = 5 << 20;
/// How often one request is made, and the pause after the first failure, which doubles.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest that one request may take: a part at 100 KiB a second takes less.
const REQUEST: Duration = Duration::from_secs(60);
/// Longest URI of a store in bytes.
const MAX_URI: usize = 2048;
/// What a file that is not whole is called.
const UNFINISHED: &str = ".part";

/// Why something cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DepositError {
    /// Not a store.
    #[error("`{uri}` is no place for outputs: write it like s3://bucket/prefix/ or file:///dir")]
    Uri {
        /// What was named.
        uri: String,
    },
    /// The operator or the place does not let us.
    #[error("writing to {at} was refused: {why}")]
    Refused {
        /// Where.
        at: String,
        /// By whom, and what would help.
        why: String,
    },
    /// It does not work now.
    #[error("cannot write to {at}: {why}")]
    Failed {
        /// Where.
        at: String,
        /// What is wrong.
        why: String,
        /// Another try may help.
        may_pass: bool,
    },
}

impl DepositError {
    /// Whether another try may help.
    #[must_use]
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::Failed { may_pass: true, .. })
    }

    fn from_source(error: SourceError) -> Self {
        match error {
            SourceError::Uri { uri, .. } => Self::Uri { uri },
            SourceError::Refused { at, why } => Self::Refused { at, why },
            SourceError::NotFound { at, why } => {
                Self::Failed { at, why: format!("there is no such bucket or directory: {why}"), may_pass: false }
            }
            SourceError::Changed { at, why } | SourceError::Permanent { at, why } => Self::Failed { at, why, may_pass: false },
            SourceError::Transient { at, why, .. } | SourceError::Discontinued { at, why } => Self::Failed { at, why, may_pass: true },
        }
    }

    fn of_disk(at: &Path, error: &io::Error) -> Self {
        let at = format!("file://{}", at.display());
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Refused { at, why: error.to_string() },
            // Somebody may make room.
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Failed { at, why: error.to_string(), may_pass: true },
            _ => Self::Failed { at, why: error.to_string(), may_pass: false },
        }
    }
}

/// A place for outputs.
#[derive(Clone)]
pub struct Deposit {
    kind: Kind,
    /// What messages call it.
    at: String,
}

#[derive(Clone)]
enum Kind {
    S3 { store: Arc<dyn ObjectStore>, prefix: String, host: String, hosts: Arc<Hosts> },
    Directory(PathBuf),
}

impl std::fmt::Debug for Deposit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deposit").field("at", &self.at).finish_non_exhaustive()
    }
}

/// What a store's URI names: with the slash at the end that says that outputs lie below it.
fn place(uri: &str) -> Result<Location, DepositError> {
    let wrong = || DepositError::Uri { uri: shown(uri) };
    if uri.len() > MAX_URI {
        return Err(wrong());
    }
    let whole = if uri.ends_with('/') { uri.to_owned() } else { format!("{uri}/") };
    if let Some((bucket, prefix)) = whole.strip_prefix("s3://").and_then(|rest| rest.split_once('/')) {
        // A prefix may be empty, unlike a key.
        let probe = Location::parse(Some(&format!("s3://{bucket}/x")), None).map_err(|_| wrong())?;
        let Location::S3 { bucket, .. } = probe else { return Err(wrong()) };
        let plain = prefix.split('/').all(|part| part != "." && part != "..");
        return if plain { Ok(Location::S3 { bucket, key: prefix.to_owned() }) } else { Err(wrong()) };
    }
    match Location::parse(Some(&whole), None) {
        Ok(Location::File(path)) if !path.components().any(|c| c == std::path::Component::ParentDir) => Ok(Location::File(path)),
        _ => Err(wrong()),
    }
}

impl Sources {
    /// A place for outputs, if the role may write there.
    ///
    /// # Errors
    /// [`DepositError`], with what would have to be allowed.
    pub fn deposit(&self, role: &Role, uri: &str) -> Result<Deposit, DepositError> {
        let place = place(uri)?;
        let at = place.to_string();
        let setup = self.setup();
        setup.policy.check_store(role, &place).map_err(DepositError::from_source)?;
        let kind = match place {
            Location::S3 { bucket, key } => Kind::S3 {
                store: self.s3.bucket(&bucket, &at).map_err(DepositError::from_source)?,
                prefix: key,
                host: format!("s3://{bucket}"),
                hosts: self.s3.hosts.clone(),
            },
            Location::File(path) => {
                let roots = setup.output_roots.iter().filter_map(|root| root.canonicalize().ok());
                let real = path.ancestors().find_map(|p| Some((p.canonicalize().ok()?, path.strip_prefix(p).ok()?)));
                let real = real.map(|(real, rest)| real.join(rest)).unwrap_or_default();
                if !roots.into_iter().any(|root| real.starts_with(root)) {
                    let why = "it is not below a directory that the operator allows (the scheduler's --output-root)".to_owned();
                    return Err(DepositError::Refused { at, why });
                }
                Kind::Directory(real)
            }
            _ => return Err(DepositError::Uri { uri: shown(uri) }),
        };
        Ok(Deposit { kind, at })
    }
}

impl Deposit {
    /// Removes what an earlier life of this process left unfinished below `directory`.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub async fn clean(&self, directory: &str) -> Result<(), DepositError> {
        let Kind::Directory(root) = &self.kind else { return Ok(()) };
        let dir = root.join(directory);
        let work = move || {
            let entries = match std::fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(DepositError::of_disk(&dir, &e)),
            };
            for entry in entries.flatten() {
                if entry.file_name().to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(UNFINISHED)) {
                    let _ = std::fs::remove_file(entry.path());
                }
            }
            Ok(())
        };
        blocking(work).await
    }

    /// Begins one output, called `name` (plain words with slashes between them).
    ///
    /// # Errors
    /// [`DepositError`].
    pub async fn begin(&self, name: &str) -> Result<Upload, DepositError> {
        let to = match &self.kind {
            Kind::S3 { store, prefix, host, hosts } => {
                let key = Key::parse(format!("{prefix}{name}")).map_err(|e| DepositError::Failed {
                    at: self.at.clone(),
                    why: e.to_string(),
                    may_pass: false,
                })?;
                To::S3 { store: store.clone(), key, parts: None, host: (host.clone(), hosts.clone()) }
            }
            Kind::Directory(root) => {
                let path = root.join(name);
                let (path, file) = blocking(move || Unfinished::new(path)).await?;
                To::File { path, file: Some(file) }
            }
        };
        Ok(Upload { to, waiting: BytesMut::new(), at: format!("{}{name}", self.at) })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, DepositError> + Send + 'static) -> Result<T, DepositError> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|e| DepositError::Failed { at: "a file".into(), why: e.to_string(), may_pass: false })?
}

/// A file beside its place; gone with this, unless it was moved there.
struct Unfinished {
    file: std::fs::File,
    beside: Option<PathBuf>,
}

impl Unfinished {
    fn new(path: PathBuf) -> Result<(PathBuf, Self), DepositError> {
        let failed = |e: io::Error| DepositError::of_disk(&path, &e);
        let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let beside = dir.join(format!(".{name}.{:08x}{UNFINISHED}", fastrand::u32(..)));
        let file = std::fs::File::options().write(true).create_new(true).open(&beside).map_err(failed)?;
        Ok((path.clone(), Self { file, beside: Some(beside) }))
    }

    /// Durable first: after a crash of the machine what has its name must be whole.
    fn finish(mut self, path: &Path) -> io::Result<()> {
        self.file.sync_data()?;
        if let Some(beside) = &self.beside {
            std::fs::rename(beside, path)?;
            self.beside = None;
        }
        match path.parent() {
            Some(dir) => std::fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(beside) = self.beside.take() {
            let _ = std::fs::remove_file(beside);
        }
    }
}

enum To {
    S3 {
        store: Arc<dyn ObjectStore>,
        key: Key,
        parts: Option<Box<dyn MultipartUpload>>,
        /// Where places for requests are to be had. They are taken for each, so that an output that waits for more holds up no other.
        host: (String, Arc<Hosts>),
    },
    File {
        path: PathBuf,
        file: Option<Unfinished>,
    },
}

/// One output on its way. Nothing of it is to be seen before [`Upload::finish`].
pub struct Upload {
    to: To,
    /// Not sent yet.
    waiting: BytesMut,
    at: String,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("at", &self.at).finish_non_exhaustive()
    }
}

/// Makes a request until it works, as long as another try makes sense.
async fn tried<T, F>(at: &str, tries: u32, mut request: impl FnMut() -> F) -> Result<T, DepositError>
where
    F: Future<Output = object_store::Result<T>>,
{
    let mut pause = FIRST_PAUSE;
    let mut tried = 1;
    loop {
        let failure = match tokio::time::timeout(REQUEST, request()).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(e)) => DepositError::from_source(from_store(at, &e)),
            Err(_) => DepositError::Failed { at: at.to_owned(), why: "it takes nothing any more".into(), may_pass: true },
        };
        if tried >= tries || !failure.may_pass() {
            return Err(failure);
        }
        // Not all at once.
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        (tried, pause) = (tried + 1, pause * 2);
    }
}

impl Upload {
    /// Adds bytes at the end.
    ///
    /// # Errors
    /// [`DepositError`], after which the output has to be begun anew.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), DepositError> {
        self.waiting.extend_from_slice(&bytes);
        while self.waiting.len() >= PART {
            self.send(PART).await?;
        }
        Ok(())
    }

    async fn send(&mut self, most: usize) -> Result<(), DepositError> {
        let bytes = self.waiting.split_to(most.min(self.waiting.len())).freeze();
        match &mut self.to {
            To::S3 { store, key, parts, host: (host, hosts) } => {
                let _place = hosts.place(host).await;
                let parts = match parts {
                    Some(parts) => parts,
                    None => parts.insert(tried(&self.at, TRIES, || store.put_multipart(key)).await?),
                };
                // The client would take a second try for a further part: whoever has the bytes begins the whole anew.
                tried(&self.at, 1, || parts.put_part(PutPayload::from_bytes(bytes.clone()))).await
            }
            To::File { path, file } => {
                let Some(mut open) = file.take() else { return Ok(()) };
                let shown = path.clone();
                *file = Some(
                    blocking(move || {
                        open.file.write_all(&bytes).map_err(|e| DepositError::of_disk(&shown, &e))?;
                        Ok(open)
                    })
                    .await?,
                );
                Ok(())
            }
        }
    }

    /// Makes it appear under its name.
    ///
    /// # Errors
    /// [`DepositError`], after which the output has to be begun anew.
    pub async fn finish(mut self) -> Result<(), DepositError> {
        if let To::S3 { store, key, parts: None, host: (host, hosts) } = &self.to {
            let payload = PutPayload::from_bytes(self.waiting.split().freeze());
            let _place = hosts.place(host).await;
            tried(&self.at, TRIES, || store.put(key, payload.clone())).await?;
            return Ok(());
        }
        if !self.waiting.is_empty() {
            self.send(PART).await?;
        }
        match &mut self.to {
            To::S3 { parts, host: (host, hosts), .. } => {
                let Some(parts) = parts else { return Ok(()) };
                let _place = hosts.place(host).await;
                tokio::time::timeout(REQUEST, parts.complete())
                    .await
                    .unwrap_or_else(|_| Err(object_store::Error::Generic { store: "S3", source: "no answer in time".into() }))
                    .map(|_| ())
                    .map_err(|e| DepositError::from_source(from_store(&self.at, &e)))
            }
            To::File { path, file } => {
                let Some(file) = file.take() else { return Ok(()) };
                let path = path.clone();
                blocking(move || file.finish(&path).map_err(|e| DepositError::of_disk(&path, &e))).await
            }
        }
    }

    /// Takes back what a store keeps of an unfinished object. Whoever drops an upload of many parts leaves that to the store's own rules.
    pub async fn abort(mut self) {
        if let To::S3 { parts: Some(parts), .. } = &mut self.to {
            let _ = parts.abort().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Setup;

    fn sources(root: &Path, policy: &str) -> Sources {
        let setup = Setup { output_roots: vec![root.into()], policy: policy.parse().unwrap(), ..Setup::new("m:1") };
        Sources::new(setup).unwrap()
    }

    #[test]
    fn stores_are_prefixes_and_directories() {
        let as_text = |uri: &str| place(uri).map(|l| l.to_string());
        assert_eq!(as_text("s3://b").unwrap(), "s3://b/");
        assert_eq!(as_text("s3://b/p/q").unwrap(), "s3://b/p/q/");
        assert_eq!(as_text("file:///d/e/").unwrap(), "file:///d/e/");
        for bad in ["http://h/x", "s3://", "s3://b/../c", "file://d", "file:///d/../e", "/d", "oci://r/x", ""] {
            assert!(place(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_file_appears_whole_and_what_was_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let deposit = sources(dir.path(), "").deposit(&Role::default(), &format!("file://{}/out", dir.path().display())).unwrap();
        let large: Vec<u8> = (0..PART + 1000).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let mut upload = deposit.begin("j1/0.0.stdout").await.unwrap();
        for chunk in large.chunks(70_000) {
            upload.write(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
        let path = dir.path().join("out/j1/0.0.stdout");
        assert!(!path.exists(), "not before it is whole");
        upload.finish().await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), large);
        // Once more, and one that is given up.
        let mut again = deposit.begin("j1/0.0.stdout").await.unwrap();
        again.write(Bytes::from_static(b"new")).await.unwrap();
        again.finish().await.unwrap();
        drop(deposit.begin("j1/1.0.stdout").await.unwrap());
        std::fs::write(dir.path().join("out/j1/.2.0.stdout.0123abcd.part"), b"of a crash").unwrap();
        deposit.clean("j1").await.unwrap();
        let names: Vec<_> = std::fs::read_dir(dir.path().join("out/j1")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["0.0.stdout"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn nothing_is_written_where_nobody_allowed_it() {
        let (dir, role) = (tempfile::tempdir().unwrap(), Role::default());
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::os::unix::fs::symlink(dir.path(), root.join("out")).unwrap();
        let refused = |policy: &str, uri: &str| matches!(sources(&root, policy).deposit(&role, uri), Err(DepositError::Refused { .. }));
        let below = format!("file://{}/x", root.display());
        assert!(!refused("", &below), "the operator names the directory for this");
        assert!(refused("", "s3://bucket/x"), "and no bucket");
        assert!(refused("", &format!("file://{}/x", dir.path().display())));
        assert!(refused("", &format!("file://{}/out/x", root.display())), "a link leads out");
        assert!(refused("[default]\nstore = []", &below));
        assert!(refused("[default]\nstore = [\"s3://bucket/team/\"]", "s3://bucket/other"));
        assert!(refused("[default]\nstore = [\"s3://bucket/team/\"]", "s3://bucket/"));
        assert!(!refused("[default]\nstore = [\"s3://bucket/team/\"]", "s3://bucket/team/x"));
        assert!(!refused("[default]\nstore = [\"s3://bucket/team/\"]", "s3://bucket/team"));
    }
}
