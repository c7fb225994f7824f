//! Makes ready what a task needs before it starts: its bundle fetched, verified and compiled, its inputs and its standard
//! input in files, all of it as open descriptors that can be handed to an executor.
//!
//! Owns: `bundles/`, `compiled/`, `unpacked/`, `inputs/` and `partial/` below the data directory, within their budgets at all times.
//! One download per digest and one compilation per digest at a time, however many tickets wait; a ticket whose bundle is
//! compiled already costs a map look-up. Whatever arrives is hostile until its digest is checked.
//!
//! Deliberately absent: executors, resources, task states. The agent's core sees only `Launch → Prepared | Failure`.

mod archive;
mod background;
mod bundles;
mod cache;
mod download;
mod flight;
mod inputs;
mod meters;
mod names;
mod own_file;
mod partial;
mod peers;
mod queue;
mod refused;
mod rights;
mod serve;
mod service;
mod sharing;
mod splits;
mod stdin;
#[cfg(test)]
mod tests;
mod turns;

pub use cache::{Budgets, Kind, Stock};
pub use peers::Locator;
pub(crate) use serve::serve;
pub use service::{Handle, Preparer};
pub use smalti_agent_core::Failure;
pub(crate) use splits::{Laid, WantedPiece};

use crate::cgroup::Cgroups;
use smalti_types::{Bytes, Digest, FrameworkId, Input, Role, TaskSpec};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Why a preparation does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// For good.
    Failed(Failure),
    /// All that it holds is to be given up until there is room.
    NoRoom(cache::NoRoom),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<cache::NoRoom> for Stop {
    fn from(no_room: cache::NoRoom) -> Self {
        Self::NoRoom(no_room)
    }
}

/// What preparation puts into a task's directory, which is of no use after the task.
pub(crate) const LAID_OUT: [&str; 3] = [inputs::INPUTS_DIR, splits::SPLITS_DIR, stdin::STDIN_FILE];

/// Compiler processes at a time on the smallest nodes: one for somebody else.
pub(crate) const LEAST_COMPILERS: usize = 2;

/// What an earlier life's caches take of the disk.
pub(crate) fn cached(data_dir: &std::path::Path) -> Bytes {
    Bytes(cache::Dirs::below(data_dir).all().iter().map(|dir| cache::size_of(dir)).sum())
}

/// How bundles and inputs are prepared. [`Options::new`] gives the defaults.
#[derive(Clone)]
pub struct Options {
    /// The agent's data directory; the caches are made below it.
    pub data_dir: PathBuf,
    /// Program and first arguments of the compiler process, for example `["/usr/bin/smalti", "compiler"]`.
    pub compile_command: Vec<OsString>,
    /// From where, for whom and how things are fetched.
    pub fetch: smalti_fetch::Setup,
    /// Which other agents have what.
    pub locator: Locator,
    /// Bundles that tasks of an earlier life still run: their files stay until [`Handle::release`].
    pub in_use: BTreeSet<Digest>,
    /// Most bytes that the caches take. What is in use is never removed: a task that does not fit beside it waits.
    pub budgets: Budgets,
    /// How long it waits.
    pub room_timeout: Duration,
    /// Largest bundle, as it is fetched.
    pub max_bundle: Bytes,
    /// Largest input.
    pub max_input: Bytes,
    /// Most wall time of one compilation, on a machine that has no time for it; what a bundle may take is processor time.
    pub compile_timeout: Duration,
    /// Most memory of one compiler process.
    pub compile_memory: Bytes,
    /// The user that compiler processes become, if the agent is root.
    pub compile_uid: Option<u32>,
    /// Groups for compiler processes and for the threads that prepare.
    pub groups: Cgroups,
    /// Most compiler processes at a time. One framework has all but one of them at most: what takes the compiler long holds up nobody
    /// else. The same goes for hashing and for writing to the caches.
    pub compile_parallel: usize,
    /// Most downloads at a time for one framework, and in all.
    pub downloads: (usize, usize),
    /// Most tickets in preparation at a time for one framework, and in all; more are refused.
    pub max_tickets: (usize, usize),
}

