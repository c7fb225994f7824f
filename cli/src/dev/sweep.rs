//! What outlives an agent on purpose, executors and their control groups, must not outlive `smalti dev`.
//!
//! Recognises processes by a directory of ours in their arguments, and control groups by an agent's id in their name.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// Where control groups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// How deep an agent's group is looked for, from the mount.
const SEARCH_DEPTH: u32 = 12;
/// How deep groups lie below an agent's: executor, slot, and one to spare.
const GROUP_DEPTH: u32 = 4;
/// A process that was killed leaves its group a moment later: how often that is looked at, and how far apart.
const TRIES: u32 = 50;
const BETWEEN: Duration = Duration::from_millis(20);

/// Kills every process that was started with a path below `dir` among its arguments.
pub(crate) fn processes(dir: &Path) {
    let Ok(entries) = std::fs::read_dir("/proc") else { return };
    let me = std::process::id();
    for pid in entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()) {
        if pid == me {
            continue;
        }
        let Ok(arguments) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        if mentions(&arguments, dir)
            && let Ok(pid) = i32::try_from(pid)
        {
            // It may be gone by now, or not ours to kill.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Whether an argument is a path below `dir`, alone or after `--flag=`. Arguments end with a zero byte each.
fn mentions(arguments: &[u8], dir: &Path) -> bool {
    let mut below = dir.as_os_str().as_bytes().to_vec();
    below.push(b'/');
    arguments.split(|b| *b == 0).any(|argument| {
        let value = argument.iter().position(|b| *b == b'=').map_or(argument, |i| &argument[i + 1..]);
        argument.starts_with(&below) || value.starts_with(&below)
    })
}

/// Removes the control groups of these agents, in every hierarchy.
pub(crate) fn control_groups(agents: &[String]) {
    let names: Vec<String> = agents.iter().map(|id| format!("smalti-{id}")).collect();
    if !names.is_empty() {
        search(Path::new(CGROUPS), &names, SEARCH_DEPTH);
    }
}

fn search(dir: &Path, names: &[String], depth: u32) {
    for child in directories(dir) {
        if child.file_name().is_some_and(|name| names.iter().any(|n| name == n.as_str())) {
            remove(&child);
        } else if depth > 0 {
            search(&child, names, depth - 1);
        }
    }
}

/// Removes a group and those in it; waits a little for processes that have just been killed.
fn remove(group: &Path) {
    for _ in 0..TRIES {
        if remove_below(group, GROUP_DEPTH) || !group.exists() {
            return;
        }
        std::thread::sleep(BETWEEN);
    }
    crate::terminal::note(&format!("the control group {} could not be removed", group.display()));
}

fn remove_below(group: &Path, depth: u32) -> bool {
    if depth > 0 {
        for child in directories(group) {
            remove_below(&child, depth - 1);
        }
    }
    // Only the kernel's own files are in it, which go with it.
    std::fs::remove_dir(group).is_ok()
}

/// Directories in a directory; links are not followed.
fn directories(dir: &Path) -> impl Iterator<Item = std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_below_the_directory_count() {
        let dir = Path::new("/tmp/smalti-dev-1-2");
        assert!(mentions(b"x\0--dir\0/tmp/smalti-dev-1-2/agent-1/executors/e\0", dir));
        assert!(mentions(b"x\0--data-dir=/tmp/smalti-dev-1-2/agent-1\0", dir));
        assert!(!mentions(b"x\0--data-dir=/tmp/smalti-dev-1-23/agent-1\0", dir));
        assert!(!mentions(b"less\0about /tmp/smalti-dev-1-2/\0", dir));
        assert!(!mentions(b"", dir));
    }

    #[test]
    fn a_group_is_removed_with_those_in_it() {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(base.path().join("user/smalti-A1/e1/slot-0")).unwrap();
        std::fs::create_dir_all(base.path().join("user/smalti-A2")).unwrap();
        search(base.path(), &["smalti-A1".into()], 3);
        assert!(!base.path().join("user/smalti-A1").exists() && base.path().join("user/smalti-A2").exists());
    }
}
