//! Every hostile guest ends as the table says, and harms nobody: the executor that ran it goes on, a benign task in the same
//! executor succeeds, the agent lives, and nothing is left behind.

use crate::executors::{executor_pids, groups};
use crate::hostile_generate::GENERATED;
use crate::hostile_table::{self as table, Case, Input};
use crate::{Result, eventually, guest, is_root, one_agent};
use anyhow::{Context, bail, ensure};
use smalti_tests::{Cluster, Finished, workspace_root};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Longest message of a status, whatever a guest calls its functions.
const MAX_MESSAGE: usize = 2048;
/// Resident memory of an executor that has run all of them, without what is mapped from files: its own, and the pages that
/// each of its two slots keeps.
const MAX_RESIDENT_KIB: u64 = 96 << 10;

/// The two isolation classes as flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Instance,
    Process,
}

impl Class {
    const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Instance => &[],
            Self::Process => &["--isolation", "process"],
        }
    }
}

/// The guest as a file that `smalti run` takes. `p2:` means a program in Rust as a component.
pub(crate) fn bundle_of(c: &Cluster, name: &str) -> Result<PathBuf> {
    if let Some(program) = name.strip_prefix("p2:") {
        return c.paths.component(&format!("hostile-{program}"));
    }
    if workspace_root().join("wasm-examples/hostile").join(format!("{name}.rs")).exists() {
        return c.paths.guest(&format!("hostile-{name}"));
    }
    let text = workspace_root().join("wasm-examples/hostile").join(format!("{name}.wat"));
    if text.exists() {
        return Ok(text);
    }
    let make = GENERATED.iter().find(|(other, _)| *other == name).with_context(|| format!("no guest is called {name}"))?.1;
    let path = c.dir().join(format!("{name}.wasm"));
    std::fs::write(&path, make())?;
    Ok(path)
}

/// The guest in an archive, so that it has one preopened directory.
pub(crate) fn with_directory(c: &Cluster, name: &str) -> Result<PathBuf> {
    let path = c.dir().join(format!("{name}.tar"));
    archive(&path, &std::fs::read(bundle_of(c, name)?)?)?;
    Ok(path)
}

fn archive(path: &std::path::Path, program: &[u8]) -> Result {
    let mut archive = tar::Builder::new(std::fs::File::create(path)?);
    for (name, content) in [("main.wasm", program), ("asset.txt", b"an asset\n")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        archive.append_data(&mut header, name, content)?;
    }
    archive.into_inner()?;
    Ok(())
}

fn run(c: &Cluster, case: &Case, class: Class) -> Result<Finished> {
    let mut words = case.guest.split(' ');
    let name = words.next().unwrap_or_default();
    let bundle = if case.input == Input::Dir { with_directory(c, name)? } else { bundle_of(c, name)? };
    let bundle = bundle.display().to_string();
    let words: Vec<&str> = words.collect();
    // Nothing ends by that limit; on an emulated machine it is longer.
    let ample = format!("{}s", smalti_tests::patience(table::AMPLE_TIME).as_secs());
    let flags: Vec<&str> = case.flags.iter().map(|flag| if *flag == table::AMPLE { &*ample } else { flag }).collect();
    let args = [&["run"], class.flags(), &flags, &[&*bundle, "--"], &words].concat();
    match case.input {
        Input::Stdin(bytes) => c.smalti_with_stdin(&args, &vec![b'x'; bytes]),
        Input::None | Input::Dir => c.smalti(&args),
    }
}

/// What is wrong with how it ended, if anything.
fn check(c: &Cluster, case: &Case, class: Class) -> Result<Vec<String>> {
    let done = run(c, case, class)?;
    let tasks = c.json(&["ps", "--all"])?;
    let task = tasks.as_array().and_then(|t| t.last()).context("a task")?;
    let text = |key: &str| task[key].as_str().unwrap_or("").to_owned();
    let (state, reason, message) = (text("state"), text("reason"), text("message"));
    let mut wrong = Vec::new();
    let mut expect = |what: &str, found: &str, due: &str| {
        if found != due {
            wrong.push(format!("{} {:?}: {what} is {found:?}, not {due:?} ({message})", case.guest, case.flags));
        }
    };
    expect("state", &state, case.state);
    expect("reason", &reason, case.reason);
    expect("exit code", &done.code.to_string(), &case.code.to_string());
    if !message.contains(case.message) {
        wrong.push(format!("{}: no {:?} in {message:?}", case.guest, case.message));
    }
    if message.len() > MAX_MESSAGE {
        wrong.push(format!("{}: a message of {} bytes", case.guest, message.len()));
    }
    Ok(wrong)
}

