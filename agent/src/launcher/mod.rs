//! Starts executors, limits them, and watches them end.
//!
//! One [`Launcher::start`] is: directories, groups, a launcher process (a copy of the forge, not of the agent) in the groups, the go
//! byte, the supervisor's pid, the socket, Welcome, Hello, the slots' threads into their groups. Where neither launcher nor supervisor is
//! needed, it is the executor itself that is such a copy. What blocks is done on threads of its own: there may be hundreds of starts a second,
//! and tasks are not to wait for them. [`Launcher::adopt`] finds one again that an earlier life of the agent has started. Owns no
//! executor afterwards: it hands back a [`Running`]. Deliberately absent: when to start or stop one, and what is said to it.

mod adopt;
mod forge;
mod locate;
mod process;
mod record;
mod report;
mod spawn;
mod syscalls;
mod threads;

#[cfg(test)]
mod tests;

pub use adopt::Gone;
pub use locate::{LocateError, locate_executor};
pub use process::{Exit, ProcessHandle};

use crate::cgroup::{Cgroups, ExecutorGroup};
use crate::executor_link::ExecutorLink;
use crate::network::{Broker, Grants};
use crate::uids::{UidRange, Users};
use forge::Forge;
use record::Record;
pub(crate) use record::one_of_boot;
use report::{Expected, Layer};
pub use smalti_executor_protocol::supervision::ExecutorKind;
use smalti_executor_protocol::supervision::{EXIT_NAME, SOCKET_NAME};
use smalti_executor_protocol::v1::{Hello, Shutdown, Welcome, from_executor, to_executor};
use smalti_executor_protocol::{FrameError, PROTOCOL_VERSION};
use smalti_types::{Bytes, ExecutorId};
use spawn::Spawned;
use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use threads::Threads;

/// Threads of an executor beside its slots', supervisor and launcher included.
const BASE_THREADS: u32 = 64;
/// Threads per slot: the slot's own, its timer and what serves its blocking host calls.
const THREADS_PER_SLOT: u32 = 16;
/// Most warnings of an executor that are listened to, and most characters of each.
const MAX_WARNINGS: usize = 32;
const MAX_WARNING_CHARS: usize = 500;
/// Most slots of one executor: each costs about seven memory maps of the kernel's 65,530, and one cpu group.
pub const MAX_SLOTS: u32 = 4096;

/// What all executors of an agent have in common.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `smalti-executor` binary, see [`locate_executor`].
    pub executor_path: PathBuf,
    /// Where each executor's socket, exit record and stderr lie, in a directory of its id.
    pub executors_dir: PathBuf,
    /// The agent's control groups.
    pub cgroups: Cgroups,
    /// Longest file that an executor may make: the size of the file system that its tasks' outputs lie on. `None`: no limit of its own.
    pub max_file_bytes: Option<u64>,
    /// An executor without an agent ends itself after this long.
    pub recovery_timeout: Duration,
    /// From the spawn to Hello: then it is killed and the start has failed.
    pub start_timeout: Duration,
    /// Whether to make namespaces. Without, executors still run, and the warning says so.
    pub namespaces: bool,
    /// As whom they run.
    pub users: Users,
    /// Whether an executor that lacks a layer which this host offers is refused.
    pub required: bool,
    /// For tests of the walls: what an executor tries from inside before it ends. Never set by an agent.
    pub probe: Option<String>,
}

impl Options {
    /// With the usual time-outs (15 minutes and 10 seconds), namespaces, and a user of its own for each where that is possible.
    #[must_use]
    pub fn new(executor_path: PathBuf, executors_dir: PathBuf, cgroups: Cgroups) -> Self {
        Self {
            executor_path,
            max_file_bytes: executors_dir.parent().and_then(room),
            executors_dir,
            cgroups,
            recovery_timeout: Duration::from_secs(15 * 60),
            start_timeout: Duration::from_secs(10),
            namespaces: true,
            users: Users::detect(UidRange::default()),
            required: false,
            probe: None,
        }
    }
}

