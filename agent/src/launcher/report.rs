//! Which walls stand around an executor, by what the kernel says of its processes: supervisor and worker, or the one that it has.
//!
//! Read once, after Hello, from `/proc/PID/{status,task,ns,root,limits,cgroup}` of each; only what the kernel
//! shows nowhere (Landlock, how used memories are reset) is taken from the worker's own Hello, which it says before it has run
//! anything. Owns the names and states of the layers, and which of them a host of this kind offers. Deliberately absent: what
//! happens when one is missing.

use super::ProcessHandle;
use super::threads::{self, Threads};
use crate::cgroup::ExecutorGroup;
use smalti_executor_protocol::v1::Hello;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Namespaces: our name, the kernel's.
const NAMESPACES: [(&str, &str); 6] = [
    ("user_namespace", "user"),
    ("mount_namespace", "mnt"),
    ("pid_namespace", "pid"),
    ("ipc_namespace", "ipc"),
    ("uts_namespace", "uts"),
    ("net_namespace", "net"),
];
/// What the worker says of itself.
const SAID: [&str; 2] = ["landlock", "memory_reset"];
/// `Seccomp:` of a filtered thread.
const FILTERED: &str = "2";
/// What is looked at of `/proc/PID/status`.
const FIELDS: [&str; 11] =
    ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters"];
/// Most characters of anything that an executor says.
const MAX_SAID_CHARS: usize = 300;

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    /// `on`, `on: …` or `off: why`.
    pub(super) state: String,
    /// Whether a host of this kind has it, so that its absence is a fault.
    pub(super) offered: bool,
}

impl Layer {
    fn is_on(&self) -> bool {
        self.state.starts_with("on")
    }
}

/// What is expected of each process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected<'a> {
    /// The executor's own uid; else why it has none.
    pub(super) uid: Result<u32, &'a str>,
    /// Whether namespaces were asked for.
    pub(super) namespaces: bool,
    /// Whether the agent is root: then nothing but an old kernel excuses a missing namespace.
    pub(super) root: bool,
    /// Walls that the executor itself says are open: `layer: why`.
    pub(super) warnings: &'a [String],
}

/// What the kernel says of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    status: BTreeMap<String, String>,
    /// For each namespace: whether it is another one than the agent's; none: it cannot be told, and why.
    foreign: BTreeMap<&'static str, Result<bool, String>>,
    /// Names in its root directory.
    root: Result<Vec<String>, String>,
    /// Soft limits by the kernel's names.
    limits: BTreeMap<String, String>,
    /// Threads without a filter.
    unfiltered: usize,
}

/// Reads everything of its processes.
pub(super) fn read(
    process: &ProcessHandle,
    (worker, threads): (i32, &Threads),
    group: &ExecutorGroup,
    hello: &Hello,
    expected: Expected<'_>,
) -> BTreeMap<String, Layer> {
    let supervisor = (!process.is_alone()).then(|| see(process.pid(), None));
    let seen: Vec<Seen> = supervisor.into_iter().chain([see(worker, Some(threads))]).collect();
    let mut all = judge(&seen, expected);
    for name in SAID {
        let state: String =
            hello.layers.get(name).map_or("off: the executor does not say", String::as_str).chars().take(MAX_SAID_CHARS).collect();
        all.insert(name.to_owned(), Layer { state, offered: false });
    }
    let inside = group.contains_all(&[worker, process.pid()]);
    for (name, on) in group.limits() {
        let state = match (on, inside) {
            (true, true) => "on".to_owned(),
            (true, false) => "off: its processes are not in the group".to_owned(),
            (false, _) => "off: this agent has no such control group".to_owned(),
        };
        // What the agent as a whole lacks it has said at its start.
        all.insert(name.to_owned(), Layer { state, offered: on });
    }
    all
}

/// Layers that are missing although this host offers them: `name (why)`.
pub(super) fn missing(all: &BTreeMap<String, Layer>) -> Vec<String> {
    all.iter().filter(|(_, l)| l.offered && !l.is_on()).map(|(name, l)| format!("{name} ({})", l.state)).collect()
}

