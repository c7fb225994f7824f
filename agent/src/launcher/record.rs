//! What is kept about a running executor so that a later life of the agent finds it again, and only it.
//!
//! Owns the file `executor.json` in the executor's directory, which nobody but the agent can write: it is there before the executor
//! hears its first word. A process id alone names nobody for long; with the boot and the time at which the process began it does.
//! Written for a process crash, not for a machine crash: after that there is no executor to be found. Deliberately absent: finding
//! the executor ([`super::adopt`]).

use super::process::{self, ProcessHandle};
use super::spawn::Spawned;
use super::{ExecutorSpec, Options};
use crate::detect::boot_id;
use serde::{Deserialize, Serialize};
use smalti_executor_protocol::supervision::{ExecutorKind, open_plain};
use smalti_types::{Bytes, ExecutorId};
use std::io::{self, Read};
use std::path::Path;

/// Name of the file.
pub(super) const RECORD_NAME: &str = "executor.json";
/// Where it is written before it gets its name.
const NEW_NAME: &str = "executor.json.new";
/// The format that this version writes.
const VERSION: u32 = 1;
/// Longest file that is read.
const MAX_BYTES: u64 = 256 << 10;

/// Facts about one executor that do not change while it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    pub(super) id: ExecutorId,
    kind: String,
    pub(super) slots: u32,
    pub(super) max_memory: Bytes,
    /// The pid of its supervisor, or of its only process, as an agent sees it.
    pub(super) supervisor: i32,
    /// Whether that is its only process. Earlier builds knew no such executors.
    #[serde(default)]
    pub(super) alone: bool,
    /// When it began, in clock ticks since the boot: what makes its pid unmistakable.
    pub(super) start_time: u64,
    pub(super) boot_id: String,
    pub(super) pid_namespace: bool,
    /// Whether it was to have namespaces.
    pub(super) namespaces: bool,
    pub(super) uid: Option<u32>,
    /// Why it has no uid of its own.
    pub(super) no_uid: String,
    /// What launcher and supervisor warned of.
    pub(super) warnings: Vec<String>,
    /// Where its groups lie, as [`crate::cgroup::Cgroups::places`] writes it.
    pub(super) cgroups: String,
}

/// An executor in one of these directories that was started in this boot of the machine.
pub(crate) fn one_of_boot(executors_dir: &Path, boot: &str) -> Option<ExecutorId> {
    let homes = std::fs::read_dir(executors_dir).into_iter().flatten().flatten();
    homes.filter_map(|home| Record::load(&home.path()).ok()).find(|record| record.boot_id == boot).map(|record| record.id)
}

impl Record {
    /// Of an executor that has just been started.
    ///
    /// # Errors
    /// When its process is gone already.
    pub(super) fn of(spec: &ExecutorSpec, spawned: &Spawned, process: &ProcessHandle, options: &Options) -> io::Result<Self> {
        Ok(Self {
            version: VERSION,
            id: spec.id.clone(),
            kind: spec.kind.as_str().to_owned(),
            slots: spec.slots,
            max_memory: spec.max_memory,
            supervisor: process.pid(),
            alone: process.is_alone(),
            start_time: process::start_time(process.pid())?,
            boot_id: boot_id(),
            pid_namespace: process.pid_namespace(),
            namespaces: options.namespaces,
            uid: spawned.uid.as_ref().ok().copied(),
            no_uid: spawned.uid.as_ref().err().cloned().unwrap_or_default(),
            warnings: spawned.warnings.clone(),
            cgroups: options.cgroups.places(),
        })
    }

    /// Its uid, or why it has none.
    pub(super) fn user(&self) -> Result<u32, &str> {
        self.uid.ok_or(&self.no_uid)
    }

    /// What it is for.
    ///
    /// # Errors
    /// A word of another version.
    pub(super) fn kind(&self) -> Result<ExecutorKind, String> {
        self.kind.parse()
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn store(&self, home: &Path) -> io::Result<()> {
        let new = home.join(NEW_NAME);
        std::fs::write(&new, serde_json::to_vec(self).map_err(io::Error::other)?)?;
        std::fs::rename(&new, home.join(RECORD_NAME))
    }

    /// Reads the one in `home`.
    ///
    /// # Errors
    /// When there is none, or it is not understood.
    pub(super) fn load(home: &Path) -> io::Result<Self> {
        let mut bytes = Vec::new();
        open_plain(&home.join(RECORD_NAME))?.take(MAX_BYTES).read_to_end(&mut bytes)?;
        let record: Self = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
        if record.version > VERSION {
            return Err(io::Error::other(format!("it is of format {}, this agent knows {VERSION}: install the later one", record.version)));
        }
        Ok(record)
    }
}
