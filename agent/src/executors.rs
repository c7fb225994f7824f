//! The executors that run: what the core decides about them, done; what they say, handed to the event loop.
//!
//! Owns the links, processes and control groups of running executors, and the descriptors of prepared runs. Never waits: an executor
//! that does not read its queue is ended. Deliberately absent: decisions.

use crate::disk::{Disks, Lent};
use crate::event_loop::Input;
use crate::executor_link::{FrameCounts, LinkReader, LinkSender, Outgoing, SendError, several};
use crate::executor_reports::Facts;
use crate::launcher::{self, ExecutorSpec, Launcher, ProcessHandle, Running};
use crate::network::{Broker, Grants, Network};
use crate::pace::Pace;
use crate::prepare::Ready;
use crate::sandbox::Sandboxes;
use crate::{cgroup::ExecutorGroup, wire};
use smalti_agent_core::{ExecutorKind, Failure, Grant, Run, ToExecutor};
use smalti_executor_protocol::v1::{self, to_executor};
use smalti_types::{Bytes, ExecutorId, FrameworkId, MilliCpus, Reason, TaskKey, Time};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinHandle};

/// Messages that wait for an executor to read; more mean that it does not.
const LINK_QUEUE: usize = 8_192;
/// How long an executor's last words are waited for after its end.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// What one executor may have said that the event loop has not looked at yet: in units of a message and of a KiB.
const CREDIT: u32 = 4_096;
/// How long an executor that is discarded lives on, with nothing to do.
const DISCARD_AFTER: Duration = Duration::from_millis(2);
/// How long an executor may live after it closed its connection.
const END_AFTER_CLOSE: Duration = Duration::from_secs(5);

/// One on its way.
#[derive(Debug)]
struct Starting {
    task: AbortHandle,
    kind: ExecutorKind,
}

/// One that has said hello.
#[derive(Debug)]
struct Executor {
    kind: ExecutorKind,
    link: LinkSender,
    process: ProcessHandle,
    group: ExecutorGroup,
    counts: Arc<FrameCounts>,
    facts: Facts,
    /// Its user of its own, if it has one.
    uid: Option<u32>,
    /// Of a networked one.
    sockets: Option<Sockets>,
    /// It finds splits in files that have only a piece of their object.
    knows_pieces: bool,
    /// It takes several messages in one frame.
    knows_several: bool,
    /// What it is told at the end of the turn.
    unsaid: Vec<Outgoing>,
    /// The single task that it was told, if it is used once and ends with its pid namespace.
    only: Option<TaskKey>,
}

/// What a run needs until it is over.
#[derive(Debug)]
struct Kept {
    ready: Ready,
    /// One for each of its slots, if it has disk.
    disks: Vec<Lent>,
}

/// What makes an executor's sockets, and what its task may do with them.
#[derive(Debug)]
struct Sockets {
    broker: Broker,
    grants: Grants,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Executors {
    launcher: Launcher,
    network: Arc<Network>,
    sandboxes: Sandboxes,
    disks: Disks,
    inbox: mpsc::Sender<Input>,
    /// Upper bound of any executor's memory: what all tasks together may have, and what executors take beside.
    most_memory: Bytes,
    starting: BTreeMap<ExecutorId, Starting>,
    up: BTreeMap<ExecutorId, Executor>,
    watchers: Vec<JoinHandle<()>>,
    ready: HashMap<Run, Kept>,
    /// What executors are to be told once their disk is there.
    held: BTreeMap<ExecutorId, Vec<ToExecutor>>,
    /// Where each run is and in which slots.
    places: HashMap<Run, (ExecutorId, Vec<u32>)>,
    /// Those that are told something at the end of the turn.
    to_tell: Vec<ExecutorId>,
    /// Frames of executors that have gone: sent, received.
    past_frames: (u64, u64),
}

impl Executors {
    pub(crate) fn new(
        launcher: Launcher,
        network: Arc<Network>,
        sandboxes: Sandboxes,
        disks: Disks,
        inbox: mpsc::Sender<Input>,
        most_memory: Bytes,
    ) -> Self {
        Self {
            launcher,
            network,
            sandboxes,
            disks,
            inbox,
            most_memory,
            starting: BTreeMap::new(),
            up: BTreeMap::new(),
            watchers: Vec::new(),
            ready: HashMap::new(),
            held: BTreeMap::new(),
            places: HashMap::new(),
            to_tell: Vec::new(),
            past_frames: (0, 0),
        }
    }

