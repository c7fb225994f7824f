//! Which thread runs which slot.
//!
//! An executor knows its threads by the ids of its own pid namespace. The agent translates them through /proc and moves only
//! threads of the worker, which must be a child of the supervisor, or the process itself that was started where there is none, and in the
//! executor's group: an executor that lies about its ids gets nobody else's threads moved.

use super::process::ProcessHandle;
use super::{Error, ExecutorSpec, implausible, io};
use crate::cgroup::ExecutorGroup;
use smalti_executor_protocol::v1::Hello;
use smalti_types::ExecutorId;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Threads of a process, with what `/proc/PID/task/TID/status` says of each: by the id that the agent sees.
#[derive(Debug, Clone, Default)]
pub(super) struct Threads(BTreeMap<i32, String>);

impl Threads {
    pub(super) fn read(pid: i32) -> std::io::Result<Self> {
        let mut out = BTreeMap::new();
        for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let entry = entry?;
            let Some(outer) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            // One that has ended meanwhile is none.
            if let Ok(text) = std::fs::read_to_string(entry.path().join("status")) {
                out.insert(outer, text);
            }
        }
        Ok(Self(out))
    }

    /// Only the first one, by which the kernel speaks of a process.
    pub(super) fn first(pid: i32) -> std::io::Result<Self> {
        Ok(Self(BTreeMap::from([(pid, std::fs::read_to_string(format!("/proc/{pid}/status"))?)])))
    }

    /// What is said of the thread with this id.
    pub(super) fn status(&self, outer: i32) -> Option<&str> {
        self.0.get(&outer).map(String::as_str)
    }

    pub(super) fn statuses(&self) -> impl Iterator<Item = &str> {
        self.0.values().map(String::as_str)
    }

    /// Innermost id to the id that the agent sees.
    fn by_inner(&self) -> BTreeMap<i32, i32> {
        self.0.iter().filter_map(|(outer, status)| Some((innermost(status)?, *outer))).collect()
    }
}

/// Finds the worker and moves the thread of every slot into its group. Gives the worker's pid and its threads. One that is alone is in its
/// slot with all of its threads, and closed its walls when it had one: the first is all that is looked at.
pub(super) fn place(spec: &ExecutorSpec, hello: &Hello, process: &ProcessHandle, group: &ExecutorGroup) -> Result<(i32, Threads), Error> {
    let (worker, threads, slots) = find_all(&spec.id, spec.slots, hello, process, group)?;
    if !group.exists() {
        return Ok((worker, threads));
    }
    let by_inner = threads.by_inner();
    for (slot, inner) in slots {
        let Some(outer) = by_inner.get(&inner) else {
            return Err(implausible(&spec.id, &format!("thread {inner} of slot {slot} is not one of its threads")));
        };
        group.place_thread(slot, *outer).map_err(|source| Error::Cgroup { id: spec.id.clone(), source })?;
    }
    Ok((worker, threads))
}

/// Finds the worker of an executor whose threads are in their groups already. Gives its pid and its threads.
pub(super) fn find(
    id: &ExecutorId,
    slots: u32,
    hello: &Hello,
    process: &ProcessHandle,
    group: &ExecutorGroup,
) -> Result<(i32, Threads), Error> {
    find_all(id, slots, hello, process, group).map(|(worker, threads, _)| (worker, threads))
}

/// The worker with its threads, and each slot's thread that is to be moved, by its id in the worker's own namespace.
fn find_all(
    id: &ExecutorId,
    slots: u32,
    hello: &Hello,
    process: &ProcessHandle,
    group: &ExecutorGroup,
) -> Result<(i32, Threads, BTreeMap<u32, i32>), Error> {
    let slots = check(hello, slots).map_err(|m| implausible(id, &m))?;
    if process.is_alone() {
        let (worker, first) = find_alone(id, hello, process)?;
        return Ok((worker, first, BTreeMap::new()));
    }
    let worker = find_worker(process.pid(), hello.pid).map_err(io(id, "looking for the worker in", Path::new("/proc")))?;
    let Some((worker, threads)) = worker.filter(|(pid, _)| group.contains(*pid)) else {
        return Err(implausible(id, &format!("its supervisor has no child that calls itself process {}", hello.pid)));
    };
    Ok((worker, threads, slots))
}

