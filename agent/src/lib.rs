//! The agent: launches, feeds and watches the tasks of one node.
//!
//! `master_link` → `event_loop` → the core (`smalti-agent-core`, which decides) → `executors`, `prepare`, `sandbox` (which act).
//! Owns one data directory and the executors below it. What an earlier life left is taken up again as its checkpoint says; what the
//! checkpoint does not know is ended and removed.

pub mod cgroup;
mod checkpoint;
pub mod compiler;
pub mod detect;
mod disk;
mod event_loop;
pub mod executor_link;
mod executor_reports;
mod executors;
mod figures;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod holdings;
pub mod homes;
pub mod identity;
pub mod launcher;
mod ledgers;
mod leftovers;
mod master_link;
pub mod network;
pub mod options;
mod outputs;
mod pace;
pub mod peer_listen;
pub mod prepare;
pub mod process_options;
mod reads;
mod sandbox;
mod splits;
pub mod uids;
mod watermark;
mod wire;

pub use disk::Choice as DiskBackend;
pub use options::Options;
pub use process_options::ProcessOptions;

use anyhow::Context;
use cgroup::Cgroups;
use checkpoint::Checkpoint;
use disk::Disks;
use event_loop::{Ending, EventLoop, Input};
use executor_reports::Reporter;
use executors::Executors;
use figures::Figures;
use holdings::Teller;
use identity::Identity;
use launcher::Launcher;
use master_link::MasterLink;
use network::Network;
use prepare::Preparer;
use reads::Reads;
use sandbox::Sandboxes;
use smalti_agent_core::Parameters;
use smalti_types::{AgentId, AgentInfo, Bytes, DurationMs, ExecutorId, MilliCpus, Time};
use splits::Splits;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use uids::Users;

/// How long the start may take to end what an earlier run left, and the end to remove groups.
const CLEANUP_WITHIN: Duration = Duration::from_secs(10);

/// Open files of an agent, at most: above what its tasks' files need, below what would let it use up the host's table.
const MAX_OPEN_FILES: u64 = 65_536;