/// Runs the cases one after the other on one agent, a benign task after each, and looks at what remains.
fn all_end_as_they_should(cases: &[Case], class: Class) -> Result {
    let c = one_agent("2")?;
    let hello = guest(&c, "hello")?;
    // Somebody else's task in the same executor: it is still the same attempt at the end.
    let bystander = c.ok(&["submit", "--cpus", "0.1", &guest(&c, "misbehave")?, "--", "sleep", "3600000"])?;
    ensure!(c.smalti(&["run", &hello])?.code == 0, "the benign task runs");
    let before = executor_pids(&c, " work")?;
    ensure!(before.len() == 1, "one executor: {before:?}");
    let mut wrong = Vec::new();
    for case in cases {
        wrong.extend(check(&c, case, class)?);
        let done = c.smalti(&["run", &hello])?;
        if (done.code, done.stdout.as_str()) != (0, "Hello from Smalti\n") {
            wrong.push(format!("{}: the benign task behind it: {} {} {}", case.guest, done.code, done.stdout, done.stderr));
        }
        let now = executor_pids(&c, " work")?;
        // Class process has executors of its own, which come and go beside the one that was there.
        if !now.contains(&before[0]) || (class == Class::Instance && now != before) {
            wrong.push(format!("{}: the executor did not survive it", case.guest));
        }
    }
    let tasks = c.json(&["ps"])?;
    let alive = tasks.as_array().is_some_and(|t| t.len() == 1 && t[0]["state"] == "RUNNING" && t[0]["attempt"] == 0);
    ensure!(alive, "the bystander: {tasks}\n{}", c.logs());
    let resident = anonymous_kib(before[0])?;
    eprintln!("{} guests; the executor keeps {resident} KiB", cases.len());
    c.ok(&["kill", "--grace", "0s", bystander.trim()])?;
    ensure!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), c.logs());
    ensure!(resident < MAX_RESIDENT_KIB, "the executor keeps {resident} KiB");
    nothing_is_left(c)
}