    /// Keeps what a run needs until it is over.
    pub(crate) fn keep(&mut self, run: Run, ready: Ready, disks: Vec<Lent>) {
        self.ready.insert(run, Kept { ready, disks });
    }

    /// Lends disks to a run (whose framework, size, number); the answer comes as [`Input::Disks`].
    pub(crate) fn lend(&self, run: Run, ready: Ready, (framework, size, count): (FrameworkId, Bytes, u32)) {
        let (disks, inbox) = (self.disks.clone(), self.inbox.clone());
        tokio::task::spawn_blocking(move || {
            let result = disks.lend(&framework, size, count);
            // Nobody reads it when the agent ends.
            let _ = inbox.blocking_send(Input::Disks { run, ready: Box::new(ready), result });
        });
    }

    /// Whether all that are up find pieces of objects; those that an earlier build started do not.
    pub(crate) fn all_know_pieces(&self) -> bool {
        self.up.values().all(|executor| executor.knows_pieces)
    }

    /// Closes what a run needed.
    pub(crate) fn release(&mut self, run: Run) {
        self.ready.remove(&run);
        if let Some((executor, slots)) = self.places.remove(&run) {
            self.set_busy(&executor, &slots, false);
        }
    }

    /// Some slots of a run have nothing to do any more.
    pub(crate) fn slots_idle(&mut self, run: Run, idle: &[u32]) {
        let Some((executor, slots)) = self.places.get_mut(&run) else { return };
        slots.retain(|s| !idle.contains(s));
        let executor = executor.clone();
        self.set_busy(&executor, idle, false);
    }

    /// A run begins in these slots.
    fn begin(&mut self, run: Run, id: &ExecutorId, slots: Vec<u32>) {
        if self.launcher.cgroups().lends() {
            self.set_busy(id, &slots, true);
            self.places.insert(run, (id.clone(), slots));
        }
    }

    fn set_busy(&self, id: &ExecutorId, slots: &[u32], busy: bool) {
        if let Some(executor) = self.up.get(id)
            && let Err(e) = executor.group.set_busy(slots, busy)
        {
            tracing::error!(executor = %id, "its weight is not in force: {e}");
        }
    }

    /// Starts one; the answer comes as [`Input::Launched`].
    ///
    /// A networked one is started for its task: what that may reach is found out first.
    pub(crate) fn start(&mut self, id: ExecutorId, kind: ExecutorKind, grant: Option<Arc<Grant>>, slots: u32, memory: Bytes) {
        let spec = ExecutorSpec { id: id.clone(), kind: launch_kind(kind), slots, max_memory: self.most_memory, memory };
        let component = grant.as_ref().and_then(|g| self.ready.get(&g.run)).is_some_and(|kept| kept.ready.component);
        let (launcher, network, inbox, name) = (self.launcher.clone(), self.network.clone(), self.inbox.clone(), id.clone());
        let task = tokio::spawn(async move {
            let result = start(&launcher, spec, &network, grant.as_deref(), component).await;
            let _ = inbox.send(Input::Launched { executor: name, result }).await;
        });
        self.starting.insert(id, Starting { task: task.abort_handle(), kind });
    }

    /// Looks for one of an earlier life of this agent; the answer comes as [`Input::Adopted`].
    pub(crate) fn adopt(&mut self, id: ExecutorId, kind: ExecutorKind, confirmed: u64) {
        let (launcher, inbox, name) = (self.launcher.clone(), self.inbox.clone(), id.clone());
        let task = tokio::spawn(async move {
            let result = launcher.adopt(&name, confirmed).await.map(Box::new);
            let _ = inbox.send(Input::Adopted { executor: name, result }).await;
        });
        self.starting.insert(id, Starting { task: task.abort_handle(), kind });
    }

    /// What it said up to this number need not be said again.
    pub(crate) fn confirm(&mut self, id: &ExecutorId, number: u64) {
        self.say_soon(id, to_executor::Message::Confirm(v1::Confirm { number }).into());
    }

