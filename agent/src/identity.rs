//! Who this agent is: an id chosen at its first start and kept in its data directory, and one process per directory.
//!
//! Owns the files `agent_id` and `lock`. The id survives restarts; the incarnation (the start time) does not, and tells the master that
//! its executors were started by an earlier life.

use nix::fcntl::{Flock, FlockArg};
use smalti_types::AgentId;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ID_FILE: &str = "agent_id";
const LOCK_FILE: &str = "lock";
/// How long the lock of an agent that was killed may outlive it, and how often it is tried meanwhile.
const TAKE_WITHIN: Duration = Duration::from_secs(2);
const TAKE_AGAIN: Duration = Duration::from_millis(10);

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory operation.
    #[error("cannot {operation} {}: {source}; name another directory with --data-dir", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Another agent has it.
    #[error("another agent uses the data directory {}: end it, or name another directory with --data-dir", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The id file is damaged.
    #[error("{} does not hold an agent id: {source}; remove it to get a new one", path.display())]
    BadId {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: smalti_types::id::IdError,
    },
}

/// The agent's identity. The directory is this process's as long as it lives.
#[derive(Debug)]
pub struct Identity {
    /// The agent's id.
    pub id: AgentId,
    _lock: Flock<File>,
}

impl Identity {
    /// Makes the directory if it is not there, takes it, and reads the id or stores `fresh` as such.
    ///
    /// # Errors
    /// When the directory cannot be written or another agent uses it.
    pub fn open(data_dir: &Path, fresh: impl FnOnce() -> AgentId) -> Result<Self, Error> {
        use std::os::unix::fs::DirBuilderExt;
        let io = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { operation, path, source }
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(io("make the data directory", data_dir))?;
        let lock_path = data_dir.join(LOCK_FILE);
        let file = File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(io("write", &lock_path))?;
        let lock = take(file).map_err(|errno| match errno {
            nix::errno::Errno::EWOULDBLOCK => Error::InUse { path: data_dir.to_owned() },
            other => io("lock", &lock_path)(other.into()),
        })?;
        let path = data_dir.join(ID_FILE);
        let id = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|source| Error::BadId { path, source })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let id = fresh();
                store(&path, id.as_str()).map_err(io("write", &path))?;
                id
            }
            Err(e) => return Err(io("read", &path)(e)),
        };
        Ok(Self { id, _lock: lock })
    }
}

/// Takes the lock. What an agent that was killed had just forked holds it until it executes its program: that is waited for.
fn take(mut file: File) -> Result<Flock<File>, nix::errno::Errno> {
    let deadline = Instant::now() + TAKE_WITHIN;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((again, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                file = again;
                std::thread::sleep(TAKE_AGAIN);
            }
            Err((_, errno)) => return Err(errno),
        }
    }
}

/// Writes beside the file, makes it durable, then renames: a crash leaves the old file or the new one.
fn store(path: &Path, text: &str) -> std::io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = File::create(&partial)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// A new agent id: `A-` and eight hexadecimal digits.
///
/// # Panics
/// Never: the text is an id by its form.
#[must_use]
pub fn fresh_id() -> AgentId {
    let number = uuid::Uuid::new_v4().as_fields().0;
    AgentId::new(format!("A-{number:08x}")).expect("letters, digits and a dash are an id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_stays_and_the_directory_has_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/b");
        let first = Identity::open(&data, fresh_id).unwrap();
        assert!(matches!(Identity::open(&data, fresh_id), Err(Error::InUse { .. })));
        let id = first.id.clone();
        drop(first);
        assert_eq!(Identity::open(&data, fresh_id).unwrap().id, id);
        std::fs::write(data.join(ID_FILE), "../x").unwrap();
        assert!(matches!(Identity::open(&data, fresh_id), Err(Error::BadId { .. })));
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = Identity::open(&file.join("x"), fresh_id).unwrap_err().to_string();
        assert!(error.contains("file/x") && error.contains("--data-dir"), "{error}");
    }
}
