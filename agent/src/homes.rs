//! Where executors' homes lie: in memory, if there is a file system for that, behind a link in the data directory.
//!
//! A home has five files that live as long as the executor and are of no use after a boot of the machine. On a disk's file system they
//! cost more than the rest of a start: one that has just freed many inodes looks long for one that is free. So `executors` in the data
//! directory is a link to a directory of `/run/smalti`, `$XDG_RUNTIME_DIR/smalti` or `/dev/shm/smalti-<uid>`, whichever is a `tmpfs`;
//! otherwise a directory as before. Owns the link, what it leads to, and a second link beside that which leads back: by it agents find
//! what others left that are gone with their data directories. An agent that lives locks its directory: others may not see its data directory,
//! if that is in a mount namespace or a container of its own. Deliberately absent: what is in a home (`launcher`).

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::geteuid;
use smalti_executor_protocol::supervision::SOCKET_NAME;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Its name in the data directory.
const NAME: &str = "executors";
/// End of the name of a link back.
const BACK: &str = ".data";

/// How often, and after how long, it is tried again to lock a directory that somebody else looks at.
const TRIES: usize = 100;
const PAUSE: Duration = Duration::from_millis(2);

/// The directory of homes of the agent with this data directory, locked where it lies in memory, and the name under which it stays. Never
/// fails: what cannot lie in memory lies in the data directory, where the first home makes what is missing.
pub(crate) fn open(data_dir: &Path) -> (Held, PathBuf) {
    let (path, held) = find(data_dir);
    (Held(held), path)
}

/// A lock on the directory of an agent that lives.
#[derive(Debug)]
pub(crate) struct Held(#[expect(dead_code, reason = "it is there to be dropped")] Option<File>);

fn find(data_dir: &Path) -> (PathBuf, Option<File>) {
    let path = data_dir.join(NAME);
    let bases = bases();
    for base in &bases {
        sweep(base);
    }
    if let Some(target) = target(data_dir, &bases) {
        // After a boot it leads nowhere.
        let held = make_target(&target, data_dir);
        if let Err(e) = &held {
            tracing::warn!("{}: {e}; homes of executors lie in the data directory instead", target.display());
            let _ = fs::remove_file(&path);
        }
        return (path, held.ok());
    }
    if path.is_symlink() {
        // Somebody else's, perhaps an operator's.
        return (path, None);
    }
    // Executors of an earlier version may live there. An empty one goes.
    if fs::remove_dir(&path).is_err() && path.exists() {
        return (path, None);
    }
    for base in bases {
        match link(&path, &base, data_dir) {
            Ok(held) => return (path, Some(held)),
            Err(e) => tracing::debug!("homes of executors cannot lie in {}: {e}", base.display()),
        }
    }
    (path, None)
}

/// Removes what [`open`] made for this data directory, unless there is a home in it still.
pub fn close(data_dir: &Path) {
    let Some(target) = target(data_dir, &bases()) else { return };
    if fs::remove_dir(&target).is_ok() || !target.exists() {
        let _ = fs::remove_file(back(&target));
        let _ = fs::remove_file(data_dir.join(NAME));
    }
}

/// As [`close`], with whatever is in there: nothing of the agent lives any more.
pub fn remove(data_dir: &Path) {
    if let Some(target) = target(data_dir, &bases()) {
        let _ = fs::remove_dir_all(&target);
        close(data_dir);
    }
}

/// Where the link in a data directory leads, if that is a place of ours.
fn target(data_dir: &Path, bases: &[PathBuf]) -> Option<PathBuf> {
    let target = fs::read_link(data_dir.join(NAME)).ok()?;
    bases.iter().any(|base| target.parent() == Some(base)).then_some(target)
}

/// File systems in memory that this user may have directories in.
fn bases() -> Vec<PathBuf> {
    let uid = geteuid();
    let runtime = if uid.is_root() { Some(PathBuf::from("/run")) } else { std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) };
    let in_memory = |dir: &PathBuf| dir.is_absolute() && statfs(dir).is_ok_and(|s| s.filesystem_type() == TMPFS_MAGIC);
    let shared = PathBuf::from("/dev/shm");
    let shared = in_memory(&shared).then(|| shared.join(format!("smalti-{uid}")));
    runtime.filter(in_memory).map(|dir| dir.join("smalti")).into_iter().chain(shared).collect()
}

/// The link first: by it others see that what comes next is in use.
fn link(path: &Path, base: &Path, data_dir: &Path) -> io::Result<File> {
    make_own(base)?;
    let name = blake3::hash(data_dir.as_os_str().as_encoded_bytes()).to_hex();
    let target = base.join(name.get(..16).unwrap_or_default());
    symlink(&target, path)?;
    make_target(&target, data_dir).inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}

