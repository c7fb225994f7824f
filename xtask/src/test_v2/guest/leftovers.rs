//! What a suite may not leave behind: processes, control groups, mounts, loop devices.

use super::setup::CGROUPS;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What is there at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct State {
    processes: BTreeSet<i32>,
    groups: BTreeSet<PathBuf>,
    mounts: BTreeSet<String>,
    loops: BTreeSet<String>,
}

impl State {
    pub(super) fn now() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines().map(str::to_owned).collect();
        Self { processes: processes(), groups: groups(), mounts, loops: loops() }
    }

    /// What is there now and was not then, in words.
    pub(super) fn left_behind(&self) -> Vec<String> {
        let now = Self::now();
        let mut out = Vec::new();
        for pid in now.processes.difference(&self.processes) {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
            out.push(format!("process {pid} ({})", line.trim()));
        }
        out.extend(now.groups.difference(&self.groups).map(|g| format!("control group {}", g.display())));
        out.extend(now.mounts.difference(&self.mounts).map(|m| format!("mount {m}")));
        out.extend(now.loops.difference(&self.loops).map(|l| format!("loop device {l}")));
        out
    }

    /// So that the next suite is not blamed for it.
    pub(super) fn remove_what_is_left(&self) {
        for pid in processes().difference(&self.processes) {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        // Deepest first.
        for group in groups().into_iter().rev().filter(|g| !self.groups.contains(g)) {
            let _ = std::fs::remove_dir(group);
        }
    }
}

/// Processes with a program; the kernel's own threads have none.
fn processes() -> BTreeSet<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeSet::new() };
    let ids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
    ids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok()).collect()
}

fn groups() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut todo = vec![Path::new(CGROUPS).to_owned()];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        todo.extend(entries.filter_map(|e| e.ok()).filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        found.insert(dir);
    }
    found
}

/// Loop devices with a file behind them.
fn loops() -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else { return BTreeSet::new() };
    entries
        .filter_map(|e| e.ok())
        .filter_map(|e| std::fs::read_to_string(e.path().join("loop/backing_file")).ok())
        .map(|file| file.trim().to_owned())
        .collect()
}
