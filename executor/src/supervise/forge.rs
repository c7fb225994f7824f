//! `smalti-executor forge`: one per agent, with nothing in it but this loaded program and what its copies need ([`prepared`]). Each launcher is a copy of it.
//!
//! The agent sends one packet for each executor: the arguments of `launch`, with what is to be its stdin and its stdout. The answer
//! has the launcher's pid, or, where no launcher is needed, that of the executor's only process ([`alone`]). The agent then moves that
//! process into the executor's groups, and says so with another packet: until then nobody waits for the process here, so its pid is not used
//! again. It ends with the agent, whose end of the socket closes, or, if the agent has left such executors behind, with the last of them: it
//! records how they end ([`Watch`]).
//! Single-threaded, with the agent's own rights; executors have no descriptor of it.

use super::args::{Supervisor, Verb};
use super::fork::Image;
use super::mold::{Entry, Mold};
use super::watch::{Note, Watch};
use super::{Error, alone, fork, launch, step, step_said};
use crate::prepared;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use smalti_executor_protocol::blocking;
use smalti_executor_protocol::supervision::{ExecutorKind, FORGE_PLACED, Forged, MAX_FORGE_BYTES};
use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Runs the role; `args` is its command line, shown by `ps`: `forge --dir DIR [--no-namespaces]`, with the latter for all that it makes.
pub(super) fn run(args: &[OsString]) -> Result<(), Error> {
    fork::set_title(args);
    // What ends the agent's session or its processes as a group does not end who watches executors that go on.
    nix::unistd::setsid().map_err(step("setsid"))?;
    let namespaces = !args.iter().any(|a| a == "--no-namespaces");
    // Ctrl-C in the agent's terminal is the agent's business.
    let mut ignored = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        ignored.add(signal);
    }
    ignored.thread_block().map_err(step("blocking signals"))?;
    let mut ended = SigSet::empty();
    ended.add(Signal::SIGCHLD);
    ended.thread_block().map_err(step("blocking SIGCHLD"))?;
    let signals = SignalFd::with_flags(&ended, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(step("making a signalfd"))?;
    prepared::prepare();
    // Without it everything works as well, and takes longer.
    let mold = if namespaces && nix::unistd::geteuid().is_root() { Mold::make().ok() } else { None };
    let mut forge = Forge { namespaces, mold, watch: Watch::default() };
    let agent = std::io::stdin();
    loop {
        let mut fds = [PollFd::new(agent.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(e) => return Err(step("waiting for the agent")(e)),
        }
        let asked = fds[0].any().unwrap_or(false);
        if fds[1].any().unwrap_or(false) {
            let _ = signals.read_signal();
            forge.reap();
        }
        match if asked { forge.serve() } else { Ok(true) } {
            Ok(true) => {}
            // Whatever the reason, nobody else can record how they end.
            end => return forge.outlive(&signals).and(end.map(drop)),
        }
    }
}

/// What this process holds.
struct Forge {
    namespaces: bool,
    mold: Option<Mold>,
    watch: Watch,
}

impl Forge {
    /// Children that have ended. What is to be known about one is written before it is waited for.
    fn reap(&mut self) {
        let next = || waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT);
        while let Ok(status @ (WaitStatus::Exited(child, _) | WaitStatus::Signaled(child, ..))) = next() {
            self.watch.has_ended(status);
            let _ = waitpid(child, None);
            if let Some(mold) = &mut self.mold {
                mold.has_ended(child);
            }
        }
    }

    /// The agent is gone: until the last of those that are watched has ended. Nothing of the agent's is held meanwhile.
    fn outlive(&mut self, signals: &SignalFd) -> Result<(), Error> {
        if !self.watch.is_empty() {
            let nothing = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(step("opening /dev/null"))?;
            nix::unistd::dup2_stdin(&nothing).and_then(|()| nix::unistd::dup2_stderr(&nothing)).map_err(step("leaving the agent"))?;
        }
        self.reap();
        while !self.watch.is_empty() {
            match poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Ok(_) => drop(signals.read_signal()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(step("waiting for executors")(e)),
            }
            self.reap();
        }
        Ok(())
    }

    /// One request of the agent, from its packet to the word that the process is where it belongs. False: the agent is gone.
    fn serve(&mut self) -> Result<bool, Error> {
        let mut packet = vec![0; MAX_FORGE_BYTES];
        let agent = std::io::stdin();
        let chunk = blocking::receive(&agent, &mut packet).map_err(step_said("listening to the agent"))?;
        if chunk.bytes == 0 {
            return Ok(false);
        }
        let answer = match request(packet.get(..chunk.bytes).unwrap_or_default(), chunk.fds, self.namespaces) {
            Ok(Request { parsed, arguments, descriptors }) => match (&mut self.mold, parsed.uid) {
                (Some(mold), Some(uid)) if parsed.namespaces && parsed.kind == ExecutorKind::Pooled => {
                    alone(&parsed, uid, &arguments, descriptors, (mold, &mut self.watch))?.map(|pid| Forged::Alone { pid: pid.as_raw() })
                }
                _ => launcher(&parsed, &arguments, descriptors).map(|pid| Forged::Started { pid: pid.as_raw() }),
            },
            Err(e) => Err(e),
        };
        let answer = answer.unwrap_or_else(|e| Forged::Failed { error: e.to_string() });
        let sent = blocking::transmit(&agent, answer.to_line().as_bytes(), &[]);
        sent.map_err(step_said("answering the agent"))?;
        if !matches!(answer, Forged::Failed { .. }) {
            let mut placed = [0; FORGE_PLACED.len()];
            let chunk = blocking::receive(&agent, &mut placed).map_err(step_said("listening to the agent"))?;
            return Ok(chunk.bytes > 0);
        }
        Ok(true)
    }
}