    /// One is up: watches it, and returns its number of slots. `None`: nobody waits for it any more.
    pub(crate) fn launched(&mut self, id: &ExecutorId, running: Running) -> Option<u32> {
        let Some(Starting { kind, .. }) = self.starting.remove(id) else {
            running.process.kill();
            return None;
        };
        for warning in &running.warnings {
            tracing::warn!(executor = %id, "{warning}");
        }
        let slots = u32::try_from(running.hello.slots.len()).unwrap_or(u32::MAX);
        tracing::info!(executor = %id, ?kind, slots, allocator = %running.hello.allocator, reset = %running.hello.reset, isolation = ?running.isolation, "started");
        let (counts, facts) = (running.link.counts(), Facts::of(&running));
        let (reader, writer) = running.link.split();
        let link = writer.into_queue(LINK_QUEUE);
        let reading = tokio::spawn(read(id.clone(), reader, running.process.clone(), self.inbox.clone()));
        let (inbox, name, exit) = (self.inbox.clone(), id.clone(), running.exit);
        self.watchers.retain(|w| !w.is_finished());
        self.watchers.push(tokio::spawn(async move {
            let exit = exit.await;
            // What it said before its end comes before its end.
            let _ = tokio::time::timeout(LAST_WORDS, reading).await;
            let _ = inbox.send(Input::Exited { executor: name, cause: exit.cause, out_of_memory: exit.oom }).await;
        }));
        let sockets = running.broker.zip(running.grants).map(|(broker, grants)| Sockets { broker, grants });
        let (process, group, uid) = (running.process, running.group, running.uid);
        let (knows_pieces, knows_several, unsaid) = (running.hello.pieces, running.hello.several, Vec::new());
        let executor =
            Executor { kind, link, process, group, counts, facts, uid, sockets, knows_pieces, knows_several, unsaid, only: None };
        self.up.insert(id.clone(), executor);
        Some(slots)
    }

    /// One could not be started.
    pub(crate) fn failed(&mut self, id: &ExecutorId) {
        self.starting.remove(id);
    }

    /// One is gone.
    pub(crate) fn exited(&mut self, id: &ExecutorId) {
        self.held.remove(id);
        if let Some(executor) = self.up.remove(id) {
            self.past_frames.0 += executor.counts.sent();
            self.past_frames.1 += executor.counts.received();
            // With its namespace all of its processes have ended.
            if let Some(key) = executor.only {
                self.sandboxes.executor_is_gone(&key);
            }
        }
    }

    /// Lets one end by itself.
    pub(crate) fn stop(&mut self, id: &ExecutorId) {
        self.say(id, to_executor::Message::Shutdown(v1::Shutdown {}).into());
    }

    /// Ends one.
    pub(crate) fn kill(&self, id: &ExecutorId, why: &str) {
        tracing::warn!(executor = %id, "ending it: {why}");
        if let Some(executor) = self.up.get(id) {
            executor.process.kill();
        }
    }

    /// Ends one that has had its only task, or that nobody needs: in a moment, since a process that ends keeps the machine busy, and what
    /// came of its task is on its way.
    pub(crate) fn discard(&self, id: &ExecutorId) {
        if let Some(executor) = self.up.get(id) {
            let process = executor.process.clone();
            tokio::spawn(async move {
                tokio::time::sleep(DISCARD_AFTER).await;
                process.kill();
            });
        }
    }

    pub(crate) fn set_slot_cpus(&mut self, id: &ExecutorId, slot: u32, cpus: MilliCpus) {
        if let Some(executor) = self.up.get(id)
            && let Err(e) = executor.group.set_slot_cpus(slot, cpus)
        {
            tracing::error!(executor = %id, slot, %cpus, "its cpu limit is not in force: {e}");
        }
    }

    pub(crate) fn set_memory(&mut self, id: &ExecutorId, bytes: Bytes) {
        if let Some(executor) = self.up.get(id)
            && let Err(e) = executor.group.set_memory(bytes)
        {
            tracing::error!(executor = %id, limit = %bytes, "its memory limit is not in force: {e}");
        }
    }