/// Layers that are missing, whyever: one warning each.
pub(super) fn warnings(all: &BTreeMap<String, Layer>) -> Vec<String> {
    all.iter().filter(|(_, l)| !l.is_on()).map(|(name, l)| format!("NOT ENFORCED by the kernel: {name} ({})", l.state)).collect()
}

/// Pure: the layers that the kernel's answers stand for. Each is on when it is on for all processes.
fn judge(seen: &[Seen], expected: Expected<'_>) -> BTreeMap<String, Layer> {
    let mut all = BTreeMap::new();
    for (name, kernel) in NAMESPACES {
        let result = in_all(seen, |one| match one.foreign.get(kernel) {
            Some(Ok(true)) => Ok(String::new()),
            Some(Ok(false)) if !expected.namespaces => Err("namespaces were not asked for".to_owned()),
            Some(Ok(false)) => Err("it is the agent's own".to_owned()),
            Some(Err(e)) => Err(e.clone()),
            None => Err("not read".to_owned()),
        });
        all.insert(name, (result, expected.namespaces && expected.root));
    }
    all.insert("own_uid", (own_uid(seen, expected.uid), expected.uid.is_ok()));
    all.insert("capabilities", (in_all(seen, capabilities), true));
    all.insert("no_new_privs", (in_all(seen, |one| is(one, "NoNewPrivs", "1")), true));
    all.insert("seccomp", (in_all(seen, seccomp), true));
    all.insert("empty_root", (in_all(seen, empty_root), expected.namespaces && expected.root));
    all.insert("core_dumps", (in_all(seen, |one| limit(one, "Max core file size", 0)), true));
    all.insert("rlimits", (in_all(seen, rlimits), true));
    let layer = |(name, (result, offered)): (&str, (Result<String, String>, bool))| {
        let claimed = expected.warnings.iter().find_map(|w| w.strip_prefix(name)?.strip_prefix(": "));
        let state = match (result, claimed) {
            (Ok(_), Some(why)) => format!("off: {why}"),
            (Ok(detail), None) if detail.is_empty() => "on".to_owned(),
            (Ok(detail), None) => format!("on: {detail}"),
            (Err(seen), Some(why)) => format!("off: {seen}; {why}"),
            (Err(seen), None) => format!("off: {seen}"),
        };
        (name.to_owned(), Layer { state: state.chars().take(MAX_SAID_CHARS).collect(), offered })
    };
    all.into_iter().map(layer).collect()
}

/// The detail of the last process, or the first objection.
fn in_all(all: &[Seen], look: impl Fn(&Seen) -> Result<String, String>) -> Result<String, String> {
    all.iter().try_fold(String::new(), |_, seen| look(seen))
}

fn field<'a>(seen: &'a Seen, name: &str) -> Result<&'a str, String> {
    seen.status.get(name).map(String::as_str).ok_or_else(|| format!("the kernel does not show {name}"))
}

fn is(seen: &Seen, name: &str, wanted: &str) -> Result<String, String> {
    let value = field(seen, name)?;
    if value == wanted { Ok(String::new()) } else { Err(format!("{name} is {value}")) }
}

fn own_uid(both: &[Seen], uid: Result<u32, &str>) -> Result<String, String> {
    let uid = uid.map_err(str::to_owned)?;
    in_all(both, |seen| {
        for name in ["Uid", "Gid"] {
            let ids = field(seen, name)?;
            if ids.split_whitespace().any(|id| id != uid.to_string()) {
                return Err(format!("{name} is {ids}"));
            }
        }
        match field(seen, "Groups")? {
            "" => Ok(uid.to_string()),
            groups => Err(format!("it is in the groups {groups}")),
        }
    })
}

fn capabilities(seen: &Seen) -> Result<String, String> {
    let empty = |name: &str| field(seen, name).map(|set| set.chars().all(|c| c == '0'));
    for name in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        if !empty(name)? {
            return Err(format!("{name} is {}", field(seen, name)?));
        }
    }
    if empty("CapBnd")? {
        return Ok(String::new());
    }
    // Without privilege it cannot be emptied; with no_new_privs nothing is gained through it.
    is(seen, "NoNewPrivs", "1").map(|_| "none held; the bounding set is not empty and no_new_privs keeps it without effect".to_owned())
}

