//! Directories of single tasks that wrote nothing, or whose outputs had to make room, used again: the next task of the framework gets
//! directory and files.
//!
//! Most tasks print nothing, and a file system has to look for a free inode for each directory and file that it makes: without a
//! journal, ext4 passes over each one that was deleted in the last minutes, one by one, every time. A flood of tasks would so slow down
//! the event loop for all. In the place of what was never written stands a hard link to one empty file, which costs no inode, and says after
//! a restart of the agent that there was nothing. Only what one framework's tasks have written goes to the same framework: who
//! kept a descriptor of an output sees nobody else's. Owns the names below `.spare` and how directories get there and back.
//! Deliberately absent: which sandboxes may be taken, and when.

use super::open_new;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::linkat;
use smalti_types::FrameworkId;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// The output files of a single task.
pub(crate) const OUTPUTS: [&str; 2] = ["stdout", "stderr"];
/// Where a framework's spare directories lie. No task has that name.
const SPARE: &str = ".spare";
/// The empty file that stands for all that was never written.
const NOTHING: &str = ".nothing";
/// Spare directories of one framework: as many as its tasks end at once, about.
const MOST_OF_ONE: usize = 64;
/// Spare directories in all.
const MOST: usize = 1_024;

/// Which spare directories there are.
#[derive(Debug, Default)]
pub(super) struct Spares {
    of: BTreeMap<FrameworkId, Vec<u64>>,
    total: usize,
    next: u64,
}

impl Spares {
    /// A number for one more directory of `framework`; `None`: it has enough.
    pub(super) fn reserve(&mut self, framework: &FrameworkId) -> Option<u64> {
        let theirs = self.of.get(framework).map_or(0, Vec::len);
        if theirs >= MOST_OF_ONE || self.total >= MOST {
            return None;
        }
        self.next += 1;
        Some(self.next)
    }

    /// The directory of that number is there.
    pub(super) fn put(&mut self, framework: &FrameworkId, number: u64) {
        self.of.entry(framework.clone()).or_default().push(number);
        self.total += 1;
    }

    /// The one that was put last: what the file system knows of it is still in memory.
    pub(super) fn take(&mut self, framework: &FrameworkId) -> Option<u64> {
        let theirs = self.of.get_mut(framework)?;
        let number = theirs.pop();
        if theirs.is_empty() {
            self.of.remove(framework);
        }
        self.total -= usize::from(number.is_some());
        number
    }
}

fn spare(framework: &FrameworkId, number: u64) -> String {
    format!("{framework}/{SPARE}/{number}")
}

/// Puts a link to nothing into the place of `directory`, in one step, and the directory among the spare ones.
///
/// # Errors
/// What the file system says: then everything is as it was.
pub(super) fn put_by(base: impl AsFd, framework: &FrameworkId, directory: &str, number: u64) -> io::Result<()> {
    let spare = spare(framework, number);
    link_nothing(base.as_fd(), framework, &spare)?;
    if let Err(e) = renameat2(base.as_fd(), spare.as_str(), base.as_fd(), directory, RenameFlags::RENAME_EXCHANGE) {
        let _ = nix::unistd::unlinkat(base, spare.as_str(), nix::unistd::UnlinkatFlags::NoRemoveDir);
        return Err(e.into());
    }
    Ok(())
}

/// Links the framework's empty file. There is a new one when there is none yet, or when it has as many links as a file can have.
fn link_nothing(base: impl AsFd, framework: &FrameworkId, to: &str) -> io::Result<()> {
    let nothing = format!("{framework}/{NOTHING}");
    let link = || linkat(base.as_fd(), nothing.as_str(), base.as_fd(), to, AtFlags::empty());
    match link() {
        Err(Errno::EMLINK | Errno::ENOENT) => {}
        result => return Ok(result?),
    }
    make_spare(base.as_fd(), framework)?;
    let fresh = format!("{nothing}.new");
    open_new(base.as_fd(), &fresh, OFlag::empty())?;
    renameat(base.as_fd(), fresh.as_str(), base.as_fd(), nothing.as_str())?;
    Ok(link()?)
}

