//! `smalti-executor launch`: makes the pid namespace and starts the supervisor in it.
//!
//! The agent starts this process, puts it into the executor's cgroups, and writes one byte to its stdin: from then on every
//! process that comes from here is limited. It prints one [`Launched`] line, stays until its stdin closes (so that the
//! supervisor's pid cannot be used again before the agent holds a pidfd of it), and exits. It is single-threaded, as unshare
//! demands. Deliberately absent: mount, network and other namespaces, user ids.

use super::args::Supervisor;
use super::{Error, same_binary, step};
use nix::sched::{CloneFlags, unshare};
use rustix::io::FdFlags;
use smalti_executor_protocol::supervision::{Launched, STDERR_NAME};
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;

/// Longest first line of `init` that is read.
const MAX_LINE_BYTES: u64 = 4096;
/// What `init` prints when its socket listens.
pub(super) const LISTENING: &str = "listening";

/// Runs the role.
pub(super) fn run(args: &Supervisor) -> Result<(), Error> {
    let mut go = [0_u8; 1];
    match std::io::stdin().read(&mut go) {
        Ok(1) => {}
        Ok(_) => return Ok(()), // The agent changed its mind, or is gone.
        Err(e) => return report(&Err(step("reading the go byte from stdin")(e))),
    }
    let launched = start(args);
    report(&launched)?;
    // Ends when the agent closes its end, whatever it writes before.
    let mut rest = Vec::new();
    let _ = std::io::stdin().take(MAX_LINE_BYTES).read_to_end(&mut rest);
    Ok(())
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

fn start(args: &Supervisor) -> Result<Launched, Error> {
    let mut warnings = Vec::new();
    close_foreign_descriptors(&mut warnings);
    let stderr_path = args.directory.join(STDERR_NAME);
    let stderr = OpenOptions::new().create(true).append(true).mode(0o600).open(&stderr_path);
    let stderr = stderr.map_err(step(format!("opening {}", stderr_path.display())))?;
    let pid_namespace = args.namespaces && make_namespaces(&mut warnings);
    let mut child = same_binary()
        .args(args.for_init())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .map_err(step("starting the supervisor"))?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        let read = BufReader::new(out.take(MAX_LINE_BYTES)).read_line(&mut line);
        read.map_err(step("reading what the supervisor says"))?;
    }
    if line.trim_end() != LISTENING {
        let said = if line.is_empty() { format!("see {}", stderr_path.display()) } else { line.trim_end().to_owned() };
        return Err(step("the supervisor did not start")(std::io::Error::other(said)));
    }
    let pid = i32::try_from(child.id()).map_err(|_| step("the supervisor's pid")(std::io::Error::other("out of range")))?;
    Ok(Launched::Started { pid, pid_namespace, warnings })
}

/// Leaves the pid namespace for the children; as an ordinary user by way of a user namespace. False with a warning when the
/// system does not allow it.
fn make_namespaces(warnings: &mut Vec<String>) -> bool {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let user = !uid.is_root();
    let flags = if user { CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUSER } else { CloneFlags::CLONE_NEWPID };
    if let Err(e) = unshare(flags) {
        warnings.push(format!("no pid namespace ({e}): the executor sees the host's processes, and its threads end only one by one"));
        return false;
    }
    if user {
        // Without a mapping of its own id it could not make files.
        let maps = [("setgroups", "deny".to_owned()), ("uid_map", format!("{uid} {uid} 1")), ("gid_map", format!("{gid} {gid} 1"))];
        for (file, text) in maps {
            if let Err(e) = std::fs::write(format!("/proc/self/{file}"), text) {
                warnings.push(format!("writing /proc/self/{file}: {e}"));
            }
        }
    }
    true
}

/// Descriptors that the agent's own parent left open must not reach a worker: they are closed at the next exec.
fn close_foreign_descriptors(warnings: &mut Vec<String>) {
    let numbers: Vec<i32> = match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect(),
        Err(e) => {
            warnings.push(format!("/proc/self/fd: {e}; descriptors of the agent's parent may reach the executor"));
            return;
        }
    };
    for number in numbers.into_iter().filter(|n| *n > 2) {
        #[expect(unsafe_code, reason = "descriptor numbers from /proc have no owner in this process")]
        // SAFETY: the borrow ends within this statement, and a number that is closed meanwhile gives EBADF, which is ignored.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let _ = rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC);
    }
}