fn seccomp(seen: &Seen) -> Result<String, String> {
    is(seen, "Seccomp", FILTERED)?;
    if seen.unfiltered > 0 {
        return Err(format!("{} threads have no filter", seen.unfiltered));
    }
    Ok(field(seen, "Seccomp_filters").map_or_else(|_| String::new(), |n| format!("{n} filters")))
}

fn empty_root(seen: &Seen) -> Result<String, String> {
    match &seen.root {
        Ok(names) if names.is_empty() => Ok(String::new()),
        Ok(names) => Err(format!("it sees {} files and directories", names.len())),
        Err(e) => Err(e.clone()),
    }
}

fn limit(seen: &Seen, name: &str, most: u64) -> Result<String, String> {
    let value = seen.limits.get(name).ok_or_else(|| format!("the kernel does not show {name:?}"))?;
    if value.parse().is_ok_and(|n: u64| n <= most) { Ok(value.clone()) } else { Err(format!("{name} is {value}")) }
}

/// Most open files that an executor sets itself.
const MAX_OPEN_FILES: u64 = 65_536;

fn rlimits(seen: &Seen) -> Result<String, String> {
    let files = limit(seen, "Max open files", MAX_OPEN_FILES)?;
    limit(seen, "Max locked memory", 0)?;
    let or_none = |name: &str| seen.limits.get(name).map_or("unknown", String::as_str);
    Ok(format!("{files} open files, {} processes, files of {} bytes", or_none("Max processes"), or_none("Max file size")))
}

/// `threads`: the process's, where they have been read already.
fn see(pid: i32, threads: Option<&Threads>) -> Seen {
    let text = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let own = own_namespaces();
    let foreign = |name| {
        let theirs = namespace(&pid.to_string(), name)?;
        own.get(name).map_or_else(|| Err("the agent's own is not known".to_owned()), |ours| Ok(theirs != *ours.as_ref()?))
    };
    let read = threads.map_or_else(|| Cow::Owned(Threads::read(pid).unwrap_or_default()), Cow::Borrowed);
    Seen {
        // What the kernel says of a process there is what it says of its first thread.
        status: parse_status(read.status(pid).unwrap_or_default()),
        foreign: NAMESPACES.iter().map(|(_, name)| (*name, foreign(name))).collect(),
        root: names(Path::new(&format!("/proc/{pid}/root"))),
        limits: parse_limits(&text("limits")),
        unfiltered: read.statuses().filter(|status| threads::field(status, "Seccomp:").map(str::trim) != Some(FILTERED)).count(),
    }
}

fn namespace(of: &str, name: &str) -> Result<PathBuf, String> {
    std::fs::read_link(format!("/proc/{of}/ns/{name}")).map_err(|e| format!("/proc/{of}/ns/{name}: {e}"))
}

/// The agent's own, which it never leaves.
fn own_namespaces() -> &'static BTreeMap<&'static str, Result<PathBuf, String>> {
    static OWN: OnceLock<BTreeMap<&'static str, Result<PathBuf, String>>> = OnceLock::new();
    OWN.get_or_init(|| NAMESPACES.iter().map(|(_, name)| (*name, namespace("self", name))).collect())
}

