//! The supervisor of an executor of class `process` without sockets, as a child of the forge.
//!
//! Such an executor needs nobody who stays outside for it, so no launcher: the forge makes its pid namespace, and the agent moves it into its
//! groups and says the go byte, as it does with a launcher. It opens what it needs of the file system, enters the namespaces of the
//! [`Mold`](super::mold::Mold), becomes its own user, leaves all namespaces that are for one executor alone, and maps its user itself, which
//! a process may do for the one that it is. What it is afterwards does not differ from what `init` is, and `init` says what it does then.

use super::args::Supervisor;
use super::init::{self, Supervised};
use super::launch::{self, Go, go};
use super::mold::Entry;
use super::{Error, step, step_said};
use crate::confine::{identity, namespaces};
use nix::unistd::{Gid, Uid};
use smalti_executor_protocol::supervision::Launched;
use std::os::fd::{IntoRawFd, OwnedFd};

/// Runs the role. `uid` is the executor's own.
pub(super) fn run(args: &Supervisor, uid: u32, entry: Entry) -> Result<(), Error> {
    let Some(Go { uid: kept }) = go()? else { return Ok(()) };
    let mut warnings = Vec::new();
    match start(args, uid, entry, kept, &mut warnings) {
        Ok(supervised) => {
            // Its pid as it sees it itself: the agent has the other one from the forge.
            launch::report(&Ok(Launched::Started { pid: std::process::id().cast_signed(), pid_namespace: true, warnings }))?;
            init::supervise(&supervised)
        }
        Err(e) => launch::report(&Err(e)),
    }
}

fn start(args: &Supervisor, uid: u32, entry: Entry, kept: Option<OwnedFd>, warnings: &mut Vec<String>) -> Result<Supervised, Error> {
    let mut args = args.clone();
    // It stays open, unused, as long as this process lives.
    args.keep_fd = kept.map(IntoRawFd::into_raw_fd);
    nix::unistd::dup2_stderr(launch::open_stderr(&args)?).map_err(step("exchanging stderr"))?;
    let files = init::prepare(&args, warnings)?;
    entry.enter().map_err(step("entering an empty root and net namespace"))?;
    identity::become_user(uid).map_err(step_said(format!("becoming user {uid}")))?;
    // As the owner of the user namespace that comes now it may map itself, and needs its files in /proc for that.
    identity::own_proc_files().map_err(step_said("preparing the maps"))?;
    let left = namespaces::leave_but_net().map_err(step("leaving namespaces"))?;
    namespaces::write_own_maps(&entry.proc, Uid::from_raw(uid), Gid::from_raw(uid)).map_err(step_said("mapping its own user"))?;
    identity::close_to_others(warnings);
    drop(entry);
    namespaces::rename_host(left, warnings);
    identity::give_up_more(warnings);
    // The root is empty already.
    init::start_worker(&args, files, false)
}
