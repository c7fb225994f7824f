//! What the master must not forget: agents, frameworks with their fail-over deadlines, removed frameworks, and the epoch.
//!
//! Owns the trait behind which it is kept. One transaction per batch of the event loop that has records; nothing of that batch
//! leaves the master before. What cannot be read is never guessed at: the master does not start, and says what to do.

mod memory;
mod redb;

use smalti_master_core::{Record, Stored};
use smalti_types::MasterEpoch;
use std::fmt;
use std::path::{Path, PathBuf};

/// Name of the file in the data directory.
const FILE: &str = "registry.redb";

/// Where the registry is kept.
pub(crate) trait Registry: fmt::Debug + Send {
    /// Everything that was written.
    fn load(&mut self) -> Result<Stored, RegistryError>;

    /// Opens a new epoch: at least `floor`, and more than that of every life before.
    fn next_epoch(&mut self, floor: MasterEpoch) -> Result<MasterEpoch, RegistryError>;

    /// All of these or none, durable when it returns.
    fn write(&mut self, records: Vec<Record>) -> Result<(), RegistryError>;
}

/// What went wrong with the registry: one line each, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The option makes no sense.
    #[error("master: --registry {0}: not a registry; write redb:PATH, or memory for a master that forgets everything when it stops")]
    Option(String),
    /// Another master has it.
    #[error("master: the registry {} is in use by another master; stop it, or name another with --registry redb:PATH", .0.display())]
    InUse(PathBuf),
    /// The file cannot be used.
    #[error("master: cannot {doing} the registry {}: {cause}; {}", path.display(), advice(cause))]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why it failed.
        cause: std::io::Error,
    },
    /// A later version wrote it.
    #[error("master: {what} in the registry {} has format {found}, this version reads up to {known}: a later version of smalti wrote it; \
             start that one, or a later one", path.display())]
    Later {
        /// What of it.
        what: String,
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The latest that can be read.
        known: u64,
    },
    /// It cannot be what was written.
    #[error("master: the registry {} is damaged: {cause}; bring back a copy of it, or move it away and start again: agents and \
             schedulers come back by themselves, but fail-over deadlines start anew and removed frameworks are forgotten", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
}

fn advice(cause: &std::io::Error) -> &'static str {
    match cause.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "a master must not promise what it cannot remember, so it does not go on: free space on that file system and start it again; \
             agents, schedulers and tasks wait for it"
        }
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::NotFound => {
            "name a file that this user can write with --registry redb:PATH"
        }
        _ => "look at the disk below it, then start the master again; agents, schedulers and tasks wait for it",
    }
}

/// Opens what `--registry` says: `redb:PATH`, `memory`, or nothing for the file in the data directory.
pub(crate) fn open(option: Option<&str>, data_dir: &Path) -> Result<Box<dyn Registry>, RegistryError> {
    let path = match option {
        None => data_dir.join(FILE),
        Some("memory") => {
            tracing::warn!("--registry memory: when this master stops, it forgets agents, frameworks and their fail-over deadlines");
            return Ok(Box::new(memory::Memory));
        }
        Some(option) => match option.strip_prefix("redb:").filter(|path| !path.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => return Err(RegistryError::Option(option.to_owned())),
        },
    };
    Ok(Box::new(redb::File::open(&path)?))
}