fn names(directory: &Path) -> Result<Vec<String>, String> {
    let entries = std::fs::read_dir(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    Ok(entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
}

/// `Name:\tvalue` lines, of those that are looked at.
fn parse_status(text: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| {
        let (name, value) = line.split_once(':')?;
        FIELDS.contains(&name).then(|| (name.to_owned(), value.trim().to_owned()))
    };
    text.lines().filter_map(pair).collect()
}

/// A table whose columns are set apart by two spaces or more: name, soft, hard, unit.
fn parse_limits(text: &str) -> BTreeMap<String, String> {
    let row = |line: &str| {
        let (name, rest) = line.split_once("  ")?;
        Some((name.to_owned(), rest.split_whitespace().next()?.to_owned()))
    };
    text.lines().skip(1).filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tx\nUid:\t70000\t70000\t70000\t70000\nGid:\t70000\t70000\t70000\t70000\nGroups:\t \n\
        CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n\
        CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n";
    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
        Max file size             1000                 1000                 bytes     \n\
        Max core file size        0                    0                    bytes     \n\
        Max processes             112                  112                  processes \n\
        Max open files            65536                65536                files     \n\
        Max locked memory         0                    0                    bytes     \n";

    fn good() -> Seen {
        Seen {
            status: parse_status(STATUS),
            limits: parse_limits(LIMITS),
            foreign: NAMESPACES.iter().map(|(_, name)| (*name, Ok(true))).collect(),
            root: Ok(Vec::new()),
            unfiltered: 0,
        }
    }

    fn expected() -> Expected<'static> {
        Expected { uid: Ok(70_000), namespaces: true, root: true, warnings: &[] }
    }

    /// Layers that are off when both processes are good but for one change to one of them.
    fn off(change: impl Fn(&mut Seen)) -> Vec<String> {
        let mut bad = good();
        change(&mut bad);
        let forwards = missing(&judge(&[good(), bad.clone()], expected()));
        assert_eq!(forwards, missing(&judge(&[bad, good()], expected())), "it counts for either process");
        forwards
    }

    #[test]
    fn everything_in_force_is_on() {
        let all = judge(&[good(), good()], expected());
        assert_eq!(missing(&all), Vec::<String>::new());
        assert_eq!(all["own_uid"].state, "on: 70000");
        assert_eq!(all["seccomp"].state, "on: 2 filters");
        assert_eq!(all["rlimits"].state, "on: 65536 open files, 112 processes, files of 1000 bytes");
        assert_eq!(all.len(), 13);
    }

    #[test]
    fn each_hole_in_either_process_is_seen() {
        let set = |name: &'static str, value: &'static str| move |s: &mut Seen| drop(s.status.insert(name.into(), value.into()));
        assert_eq!(off(set("Uid", "70000\t0\t70000\t70000")), ["own_uid (off: Uid is 70000\t0\t70000\t70000)"]);
        assert_eq!(off(set("Groups", "0 27")), ["own_uid (off: it is in the groups 0 27)"]);
        assert_eq!(off(set("CapEff", "0000000000200000")), ["capabilities (off: CapEff is 0000000000200000)"]);
        assert_eq!(off(set("NoNewPrivs", "0")), ["no_new_privs (off: NoNewPrivs is 0)"]);
        assert_eq!(off(set("Seccomp", "0")), ["seccomp (off: Seccomp is 0)"]);
        assert_eq!(off(|s| s.unfiltered = 1), ["seccomp (off: 1 threads have no filter)"]);
        assert_eq!(off(|s| s.root = Ok(vec!["etc".into()])), ["empty_root (off: it sees 1 files and directories)"]);
        assert_eq!(off(|s| drop(s.foreign.insert("net", Ok(false)))), ["net_namespace (off: it is the agent's own)"]);
        assert_eq!(off(|s| drop(s.limits.remove("Max core file size"))).len(), 1);
        assert_eq!(off(|s| drop(s.limits.insert("Max locked memory".into(), "unlimited".into()))).len(), 1);
    }

    #[test]
    fn what_the_executor_admits_counts_and_what_a_host_lacks_is_no_fault() {
        let warnings = ["empty_root: exchanging the root: Invalid argument".to_owned()];
        let all = judge(&[good(), good()], Expected { warnings: &warnings, ..expected() });
        assert_eq!(missing(&all), ["empty_root (off: exchanging the root: Invalid argument)"]);
        let mut poor = good();
        poor.foreign.insert("user", Ok(false));
        let unprivileged = Expected { uid: Err("the agent is not root"), root: false, ..expected() };
        let all = judge(&[poor.clone(), poor], unprivileged);
        assert_eq!(missing(&all), Vec::<String>::new());
        assert_eq!(all["own_uid"].state, "off: the agent is not root");
        assert_eq!(super::warnings(&all).len(), 2);
    }
}