/// Runs an agent until `shutdown`. Prints `ready: agent <id>` on stdout once it is registered.
///
/// # Errors
/// When the data directory, the executor's binary, the kernel's limits or the master cannot be used; the message says what to do.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    allow_open_files();
    let executor_path = launcher::locate_executor(options.executor.as_deref())?;
    let identity = Identity::open(&options.data_dir, || options.name.clone().unwrap_or_else(identity::fresh_id))?;
    let id = options.name.clone().unwrap_or_else(|| identity.id.clone());
    let data_dir = std::fs::canonicalize(&options.data_dir).with_context(|| format!("resolving {}", options.data_dir.display()))?;
    // Locked until the end.
    let (homes, executors_dir) = homes::open(&data_dir);
    let (cgroups, mut isolation) = open_cgroups(&options, &id)?;
    let disks = Disks::open(options.disk_backend, &data_dir).context("making disks for tasks, as --disk-backend says")?;
    isolation.insert(disk::LAYER.to_owned(), disks.state());
    let budgets = options.budgets(&data_dir);
    let reserve = options.disk_reserve.map_or_else(|| watermark::default_reserve(&data_dir), |r| r.0);
    let disk_kept = budgets.total.0.saturating_sub(prepare::cached(&data_dir).0).saturating_add(reserve);
    let overrides = detect::Overrides { disk_kept: Bytes(disk_kept), ..options.overrides() };
    let detected = detect::resources(&overrides, &data_dir)?;
    let detected = disk::advertise(&disks, (options.disk.is_some(), options.mem.is_some()), detected);
    disks.set_limit(detected.total.disk);
    let parameters =
        Parameters { disk_in_memory: disks.in_memory(), lend_cpu: options.lend_cpu, ..Parameters::new(detected.total.clone()) };
    let (limits, memory) = (detect::Limits::read(), detected.total.mem);
    let capacity = detect::Capacity::of(&limits, memory, parameters.most_processes, options.slots_per_executor);
    tracing::info!(%limits, "room for {capacity}");
    let parameters = capacity.apply(parameters);
    limit_cpus(&options, &cgroups, detected.total.cpus, parameters.start_cpus).inspect_err(|_| drop(cgroups.close()))?;
    let (checkpoint, core) = Checkpoint::open(&data_dir, &executors_dir, options.process.apply(parameters))?;
    let kept: Vec<ExecutorId> = core.to_find().cloned().collect();
    let elsewhere = leftovers::end(&cgroups, &id, &data_dir, &executors_dir, &kept, CLEANUP_WITHIN).await?;
    let attempts = core.attempts().map(|(key, ended, array)| (key.clone(), (ended, array))).collect();
    let (age, grace) = (options.sandbox_age.to_std(), options.sandbox_grace.to_std());
    let limits = sandbox::Limits { budget: options.sandbox_budget, age, reserve: Bytes(reserve), grace };
    let (sandboxes, collector) =
        Sandboxes::start(&data_dir, limits, &attempts).with_context(|| format!("taking up {}", data_dir.join("sandboxes").display()))?;

    let peer_listener = peer_listen::open(options.peer_listen, &options.master).await?;
    let peer_address = peer_listener.as_ref().map(TcpListener::local_addr).transpose().context("where other agents fetch from")?;
    let mut protected = options.protect.clone();
    protected.extend(peer_address.map(|a| a.to_string()));
    let mut prepare_options = how_to_prepare(&options, &data_dir, &protected)?;
    prepare_options.budgets = budgets;
    prepare_options.in_use = core.bundles_in_use().map(|(_, digest)| digest).collect();
    let work_groups = cgroups.beside(detected.total.cpus).context("making groups for compilers")?;
    prepare_options.groups = work_groups.clone();
    let users = Users::detect(options.executor_uids);
    // One for all compilers of this agent, held as long as it lives.
    let compiler_user = match &users {
        Users::Own(uids) => Some(uids.take().context("a user id for compilers")?),
        Users::Shared(_) => None,
    };
    prepare_options.compile_uid = compiler_user.as_ref().map(|user| user.number);
    let locator = prepare_options.locator.clone();
    let (preparer, prepared) = Preparer::start(prepare_options)?;
    let peers = peer_listener.map(|listener| tokio::spawn(prepare::serve(listener, preparer.clone())));
    let caches = preparer.clone();
    let collector = tokio::spawn(collector.run(move |missing| caches.give_up(Bytes(missing))));

    let info = describe(&options, &id, &detected, isolation);
    tracing::info!(agent = %id, total = %info.total, overhead = %info.overhead, data_dir = %data_dir.display(), "starting");

    protected.push(options.master.clone());
    let network = Arc::new(Network::new(options.network_policy.as_deref(), options.task_listen, protected)?);
    let (inbox, events) = mpsc::channel(event_loop::INBOX);
    let launcher = Launcher::new(launcher::Options {
        users,
        required: options.isolation == cgroup::Mode::Required,
        recovery_timeout: options.recovery_timeout.to_std(),
        max_file_bytes: launcher::room(&data_dir),
        ..launcher::Options::new(executor_path, executors_dir, cgroups.clone())
    });
    // What tasks may have together, and as much again for executors beside their tasks: the core sets the real, lower limits.
    let most_memory = Bytes(info.total.mem.0.saturating_mul(2).saturating_add(info.overhead.mem.0));
    let executors = Executors::new(launcher, network, sandboxes.clone(), disks.clone(), inbox.clone(), most_memory);
    let figures = Arc::new(Figures::default());
    let (lease_wanted, wants_lease) = watch::channel(false);
    let reporter = Reporter::new(detect::overhead_parts(detected.overhead.mem, options.process.pool_memory()));
    let splits = Splits::new(preparer.clone(), inbox.clone());
    let shell = (executors, preparer, splits, sandboxes.clone(), watermark::Watermark::new(&data_dir, reserve));
    let event_loop = EventLoop::new((checkpoint, core), shell, figures.clone(), (reporter, Teller::new(peer_address)), lease_wanted);

    let (ending, ended) = watch::channel(Ending::No);
    let (addr, reads, shutdown_link) = (options.master, Reads::new(sandboxes), ended.clone());
    let link = MasterLink { addr, info, inbox: inbox.clone(), reads, figures, locator, lease_wanted: wants_lease, shutdown: shutdown_link };
    let (link, event_loop) = (tokio::spawn(link.run()), tokio::spawn(event_loop.run(events, prepared, ended)));
    let stop = async {
        shutdown.await;
        if !options.keep_tasks {
            drain(&inbox, options.drain_timeout).await;
        }
    };
    let (alone, result) = until_end(stop, options.keep_tasks, link, event_loop, ending).await;
    collector.abort();
    if let Some(peers) = peers {
        peers.abort();
    }
    leftovers::close(&work_groups, &[], CLEANUP_WITHIN).await;
    drop(compiler_user);
    if alone {
        tracing::info!(agent = %id, "stopped; its executors go on and wait for the next agent in {}", data_dir.display());
    } else {
        for groups in elsewhere.iter().chain([&cgroups]) {
            leftovers::close(groups, &[], CLEANUP_WITHIN).await;
        }
        homes::close(&data_dir);
    }
    drop((homes, identity));
    result
}

/// How bundles and inputs are prepared, as the operator says. `protected`: services that nothing is fetched from for a task.
fn how_to_prepare(options: &Options, data_dir: &Path, protected: &[String]) -> anyhow::Result<prepare::Options> {
    let compile_command: Vec<OsString> = vec![std::env::current_exe().context("finding this program")?.into(), "compiler".into()];
    let mut how = prepare::Options::new(data_dir.to_owned(), options.master.clone(), compile_command);
    how.fetch = how.fetch.apply(&options.fetch)?;
    how.fetch.file_roots.clone_from(&options.file_root);
    how.fetch.services.extend(protected.iter().cloned());
    Ok(how)
}