impl Options {
    /// The defaults: 10 GiB of cache, one compiler per two cpus and at least two, 1 GiB per compilation and no groups, fetching as
    /// [`smalti_fetch::Setup::new`] has it.
    #[must_use]
    pub fn new(data_dir: PathBuf, master: impl Into<String>, compile_command: Vec<OsString>) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        Self {
            data_dir,
            compile_command,
            fetch: smalti_fetch::Setup::new(master),
            locator: Locator::default(),
            in_use: BTreeSet::new(),
            budgets: Budgets::shared(Bytes::gib(10)),
            room_timeout: Duration::from_secs(300),
            max_bundle: Bytes::mib(512),
            max_input: Bytes::gib(64),
            compile_timeout: 5 * crate::compiler::MAX_PROCESSOR_TIME,
            compile_memory: Bytes::gib(1),
            compile_uid: None,
            groups: Cgroups::none(),
            compile_parallel: (cpus / 2).max(LEAST_COMPILERS),
            downloads: (8, 64),
            max_tickets: (2_048, 16_384),
        }
    }
}

impl std::fmt::Debug for Options {
    /// The most telling ones.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("data_dir", &self.data_dir).field("fetch", &self.fetch).finish_non_exhaustive()
    }
}

/// Why preparing cannot begin at all, or a ticket is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A cache directory cannot be made or written.
    #[error("cannot {operation} {}: {source}", path.display())]
    Directory {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Fetching cannot be set up, for example because a certificate cannot be read.
    #[error(transparent)]
    Fetch(smalti_fetch::SetupError),
    /// No threads.
    #[error("cannot start threads for preparing: {0}")]
    Threads(#[source] std::io::Error),
    /// No command to run as compiler process.
    #[error("the compile command is empty")]
    NoCompiler,
    /// Too many tickets at a time.
    #[error("{0} tasks are being prepared on this agent already; launch again when some of them have started")]
    Busy(usize),
    /// Too many tickets of one framework at a time.
    #[error(
        "{0} tasks of this framework are being prepared on this agent already, no more are taken: launch fewer at a time, or one \
         task array, whose bundle and inputs are prepared once"
    )]
    TenantBusy(usize),
    /// The ticket is in preparation already.
    #[error("ticket {0} is being prepared already")]
    Duplicate(u64),
    /// The receiver of results is gone.
    #[error("nobody takes the results of preparation any more")]
    Closed,
}

/// What one launch needs.
#[derive(Debug, Clone)]
pub struct Request {
    /// The caller's number for it; comes back in [`Prepared`].
    pub ticket: u64,
    /// Whose task it is: outputs are read in its name.
    pub framework: FrameworkId,
    /// Its role: the operator says what that may fetch.
    pub role: Role,
    /// The task's (or array template's) description.
    pub spec: TaskSpec,
    /// Objects that the splits of an array cut up; empty for single tasks.
    pub split_inputs: Vec<Input>,
    /// The task's own directory. Inputs and a merged standard input are put into it; it is made when there are any.
    pub directory: PathBuf,
    /// Whether code that counts fuel is needed.
    pub fuel: bool,
}

/// The answer to one [`Request`]. A cancelled ticket gets none, unless it was under way to the receiver already.
#[derive(Debug)]
pub struct Prepared {
    /// The request's ticket.
    pub ticket: u64,
    /// What came of it.
    pub result: Result<Ready, Failure>,
}

/// All that an executor needs to start a task, as open files.
///
/// Keep it until the task has ended: as long as its directories live, the cache removes none of their files.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The bundle.
    pub digest: Digest,
    /// The guest's name: `args[0]`.
    pub name: String,
    /// A component, else a core module.
    pub component: bool,
    /// Whether the bundle may read the variables that tell a task who it is.
    pub asks_who_it_is: bool,
    /// The compiled code, opened for reading and verified; made by this agent's own compiler process. The descriptor is
    /// shared by all tasks of the bundle: map it, or read at absolute positions.
    pub code: Arc<File>,
    /// Directories to preopen.
    pub dirs: Vec<ReadyDir>,
    /// Standard input, if it is not empty. `None` for array items that read splits.
    pub stdin: Option<ReadyStdin>,
    /// A directory with one file per entry of [`Request::split_inputs`], named by its index; `None` when there are no entries.
    pub split_inputs: Option<Arc<File>>,
    /// What the caches keep for it. The last one: by then all files above are closed.
    #[expect(dead_code, reason = "held, never read")]
    pub(crate) held: Arc<cache::Held>,
}

/// One directory that the guest sees.
#[derive(Debug, Clone)]
pub struct ReadyDir {
    /// Where the guest sees it.
    pub guest_path: String,
    /// The directory itself, open.
    pub dir: Arc<File>,
    /// Whether the guest may write.
    pub writable: bool,
}

/// A part of a file as standard input.
#[derive(Debug, Clone)]
pub struct ReadyStdin {
    /// The file, open for reading. Its cursor is shared: read at absolute positions.
    pub file: Arc<File>,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}
