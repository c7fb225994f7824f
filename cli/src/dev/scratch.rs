//! The directory of a cluster that is not to be kept, and what is left of those whose process was killed.
//!
//! Its name carries pid and start time of its owner, so that a later start can tell whether the owner still lives.

use super::sweep;
use crate::failure::{Failure, Result, io_text};
use crate::terminal;
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Begins the name of each such directory. Short: paths of unix sockets lie below it.
const PREFIX: &str = "smalti-dev-";
/// File in it with one agent id a line: which control groups are ours.
const AGENTS: &str = "agents";

/// Where a cluster lives.
#[derive(Debug)]
pub(crate) struct Home {
    dir: PathBuf,
    /// Whether it is to be removed.
    temporary: bool,
    agents: Vec<String>,
}

impl Home {
    /// The directory given, or a new one in the place for temporary files; removes what dead owners left there.
    pub(crate) fn new(data_dir: Option<&Path>) -> Result<Self> {
        if let Some(dir) = data_dir {
            let failed = |e: std::io::Error| Failure::new(format!("the data directory {}: {}", dir.display(), io_text(&e)));
            std::fs::create_dir_all(dir).map_err(failed)?;
            let dir = std::path::absolute(dir).map_err(failed)?;
            return Ok(Self { dir, temporary: false, agents: Vec::new() });
        }
        let base = std::env::temp_dir();
        remove_leftovers(&base);
        let pid = std::process::id();
        let start = start_time(pid).ok_or_else(|| Failure::new("reading /proc/self/stat: is /proc mounted?"))?;
        let dir = base.join(format!("{PREFIX}{pid}-{start}"));
        // Must be new: nobody else may have prepared it.
        DirBuilder::new().mode(0o700).create(&dir).map_err(|e| Failure::new(format!("making {}: {}", dir.display(), io_text(&e))))?;
        Ok(Self { dir, temporary: true, agents: Vec::new() })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn is_temporary(&self) -> bool {
        self.temporary
    }

    /// Remembers an agent, also for whoever cleans up after us.
    pub(crate) fn add_agent(&mut self, id: &str) {
        self.agents.push(id.to_owned());
        if self.temporary && std::fs::write(self.dir.join(AGENTS), self.agents.join("\n")).is_err() {
            terminal::note(&format!("cannot write {}; after a SIGKILL, control groups would be left", self.dir.join(AGENTS).display()));
        }
    }

    /// After all roles have ended: what outlives them ends, and what was made is removed.
    pub(crate) fn remove(self) {
        clean(&self.dir, &self.agents, self.temporary);
    }
}

fn clean(dir: &Path, agents: &[String], remove: bool) {
    sweep::processes(dir);
    sweep::control_groups(agents);
    for agent in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        smalti_agent::homes::remove(&agent.path());
    }
    if remove && let Err(error) = std::fs::remove_dir_all(dir) {
        terminal::note(&format!("removing {}: {}", dir.display(), io_text(&error)));
    }
}

fn remove_leftovers(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some((pid, start)) = name.to_str().and_then(owner) else { continue };
        // Only what is ours, and a directory, not a link to one.
        let ours = entry.metadata().is_ok_and(|m| m.is_dir() && m.uid() == nix::unistd::geteuid().as_raw());
        if !ours || start_time(pid) == Some(start) {
            continue;
        }
        terminal::note(&format!("removing {}, left by a cluster that was killed", entry.path().display()));
        let agents = std::fs::read_to_string(entry.path().join(AGENTS)).unwrap_or_default();
        let agents: Vec<String> = agents.lines().map(str::to_owned).collect();
        clean(&entry.path(), &agents, true);
    }
}

/// Pid and start time in a directory's name.
fn owner(name: &str) -> Option<(u32, u64)> {
    let (pid, start) = name.strip_prefix(PREFIX)?.split_once('-')?;
    Some((pid.parse().ok()?, start.parse().ok()?))
}

/// When a process started, in clock ticks since boot; `None` when there is no such process.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything; field 22 of the line is the 20th after it.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_dead_owners_are_removed() {
        let base = tempfile::tempdir().unwrap();
        let me = std::process::id();
        let start = start_time(me).unwrap();
        let make = |name: String| {
            let dir = base.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            dir
        };
        let alive = make(format!("{PREFIX}{me}-{start}"));
        let dead = make(format!("{PREFIX}{me}-{}", start + 1));
        let foreign = make(format!("{PREFIX}x-y"));
        remove_leftovers(base.path());
        assert_eq!((alive.exists(), dead.exists(), foreign.exists()), (true, false, true));
    }

    #[test]
    fn a_data_directory_is_kept() {
        let base = tempfile::tempdir().unwrap();
        let home = Home::new(Some(&base.path().join("data"))).unwrap();
        let dir = home.dir().to_owned();
        home.remove();
        assert!(dir.is_dir());
        std::fs::write(base.path().join("file"), "").unwrap();
        assert!(Home::new(Some(&base.path().join("file/x"))).unwrap_err().to_string().contains("the data directory"));
    }
}