/// Bytes of the file system that a directory lies on.
pub(crate) fn room(directory: &Path) -> Option<u64> {
    rustix::fs::statvfs(directory).ok().map(|s| s.f_blocks.saturating_mul(s.f_frsize))
}

/// One executor to start.
#[derive(Debug, Clone)]
pub struct ExecutorSpec {
    /// Its name, used once.
    pub id: ExecutorId,
    /// What it is for.
    pub kind: ExecutorKind,
    /// Number of slots, 1 to [`MAX_SLOTS`].
    pub slots: u32,
    /// The most that its memory group may ever have, overhead included.
    pub max_memory: Bytes,
    /// Limit of its memory group at first.
    pub memory: Bytes,
}

/// Why an executor could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or process operation.
    #[error("executor {id}: {operation} {}: {source}", path.display())]
    Io {
        /// Which executor.
        id: ExecutorId,
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A control group.
    #[error("executor {id}: {source}")]
    Cgroup {
        /// Which executor.
        id: ExecutorId,
        /// What failed.
        source: crate::cgroup::Error,
    },
    /// The supervisor says that it could not start.
    #[error("executor {id}: {message}")]
    Supervisor {
        /// Which executor.
        id: ExecutorId,
        /// Its words.
        message: String,
    },
    /// No user id for it.
    #[error("executor {id}: {source}")]
    User {
        /// Which executor.
        id: ExecutorId,
        /// Why not.
        source: crate::uids::Error,
    },
    /// Walls that this host offers do not stand.
    #[error("executor {id} is not used because the isolation that is required is not in force: {missing}")]
    NotIsolated {
        /// Which executor.
        id: ExecutorId,
        /// Which layers, and why.
        missing: String,
    },
    /// The connection.
    #[error("executor {id}: {source}")]
    Link {
        /// Which executor.
        id: ExecutorId,
        /// What failed.
        source: FrameError,
    },
    /// What it says of itself cannot be right.
    #[error("executor {id}: {message}")]
    Implausible {
        /// Which executor.
        id: ExecutorId,
        /// What is wrong.
        message: String,
    },
    /// It did not say Hello in time.
    #[error("executor {id} did not get ready within {within:?}; its last words: {last_words:?}")]
    TimedOut {
        /// Which executor.
        id: ExecutorId,
        /// The time-out.
        within: Duration,
        /// The end of its stderr.
        last_words: String,
    },
}

/// An executor that said Hello, with its slots' threads in their groups.
pub struct Running {
    /// What it said of itself.
    pub hello: Hello,
    /// The connection, Welcome and Hello being through.
    pub link: ExecutorLink,
    /// Its control groups: quotas of slots, memory, statistics.
    pub group: ExecutorGroup,
    /// To kill it, whatever it does.
    pub process: ProcessHandle,
    /// Resolves once when it has ended and its groups are being removed. Await it in a task of its own.
    pub exit: Pin<Box<dyn Future<Output = Exit> + Send>>,
    /// Its worker's pid, as the agent sees it.
    pub worker: i32,
    /// Processor time that it has used so far, in microseconds: what its start took. `None` where that is not counted.
    pub start_cpu_us: Option<u64>,
    /// The user and group that are its alone, if it has them.
    pub uid: Option<u32>,
    /// For kind [`ExecutorKind::Networked`]: what makes its sockets.
    pub broker: Option<Broker>,
    /// And what its task may do with them.
    pub grants: Option<Grants>,
    /// Layers of isolation of this executor, by what the kernel says of its processes: name to `on …` or `off: why`.
    pub isolation: BTreeMap<String, String>,
    /// What the operator should know: missing layers, the executor's own warnings.
    pub warnings: Vec<String>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("process", &self.process).field("hello", &self.hello).finish_non_exhaustive()
    }
}