/// The only process of an executor, with its first thread.
fn find_alone(id: &ExecutorId, hello: &Hello, process: &ProcessHandle) -> Result<(i32, Threads), Error> {
    let (pid, first) = (process.pid(), Threads::first(process.pid()));
    let first = first.map_err(io(id, "looking at the process of", Path::new("/proc")))?;
    if first.status(pid).and_then(innermost) != Some(hello.pid) {
        return Err(implausible(id, &format!("it calls itself process {} and is not", hello.pid)));
    }
    Ok((pid, first))
}

/// Every slot once, every thread once.
fn check(hello: &Hello, slots: u32) -> Result<BTreeMap<u32, i32>, String> {
    let by_slot: BTreeMap<u32, i32> = hello.slots.iter().map(|s| (s.slot, s.tid)).collect();
    let tids: BTreeSet<i32> = by_slot.values().copied().collect();
    let expected = (0..slots).eq(by_slot.keys().copied());
    if !expected || hello.slots.len() != by_slot.len() || tids.len() != by_slot.len() {
        return Err(format!("its Hello names {} slot threads for {slots} slots, not each exactly once", hello.slots.len()));
    }
    Ok(by_slot)
}

/// The child of `supervisor` that is process `inner` in its innermost namespace.
fn find_worker(supervisor: i32, inner: i32) -> std::io::Result<Option<(i32, Threads)>> {
    let children: Vec<i32> = match std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")) {
        Ok(text) => text.split_whitespace().filter_map(|w| w.parse().ok()).collect(),
        // Kernels without that file: ask every process for its parent.
        Err(_) => children_by_scan(supervisor)?,
    };
    let mut with_threads = children.into_iter().filter_map(|pid| Some((pid, Threads::read(pid).ok()?)));
    Ok(with_threads.find(|(pid, threads)| threads.status(*pid).and_then(innermost) == Some(inner)))
}

fn children_by_scan(parent: i32) -> std::io::Result<Vec<i32>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let line = status(&format!("/proc/{pid}/status")).and_then(|s| field(&s, "PPid:")?.trim().parse::<i32>().ok());
        if line == Some(parent) {
            out.push(pid);
        }
    }
    Ok(out)
}

fn status(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

pub(super) fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name))
}

/// The last id of the NSpid line: `NSpid:\t4711\t7`.
fn innermost(status: &str) -> Option<i32> {
    field(status, "NSpid:")?.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_executor_protocol::v1::SlotThread;

    fn hello(pid: i32, slots: &[(u32, i32)]) -> Hello {
        Hello { pid, slots: slots.iter().map(|(slot, tid)| SlotThread { slot: *slot, tid: *tid }).collect(), ..Hello::default() }
    }

    #[test]
    fn a_hello_must_name_every_slot_and_thread_once() {
        assert_eq!(check(&hello(2, &[(1, 8), (0, 7)]), 2), Ok(BTreeMap::from([(0, 7), (1, 8)])));
        for bad in [&[(0, 7)][..], &[(0, 7), (1, 7)], &[(0, 7), (0, 8)], &[(0, 7), (2, 8)], &[(0, 7), (1, 8), (1, 9)], &[]] {
            assert!(check(&hello(2, bad), 2).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn own_threads_are_found() {
        let me = i32::try_from(std::process::id()).unwrap();
        let tid = nix::unistd::gettid().as_raw();
        let found = Threads::read(me).unwrap().by_inner();
        assert!(found.values().any(|t| *t == tid) && found.values().any(|t| *t == me));
        assert_eq!(innermost("Name:\tx\nNSpid:\t4711\t7\n"), Some(7));
        assert_eq!(innermost("Name:\tx\n"), None);
    }

    #[test]
    fn a_child_is_found_both_ways() {
        let me = i32::try_from(std::process::id()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(children_by_scan(me).unwrap().contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
