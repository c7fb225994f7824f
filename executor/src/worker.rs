//! The worker: takes the agent's messages off the connection and gives each to the part it concerns.
//!
//! Owns the loaded modules and, once the agent has said how many slots there are, the slots ([`crate::slots`]). Decides
//! nothing about items or guests. What the agent sends is bounded and checked here; a message that makes no sense is
//! refused with a reason where it starts something, and ignored with a line on stderr otherwise.

use crate::accept;
use crate::broken::BrokenPart;
use crate::confine::probe;
use crate::confine::walls::{Closed, Walls};
use crate::failure::Failure;
use crate::link::Link;
use crate::modules::{Loaded, Loader, Request};
use crate::network;
use crate::prepared;
use crate::runs::Entry;
use crate::slots::Slots;
use crate::start::{self, Announced};
use crate::task::refuse;
use smalti_engine::EPOCH_TICK;
use smalti_executor_protocol::supervision::ExecutorKind;
use smalti_executor_protocol::v1::from_executor::Message;
use smalti_executor_protocol::v1::{self, ToExecutor, to_executor::Message as To};
use smalti_executor_protocol::{FrameError, PROTOCOL_VERSION, Reader};
use smalti_types::items::{ItemRange, ItemSet};
use smalti_types::task_state::Reason;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most modules loaded at once.
const MAX_MODULES: usize = 4096;
/// Without another word on the command line.
const DEFAULT_RECOVERY: Duration = Duration::from_secs(15 * 60);

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionEnd {
    /// The agent said that this executor is not needed any more.
    Shutdown,
    /// The agent is gone; it or its successor may come back.
    Disconnected,
}

/// The worker's own command line, written by the supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Arguments {
    listen_fd: RawFd,
    supervisor_fd: RawFd,
    kind: ExecutorKind,
    recovery: Duration,
    swap_off: bool,
    /// It has no supervisor.
    alone: bool,
    /// Before it ends, see [`crate::confine::probe`].
    probe: Option<String>,
}

impl Arguments {
    /// Reads `work --listen-fd N --supervisor-fd M [--kind K] [--recovery-timeout-ms T] [--alone] [--swap-off] [--probe NAME]`.
    fn parse(args: Vec<OsString>) -> Result<Self, String> {
        let mut parsed = Self {
            listen_fd: -1,
            supervisor_fd: -1,
            kind: ExecutorKind::default(),
            recovery: DEFAULT_RECOVERY,
            swap_off: false,
            alone: false,
            probe: None,
        };
        let mut args = args.into_iter().skip(1);
        while let Some(arg) = args.next() {
            match arg.to_str() {
                Some(flag @ "--listen-fd") => parsed.listen_fd = value(flag, args.next())?,
                Some(flag @ "--supervisor-fd") => parsed.supervisor_fd = value(flag, args.next())?,
                Some(flag @ "--kind") => parsed.kind = value(flag, args.next())?,
                Some(flag @ "--recovery-timeout-ms") => parsed.recovery = Duration::from_millis(value(flag, args.next())?),
                Some("--alone") => parsed.alone = true,
                Some("--swap-off") => parsed.swap_off = true,
                Some(flag @ "--probe") => parsed.probe = Some(value(flag, args.next())?),
                _ => return Err(format!("{arg:?} is not known")),
            }
        }
        Ok(parsed)
    }
}

fn value<T: FromStr>(flag: &str, text: Option<OsString>) -> Result<T, String> {
    let text = text.unwrap_or_default();
    text.to_str().and_then(|t| t.parse().ok()).ok_or_else(|| format!("{flag} {} is not understood", text.display()))
}

/// Runs `smalti-executor work …`; `args` begin with that verb.
#[must_use]
pub(crate) fn main(args: Vec<OsString>) -> ExitCode {
    let result = Arguments::parse(args).map_err(anyhow::Error::msg).and_then(|arguments| work(&arguments));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("smalti-executor: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn work(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.kind != ExecutorKind::Shared {
        share_one_heap();
    }
    let (listener, line) = accept::inherited(arguments.listen_fd, arguments.supervisor_fd)?;
    if !arguments.alone {
        accept::end_with_parent()?;
    }
    let walls = Walls::new(line, arguments.kind, arguments.alone);
    let mut worker = Worker { walls: Some(walls), kind: arguments.kind, ..Worker::new(arguments.swap_off) };
    while let Some(stream) = accept::accept(&listener, arguments.recovery)? {
        if worker.session(stream)? == SessionEnd::Shutdown {
            if let Some(name) = arguments.probe.clone() {
                let tried = std::thread::spawn(move || probe::run(&name)).join();
                std::process::exit(tried.unwrap_or(i32::MAX));
            }
            worker.shutdown();
            return Ok(());
        }
    }
    eprintln!("smalti-executor: no agent came within {:?}", arguments.recovery);
    worker.shutdown();
    Ok(())
}