/// What the master is told about this agent.
fn describe(options: &Options, id: &AgentId, detected: &detect::Detected, isolation: BTreeMap<String, String>) -> AgentInfo {
    AgentInfo {
        id: id.clone(),
        hostname: options.hostname.clone().unwrap_or_else(detect::hostname),
        total: detected.total.clone(),
        overhead: detected.overhead.clone(),
        attributes: detect::attributes(&options.attributes),
        isolation,
        boot_id: detect::boot_id(),
        incarnation: incarnation(),
    }
}

/// Runs link and loop until the agent is to stop or one of them cannot go on. Gives whether executors go on, and how it went.
async fn until_end(
    stop: impl Future<Output = ()>,
    keep_tasks: bool,
    mut link: JoinHandle<Result<(), master_link::Error>>,
    mut event_loop: JoinHandle<Result<(), smalti_agent_checkpoint::Error>>,
    ending: watch::Sender<Ending>,
) -> (bool, anyhow::Result<()>) {
    let (mut refused, mut broken) = (None, None);
    tokio::select! {
        () = stop => {}
        result = &mut link => refused = Some(result),
        // The checkpoint cannot be written: executors go on until somebody has seen to the disk.
        result = &mut event_loop => broken = Some(result),
    };
    let alone = keep_tasks || broken.is_some();
    ending.send_replace(if alone { Ending::Alone } else { Ending::WithExecutors });
    let linked = match refused {
        Some(result) => result,
        None => link.await,
    };
    let looped = match broken {
        Some(looped) => looped,
        None => event_loop.await,
    };
    let linked = linked.context("the connection to the master").and_then(|r| r.map_err(anyhow::Error::from));
    let looped = looped.context("the event loop").and_then(|r| r.map_err(anyhow::Error::from));
    (alone, looped.and(linked))
}

/// Lets tasks come to their end, for up to `within`, or until somebody asks a second time.
async fn drain(inbox: &mpsc::Sender<Input>, within: DurationMs) {
    use tokio::signal::unix::{SignalKind, signal};
    let (done, drained) = oneshot::channel();
    if within.0 == 0 || inbox.send(Input::Drain { done }).await.is_err() {
        return;
    }
    tracing::info!("ending: tasks have {} s to come to their end; a second signal ends them at once", within.0 / 1_000);
    let again = async {
        match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
            (Ok(mut interrupt), Ok(mut terminate)) => tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            },
            // Without signals only the time ends it.
            _ => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = drained => {}
        () = again => tracing::warn!("ending at once"),
        () = tokio::time::sleep(within.to_std()) => tracing::warn!("tasks did not come to their end in time; ending them"),
    }
}

/// The outputs of an array part's slots are open at the same time, three a slot, until they are handed on: the usual soft limit of
/// 1024 is soon reached. Where it cannot be raised, tasks fail with that reason when it is.
fn allow_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = hard.min(MAX_OPEN_FILES);
        if soft < wanted { setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) } else { Ok(()) }
    });
    if let Err(e) = raised {
        tracing::warn!("cannot raise the limit of open files: {e}");
    }
}

/// What all executors together may use, and whether they lend each other what they do not. What starting them takes comes on top of
/// what tasks have: it is the agent's overhead.
fn limit_cpus(options: &Options, cgroups: &Cgroups, total: MilliCpus, starts: MilliCpus) -> anyhow::Result<()> {
    let all = MilliCpus(total.0.saturating_add(starts.0));
    cgroups.set_total_cpus(all).context("limiting the cpu time of all executors")?;
    if options.lend_cpu {
        let cores = std::thread::available_parallelism().context("counting processors")?.get();
        match cgroups.lend_cpus(total, cores) {
            // Without groups nothing is limited either, which was said already.
            Err(e @ cgroup::lend::Error::NoGroups) if options.isolation != cgroup::Mode::Required => tracing::warn!("{e}"),
            result => result?,
        }
    }
    Ok(())
}

/// The kernel's limits, with a loud word about each that is missing.
fn open_cgroups(options: &Options, id: &AgentId) -> anyhow::Result<(Cgroups, BTreeMap<String, String>)> {
    let (cgroups, layers) = Cgroups::open(options.isolation, id.as_str())?;
    for layer in layers.iter().filter(|l| !l.on) {
        tracing::warn!("NOT ENFORCED by the kernel: {} ({})", layer.name, layer.detail);
    }
    Ok((cgroups, layers.iter().map(|l| (l.name.clone(), l.state())).collect()))
}

/// The start time in microseconds: a later life has a greater one.
fn incarnation() -> u64 {
    Time::from(SystemTime::now()).0
}

/// The one line on stdout that parents wait for.
fn say_ready(id: &AgentId) {
    use std::io::Write;
    println!("ready: agent {id}");
    let _ = std::io::stdout().flush();
}