/// Makes a spare directory that of a task. There must be nothing of that name.
///
/// # Errors
/// What the file system says.
pub(super) fn give(base: impl AsFd, framework: &FrameworkId, number: u64, directory: &str) -> io::Result<()> {
    Ok(renameat2(base.as_fd(), spare(framework, number).as_str(), base.as_fd(), directory, RenameFlags::RENAME_NOREPLACE)?)
}

/// Opens an output that is there from a task before. Whoever kept a descriptor of it may have written since: that goes.
///
/// # Errors
/// What the file system says.
pub(super) fn open_again(base: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    let file = File::from(openat(base, path, OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?);
    if file.metadata()?.len() > 0 {
        file.set_len(0)?;
    }
    Ok(file.into())
}

/// How many bytes a single task wrote, if its two outputs are all that is in its directory, and known by no other name.
pub(super) fn written(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    let (mut outputs, mut bytes) = (0, 0);
    for entry in std::fs::read_dir(path).ok()? {
        let entry = entry.ok()?;
        let meta = entry.metadata().ok()?;
        let name = entry.file_name();
        if !OUTPUTS.iter().any(|output| name == *output) || !meta.is_file() || meta.nlink() > 1 {
            return None;
        }
        outputs += 1;
        bytes += meta.len();
    }
    (outputs == OUTPUTS.len()).then_some(bytes)
}

/// Empties the outputs in a directory that nobody needs any more, and puts it among the spare ones.
///
/// # Errors
/// What the file system says: then the directory may be empty, and is where it was.
pub(super) fn put_emptied(base: impl AsFd, framework: &FrameworkId, directory: &str, number: u64) -> io::Result<()> {
    for name in OUTPUTS {
        drop(open_again(base.as_fd(), &format!("{directory}/{name}"))?);
    }
    let spare = spare(framework, number);
    let rename = || renameat2(base.as_fd(), directory, base.as_fd(), spare.as_str(), RenameFlags::RENAME_NOREPLACE);
    match rename() {
        Err(Errno::ENOENT) => make_spare(base.as_fd(), framework)?,
        result => return Ok(result?),
    }
    Ok(rename()?)
}

fn make_spare(base: impl AsFd, framework: &FrameworkId) -> io::Result<()> {
    match mkdirat(base, format!("{framework}/{SPARE}").as_str(), Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Removes the spare directories of an earlier life of the agent.
///
/// # Errors
/// What the file system says.
pub(super) fn clear(framework: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(framework.join(SPARE)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spares_are_bounded_for_each_and_in_all_and_the_last_comes_first() {
        let (mut spares, f) = (Spares::default(), |n: usize| FrameworkId::new(format!("F{n}")).unwrap());
        let mut put = |f: &FrameworkId| spares.reserve(f).inspect(|n| spares.put(f, *n));
        let first: Vec<u64> = (0..MOST_OF_ONE).map(|_| put(&f(0)).unwrap()).collect();
        assert_eq!(put(&f(0)), None);
        let all = (1..2 * MOST / MOST_OF_ONE).flat_map(|n| std::iter::repeat_n(f(n), MOST_OF_ONE)).filter_map(|f| put(&f)).count();
        assert_eq!(all + first.len(), MOST);
        assert_eq!(spares.take(&f(0)), first.last().copied());
        assert!(spares.reserve(&f(2 * MOST)).is_some());
        assert_eq!(spares.take(&f(2 * MOST)), None);
    }

    #[test]
    fn a_file_without_room_for_a_link_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (base, f) = (File::open(dir.path()).unwrap(), FrameworkId::new("F").unwrap());
        std::fs::create_dir(dir.path().join("F")).unwrap();
        link_nothing(&base, &f, "F/a").unwrap();
        let links = |name: &str| std::os::unix::fs::MetadataExt::nlink(&std::fs::metadata(dir.path().join("F").join(name)).unwrap());
        assert_eq!((links("a"), links(NOTHING)), (2, 2));
        // As after a restart that lost it.
        std::fs::remove_file(dir.path().join("F").join(NOTHING)).unwrap();
        link_nothing(&base, &f, "F/b").unwrap();
        assert_eq!((links("a"), links("b")), (1, 2));
    }
}