/// Its few threads do not get in each other's way, and a heap for each would be made and taken down with every such process.
fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "the C library's heap cannot be told otherwise")]
        // SAFETY: the call takes any values, and this process has one thread.
        let _ = unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1) };
    }
}

/// The worker process.
pub(crate) struct Worker {
    kind: ExecutorKind,
    swap_off: bool,
    link: Arc<Link>,
    slots: Option<Slots>,
    modules: BTreeMap<u32, Arc<Loaded>>,
    announced: Announced,
    /// Closed before the first slot starts. None in the executor's own tests, whose process has more to do afterwards.
    walls: Option<Walls>,
    /// How that went.
    closed: Closed,
    /// What the next task may do on the network.
    network: network::Announced,
}

impl Worker {
    /// Without walls. `swap_off`: the agent has seen to it that no page of this process is swapped out.
    pub(crate) fn new(swap_off: bool) -> Self {
        Self {
            kind: ExecutorKind::Shared,
            swap_off,
            link: Arc::default(),
            slots: None,
            modules: BTreeMap::new(),
            announced: Announced::default(),
            walls: None,
            closed: Closed::default(),
            network: network::Announced::default(),
        }
    }

    /// For one task.
    #[cfg(test)]
    pub(crate) fn pooled() -> Self {
        Self { kind: ExecutorKind::Pooled, ..Self::new(false) }
    }

