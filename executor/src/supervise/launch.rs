//! `smalti-executor launch`: makes the pid namespace, starts the supervisor in it, and maps its user.
//!
//! The forge starts this process with a unix socket of the agent's as its stdin; the agent puts it into the executor's cgroups, and
//! sends one byte, with the descriptor that stands for the executor's uid: from then on every process that comes from here is limited. It prints one
//! [`Launched`] line, stays until the agent closes the socket (so that the supervisor's pid cannot be used again before the agent
//! holds a pidfd of it), and exits. It is single-threaded, as unshare demands. It stays in the host's mount, network and (with
//! privilege) user namespace: what an executor of kind `networked` needs done outside is done from here, and for that kind it
//! stays until the executor has ended.

use super::args::Supervisor;
use super::fork::Image;
use super::{Error, fork, init, step, step_said};
use crate::broker;
use crate::confine::{identity, namespaces, open_wall};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use smalti_executor_protocol::blocking;
use smalti_executor_protocol::supervision::{ExecutorKind, Launched, STDERR_NAME};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Longest line of `init` that is read, and most of them.
const MAX_LINE_BYTES: u64 = 4096;
const MAX_LINES: usize = 64;
/// What `init` prints when its socket listens.
pub(super) const LISTENING: &str = "listening";
/// What `init` prints when it has left its user namespace and waits for the maps to be written.
pub(super) const UNMAPPED: &str = "unmapped";
/// What it then reads.
pub(super) const MAPPED: &str = "mapped";
/// How it begins a line about a wall that stays open.
pub(super) const WARNING: &str = "warning ";

/// Runs the role.
pub(super) fn run(args: &Supervisor) -> Result<(), Error> {
    let Some(Go { uid: inherited }) = go()? else { return Ok(()) };
    let (launched, child) = match start(args, inherited) {
        Ok((launched, child)) => (Ok(launched), Some(child)),
        Err(e) => (Err(e), None),
    };
    report(&launched)?;
    if let (ExecutorKind::Networked, Some(child)) = (args.kind, child) {
        let served = broker::run(std::io::stdin()).map_err(step("making sockets for the executor"));
        // Its number stays its own until it is waited for.
        return served.and_then(|()| waitpid(child, None).map(drop).map_err(step("waiting for the supervisor")));
    }
    // Ends when the agent closes its end, whatever it writes before.
    let mut rest = Vec::new();
    let _ = std::io::stdin().take(MAX_LINE_BYTES).read_to_end(&mut rest);
    Ok(())
}

/// The agent's go byte, and what stands for the executor's uid.
pub(super) struct Go {
    pub(super) uid: Option<OwnedFd>,
}

/// Waits for it. `None`: the agent changed its mind, or is gone.
pub(super) fn go() -> Result<Option<Go>, Error> {
    let mut go = [0_u8; 1];
    match blocking::receive(std::io::stdin(), &mut go) {
        Ok(chunk) if chunk.bytes == 1 => Ok(Some(Go { uid: chunk.fds.into_iter().next() })),
        Ok(_) => Ok(None),
        Err(e) => report(&Err(step_said("reading the go byte from stdin")(e))).map(|()| None),
    }
}

/// Prints the line for the agent; gives the error back for the exit code.
pub(super) fn report(launched: &Result<Launched, Error>) -> Result<(), Error> {
    let line = match launched {
        Ok(l) => l.clone(),
        Err(e) => Launched::Failed { error: e.to_string() },
    };
    let mut out = std::io::stdout();
    out.write_all(line.to_line().as_bytes()).and_then(|()| out.flush()).map_err(step("writing to stdout"))
}