impl Running {
    /// Asks it to end, and kills it after `grace`.
    pub async fn stop(mut self, grace: Duration) -> Exit {
        let ask = self.link.send(to_executor::Message::Shutdown(Shutdown {}), &[]);
        let asked = tokio::time::timeout(grace, async {
            match ask.await {
                Ok(()) => (&mut self.exit).await,
                // It cannot be asked: only the kill below is left.
                Err(_) => std::future::pending().await,
            }
        });
        if let Ok(exit) = asked.await {
            return exit;
        }
        self.process.kill();
        self.exit.await
    }
}

/// Starts executors.
#[derive(Debug, Clone)]
pub struct Launcher {
    options: Arc<Options>,
    forge: Forge,
}

impl Launcher {
    /// With these options for every executor.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let forge = Forge::new(options.executor_path.clone(), options.executors_dir.clone());
        Self { options: Arc::new(options), forge }
    }

    /// The groups that executors are started in.
    #[must_use]
    pub fn cgroups(&self) -> &Cgroups {
        &self.options.cgroups
    }

    /// Starts one executor. When this fails or is dropped, nothing of it is left running.
    ///
    /// # Errors
    /// The first step that failed; see [`Error`].
    pub async fn start(&self, spec: ExecutorSpec) -> Result<Running, Error> {
        check(&spec)?;
        let spec = Arc::new(spec);
        let home = self.options.executors_dir.join(spec.id.as_str());
        let (launcher, of, at) = (self.clone(), spec.clone(), home.clone());
        let begin = blocking(move || {
            prepare_directory(&of, &at)?;
            let group = launcher.make_group(&of)?;
            // From here on, leaving early kills and cleans up.
            let guard = process::Guard::new(group.clone(), at.clone());
            let begun = spawn::begin((&launcher.options, &launcher.forge), &of, &at, &group)?;
            Ok((group, guard, begun))
        });
        // What it has last is removed only after its last words were read.
        let mut held = None;
        let get_ready = async {
            let (group, guard, begun) = begin.await?;
            let (group, guard) = held.insert((group, guard));
            self.get_ready(&spec, begun, &home, group, guard).await
        };
        let within = self.options.start_timeout;
        let started = tokio::time::timeout(within, get_ready).await;
        let ready = match started {
            Ok(result) => result?,
            Err(_) => return Err(Error::TimedOut { id: spec.id.clone(), within, last_words: process::last_words(&home) }),
        };
        let Some((group, guard)) = held else { return Err(implausible(&spec.id, "it has no process")) };
        let launcher = self.clone();
        blocking(move || launcher.finish(&spec, ready, group, guard, home)).await
    }

    /// Threads into their slots, a look at the walls, and the executor is the caller's.
    fn finish(
        &self,
        spec: &ExecutorSpec,
        ready: Ready,
        group: ExecutorGroup,
        guard: process::Guard,
        home: PathBuf,
    ) -> Result<Running, Error> {
        let Some(process) = guard.process() else { return Err(implausible(&spec.id, "it has no process")) };
        let (worker, threads) = threads::place(spec, &ready.hello, process, &group)?;
        let ready = Ready { worker, ..ready };
        let (isolation, warnings) = self.inspect(spec, (&ready, &threads), process, &group)?;
        let Some(process) = guard.disarm() else { return Err(implausible(&spec.id, "it has no process")) };
        let start_cpu_us = group.cpu_usage_us().unwrap_or_default();
        let exit = Box::pin(process::watch(process.clone(), group.clone(), home, spec.max_memory));
        let Ready { link, hello, worker, spawned, broker } = ready;
        let uid = spawned.uid.ok();
        Ok(Running { hello, link, group, process, exit, worker, start_cpu_us, uid, broker, grants: None, isolation, warnings })
    }

    /// Asks the kernel which walls stand, and refuses the executor if that is not enough.
    fn inspect(
        &self,
        spec: &ExecutorSpec,
        (ready, threads): (&Ready, &Threads),
        process: &ProcessHandle,
        group: &ExecutorGroup,
    ) -> Result<Walls, Error> {
        let layers = read_layers((ready, threads), process, group, self.options.namespaces);
        let missing = report::missing(&layers);
        if self.options.required && !missing.is_empty() {
            return Err(Error::NotIsolated { id: spec.id.clone(), missing: missing.join(", ") });
        }
        Ok(walls(layers, ready))
    }

    /// The walls of one that was let in when it was started.
    fn look_at(&self, (ready, threads): (&Ready, &Threads), process: &ProcessHandle, group: &ExecutorGroup, namespaces: bool) -> Walls {
        walls(read_layers((ready, threads), process, group, namespaces), ready)
    }

    fn make_group(&self, spec: &ExecutorSpec) -> Result<ExecutorGroup, Error> {
        let failed = |source| Error::Cgroup { id: spec.id.clone(), source };
        // One for a single task is worth being another's afterwards.
        let once = spec.slots == 1 && spec.kind != ExecutorKind::Shared;
        let cgroups = &self.options.cgroups;
        let group = if once { cgroups.executor_of_one_slot(&spec.id) } else { cgroups.executor(&spec.id) }.map_err(failed)?;
        let limits = group
            .set_memory(spec.memory)
            .and_then(|_| group.set_max_threads(max_threads(spec.slots)))
            .and_then(|()| if once { Ok(()) } else { group.make_slots(spec.slots) });
        if let Err(e) = limits {
            let _ = group.try_remove();
            return Err(failed(e));
        }
        Ok(group)
    }

    /// From the go byte to Hello.
    async fn get_ready(
        &self,
        spec: &ExecutorSpec,
        begun: spawn::Begun,
        home: &Path,
        group: &ExecutorGroup,
        guard: &mut process::Guard,
    ) -> Result<Ready, Error> {
        let mut spawned = spawn::let_go(begun, &self.options, spec, home, group, guard).await?;
        let Some(process) = guard.process() else { return Err(implausible(&spec.id, "it has no process")) };
        let socket = home.join(SOCKET_NAME);
        let mut link = ExecutorLink::connect(&socket).await.map_err(io(&spec.id, "connecting to", &socket))?;
        let (peer, _) = link.peer().map_err(io(&spec.id, "asking who listens on", &socket))?;
        if peer != process.pid() {
            return Err(implausible(&spec.id, &format!("process {peer} listens on its socket, not its supervisor {}", process.pid())));
        }
        // Before its first message: whatever it does from then on, a later life of this agent finds it.
        let record = Record::of(spec, &spawned, process, &self.options);
        record.and_then(|record| record.store(home)).map_err(io(&spec.id, "recording the executor in", home))?;
        let network = spec.kind == ExecutorKind::Networked;
        let welcome = Welcome { slots: spec.slots, max_memory_bytes: spec.max_memory.0, network, confirmed: 0 };
        let (hello, fds) = handshake(&mut link, welcome, &spec.id, home).await?;
        let failed = |source| Error::Link { id: spec.id.clone(), source };
        match link.recv().await.map_err(failed)?.map(|said| said.message) {
            // Nothing, of course; one that is taken over has more to say here.
            Some(from_executor::Message::Holds(_)) => {}
            _ => return Err(implausible(&spec.id, "its second message does not say what it holds")),
        }
        let broker = match (network, spawned.control.take(), <[OwnedFd; 1]>::try_from(fds)) {
            (false, _, _) => None,
            (true, Some(control), Ok([notifications])) => {
                let broker = Broker::new(control).map_err(io(&spec.id, "preparing the broker of", home))?;
                broker.attend(notifications.as_fd()).map_err(failed)?;
                Some(broker)
            }
            (true, ..) => return Err(implausible(&spec.id, "nobody would make its sockets")),
        };
        Ok(Ready { link, hello, worker: 0, spawned, broker })
    }
}

