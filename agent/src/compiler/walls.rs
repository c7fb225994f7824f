//! The walls around the compiler process, put up by itself before it has read a byte of the guest.
//!
//! By then its input and output are open; nothing else is needed: no path, no network, no other process, no privilege. What
//! cannot be put up is named, and the agent says so. Deliberately absent: resource limits (`process`, and the agent's groups).

use super::syscalls;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where the empty root is mounted for a moment: any directory that every machine has.
const ROOT_AT: &str = "/proc";

/// Wall by wall: `on`, or `off: why`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Walls(pub(crate) BTreeMap<String, String>);

impl Walls {
    fn note(&mut self, wall: &str, result: Result<(), impl std::fmt::Display>) {
        let state = result.map_or_else(|why| format!("off: {why}"), |()| "on".to_owned());
        self.0.insert(wall.to_owned(), state);
    }

    /// One line for an operator.
    pub(crate) fn summary(&self) -> String {
        let off: Vec<String> = self.0.iter().filter(|(_, s)| *s != "on").map(|(wall, state)| format!("{wall} {state}")).collect();
        let on: Vec<&str> = self.0.iter().filter(|(_, s)| *s == "on").map(|(wall, _)| wall.as_str()).collect();
        if off.is_empty() { format!("on ({})", on.join(", ")) } else { format!("on ({}); {}", on.join(", "), off.join("; ")) }
    }
}

/// Puts up all that this process may. `uid`: an unprivileged user (and group) of that number, if this one is root.
pub(crate) fn enter(uid: Option<u32>) -> Walls {
    let mut walls = Walls::default();
    let root = Uid::effective().is_root();
    let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    // An ordinary user gets the right to the others with a user namespace of its own.
    let made = unshare(if root { own } else { own | CloneFlags::CLONE_NEWUSER });
    walls.note("network", made);
    walls.note("empty_root", made.and_then(|()| empty_root()));
    if root {
        let dropped = match uid {
            Some(uid) => drop_user(uid),
            None => Err("no user id is set for it".to_owned()),
        };
        walls.note("user", dropped);
    }
    walls.note("capabilities", rustix::thread::set_capabilities(None, no_capabilities()));
    walls.note("no_new_privs", rustix::thread::set_no_new_privs(true));
    walls.note("not_dumpable", rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable));
    walls.note("seccomp", syscalls::restrict());
    walls
}

fn no_capabilities() -> CapabilitySets {
    let none = CapabilitySet::empty();
    CapabilitySets { effective: none, permitted: none, inheritable: none }
}

/// Everything under an empty file system that nobody can write.
fn empty_root() -> nix::Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("none"), ROOT_AT, Some("tmpfs"), flags, Some("size=4k,nr_inodes=2,mode=555"))?;
    nix::unistd::chdir(ROOT_AT)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    mount(none, "/", none, flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none)?;
    nix::unistd::chdir("/")
}

fn drop_user(uid: u32) -> Result<(), String> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    if user.is_root() {
        return Err("root is no unprivileged user".into());
    }
    let failed = |what: &str, e: nix::Error| format!("{what} {uid}: {e}");
    setgroups(&[]).map_err(|e| failed("giving up groups for", e))?;
    setresgid(group, group, group).map_err(|e| failed("becoming group", e))?;
    setresuid(user, user, user).map_err(|e| failed("becoming user", e))
}
