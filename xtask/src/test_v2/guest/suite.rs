//! One test program: started as its user in its group, followed, judged.

use super::super::plan::{Outcome, Place, Plan, Suite};
use super::setup::{CGROUPS, USER};
use super::{Console, leftovers};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Emulation is this much slower than a machine: every time limit of the tests is multiplied by it.
const PATIENCE: &str = "10";
/// Longest wait for what a suite started to be gone after it: groups are removed behind executors' ends.
const LEFTOVERS_LIMIT: Duration = Duration::from_secs(20);

/// What a test program prints, as far as it decides.
#[derive(Debug, Default)]
struct Seen {
    passed: u32,
    failed: Vec<String>,
    /// Whether it said that it was through.
    complete: bool,
}

impl Seen {
    /// Pure: one line of a test program's output.
    fn line(&mut self, line: &str) {
        if line.starts_with("test result:") {
            self.complete = true;
            return;
        }
        let Some(rest) = line.strip_prefix("test ") else { return };
        if rest.ends_with(" ok") {
            self.passed += 1;
        } else if let Some((name, _)) = rest.split_once(" ... FAILED") {
            self.failed.push(name.to_owned());
        }
    }
}

pub(super) fn run(suite: &Suite, plan: &Plan, session: &Path, console: &Console) -> Result<Outcome> {
    let start = Instant::now();
    let before = leftovers::State::now();
    console.line(&format!("== {}", suite.name));
    let seen = Arc::new(Mutex::new(Seen::default()));
    let child = start_in_place(suite, plan, session, console, &seen)?;
    let mut wrong = Vec::new();
    if let Some(how) = follow(child, start + Duration::from_secs(suite.limit_s)) {
        wrong.push(how);
    }
    let until = Instant::now() + LEFTOVERS_LIMIT;
    let mut left = before.left_behind();
    while !left.is_empty() && Instant::now() < until {
        reap();
        std::thread::sleep(Duration::from_millis(50));
        left = before.left_behind();
    }
    wrong.extend(left.into_iter().map(|what| format!("left behind: {what}")));
    before.remove_what_is_left();
    let seen = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
    if !seen.complete {
        wrong.push("the test program did not come to its end".into());
    } else if seen.passed == 0 && seen.failed.is_empty() && plan.none_is_failure {
        wrong.push("no test ran".into());
    }
    if !seen.failed.is_empty() {
        // The program's own exit code says no more than that.
        wrong.retain(|w| !w.starts_with("ended with code"));
    }
    Ok(Outcome { suite: suite.name.clone(), passed: seen.passed, failed: seen.failed, seconds: start.elapsed().as_secs(), wrong })
}

/// Starts it; its lines go to the console. This process joins the group for that moment: a child begins where its parent is.
fn start_in_place(suite: &Suite, plan: &Plan, session: &Path, console: &Console, seen: &Arc<Mutex<Seen>>) -> Result<Pid> {
    let (reader, writer) = std::io::pipe().context("a pipe")?;
    let mut c = Command::new(&suite.program);
    c.args(&suite.args).current_dir(&plan.workspace).env_clear();
    c.envs([("PATH", "/usr/bin:/bin:/usr/sbin:/sbin"), ("HOME", "/tmp"), ("RUST_BACKTRACE", "1"), ("SMALTI_TEST_PATIENCE", PATIENCE)]);
    c.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let place = match suite.place {
        Place::Root => Path::new(CGROUPS),
        Place::Delegated => {
            c.uid(USER).gid(USER);
            session
        }
    };
    join(place)?;
    let child = c.spawn().with_context(|| format!("starting {}", suite.program.display()));
    join(Path::new(CGROUPS))?;
    let child = child?;
    // The command holds the pipe's other end.
    drop(c);
    let (console, seen) = (console.clone(), seen.clone());
    std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            seen.lock().unwrap_or_else(PoisonError::into_inner).line(&line);
            console.line(&line);
        }
    });
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

fn join(group: &Path) -> Result<()> {
    std::fs::write(group.join("cgroup.procs"), "0").with_context(|| format!("joining {}", group.display()))
}

/// Waits for its end and buries every orphan meanwhile. Gives what was wrong with the end.
fn follow(child: Pid, until: Instant) -> Option<String> {
    let mut killed = false;
    loop {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => {
                return (code != 0).then(|| format!("ended with code {code}"));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return Some(if killed { "took too long".into() } else { format!("ended by {signal}") });
            }
            Ok(WaitStatus::StillAlive) | Err(_) => std::thread::sleep(Duration::from_millis(10)),
            Ok(_) => {}
        }
        if Instant::now() > until && !killed {
            killed = true;
            let _ = kill(Pid::from_raw(-child.as_raw()), Signal::SIGKILL);
        }
    }
}

fn reap() {
    while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_programs_lines() {
        let mut seen = Seen::default();
        for line in ["running 3 tests", "test a::b ... ok", "test c::d ... FAILED", "test e ... ignored", "test f - should panic ... ok"] {
            seen.line(line);
        }
        assert!(!seen.complete);
        seen.line("test result: FAILED. 2 passed; 1 failed");
        assert_eq!((seen.passed, seen.failed.as_slice(), seen.complete), (2, ["c::d".to_owned()].as_slice(), true));
    }
}
