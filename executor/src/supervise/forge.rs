//! `smalti-executor forge`: one per agent, with nothing in it but this loaded program and what its copies need ([`prepared`]). Each launcher is a copy of it.
//!
//! The agent sends one packet for each executor: the arguments of `launch`, with what is to be its stdin and its stdout. The answer
//! has the launcher's pid. The agent then moves that process into the executor's groups, and says so with another packet: until then
//! nobody waits for the process here, so its pid is not used again. It ends with the agent, whose end of the socket closes.
//! Single-threaded, with the agent's own rights; executors have no descriptor of it.

use super::args::{Supervisor, Verb};
use super::fork::Image;
use super::{Error, fork, launch, step};
use crate::prepared;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use smalti_executor_protocol::blocking;
use smalti_executor_protocol::supervision::{FORGE_PLACED, Forged, MAX_FORGE_BYTES};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Runs the role; `args` is its command line, shown by `ps`: `forge --dir DIR [--no-namespaces]`, with the latter for all that it makes.
pub(super) fn run(args: &[OsString]) -> Result<(), Error> {
    fork::set_title(args);
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
            reap();
        }
        if asked && !serve(namespaces)? {
            return Ok(());
        }
    }
}

/// Launchers that have ended.
fn reap() {
    while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive) {}
}

/// One request of the agent, from its packet to the word that the process is where it belongs. False: the agent is gone.
fn serve(namespaces: bool) -> Result<bool, Error> {
    let mut packet = vec![0; MAX_FORGE_BYTES];
    let agent = std::io::stdin();
    let chunk = blocking::receive(&agent, &mut packet).map_err(|e| step("listening to the agent")(std::io::Error::other(e)))?;
    if chunk.bytes == 0 {
        return Ok(false);
    }
    let answer = match launcher(packet.get(..chunk.bytes).unwrap_or_default(), chunk.fds, namespaces) {
        Ok(pid) => Forged::Started { pid: pid.as_raw() },
        Err(e) => Forged::Failed { error: e.to_string() },
    };
    let sent = blocking::transmit(&agent, answer.to_line().as_bytes(), &[]);
    sent.map_err(|e| step("answering the agent")(std::io::Error::other(e)))?;
    if matches!(answer, Forged::Started { .. }) {
        let mut placed = [0; FORGE_PLACED.len()];
        let chunk = blocking::receive(&agent, &mut placed).map_err(|e| step("listening to the agent")(std::io::Error::other(e)))?;
        return Ok(chunk.bytes > 0);
    }
    Ok(true)
}

/// A launcher with these arguments, each ended by a zero byte; its stdin and its stdout came along.
fn launcher(packet: &[u8], fds: Vec<OwnedFd>, namespaces: bool) -> Result<Pid, Error> {
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
    fork::fork(&arguments, descriptors, Image::Copied, || {
        // As this process was when it began.
        let _ = SigSet::all().thread_unblock();
        super::report_end(launch::run(&parsed))
    })
    .map_err(step("starting a launcher"))
}
