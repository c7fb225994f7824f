//! The namespaces of an executor: user, mount, ipc, uts and net, left behind by the supervisor in one call.
//!
//! The pid namespace is made by `launch`, because only children enter it. Owns the choice of what to do when the kernel refuses
//! some: every one that is refused is named. Deliberately absent: what is done inside (see `root`, `identity`).

use super::open_wall;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid};
use rustix::fs::{Mode, OFlags, openat};
use std::io::Write;
use std::os::fd::AsFd;

/// What the supervisor leaves, with the names under which it is reported. The user namespace comes first: without privilege the
/// others need it.
const ALL: [(&str, CloneFlags); 5] = [
    ("user_namespace", CloneFlags::CLONE_NEWUSER),
    ("mount_namespace", CloneFlags::CLONE_NEWNS),
    ("ipc_namespace", CloneFlags::CLONE_NEWIPC),
    ("uts_namespace", CloneFlags::CLONE_NEWUTS),
    ("net_namespace", CloneFlags::CLONE_NEWNET),
];
/// What `uname` says inside.
const HOST_NAME: &str = "executor";

/// What was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left(CloneFlags);

impl Left {
    /// Nothing.
    pub(crate) const fn none() -> Self {
        Self(CloneFlags::empty())
    }
    /// Whether this process is in a user namespace of its own, which nobody has written the maps of.
    pub(crate) const fn user(self) -> bool {
        self.0.contains(CloneFlags::CLONE_NEWUSER)
    }
    /// Whether mounts made and removed here are seen by nobody else.
    pub(crate) const fn mount(self) -> bool {
        self.0.contains(CloneFlags::CLONE_NEWNS)
    }
    /// Whether the host's name can be hidden.
    const fn uts(self) -> bool {
        self.0.contains(CloneFlags::CLONE_NEWUTS)
    }
}

/// Leaves as many namespaces as the kernel allows; says which not. This process must have one thread.
pub(crate) fn leave(warnings: &mut Vec<String>) -> Left {
    let wanted = ALL.iter().fold(CloneFlags::empty(), |all, (_, flag)| all | *flag);
    if unshare(wanted).is_ok() {
        return Left(wanted);
    }
    // One at a time, to know which.
    let mut left = CloneFlags::empty();
    for (name, flag) in ALL {
        match unshare(flag) {
            Ok(()) => left |= flag,
            Err(e) => warnings.push(open_wall(name, e)),
        }
    }
    Left(left)
}

/// Leaves all but the net namespace: for who has entered one already in which nobody else is (`mold`). This process must have one thread.
///
/// # Errors
/// When the kernel refuses any of them.
pub(crate) fn leave_but_net() -> nix::Result<Left> {
    let wanted = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    unshare(wanted).map(|()| Left(wanted))
}

/// Hides the host's name, once the user namespace is mapped.
pub(crate) fn rename_host(left: Left, warnings: &mut Vec<String>) {
    if left.uts()
        && let Err(e) = nix::unistd::sethostname(HOST_NAME)
    {
        warnings.push(open_wall("uts_namespace", format!("the host's name stays visible: {e}")));
    }
}

/// Maps one user and one group of the outside, under the same numbers, into the user namespace of process `pid` (or `self`).
/// The writer is either privileged outside, or maps itself and gives up changing groups.
///
/// # Errors
/// Which file could not be written, and why.
pub(crate) fn write_maps(pid: &str, uid: Uid, gid: Gid, privileged: bool) -> Result<(), String> {
    for (file, text) in maps(uid, gid, privileged) {
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, text).map_err(|e| format!("writing {path}: {e}"))?;
    }
    Ok(())
}

/// The same for this process's own namespace, without privilege, by a descriptor of `/proc`, which may be out of sight.
///
/// # Errors
/// As [`write_maps`].
pub(crate) fn write_own_maps(proc: impl AsFd, uid: Uid, gid: Gid) -> Result<(), String> {
    for (file, text) in maps(uid, gid, false) {
        let open = openat(&proc, format!("self/{file}"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        let written = open.map_err(std::io::Error::from).and_then(|fd| std::fs::File::from(fd).write_all(text.as_bytes()));
        written.map_err(|e| format!("writing {file} of /proc/self: {e}"))?;
    }
    Ok(())
}

/// Files of a process in `/proc`, and what is written there.
fn maps(uid: Uid, gid: Gid, privileged: bool) -> Vec<(&'static str, String)> {
    let mut files = vec![("uid_map", format!("{uid} {uid} 1")), ("gid_map", format!("{gid} {gid} 1"))];
    if !privileged {
        files.insert(0, ("setgroups", "deny".to_owned()));
    }
    files
}