    /// Whether `message` waits for a disk: a lane's last executor may have been killed before it could empty the lane's. Then a new one is
    /// made first, and all that its next executor is to be told waits in order. Only executors of class `process` wait: they have one run.
    fn waits(&mut self, id: &ExecutorId, message: &ToExecutor) -> bool {
        if let Some(held) = self.held.get_mut(id) {
            held.push(message.clone());
            return true;
        }
        let ToExecutor::StartArray { run, segments, .. } = message else { return false };
        if !self.up.get(id).is_some_and(|e| e.kind.is_used_once()) {
            return false;
        }
        let Some(lane) = segments.first().map(|n| *n as usize) else { return false };
        let Some(disk) = self.ready.get(run).and_then(|kept| kept.disks.get(lane)).filter(|d| !d.is_like_new()) else { return false };
        let Some((framework, size)) = disk.whose() else { return false };
        let (disks, inbox, executor, run) = (self.disks.clone(), self.inbox.clone(), id.clone(), *run);
        tokio::task::spawn_blocking(move || {
            let result = disks.lend(&framework, size, 1).and_then(|mut one| one.pop().ok_or_else(|| "no disk was made".to_owned()));
            let _ = inbox.blocking_send(Input::Renewed { executor, run, lane, result });
        });
        self.held.insert(id.clone(), vec![message.clone()]);
        true
    }

    /// The disk that an executor waits for is there: what it is to be told now. Without one its items fail with the reason.
    pub(crate) fn renewed(&mut self, id: &ExecutorId, run: Run, lane: usize, result: Result<Lent, String>) -> Vec<ToExecutor> {
        let mut messages = self.held.remove(id).unwrap_or_default();
        match (result, self.ready.get_mut(&run).and_then(|kept| kept.disks.get_mut(lane))) {
            (Ok(disk), Some(place)) => *place = disk,
            // Its run is over.
            (Ok(_), None) => {}
            (Err(why), _) => {
                let starts = messages.iter().position(|m| matches!(m, ToExecutor::StartArray { .. }));
                if let Some(ToExecutor::StartArray { slots, .. }) = starts.map(|at| messages.remove(at)) {
                    let (message, fds) = wire::refused_array(run, slots, &wire::Error::NoDisk(why));
                    self.say(id, Outgoing { message, fds });
                }
            }
        }
        messages
    }

    /// Passes a message of the core on. An error is the run that cannot be told to its executor, and why.
    pub(crate) fn tell(&mut self, id: &ExecutorId, message: ToExecutor, now: Time) -> Result<(), (Run, wire::Error)> {
        if self.waits(id, &message) {
            return Ok(());
        }
        let no_ready = |run: &Run| {
            tracing::error!(?run, "a run is started that was not prepared");
            Ok(())
        };
        let outgoing = match message {
            ToExecutor::LoadModule { module, run, fuel } => {
                let Some(kept) = self.ready.get(&run) else { return no_ready(&run) };
                wire::load_module(module, &kept.ready, fuel).map_err(|e| (run, e))?
            }
            ToExecutor::StartTask { run, slot, module, key, launch, lease_until } => {
                self.begin(run, id, vec![slot]);
                let environment = self.connect(id, run).map_err(|e| (run, e))?;
                let Some(kept) = self.ready.get(&run) else { return no_ready(&run) };
                let disk = kept.disks.first().map(|d| self.give(id, d)).transpose().map_err(|e| (run, e))?;
                let outputs = self.sandboxes.begin_task(&key).map_err(|e| (run, wire::Error::Outputs(e)))?;
                if let Some(executor) = self.up.get_mut(id).filter(|e| e.kind.is_used_once() && e.process.pid_namespace()) {
                    executor.only = Some(key.clone());
                    self.sandboxes.has_executor(&key);
                }
                wire::start_task(run, slot, module, &key, &launch, &kept.ready, (outputs, disk), (environment, lease_until), now)
                    .map_err(|e| (run, e))?
            }
            ToExecutor::StartArray { run, slots, segments, module, key, launch } => {
                self.begin(run, id, slots.clone());
                // Items have no ports, so there is nothing to say in their environment.
                self.connect(id, run).map_err(|e| (run, e))?;
                let Some(kept) = self.ready.get(&run) else { return no_ready(&run) };
                let again = self.up.get(id).is_some_and(|e| e.kind.is_used_once());
                let files = &self.sandboxes;
                let open = |n| if again { files.reopen_slot_outputs(&key, n) } else { files.create_slot_outputs(&key, n) };
                // Lanes keep their disks over executors; slots of a shared one get the first ones.
                let place = |(at, lane): (usize, &u32)| if again { *lane as usize } else { at };
                let disks = segments.iter().enumerate().filter_map(|s| kept.disks.get(place(s)));
                let disks = disks.map(|d| self.give(id, d)).collect::<Result<Vec<_>, _>>();
                let start = disks.and_then(|disks| wire::slot_files(run, &slots, &segments, open, &disks)).and_then(|files| {
                    let start = wire::start_array(run, slots.clone(), module, &key, &launch, &kept.ready)?;
                    Ok((files, start))
                });
                if !again && let Some(kept) = self.ready.get_mut(&run) {
                    // It may have got fewer slots than it wanted.
                    kept.disks.truncate(slots.len());
                }
                let (files, start) = start.unwrap_or_else(|e| (Vec::new(), wire::refused_array(run, slots, &e)));
                for (message, fds) in files {
                    self.say(id, Outgoing { message, fds });
                }
                start
            }
            ToExecutor::Lease { run, items, attempt, splits, report_when_left, report_interval_us } => {
                (wire::lease(run, &items, attempt, splits, report_when_left, report_interval_us), Vec::new())
            }
            ToExecutor::UnloadModule { module } => (to_executor::Message::Unload(v1::UnloadModule { module: module.0 }), Vec::new()),
            ToExecutor::Unlease { run, most } => (to_executor::Message::Unlease(v1::Unlease { run: run.0, most }), Vec::new()),
            ToExecutor::EndArray { run, slots } => (to_executor::Message::EndArray(v1::EndArray { run: run.0, slots }), Vec::new()),
            ToExecutor::Renew { run, until } => (to_executor::Message::Renew(v1::Renew { run: run.0, until_us: until.0 }), Vec::new()),
            ToExecutor::Confirm { number } => (to_executor::Message::Confirm(v1::Confirm { number }), Vec::new()),
            ToExecutor::Kill { run, grace } => {
                (to_executor::Message::Kill(v1::Kill { run: run.0, grace_us: wire::micros(grace) }), Vec::new())
            }
        };
        let outgoing = Outgoing { message: outgoing.0, fds: outgoing.1 };
        if matches!(outgoing.message, to_executor::Message::Start(_)) {
            self.say_soon(id, outgoing);
        } else {
            self.say(id, outgoing);
        }
        Ok(())
    }