/// Memory of a process that is not mapped from a file.
fn anonymous_kib(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).context("RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// No process, cgroup, mount or file of the cluster is there after its end.
fn nothing_is_left(c: Cluster) -> Result {
    let agent = c.json(&["agents"])?[0]["id"].as_str().context("an id")?.to_owned();
    let dir = c.dir().to_owned();
    let pids = executor_pids(&c, "")?;
    drop(c);
    eventually("no cgroup is left", || Ok(groups(&agent)?.is_empty()))?;
    eventually("no process is left", || Ok(pids.iter().all(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_err())))?;
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    ensure!(!mounts.contains(&*dir.to_string_lossy()), "{mounts}");
    ensure!(!dir.exists(), "{} is still there", dir.display());
    Ok(())
}

#[test]
fn guests_that_compute_recurse_or_grow() -> Result {
    all_end_as_they_should(table::COMPUTE, Class::Instance)
}

#[test]
fn guests_that_ask_the_host_for_too_much() -> Result {
    all_end_as_they_should(table::HOST_CALLS, Class::Instance)
}

#[test]
fn hostile_components() -> Result {
    all_end_as_they_should(table::COMPONENTS, Class::Instance)
}

#[test]
fn bundles_that_are_off_limits_or_trouble_the_compiler() -> Result {
    all_end_as_they_should(table::BUNDLES, Class::Instance)
}

#[test]
fn guests_that_compute_recurse_or_grow_in_processes_of_their_own() -> Result {
    all_end_as_they_should(table::COMPUTE, Class::Process)
}

#[test]
fn guests_that_ask_the_host_for_too_much_in_processes_of_their_own() -> Result {
    all_end_as_they_should(table::HOST_CALLS, Class::Process)
}

#[test]
fn hostile_components_in_processes_of_their_own() -> Result {
    all_end_as_they_should(table::COMPONENTS, Class::Process)
}

#[test]
fn guests_with_a_disk() -> Result {
    if !is_root() {
        eprintln!("NOT TESTED: disks need the right to mount, and this is not root");
        return Ok(());
    }
    all_end_as_they_should(table::DISKS, Class::Instance)
}

#[test]
fn guests_with_a_disk_in_processes_of_their_own() -> Result {
    if !is_root() {
        eprintln!("NOT TESTED: disks need the right to mount, and this is not root");
        return Ok(());
    }
    all_end_as_they_should(table::DISKS, Class::Process)
}

#[test]
fn every_hostile_guest_has_a_test_and_every_test_a_guest() -> Result {
    let mut guests: BTreeSet<String> = GENERATED.iter().map(|(name, _)| (*name).to_owned()).collect();
    for entry in std::fs::read_dir(workspace_root().join("wasm-examples/hostile"))? {
        let path = entry?.path();
        match (path.file_stem().and_then(|s| s.to_str()), path.extension().and_then(|e| e.to_str())) {
            (Some(stem), Some("wat")) => ensure!(guests.insert(stem.to_owned()), "{stem} is there twice"),
            (Some(stem), Some("rs")) => guests.extend(commands(&std::fs::read_to_string(&path)?).map(|c| format!("{stem}{c}"))),
            other => bail!("{other:?} is no guest"),
        }
    }
    let name = |case: &Case| case.guest.trim_start_matches("p2:").split(' ').take(2).collect::<Vec<_>>().join(" ");
    let tested: BTreeSet<String> = table::all().map(name).collect();
    assert_eq!(guests.difference(&tested).collect::<Vec<_>>(), Vec::<&String>::new(), "guests without a test");
    assert_eq!(tested.difference(&guests).collect::<Vec<_>>(), Vec::<&String>::new(), "tests without a guest");
    Ok(())
}

/// What a program in Rust can be told to do: the arms of its `match what`, each with a space before it; one empty word where
/// there is nothing to choose.
fn commands(source: &str) -> impl Iterator<Item = String> {
    let arms = source.split_once("match what.as_str() {").and_then(|(_, rest)| rest.split_once("other =>")).map_or("", |(arms, _)| arms);
    let words: Vec<String> = arms.lines().filter_map(|l| Some(format!(" {}", l.trim().strip_prefix('"')?.split_once('"')?.0))).collect();
    if words.is_empty() { vec![String::new()] } else { words }.into_iter()
}

#[test]
fn every_exit_code_arrives() -> Result {
    let c = one_agent("2")?;
    let path = c.dir().join("exits-with-its-item.wat");
    std::fs::write(&path, EXITS_WITH_ITS_ITEM)?;
    let job = c.ok(&["submit", "--items", "256", &path.display().to_string()])?;
    c.smalti(&["wait", job.trim()])?;
    let items = c.json(&["ps", "--all", "--items"])?;
    let items = items.as_array().context("a list")?;
    assert_eq!(items.len(), 256);
    for item in items {
        let n = item["item"].as_i64().context("an item")?;
        let due = match n {
            0 => ("FINISHED", Some(0)),
            1..=125 => ("FAILED", Some(n)),
            _ => ("FAILED", None),
        };
        assert_eq!((item["state"].as_str(), item["exit_code"].as_i64()), (Some(due.0), due.1), "{item}");
    }
    Ok(())
}

/// Reads `SMALTI_ITEM` (the first variable) and exits with its number.
const EXITS_WITH_ITS_ITEM: &str = r#"(module
  (import "wasi_snapshot_preview1" "environ_get" (func $get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 60000) "SMALTI_ITEM=")
  (func (export "_start") (local $n i32) (local $at i32) (local $i i32)
    (drop (call $get (i32.const 0) (i32.const 1000)))
    (local.set $at (i32.const 1000))
    (block $found (loop $search
      (local.set $i (i32.const 0))
      (block $no
        (loop $compare
          (br_if $no (i32.ne (i32.load8_u (i32.add (local.get $at) (local.get $i))) (i32.load8_u offset=60000 (local.get $i))))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br_if $compare (i32.lt_u (local.get $i) (i32.const 12))))
        (br $found))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br $search)))
    (local.set $at (i32.add (local.get $at) (i32.const 12)))
    (loop $digit
      (local.set $n (i32.add (i32.mul (local.get $n) (i32.const 10)) (i32.sub (i32.load8_u (local.get $at)) (i32.const 48))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $digit (i32.load8_u (local.get $at))))
    (call $exit (local.get $n))))"#;