/// Does what blocks on a thread for that. Dropping the future does not stop it; what it gives is dropped then.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => std::panic::resume_unwind(e.into_panic()),
    }
}

/// Says Welcome and waits for Hello, which may come with descriptors.
async fn handshake(link: &mut ExecutorLink, welcome: Welcome, id: &ExecutorId, home: &Path) -> Result<(Hello, Vec<OwnedFd>), Error> {
    let failed = |source| Error::Link { id: id.clone(), source };
    link.send(to_executor::Message::Welcome(welcome), &[]).await.map_err(failed)?;
    let heard = match link.recv_with_fds().await {
        // It has ended before it has read all that was said to it.
        Err(e) if e.is_disconnect() => None,
        heard => heard.map_err(failed)?.map(|(said, fds)| (said.message, fds)),
    };
    let (hello, fds) = match heard {
        Some((from_executor::Message::Hello(hello), fds)) => (hello, fds),
        Some(_) => return Err(implausible(id, "its first message is no Hello")),
        None => {
            let words = process::last_words(home);
            return Err(implausible(id, &format!("it closed the connection before its Hello; its last words: {words:?}")));
        }
    };
    if hello.protocol != PROTOCOL_VERSION {
        let text = format!("it speaks version {} of the protocol, this agent {PROTOCOL_VERSION}: install both together", hello.protocol);
        return Err(implausible(id, &text));
    }
    Ok((hello, fds))
}