    /// A disk's directory, owned by the executor's user.
    fn give(&self, id: &ExecutorId, disk: &Lent) -> Result<Arc<OwnedFd>, wire::Error> {
        let (uid, gid) = self.up.get(id).map_or_else(own_ids, Executor::ids);
        disk.give_to(uid, gid).map_err(wire::Error::Disk)
    }

    /// Tells a networked executor and its broker, directly before the task's start, what the task may do. Gives what the guest finds in
    /// its environment about that.
    fn connect(&mut self, id: &ExecutorId, run: Run) -> Result<Vec<(String, String)>, wire::Error> {
        let Some(sockets) = self.up.get(id).and_then(|e| e.sockets.as_ref()) else { return Ok(Vec::new()) };
        sockets.broker.allow(sockets.grants.for_broker()).map_err(wire::Error::Broker)?;
        let (message, fds) = sockets.grants.for_executor(run.0);
        let environment = sockets.grants.environment();
        self.say(id, Outgoing { message: to_executor::Message::Network(message), fds });
        Ok(environment)
    }

    fn say(&mut self, id: &ExecutorId, outgoing: Outgoing) {
        let mut frames = self.take_unsaid(id);
        frames.push(outgoing);
        self.send(id, frames);
    }

    /// As [`Self::say`], at the end of this turn: one that runs many short tasks hears of those that begin at once in one frame.
    fn say_soon(&mut self, id: &ExecutorId, outgoing: Outgoing) {
        match self.up.get_mut(id) {
            Some(executor) if executor.knows_several && executor.kind == ExecutorKind::Shared => {
                if executor.unsaid.is_empty() {
                    self.to_tell.push(id.clone());
                }
                executor.unsaid.push(outgoing);
            }
            _ => self.say(id, outgoing),
        }
    }

    /// Says what was kept for the end of the turn.
    pub(crate) fn say_all(&mut self) {
        for id in std::mem::take(&mut self.to_tell) {
            let frames = self.take_unsaid(&id);
            self.send(&id, frames);
        }
    }

    fn take_unsaid(&mut self, id: &ExecutorId) -> Vec<Outgoing> {
        self.up.get_mut(id).map_or_else(Vec::new, |executor| several::join(std::mem::take(&mut executor.unsaid)))
    }

