//! Takes the file system away: the root becomes an empty, read-only tmpfs, and the old one is detached.
//!
//! Done by the supervisor for itself and its worker at once: `pivot_root` moves every process of the mount namespace whose root
//! is the old one. Without a path: the new file system is never seen by anybody before it is the root. Files and mappings that
//! are open stay usable.

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root};
use std::os::fd::OwnedFd;

/// The mount's own limits: it holds one directory and no file.
const OPTIONS: [(&str, &str); 3] = [("mode", "0555"), ("size", "4096"), ("nr_inodes", "1")];

type Step<T> = Result<T, String>;

fn failed(what: &str) -> impl FnOnce(rustix::io::Errno) -> String + '_ {
    move |e| format!("{what}: {e}")
}

/// Cuts this mount namespace off from its origin's. Before anything else happens in it, and before the worker is started: its
/// root and current directory become ones that [`empty`] can take away.
///
/// # Errors
/// The step that failed.
pub(crate) fn prepare() -> Step<()> {
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).map_err(failed("making all mounts private"))?;
    chdir("/").map_err(failed("going to the root"))?;
    if is_first_mount().map_err(failed("looking at the root"))? {
        // An initial ramdisk cannot be exchanged; a copy of it that lies on top can.
        let copy = open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE)
            .map_err(failed("copying the initial root"))?;
        move_mount(&copy, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(failed("mounting a copy of the initial root"))?;
        fchdir(&copy).map_err(failed("entering the copy of the initial root"))?;
        chroot(".").map_err(failed("making the copy the root"))?;
    }
    Ok(())
}

/// Exchanges the root of all processes of this mount namespace.
///
/// # Errors
/// The step that failed; then the root may still be the old one.
pub(crate) fn empty() -> Step<()> {
    let new = empty_mount()?;
    move_mount(&new, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(failed("mounting the empty root"))?;
    fchdir(&new).map_err(failed("entering the empty root"))?;
    // The old root lands on top of the new one, where `.` finds it.
    pivot_root(".", ".").map_err(failed("exchanging the root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("detaching the old root"))?;
    chdir("/").map_err(failed("going to the empty root"))
}

fn empty_mount() -> Step<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("opening a tmpfs"))?;
    for (key, value) in OPTIONS {
        fsconfig_set_string(&context, key, value).map_err(failed("configuring a tmpfs"))?;
    }
    fsconfig_create(&context).map_err(failed("making a tmpfs"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("mounting a tmpfs"))
}

/// Whether `/` is the first mount of all, which has nothing below it: the kernel says so by naming it its own parent, or by not
/// listing it. A root in the middle of a mount (chroot) is not exchangeable either, but is not helped by a copy of it.
fn is_first_mount() -> Result<bool, rustix::io::Errno> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|e| rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::IO))?;
    let mut ids = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (id, parent) = (words.next()?, words.next()?);
        (words.nth(2)? == "/").then_some((id, parent))
    });
    let root = ids.next_back();
    Ok(root.is_none_or(|(id, parent)| id == parent))
}

/// Whether the directory that this process calls its root is empty; for the test instrument.
pub(crate) fn is_empty() -> std::io::Result<bool> {
    let root = rustix::fs::openat(CWD, "/", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut entries = rustix::fs::Dir::new(root)?;
    Ok(!entries.any(|e| e.is_ok_and(|e| !matches!(e.file_name().to_bytes(), b"." | b".."))))
}
