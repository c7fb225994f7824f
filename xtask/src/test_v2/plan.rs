//! What is run inside the machine, and what it says of it: the values that host and machine exchange.
//!
//! The plan goes in as a file of the first file system; events come out as marked lines on the serial console.

use super::kernel::Series;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Marks a line of the console as an event; everything else on it is for people.
const MARK: &str = "@@v2 ";

/// As whom a suite runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Place {
    /// As root in the root of the hierarchy.
    Root,
    /// As an ordinary user in a part of the hierarchy that belongs to it, as systemd's `Delegate=yes` makes it.
    Delegated,
}

/// One test program with its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Suite {
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) args: Vec<String>,
    pub(super) place: Place,
    /// After this many seconds it is killed and has failed.
    pub(super) limit_s: u64,
}

/// Everything that a machine is to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// The repository: the suites' working directory.
    pub(super) workspace: PathBuf,
    pub(super) suites: Vec<Suite>,
    /// Whether a suite of which no test ran has failed.
    pub(super) none_is_failure: bool,
}

/// What the machine says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Event {
    /// It is up.
    Ready {
        kernel: String,
        controllers: String,
        /// Version of Landlock's interface, 0 without.
        landlock: u32,
        pagemap_scan: bool,
    },
    /// A suite has ended.
    Ended(Outcome),
    /// Everything is done, and it turns itself off.
    Finished,
    /// It cannot go on.
    Broken { why: String },
}

/// How a suite ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) suite: String,
    pub(super) passed: u32,
    /// Names of tests that failed.
    pub(super) failed: Vec<String>,
    pub(super) seconds: u64,
    /// What is wrong beyond single tests: how the program ended, and what it left behind.
    pub(super) wrong: Vec<String>,
}

impl Outcome {
    pub(super) fn is_good(&self) -> bool {
        self.failed.is_empty() && self.wrong.is_empty()
    }
}

impl Event {
    /// A line of the console.
    pub(super) fn to_line(&self) -> String {
        format!("{MARK}{}", serde_json::to_string(self).unwrap_or_default())
    }

    /// The event in a line of the console; kernel messages may stand before it.
    pub(super) fn of_line(line: &str) -> Option<Self> {
        serde_json::from_str(line.split_once(MARK)?.1.trim()).ok()
    }
}

/// Test programs, as Cargo built them.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) agent: PathBuf,
    pub(super) executor: PathBuf,
    pub(super) e2e: PathBuf,
}

/// Modules of the agent's unit tests that touch the kernel's limits.
const AGENT: &[&str] = &["cgroup::", "launcher::", "detect::"];
/// Modules of the executor's unit tests that do: the others compile guests for minutes under emulation, and depend on no kernel.
const EXECUTOR: &[&str] = &["confine::", "supervise"];
/// End-to-end modules, by what they promise.
const E2E: &[&str] = &["limits::", "kill::", "executors::", "isolation::", "resources::", "guests::", "cgroup_v2::"];
/// Hostile guests in both classes, the disks that they fill, and what the kernel promises in class `process`. Bundles that trouble the
/// compiler are not among them: no kernel changes what comes of them, and emulated compilation is beyond every limit.
const E2E_HOSTILE: &[&str] = &["hostile::guests", "hostile::hostile", "hostile::every", "disk::", "process_class::"];
/// A thousand processes one after the other take minutes under emulation.
const NOT_HOSTILE: &[&str] = &["--skip", "a_thousand_in_a_row"];
/// The smaller choice, for the second kernel.
const E2E_SMALL: &[&str] = &["limits::", "executors::", "isolation::", "cgroup_v2::"];
/// What of it the kernel alone decides.
const E2E_QUICK: &[&str] = &["limits::a_memory_limit", "limits::cpu_is_limited", "isolation::", "cgroup_v2::"];

/// Which end-to-end tests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    root: &'static [&'static str],
    delegated: &'static [&'static str],
    hostile: bool,
}

/// The least that shows that limits and walls hold on a kernel.
pub(super) const QUICK: Choice = Choice { root: E2E_QUICK, delegated: E2E_QUICK, hostile: false };

/// All that the kernel has a part in; on the second kernel less of it.
pub(super) const fn full(series: Series) -> Choice {
    match series {
        Series::V6_12 => Choice { root: E2E, delegated: E2E_SMALL, hostile: true },
        Series::V6_1 => Choice { root: E2E_SMALL, delegated: E2E_SMALL, hostile: false },
    }
}

/// Longest time of one suite: the hostile guests take half an hour when the machine has something else to do.
const LIMIT_S: u64 = 3600;

/// Pure: what runs on a kernel. `filter`, if there is any, replaces every choice of modules.
pub(super) fn plan(choice: Choice, programs: &Programs, workspace: &Path, filter: &[String]) -> Plan {
    let suite = |name: &str, program: &Path, tests: &[&str], place| {
        let args = if filter.is_empty() { tests.iter().map(|t| (*t).to_owned()).collect() } else { filter.to_vec() };
        Suite { name: name.to_owned(), program: program.to_owned(), args, place, limit_s: LIMIT_S }
    };
    let mut suites = vec![
        suite("agent", &programs.agent, AGENT, Place::Root),
        suite("executor", &programs.executor, EXECUTOR, Place::Root),
        suite("e2e", &programs.e2e, choice.root, Place::Root),
        suite("agent, delegated", &programs.agent, AGENT, Place::Delegated),
        suite("e2e, delegated", &programs.e2e, choice.delegated, Place::Delegated),
    ];
    if choice.hostile && filter.is_empty() {
        suites.push(suite("e2e, hostile", &programs.e2e, &[E2E_HOSTILE, NOT_HOSTILE].concat(), Place::Root));
    }
    Plan { workspace: workspace.to_owned(), suites, none_is_failure: filter.is_empty() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_console() {
        let outcome = Outcome { suite: "e2e".into(), passed: 3, failed: vec!["a::b".into()], seconds: 9, wrong: vec![] };
        assert!(!outcome.is_good());
        let event = Event::Ended(outcome);
        assert_eq!(Event::of_line(&format!("[    1.2] x {}\r", event.to_line())), Some(event));
        assert_eq!(Event::of_line("test a ... ok"), None);
        assert_eq!(Event::of_line("@@v2 {\"Unknown\":1}"), None);
    }

    #[test]
    fn a_filter_replaces_the_choice() {
        let programs = Programs { agent: "/a".into(), executor: "/x".into(), e2e: "/e".into() };
        let all = plan(full(Series::V6_12), &programs, Path::new("/w"), &[]);
        assert!(all.none_is_failure && all.suites.iter().any(|s| s.place == Place::Delegated));
        let some = plan(full(Series::V6_1), &programs, Path::new("/w"), &["limits::".to_owned()]);
        assert!(!some.none_is_failure && some.suites.iter().all(|s| s.args == ["limits::"]));
    }
}