    fn send(&self, id: &ExecutorId, frames: Vec<Outgoing>) {
        let Some(executor) = self.up.get(id) else { return };
        for frame in frames {
            match executor.link.try_send(frame) {
                Ok(()) => {}
                Err(e @ SendError::Full) => return self.kill(id, &e.to_string()),
                // Its end is on its way to us.
                Err(SendError::Closed) => return,
            }
        }
    }

    /// What is known of one that is up.
    pub(crate) fn facts(&self, id: &ExecutorId) -> Option<&Facts> {
        self.up.get(id).map(|executor| &executor.facts)
    }

    /// Frames to and from executors since the agent's start.
    pub(crate) fn frames(&self) -> (u64, u64) {
        self.up.values().fold(self.past_frames, |(sent, received), e| (sent + e.counts.sent(), received + e.counts.received()))
    }

    /// Ends all at once and waits until they are gone, at most `within`.
    pub(crate) async fn end_all(&mut self, within: Duration) {
        for starting in self.starting.values() {
            starting.task.abort();
        }
        for executor in self.up.values() {
            executor.process.kill();
        }
        // Their reports have no reader any more and must not block them.
        self.watchers.retain(|w| !w.is_finished());
        let all = futures::future::join_all(std::mem::take(&mut self.watchers));
        if tokio::time::timeout(within, all).await.is_err() {
            tracing::warn!("some executors did not end within {within:?}");
        }
    }
}

/// The launcher's word for a kind.
const fn launch_kind(kind: ExecutorKind) -> launcher::ExecutorKind {
    match kind {
        ExecutorKind::Shared => launcher::ExecutorKind::Shared,
        ExecutorKind::Pooled => launcher::ExecutorKind::Pooled,
        ExecutorKind::Networked => launcher::ExecutorKind::Networked,
    }
}

impl Executor {
    /// The user that it runs as.
    fn ids(&self) -> (u32, u32) {
        self.uid.map_or_else(own_ids, |uid| (uid, uid))
    }
}

/// The user that this agent runs as.
fn own_ids() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}

/// Hands on what an executor says. One that breaks the rules of its link is ended. What it said and nobody has looked at yet is
/// bounded for each by itself, so that one that floods fills neither the memory nor the inbox of all.
async fn read(id: ExecutorId, mut reader: LinkReader, process: ProcessHandle, inbox: mpsc::Sender<Input>) {
    let credit = Arc::new(Semaphore::new(CREDIT as usize));
    let mut pace = Pace::new(Instant::now());
    loop {
        let heard = reader.recv().await;
        if let Some(wait) = pace.said(Instant::now()) {
            tokio::time::sleep(wait).await;
        }
        match heard {
            Ok(Some(said)) => {
                let number = said.number;
                let Some(message) = wire::from_executor(said.message) else {
                    tracing::warn!(executor = %id, "ending it: it says hello twice");
                    return process.kill();
                };
                let units = u32::try_from(1 + reader.last_length() / 1024).unwrap_or(CREDIT).min(CREDIT);
                let Ok(credit) = credit.clone().acquire_many_owned(units).await else { return };
                if inbox.send(Input::Said { executor: id.clone(), number, message, credit }).await.is_err() {
                    return;
                }
            }
            Ok(None) => return kill_later(process),
            Err(e) if e.is_disconnect() => return kill_later(process),
            Err(e) => {
                tracing::warn!(executor = %id, "its connection broke: {e}");
                return process.kill();
            }
        }
    }
}

/// A closed connection is nearly always the end of the process, whose cause is worth waiting for; one that goes on has no use.
fn kill_later(process: ProcessHandle) {
    tokio::spawn(async move {
        tokio::time::sleep(END_AFTER_CLOSE).await;
        process.kill();
    });
}

/// Finds out what a networked executor's task may reach, then starts the executor.
async fn start(
    launcher: &Launcher,
    spec: ExecutorSpec,
    network: &Network,
    grant: Option<&Grant>,
    component: bool,
) -> Result<Box<Running>, Failure> {
    let grants = match grant {
        Some(g) => Some(network.grant(&g.role, &g.connect, &g.ports, component).await?),
        None => None,
    };
    let running = launcher.start(spec).await.map_err(|e| Failure::new(Reason::LaunchFailed, e.to_string()))?;
    Ok(Box::new(Running { grants, ..running }))
}