/// What the agent asks for.
struct Request {
    parsed: Supervisor,
    arguments: Vec<OsString>,
    /// Stdin, stdout, stderr.
    descriptors: fork::Descriptors,
}

/// Reads a request: arguments, each ended by a zero byte; its stdin and its stdout came along.
fn request(packet: &[u8], fds: Vec<OwnedFd>, namespaces: bool) -> Result<Request, Error> {
    let words = packet.split(|b| *b == 0).map(|w| OsStr::from_bytes(w).to_owned());
    let mut arguments: Vec<OsString> = words.collect();
    // Behind the last zero byte is nothing.
    arguments.pop();
    let mut parsed = Supervisor::parse(arguments.clone())?;
    parsed.namespaces &= namespaces;
    if parsed.verb != Verb::Launch || fds.len() != 2 {
        return Err(Error::Args(format!("the forge was asked for {:?} with {} descriptors", parsed.verb, fds.len())));
    }
    let mut descriptors = fds;
    descriptors.push(std::io::stderr().as_fd().try_clone_to_owned().map_err(step("passing stderr on"))?);
    Ok(Request { parsed, arguments, descriptors })
}

fn launcher(parsed: &Supervisor, arguments: &[OsString], descriptors: fork::Descriptors) -> Result<Pid, Error> {
    fork::fork(arguments, descriptors, Image::Copied, || {
        // As this process was when it began.
        let _ = SigSet::all().thread_unblock();
        super::report_end(launch::run(parsed))
    })
    .map_err(step("starting a launcher"))
}

/// An executor that is one process, the first of a new pid namespace. The outer error ends the forge: it could not come back from there.
fn alone(
    parsed: &Supervisor,
    uid: u32,
    arguments: &[OsString],
    mut descriptors: fork::Descriptors,
    (mold, watch): (&mut Mold, &mut Watch),
) -> Result<Result<Pid, Error>, Error> {
    let (note, denied) = match Note::new(&parsed.directory) {
        Ok(note) => note,
        Err(e) => return Ok(Err(e)),
    };
    let network = match mold.take_network().map_err(step("coming back from a net namespace"))? {
        Ok(network) => network,
        Err(e) => return Ok(Err(step("making a net namespace")(e))),
    };
    let entry = mold.entry(&network).map_err(step("passing namespaces on"));
    let entered = entry.and_then(|entry| Mold::leave_pids().map(|()| entry).map_err(step("making a pid namespace")));
    match entered {
        Ok(entry) => descriptors.extend(entry.into_iter().chain([denied])),
        Err(e) => {
            mold.give_back(network);
            return Ok(Err(e));
        }
    }
    let mut title = arguments.to_vec();
    if let Some(verb) = title.first_mut() {
        *verb = "work".into();
    }
    let started = fork::fork(&title, descriptors, Image::Copied, || {
        let _ = SigSet::all().thread_unblock();
        // Behind stdin, stdout and stderr, in the order in which they were passed on.
        let [mounts, network, proc, denied] = [3, 4, 5, 6].map(fork::inherited);
        alone::run(parsed, uid, Entry { mounts, network, proc }, denied)
    });
    mold.come_back().map_err(step("coming back from a pid namespace"))?;
    match &started {
        Ok(executor) => {
            mold.lend(*executor, network);
            watch.begin(executor.as_raw(), note);
        }
        Err(_) => mold.give_back(network),
    }
    Ok(started.map_err(step("starting an executor")))
}
