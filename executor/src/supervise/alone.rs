//! An executor of class `process` without sockets: one process, a child of the forge and the first of its pid namespace.
//!
//! Nobody needs to stay outside for it, so it has no launcher; and it has no supervisor either: it serves one task, its pid namespace ends with
//! it, and how it ended the forge sees, which waits for it ([`super::watch`]). The agent moves it into its groups and says the go byte, as
//! it does with a launcher. Then it opens what it needs of the file system, enters the namespaces of the [`Mold`](super::mold::Mold), becomes its
//! own user, leaves all namespaces that are for one executor alone, maps its user itself, which a process may do for the one that it is, gives
//! its capabilities up, says that it listens, and is the worker. No root has to be taken away: it is in an empty one already.

use super::args::Supervisor;
use super::init::{self, Files};
use super::launch::{self, Go, go};
use super::mold::Entry;
use super::{Error, fork, step, step_said};
use crate::confine::{identity, layout, namespaces};
use crate::worker;
use nix::unistd::{Gid, Uid};
use smalti_executor_protocol::supervision::Launched;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

/// What it holds when it needs nothing of the file system any more.
struct Ready {
    files: Files,
    /// Stays open, unused, as long as this process lives.
    kept: Option<OwnedFd>,
    warnings: Vec<String>,
}

/// Runs the role. `uid` is the executor's own; `denied` is where the number of a system call goes that its filter denies.
pub(super) fn run(args: &Supervisor, uid: u32, entry: Entry, denied: OwnedFd) -> ExitCode {
    let Ready { files, kept, warnings } = match go().and_then(|said| said.map(|Go { uid: kept }| start(args, uid, entry, kept)).transpose())
    {
        Ok(Some(ready)) => ready,
        // The agent has changed its mind.
        Ok(None) => return ExitCode::SUCCESS,
        Err(e) => return super::report_end(launch::report(&Err(e))),
    };
    // Its pid as it sees it itself: the agent has the other one from the forge.
    let said = launch::report(&Ok(Launched::Started { pid: std::process::id().cast_signed(), pid_namespace: true, warnings }));
    let work = said.and_then(|()| {
        let Files { listener, nothing, seed } = files;
        let descriptors = init::for_worker(nothing, listener.into(), denied, kept)?;
        fork::have_only(descriptors).map_err(step("closing what the worker does not need"))?;
        Ok(seed)
    });
    match work {
        Ok(seed) => {
            layout::scatter_or_say(seed);
            worker::main(init::worker_arguments(args, true))
        }
        Err(e) => super::report_end(Err(e)),
    }
}

fn start(args: &Supervisor, uid: u32, entry: Entry, kept: Option<OwnedFd>) -> Result<Ready, Error> {
    let mut warnings = Vec::new();
    nix::unistd::dup2_stderr(launch::open_stderr(args)?).map_err(step("exchanging stderr"))?;
    let files = init::prepare(args, &mut warnings)?;
    entry.enter().map_err(step("entering an empty root and net namespace"))?;
    identity::become_user(uid).map_err(step_said(format!("becoming user {uid}")))?;
    // As the owner of the user namespace that comes now it may map itself, and needs its files in /proc for that.
    identity::own_proc_files().map_err(step_said("preparing the maps"))?;
    let left = namespaces::leave_but_net().map_err(step("leaving namespaces"))?;
    namespaces::write_own_maps(&entry.proc, Uid::from_raw(uid), Gid::from_raw(uid)).map_err(step_said("mapping its own user"))?;
    identity::close_to_others(&mut warnings);
    namespaces::rename_host(left, &mut warnings);
    identity::give_up_more(&mut warnings);
    identity::hold_no_capabilities().map_err(step_said("becoming a worker"))?;
    Ok(Ready { files, kept, warnings })
}
