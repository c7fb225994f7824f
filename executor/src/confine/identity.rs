//! Who an executor's processes are: a user and a group of their own, no other groups, no capabilities, no way to get any back.
//!
//! Owns the order: the user is changed while capabilities are still held (they are needed to take the root away), the bounding
//! set is emptied before the worker is started (so its exec leaves it without any), and the supervisor gives the rest up last.

use super::open_wall;
use nix::unistd::{Gid, Uid};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// Capabilities that a kernel may know. It refuses to hear of those that it does not.
const MAX_CAPABILITY: u32 = 63;

/// Becomes user and group `id`, without other groups; capabilities are kept for now. This process must have one thread.
///
/// # Errors
/// What could not be changed: the caller must not go on as if it were somebody else.
pub(crate) fn become_user(id: u32) -> Result<(), String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: rustix::io::Errno| format!("{what}: {e}")
    };
    let (uid, gid) = (rustix::process::Uid::from_raw(id), rustix::process::Gid::from_raw(id));
    set_keep_capabilities(true).map_err(failed("keeping capabilities"))?;
    set_thread_groups(&[]).map_err(failed("leaving all groups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(failed("changing the group"))?;
    set_thread_res_uid(uid, uid, uid).map_err(failed("changing the user"))?;
    set_keep_capabilities(false).map_err(failed("no longer keeping capabilities"))?;
    let held = capabilities(None).map_err(failed("reading capabilities"))?;
    let sets = CapabilitySets { effective: held.permitted, permitted: held.permitted, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(failed("using capabilities"))
}

/// From here on no exec gives anything that is not held already, and no set-user-id bit counts.
pub(crate) fn give_up_more(warnings: &mut Vec<String>) {
    if let Err(e) = set_no_new_privs(true) {
        warnings.push(open_wall("no_new_privs", e));
    }
    if let Err(e) = clear_ambient_capability_set() {
        warnings.push(open_wall("capabilities", format!("clearing the ambient set: {e}")));
    }
    let mut known = 0;
    for number in 0..=MAX_CAPABILITY {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => known += 1,
            // Beyond the last one that this kernel knows.
            Err(rustix::io::Errno::INVAL) if known > 0 => break,
            Err(e) => {
                // Without capabilities at all there is nothing that the set could let through.
                if capabilities(None).is_ok_and(|c| c.permitted.is_empty()) {
                    warnings.push(open_wall("capabilities", format!("the bounding set cannot be emptied without privilege: {e}")));
                    return;
                }
                warnings.push(open_wall("capabilities", format!("taking number {number} out of the bounding set: {e}")));
                return;
            }
        }
    }
}

/// Gives up all capabilities, for ever.
pub(crate) fn drop_capabilities(warnings: &mut Vec<String>) {
    if let Err(e) = hold_no_capabilities() {
        warnings.push(open_wall("capabilities", e));
    }
}

/// The same for who must not go on with any.
///
/// # Errors
/// What the kernel said.
pub(crate) fn hold_no_capabilities() -> Result<(), String> {
    let none = CapabilitySets { effective: CapabilitySet::empty(), permitted: CapabilitySet::empty(), inheritable: CapabilitySet::empty() };
    set_capabilities(None, none).map_err(|e| format!("giving up capabilities: {e}"))
}

/// What an exec behind an empty bounding set does, for a process that is a copy of its supervisor instead: no capability is left, and
/// its own files in `/proc` are its own.
///
/// # Errors
/// What could not be changed: the caller must not run as somebody with more rights than that.
pub(crate) fn as_after_exec() -> Result<(), String> {
    hold_no_capabilities()?;
    own_proc_files()
}

/// Makes this process's own files in `/proc` its own again, which changing the user has taken away.
///
/// # Errors
/// What the kernel said.
pub(crate) fn own_proc_files() -> Result<(), String> {
    set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(|e| format!("taking /proc/self: {e}"))
}

/// Nobody but a privileged process outside may look into this one, and no core is written.
pub(crate) fn close_to_others(warnings: &mut Vec<String>) {
    if let Err(e) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warnings.push(open_wall("core_dumps", format!("the process stays readable for its own user: {e}")));
    }
}

/// The user and group that this process runs as.
pub(crate) fn current() -> (Uid, Gid) {
    (nix::unistd::geteuid(), nix::unistd::getegid())
}
