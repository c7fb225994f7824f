//! What must not be there when everything has ended: processes, control groups, mounts, loop devices, files.

use crate::nodes::{groups_of, processes};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The kernel takes its time with dying processes and their groups.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Control groups are looked for this deep below their mounts.
const GROUP_DEPTH: usize = 6;

/// Files of ours in the temporary directory before the start.
#[derive(Debug)]
pub(crate) struct Snapshot {
    files: BTreeSet<PathBuf>,
}

impl Snapshot {
    pub(crate) fn take() -> Result<Self> {
        Ok(Self { files: our_files()? })
    }

    /// What is left of the cluster in `dir` and in the network namespaces of these numbers, in words; waits for what is just going away.
    pub(crate) fn left(&self, dir: &Path, namespaces: &[u64]) -> Result<Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = self.look(dir, namespaces)?;
            if left.is_empty() || Instant::now() > deadline {
                return Ok(left);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn look(&self, dir: &Path, namespaces: &[u64]) -> Result<Vec<String>> {
        let mut left = Vec::new();
        let (agents, text) = (format!("smalti-chaos-{}-", std::process::id()), dir.display().to_string());
        for pid in processes().into_iter().filter(|pid| u32::try_from(*pid) != Ok(std::process::id())) {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let inside = network_of(pid).is_some_and(|number| namespaces.contains(&number));
            if inside || command.contains(&text) || groups_of(pid).contains(&agents) {
                left.push(format!("process {pid}: {command}"));
            }
        }
        groups(Path::new("/sys/fs/cgroup"), GROUP_DEPTH, &agents, &mut left);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("reading mounts")?;
        left.extend(mounts.lines().filter(|l| l.contains(&text)).map(|l| format!("mount {l}")));
        for device in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let file = std::fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
            if file.contains(&text) {
                left.push(format!("loop device {} on {}", device.file_name().display(), file.trim()));
            }
        }
        let new = our_files()?.into_iter().filter(|f| f != dir && !self.files.contains(f));
        left.extend(new.map(|f| format!("file {}", f.display())));
        Ok(left)
    }
}

/// Ends the clients of a run that failed: they would look for their scheduler for a long time yet. Roles of the cluster, which are
/// asked to end, have process groups of their own.
pub(crate) fn end_clients() {
    let own = std::process::id().to_string();
    for pid in processes() {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Behind the name, which may hold anything: state, parent, process group.
        let mut fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').skip(1);
        let (parent, group) = (fields.next(), fields.next().and_then(|g| g.parse().ok()));
        if parent == Some(&own) && group == Some(nix::unistd::getpgrp().as_raw()) {
            // It may have ended by itself meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Files and directories of Smalti in the temporary directory.
fn our_files() -> Result<BTreeSet<PathBuf>> {
    let tmp = std::env::temp_dir();
    let entries = std::fs::read_dir(&tmp).with_context(|| format!("listing {}", tmp.display()))?;
    let ours = |e: &std::fs::DirEntry| e.file_name().to_string_lossy().starts_with("smalti-chaos");
    Ok(entries.flatten().filter(ours).map(|e| e.path()).collect())
}

/// The number of a process's network namespace.
fn network_of(pid: i32) -> Option<u64> {
    Some(std::fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino())
}

fn groups(directory: &Path, depth: usize, name: &str, left: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().starts_with(name) {
            left.push(format!("control group {}", entry.path().display()));
        } else if depth > 0 {
            groups(&entry.path(), depth - 1, name, left);
        }
    }
}