/// Makes it, and locks it for the agent's life.
fn make_target(target: &Path, data_dir: &Path) -> io::Result<File> {
    if let Some(base) = target.parent() {
        make_own(base)?;
    }
    for _ in 0..TRIES {
        make_own(target)?;
        match symlink(data_dir, back(target)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        // Another agent may have removed it meanwhile.
        let held = File::open(target).and_then(|dir| dir.try_lock_shared().map(|()| dir).map_err(Into::into));
        if let Ok(held) = held
            && fs::symlink_metadata(target).is_ok_and(|there| held.metadata().is_ok_and(|m| m.ino() == there.ino()))
        {
            return Ok(held);
        }
        std::thread::sleep(PAUSE);
    }
    Err(io::Error::other("it is removed or locked by somebody else again and again"))
}

fn back(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(BACK);
    name.into()
}

/// Makes a directory for this user alone. Others may make files beside it, so one that is there must be just that.
fn make_own(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let found = fs::symlink_metadata(dir)?;
    if found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(io::Error::other("it is there and is no directory of this user alone"))
}

/// Locks the directory of an agent that is gone; `None`: its agent lives, where this one cannot see its data directory. One that has just
/// been made is locked soon after, and then looked at again.
fn take(target: &Path) -> io::Result<Option<File>> {
    let dir = File::open(target)?;
    Ok(dir.try_lock().is_ok().then_some(dir))
}

/// Whether an executor listens in one of the homes, and waits for its agent.
fn is_inhabited(target: &Path) -> bool {
    let sockets = fs::read_dir(target).into_iter().flatten().flatten().map(|home| home.path().join(SOCKET_NAME));
    sockets.into_iter().any(|socket| UnixStream::connect(socket).is_ok())
}

/// Removes homes of agents whose data directories are gone, or lead elsewhere by now.
fn sweep(base: &Path) {
    if make_own(base).is_err() {
        return;
    }
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let Some(target) = entry.path().to_str().and_then(|p| p.strip_suffix(BACK)).map(PathBuf::from) else { continue };
        let Ok(data_dir) = fs::read_link(entry.path()) else { continue };
        if fs::read_link(data_dir.join(NAME)).ok().as_ref() == Some(&target) {
            continue;
        }
        match take(&target) {
            Ok(Some(_held)) if !is_inhabited(&target) => {
                let _ = fs::remove_dir_all(&target);
                let _ = fs::remove_file(entry.path());
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => drop(fs::remove_file(entry.path())),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_lie_in_memory_and_go_with_the_last_one() {
        if bases().is_empty() {
            eprintln!("no file system in memory here: homes lie in the data directory");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (_held, path) = open(dir.path());
        let target = fs::read_link(&path).unwrap();
        assert_eq!(statfs(&path).unwrap().filesystem_type(), TMPFS_MAGIC);
        fs::create_dir(path.join("e1")).unwrap();
        close(dir.path());
        assert_eq!(open(dir.path()).1, path);
        assert!(path.join("e1").is_dir(), "an executor may live there");
        // After a boot.
        fs::remove_dir_all(&target).unwrap();
        assert!(open(dir.path()).1.is_dir());
        close(dir.path());
        assert!(!target.exists() && !back(&target).exists() && fs::symlink_metadata(&path).is_err());
    }

    #[test]
    fn what_an_agent_left_that_is_gone_is_removed_by_the_next() {
        let Some(base) = bases().into_iter().next() else { return };
        let (gone, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (held, path) = open(gone.path());
        let target = fs::read_link(&path).unwrap();
        fs::create_dir(target.join("e1")).unwrap();
        assert_eq!(target.parent(), Some(&*base));
        gone.close().unwrap();
        drop(open(here.path()));
        // It leads nowhere by now.
        let is_there = || fs::symlink_metadata(back(&target)).is_ok();
        assert!(target.exists() && is_there(), "its agent lives, somewhere else");
        drop(held);
        drop(open(here.path()));
        assert!(!target.exists() && !is_there());
        fs::create_dir(here.path().join(NAME).join("e1")).unwrap();
        remove(here.path());
        assert!(fs::symlink_metadata(here.path().join(NAME)).is_err());
    }

    #[test]
    fn homes_of_an_earlier_version_stay_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(NAME).join("e1")).unwrap();
        assert!(fs::symlink_metadata(open(dir.path()).1).unwrap().is_dir());
        close(dir.path());
        remove(dir.path());
        assert!(dir.path().join(NAME).join("e1").is_dir());
    }
}