fn start(args: &Supervisor, inherited: Option<OwnedFd>) -> Result<(Launched, Pid), Error> {
    let mut warnings = Vec::new();
    let stderr = open_stderr(args)?;
    let way = if args.namespaces { leave_pid_namespace(&mut warnings) } else { Way::NotAtAll };
    let mut for_init = Supervisor { self_mapped: way == Way::Unprivileged, ..args.clone() };
    if way == Way::Unprivileged || !nix::unistd::geteuid().is_root() {
        for_init.uid = None;
        for_init.max_threads = None;
    }
    let (from_us, to_init) = std::io::pipe().map_err(step("making a pipe"))?;
    let (from_init, to_us) = std::io::pipe().map_err(step("making a pipe"))?;
    // The descriptor that stands for the uid stays open in it, unused, under the number that its command line says.
    for_init.keep_fd = inherited.is_some().then_some(3);
    let descriptors: fork::Descriptors = [from_us.into(), to_us.into(), stderr.into()].into_iter().chain(inherited).collect();
    let child = fork::fork(&for_init.for_init(), descriptors, Image::of(for_init.self_mapped), || super::report_end(init::run(&for_init)))
        .map_err(step("starting the supervisor"))?;
    attend(child, &for_init, (from_init, to_init), &args.directory.join(STDERR_NAME), &mut warnings)?;
    Ok((Launched::Started { pid: child.as_raw(), pid_namespace: way != Way::NotAtAll, warnings }, child))
}

/// What supervisor and worker write to stderr goes there.
pub(super) fn open_stderr(args: &Supervisor) -> Result<File, Error> {
    let path = args.directory.join(STDERR_NAME);
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    file.map_err(step(format!("opening {}", path.display())))
}

/// Does what `init` asks for until it listens.
fn attend(
    child: Pid,
    args: &Supervisor,
    (out, mut to_init): (PipeReader, PipeWriter),
    stderr: &Path,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    let mut out = BufReader::new(out);
    for _ in 0..MAX_LINES {
        let mut line = String::new();
        out.by_ref().take(MAX_LINE_BYTES).read_line(&mut line).map_err(step("reading what the supervisor says"))?;
        match line.trim_end() {
            LISTENING => return Ok(()),
            UNMAPPED => map(child, args, &mut to_init)?,
            text if text.starts_with(WARNING) => warnings.push(text[WARNING.len()..].to_owned()),
            text => {
                let said = if text.is_empty() { format!("see {}", stderr.display()) } else { text.to_owned() };
                return Err(step_said("the supervisor did not start")(said));
            }
        }
    }
    Err(step_said("the supervisor did not start")("it only warns"))
}

/// Writes the maps of the supervisor's user namespace from outside, which alone can name another user than one's own.
fn map(pid: Pid, args: &Supervisor, to_init: &mut PipeWriter) -> Result<(), Error> {
    let (own_uid, own_gid) = identity::current();
    let uid = args.uid.map_or(own_uid, nix::unistd::Uid::from_raw);
    let gid = args.uid.map_or(own_gid, nix::unistd::Gid::from_raw);
    namespaces::write_maps(&pid.to_string(), uid, gid, own_uid.is_root()).map_err(step_said("mapping the executor's user"))?;
    writeln!(to_init, "{MAPPED}").map_err(step("answering the supervisor"))
}

/// How the pid namespace was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As root: every other user can be named.
    Privileged,
    /// By way of a user namespace, in which only the own user exists.
    Unprivileged,
    NotAtAll,
}

/// Leaves the pid namespace for the children; as an ordinary user by way of a user namespace. Says so when the system does not
/// allow it.
fn leave_pid_namespace(warnings: &mut Vec<String>) -> Way {
    let (uid, gid) = identity::current();
    if uid.is_root() && unshare(CloneFlags::CLONE_NEWPID).is_ok() {
        return Way::Privileged;
    }
    if let Err(e) = unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUSER) {
        warnings
            .push(open_wall("pid_namespace", format!("{e}: the executor sees the host's processes, and its threads end only one by one")));
        return Way::NotAtAll;
    }
    // Without a mapping of its own id it could not make files.
    if let Err(e) = namespaces::write_maps("self", uid, gid, false) {
        warnings.push(open_wall("user_namespace", e));
    }
    Way::Unprivileged
}