    /// Behind these walls from its first slot on.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn walled(walls: Walls) -> Self {
        Self { walls: Some(walls), ..Self::new(false) }
    }

    /// Serves one connection to its end. Runs go on after it, and what they have to say is kept for the next agent.
    ///
    /// # Errors
    /// When the slots cannot be set up: there is nothing this process could do then.
    pub(crate) fn session(&mut self, stream: UnixStream) -> anyhow::Result<SessionEnd> {
        let writing = stream.try_clone()?;
        let mut reader = Reader::new(stream);
        let mut within = None;
        let end = loop {
            let heard = reader.recv_within::<ToExecutor>(within);
            let quiet = matches!(&heard, Err(e) if e.is_timeout());
            match heard {
                Ok(Some((ToExecutor { message: Some(To::Shutdown(_)) }, _))) => break SessionEnd::Shutdown,
                Ok(Some((ToExecutor { message: Some(To::Welcome(welcome)) }, _))) => {
                    self.welcome(&welcome, writing.try_clone()?)?;
                    continue;
                }
                Ok(Some((ToExecutor { message: Some(To::Several(several)) }, fds))) => self.handle_several(several, fds),
                Ok(Some((ToExecutor { message: Some(message) }, fds))) => self.handle(message, fds),
                // A kind of message that this version does not know.
                Ok(Some((ToExecutor { message: None }, _))) => eprintln!("smalti-executor: ignored an unknown message"),
                Ok(None) => break SessionEnd::Disconnected,
                Err(_) if quiet => {}
                Err(e) => {
                    complain(&e);
                    break SessionEnd::Disconnected;
                }
            }
            within = self.look_after(quiet)?;
        };
        if end == SessionEnd::Disconnected {
            self.link.disconnect();
            self.look_after(true)?;
        }
        Ok(end)
    }

    /// Starts the slots' helpers, where they can wait, when a guest runs or something was not said a tick after the last message (`quiet`).
    /// Gives after how long to look.
    fn look_after(&mut self, quiet: bool) -> anyhow::Result<Option<Duration>> {
        match &mut self.slots {
            Some(slots) if slots.can_want_helpers() && !quiet => Ok(Some(EPOCH_TICK)),
            Some(slots) if slots.want_helpers() => slots.start_helpers().map(|()| None),
            _ => Ok(None),
        }
    }

    /// Stops all guests and all threads.
    pub(crate) fn shutdown(self) {
        if let Some(slots) = self.slots {
            slots.shutdown();
        }
        self.link.disconnect();
    }

    fn handle_several(&mut self, several: v1::Several, fds: Vec<OwnedFd>) {
        let mut fds = fds.into_iter();
        for (message, count) in several.messages.into_iter().zip(several.fds) {
            let own = fds.by_ref().take(count as usize).collect();
            match message.message {
                Some(message) => self.handle(message, own),
                None => eprintln!("smalti-executor: ignored an unknown message"),
            }
        }
    }

    fn handle(&mut self, message: To, fds: Vec<OwnedFd>) {
        let Some(slots) = &self.slots else {
            eprintln!("smalti-executor: ignored a message that came before Welcome");
            return;
        };
        match message {
            To::Load(load) => self.load(&load, fds),
            To::Unload(unload) => {
                self.modules.remove(&unload.module);
            }
            To::Start(task) => {
                let run = task.run;
                let network = self.network.take(run);
                if let Err(failure) = network.and_then(|network| start::task(slots, &self.link, &self.modules, task, network, fds)) {
                    refuse(&self.link, run, failure);
                }
            }
            To::SlotFiles(files) => {
                // The part's start finds its outputs missing and says so.
                if let Err(failure) = self.announced.add(&files, fds) {
                    eprintln!("smalti-executor: ignored the outputs of run {}: {failure:?}", files.run);
                }
            }
            To::Network(network) if !slots.network => self.network.refuse(network.run),
            To::Network(network) => self.network.add(&network, fds),
            To::StartArray(array) => self.start_array(array, fds),
            To::Lease(lease) => self.lease(lease, slots),
            To::Unlease(unlease) => match slots.runs.get(unlease.run) {
                Some(Entry::Array(array)) => array.unlease(unlease.most),
                Some(Entry::Broken(part)) => part.unlease(),
                _ => self.link.say(Message::Report(v1::ArrayReport { run: unlease.run, ..Default::default() })),
            },
            To::EndArray(end) => match slots.runs.get(end.run) {
                Some(Entry::Array(array)) => array.end(&end.slots),
                Some(Entry::Broken(part)) if part.end(&end.slots) => slots.runs.remove(end.run),
                // Of a part that is not there any more, the slots have left already, and said so.
                _ => {}
            },
            To::Kill(kill) => {
                let grace = Duration::from_micros(kill.grace_us);
                if slots.runs.get(kill.run).is_some_and(|entry| entry.kill(Instant::now(), grace)) {
                    slots.runs.remove(kill.run);
                }
            }
            To::Confirm(confirm) => self.link.confirm(confirm.number),
            To::Renew(renew) => slots.leases.renew(renew.run, renew.until_us),
            To::Welcome(_) | To::Shutdown(_) | To::Several(_) => {}
        }
    }

    /// The first one says how many slots there are; a later one comes from an agent that came back.
    fn welcome(&mut self, welcome: &v1::Welcome, stream: UnixStream) -> anyhow::Result<()> {
        if self.slots.is_none() {
            let loader = self.loader(welcome.slots)?;
            let closed = self.walls.take().map(|walls| walls.close(loader.engines.facts().reset)).transpose()?;
            self.closed = closed.unwrap_or_default();
            self.slots = Some(Slots::start(loader, welcome.max_memory_bytes, welcome.network, &self.link)?);
        }
        let Some(slots) = &self.slots else { return Ok(()) };
        let facts = slots.loader.engines.facts();
        let notifications = self.closed.notifications.take();
        let hello = v1::Hello {
            protocol: PROTOCOL_VERSION,
            pid: std::process::id().cast_signed(),
            slots: slots.threads().map(|(slot, tid)| v1::SlotThread { slot, tid }).collect(),
            allocator: facts.allocator.to_owned(),
            reset: facts.reset.to_owned(),
            warnings: facts.warnings.iter().chain(&self.closed.warnings).chain(&slots.warning).cloned().collect(),
            layers: self.closed.layers.clone().into_iter().collect(),
            pieces: true,
            several: true,
        };
        // What the last agent announced and did not start is not this one's.
        (self.announced, self.network) = (Announced::default(), network::Announced::default());
        // Notifications once: an agent that comes back finds the broker at work.
        let hello = (hello, notifications.into_iter().collect());
        Ok(self.link.connect(stream, welcome.confirmed, hello, || holds(&self.modules, slots))?)
    }

    /// What this executor's guests are loaded and run with.
    fn loader(&self, slots: u32) -> anyhow::Result<Loader> {
        match self.kind {
            ExecutorKind::Shared => Ok(Loader::new(Arc::new(Slots::engines(slots, self.swap_off)?))),
            ExecutorKind::Pooled | ExecutorKind::Networked => {
                anyhow::ensure!(slots == 1, "an executor of class `process` has one slot, not {slots}");
                let loader = prepared::take()?;
                // What is linked there has no sockets.
                Ok(if self.kind == ExecutorKind::Pooled { loader } else { Loader::new(loader.engines) })
            }
        }
    }

    fn load(&mut self, load: &v1::LoadModule, fds: Vec<OwnedFd>) {
        let failure = self.try_load(load, fds).err().map(Into::into);
        self.link.say(Message::Loaded(v1::ModuleLoaded { module: load.module, failure }));
    }

    fn try_load(&mut self, load: &v1::LoadModule, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let Some(slots) = &self.slots else { return Ok(()) };
        let [code] = <[OwnedFd; 1]>::try_from(fds)
            .map_err(|fds| Failure::new(Reason::LaunchFailed, format!("a module came with {} descriptors", fds.len())))?;
        if self.modules.len() >= MAX_MODULES {
            return Err(Failure::new(Reason::LaunchFailed, format!("{MAX_MODULES} modules are loaded already")));
        }
        let request = Request { name: load.name.clone(), component: load.component, fuel: load.fuel, network: slots.network };
        let loaded = slots.loader.load(request, code)?;
        self.modules.insert(load.module, Arc::new(loaded));
        Ok(())
    }

    fn start_array(&mut self, array: v1::StartArray, fds: Vec<OwnedFd>) {
        let Some(slots) = &self.slots else { return };
        let (run, wanted) = (array.run, array.slots.clone());
        let network = self.network.take(run);
        let started = network.and_then(|n| start::array(slots, &self.link, &self.modules, &mut self.announced, array, n, fds));
        if let Err(failure) = started {
            let broken = BrokenPart::new(run, &wanted, failure, self.link.clone());
            if !slots.runs.insert(run, Entry::Broken(Arc::new(broken))) {
                // A number used twice. Its first owner must not suffer.
                eprintln!("smalti-executor: refused an array part: run {run} exists already");
                return;
            }
        }
        self.link.say(Message::Started(v1::Started { run }));
    }

    fn lease(&self, lease: v1::Lease, slots: &Slots) {
        let items = || lease.items.iter().map(|r| ItemRange { first: r.first, end: r.end }).collect::<ItemSet>();
        match slots.runs.get(lease.run) {
            Some(Entry::Array(array)) => {
                let interval = Duration::from_micros(lease.report_interval_us);
                array.lease(&items(), lease.attempt, start::splits(&lease.splits), lease.report_when_left, interval);
            }
            Some(Entry::Broken(part)) => part.lease(items(), lease.attempt),
            // Items for a part that has ended meanwhile go back.
            _ => self.link.say(Message::Report(v1::ArrayReport { run: lease.run, returned: lease.items, ..Default::default() })),
        }
    }
}