/// Layers of isolation by name, and warnings.
type Walls = (BTreeMap<String, String>, Vec<String>);

fn read_layers(
    (ready, threads): (&Ready, &Threads),
    process: &ProcessHandle,
    group: &ExecutorGroup,
    namespaces: bool,
) -> BTreeMap<String, Layer> {
    let warnings = ready.warnings();
    let expected = Expected {
        uid: ready.spawned.uid.as_ref().copied().map_err(String::as_str),
        namespaces,
        root: nix::unistd::geteuid().is_root(),
        warnings: &warnings,
    };
    report::read(process, (ready.worker, threads), group, &ready.hello, expected)
}

/// What is off says so with its reason; the executor's other words follow.
fn walls(layers: BTreeMap<String, Layer>, ready: &Ready) -> Walls {
    let named = |w: &String| layers.keys().any(|name| w.starts_with(&format!("{name}: ")));
    let mut all = report::warnings(&layers);
    all.extend(ready.warnings().into_iter().filter(|w| !named(w)));
    (layers.into_iter().map(|(name, Layer { state, .. })| (name, state)).collect(), all)
}

/// An executor that has said Hello.
struct Ready {
    link: ExecutorLink,
    hello: Hello,
    /// Its worker's pid, 0 as long as nobody has looked for it.
    worker: i32,
    spawned: Spawned,
    broker: Option<Broker>,
}

impl Ready {
    /// All that launcher, supervisor and worker warn of.
    fn warnings(&self) -> Vec<String> {
        let own = self.hello.warnings.iter().take(MAX_WARNINGS).map(|w| w.chars().take(MAX_WARNING_CHARS).collect());
        self.spawned.warnings.iter().cloned().chain(own).collect()
    }
}

/// Most threads of an executor.
const fn max_threads(slots: u32) -> u32 {
    BASE_THREADS + THREADS_PER_SLOT * slots
}

fn check(spec: &ExecutorSpec) -> Result<(), Error> {
    if spec.slots == 0 || spec.slots > MAX_SLOTS {
        return Err(implausible(&spec.id, &format!("{} slots are not between 1 and {MAX_SLOTS}", spec.slots)));
    }
    Ok(())
}

/// Makes the directory, for its owner only; one that is there loses the record of an earlier executor.
fn prepare_directory(spec: &ExecutorSpec, home: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    let make = |recursive| std::fs::DirBuilder::new().recursive(recursive).mode(0o700).create(home);
    match make(false) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(_) => return make(true).map_err(io(&spec.id, "making the directory", home)),
    }
    let old = home.join(EXIT_NAME);
    match std::fs::remove_file(&old) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io(&spec.id, "removing", &old)(e)),
        _ => Ok(()),
    }
}

fn io(id: &ExecutorId, operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let (id, path) = (id.clone(), path.to_owned());
    move |source| Error::Io { id, operation, path, source }
}

fn implausible(id: &ExecutorId, message: &str) -> Error {
    Error::Implausible { id: id.clone(), message: message.to_owned() }
}