/// All that this executor has.
fn holds(modules: &BTreeMap<u32, Arc<Loaded>>, slots: &Slots) -> v1::Holds {
    let mut holds = v1::Holds { modules: modules.keys().copied().collect(), ..Default::default() };
    slots.runs.all().iter().for_each(|entry| entry.add_to(&mut holds));
    holds
}

fn complain(error: &FrameError) {
    if !error.is_disconnect() {
        eprintln!("smalti-executor: the agent's connection is closed: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Arguments, String> {
        Arguments::parse(args.iter().map(OsString::from).collect())
    }

    #[test]
    fn the_supervisors_arguments_are_understood_and_others_refused() {
        let words = "work --listen-fd 3 --supervisor-fd 4 --kind pooled --recovery-timeout-ms 500 --alone --swap-off --probe mount";
        let good = parse(&words.split(' ').collect::<Vec<_>>());
        let wanted = Arguments {
            listen_fd: 3,
            supervisor_fd: 4,
            kind: ExecutorKind::Pooled,
            recovery: Duration::from_millis(500),
            swap_off: true,
            alone: true,
            probe: Some("mount".to_owned()),
        };
        assert_eq!(good, Ok(wanted));
        for bad in [&["work", "--listen-fd"][..], &["work", "--listen-fd", "x"], &["work", "--what"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
