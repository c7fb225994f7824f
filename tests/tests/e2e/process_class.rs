//! Class `process`: an executor for one task alone, ready before the task is known, gone after it.

use crate::{Result, eventually, guest, has_cgroups, one_agent};
use anyhow::Context;
use serde_json::Value;
use smalti_tests::{AgentConfig, Cluster, Config};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// `smalti run --isolation process FLAGS GUEST -- ARGS`.
fn run(c: &Cluster, flags: &[&str], guest: &str, args: &[&str]) -> Result<smalti_tests::Finished> {
    c.smalti(&[&["run", "--isolation", "process"], flags, &[guest, "--"], args].concat())
}

/// One agent of two cpus with further flags.
fn agent_with(flags: &[&str]) -> Result<Cluster> {
    let flags = flags.iter().map(|f| (*f).to_owned()).collect();
    Cluster::start(Config { agents: vec![AgentConfig { cpus: "2".into(), flags, ..AgentConfig::default() }], ..Config::default() })
}

/// The first agent's executors as it reports them, about once a second.
fn executors(c: &Cluster) -> Result<Vec<Value>> {
    Ok(c.json(&["agents"])?[0]["executors"].as_array().context("executors of an agent")?.clone())
}

/// Executors of this kind with a task.
fn busy(c: &Cluster, kind: &str) -> Result<Vec<Value>> {
    Ok(executors(c)?.into_iter().filter(|e| e["kind"] == kind && e["busy_slots"] == 1).collect())
}

fn pids(executors: &[Value]) -> BTreeSet<i64> {
    executors.iter().filter_map(|e| e["pid"].as_i64()).collect()
}

fn is_alive(pid: i64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !matches!(rest.trim().chars().next(), None | Some('Z' | 'X')))
}

fn submit(c: &Cluster, flags: &[&str], guest: &str, args: &[&str]) -> Result<String> {
    Ok(c.ok(&[&["submit", "--isolation", "process"], flags, &[guest, "--"], args].concat())?.trim().to_owned())
}

fn task(c: &Cluster, job: &str) -> Result<Value> {
    let tasks = c.json(&["ps", "--all"])?;
    Ok(tasks.as_array().context("a list")?.iter().find(|t| t["job_id"] == job).cloned().unwrap_or_default())
}

#[test]
fn every_example_guest_runs_in_a_process_of_its_own() -> Result {
    let c = one_agent("2")?;
    let done = run(&c, &["--env", "GREETING=Salve"], &guest(&c, "hello")?, &["a b", "--exit", "7"])?;
    assert_eq!((done.code, done.stdout.lines().next()), (7, Some("Salve from Smalti")), "{}", done.stderr);
    let component = c.paths.component("hello")?.display().to_string();
    assert_eq!(run(&c, &[], &component, &[])?.stdout, "Hello from Smalti\n");
    assert_eq!(run(&c, &[], &guest(&c, "primes")?, &["1000"])?.stdout, "168 primes below 1000\n");
    let text = b"abc\nxyz\nbbb\n";
    let letters = guest(&c, "count-lines-with")?;
    let counted = c.smalti_with_stdin(&["run", "--isolation", "process", &letters, "--", "b"], text)?;
    assert_eq!((counted.code, counted.stdout.as_str()), (0, "2\n"), "{}", counted.stderr);
    for name in ["empty", "whoami"] {
        let done = run(&c, &[], &guest(&c, name)?, &[])?;
        assert_eq!(done.code, 0, "{name}: {}", done.stderr);
    }
    let words = c.dir().join("words.txt");
    std::fs::write(&words, "b a\na\n")?;
    let words = words.display().to_string();
    let wordcount = guest(&c, "wordcount")?;
    let args = ["map", "--isolation", "process", "--inputs", &words, "--reduce", &wordcount, "--reduce-arg", "--merge", &wordcount];
    let in_process = c.ok(&args)?;
    let shared = c.ok(&args.iter().copied().filter(|a| !matches!(*a, "--isolation" | "process")).collect::<Vec<_>>())?;
    assert_eq!(in_process, shared);
    assert!(busy(&c, "pooled")?.is_empty() || pids(&busy(&c, "pooled")?).iter().all(|p| *p > 0));
    Ok(())
}

#[test]
fn two_tasks_have_two_processes_which_end_with_them() -> Result {
    let c = one_agent("2")?;
    let misbehave = guest(&c, "misbehave")?;
    let jobs = [submit(&c, &[], &misbehave, &["sleep", "3600000"])?, submit(&c, &[], &misbehave, &["sleep", "3600000"])?];
    eventually("two executors have a task each", || Ok(busy(&c, "pooled")?.len() == 2))?;
    let both = busy(&c, "pooled")?;
    let running = pids(&both);
    assert!(running.len() == 2 && running.iter().all(|p| is_alive(*p)), "{both:?}");
    assert!(both.iter().all(|e| e["slots"] == 1 && e["framework_id"] != ""), "{both:?}");
    // 64 MiB of the task, and an overhead that is the same for all.
    let limits: BTreeSet<_> = both.iter().filter_map(|e| e["memory_limit"].as_u64()).collect();
    assert!(limits.len() == 1 && limits.iter().all(|l| (64 << 20..256 << 20).contains(l)), "{limits:?}");
    let uids: BTreeSet<_> = both.iter().filter_map(|e| e["uid"].as_u64()).collect();
    if nix::unistd::geteuid().is_root() {
        assert_eq!(uids.len(), 2, "each has a user of its own: {both:?}");
        // With those of the pool, all that live: none is in a namespace of another's, or of the host's.
        let pids: Vec<String> = pids(&executors(&c)?).iter().map(ToString::to_string).chain(["self".to_owned()]).collect();
        for kind in ["user", "mnt", "pid_for_children", "ipc", "uts", "net"] {
            let names = pids.iter().map(|pid| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")));
            let names = names.collect::<std::io::Result<BTreeSet<_>>>()?;
            assert_eq!(names.len(), pids.len(), "{kind}: {names:?}");
        }
    }
    for job in &jobs {
        c.ok(&["kill", "--grace", "0s", job])?;
        assert_eq!(c.smalti(&["wait", job])?.code, 137);
    }
    eventually("both processes are gone", || Ok(running.iter().all(|p| !is_alive(*p))))?;
    eventually("those of the pool wait, and are others", || {
        let pool = executors(&c)?;
        Ok(pool.len() == 2 && pool.iter().all(|e| e["busy_slots"] == 0 && e["framework_id"] == "") && pids(&pool).is_disjoint(&running))
    })
}

#[test]
fn limits_and_exit_codes_are_those_of_class_instance() -> Result {
    let c = one_agent("2")?;
    let misbehave = guest(&c, "misbehave")?;
    let cases: [(&[&str], &[&str], i32, &str); 7] = [
        (&[], &["exit", "0"], 0, ""),
        (&[], &["exit", "125"], 125, "EXIT_CODE"),
        (&[], &["exit", "200"], 134, "TRAP"),
        (&[], &["trap"], 134, "TRAP"),
        (&["--timeout", "300ms"], &["loop"], 124, "TIME_LIMIT"),
        (&["--mem", "32MiB"], &["eat-memory", "1000"], 137, "MEMORY_LIMIT"),
        (&["--output-limit", "100KiB"], &["print"], 137, "OUTPUT_LIMIT"),
    ];
    for (flags, args, code, reason) in cases {
        let done = run(&c, flags, &misbehave, args)?;
        let tasks = c.json(&["ps", "--all"])?;
        let last = tasks.as_array().and_then(|t| t.last()).cloned().unwrap_or_default();
        assert_eq!((done.code, last["reason"].as_str().unwrap_or("")), (code, reason), "{args:?}: {}", done.stderr);
    }
    let peak = |c: &Cluster| -> Result<u64> {
        Ok(c.json(&["ps", "--all"])?
            .as_array()
            .context("a list")?
            .iter()
            .filter_map(|t| t["usage"]["peak_memory"].as_u64())
            .max()
            .unwrap_or(0))
    };
    assert!(peak(&c)? <= 32 << 20);
    Ok(())
}

/// Takes one MiB more every 20 ms, for ever.
const GROWS: &str = r#"(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 16)
  (func (export "_start") (local $at i32)
    ;; a subscription to the monotonic clock, 20 ms from now
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 20000000))
    (loop $again
      (local.set $at (i32.shl (memory.grow (i32.const 16)) (i32.const 16)))
      (memory.fill (local.get $at) (i32.const 7) (i32.const 1048576))
      (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))
      (br $again))))"#;

/// The file with the memory limit of the group that a process is in.
fn memory_limit_file(pid: i64) -> Result<PathBuf> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let v1 = groups
        .lines()
        .find_map(|l| l.split_once(":memory:"))
        .map(|(_, path)| PathBuf::from(format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")));
    let v2 = groups.lines().find_map(|l| l.strip_prefix("0::")).map(|path| PathBuf::from(format!("/sys/fs/cgroup{path}/memory.max")));
    let file = v1.into_iter().chain(v2).find(|f| f.exists());
    file.with_context(|| format!("no memory group in {groups}"))
}

#[test]
fn the_kernel_has_a_memory_limit_for_this_task_alone() -> Result {
    if !has_cgroups() {
        eprintln!("NOT TESTED: a memory group for each executor needs root");
        return Ok(());
    }
    let c = one_agent("2")?;
    let path = c.dir().join("grows.wat");
    std::fs::write(&path, GROWS)?;
    let other = submit(&c, &[], &guest(&c, "misbehave")?, &["sleep", "3600000"])?;
    let job = submit(&c, &["--mem", "1GiB"], &path.display().to_string(), &[])?;
    let large = |e: &Value| e["memory_limit"].as_u64().is_some_and(|l| l > 1 << 30);
    eventually("the executor of the task is known", || Ok(busy(&c, "pooled")?.iter().any(large)))?;
    let executor = busy(&c, "pooled")?.into_iter().find(large).context("it ended early")?;
    let file = memory_limit_file(executor["pid"].as_i64().context("a pid")?)?;
    let limit: u64 = std::fs::read_to_string(&file)?.trim().parse()?;
    assert_eq!(Some(limit), executor["memory_limit"].as_u64());
    // The store's limit holds long before the group's; lowered, it shows whose the group is. What is in use may be above it already.
    eventually("the limit is lowered", || Ok(std::fs::write(&file, (200_u64 << 20).to_string()).is_ok()))?;
    assert_eq!(c.smalti(&["wait", &job])?.code, 137, "{}", c.logs());
    let ended = task(&c, &job)?;
    assert_eq!((ended["state"].as_str(), ended["reason"].as_str()), (Some("FAILED"), Some("MEMORY_LIMIT")), "{ended}");
    assert_eq!(task(&c, &other)?["state"], "RUNNING", "nobody else is concerned");
    c.ok(&["kill", "--grace", "0s", &other])?;
    Ok(())
}

#[test]
fn cpu_is_limited_by_the_kernel() -> Result {
    if !has_cgroups() {
        eprintln!("NOT TESTED: cpu limits need cgroups, and this is not root");
        return Ok(());
    }
    let c = one_agent("1")?;
    let done = run(&c, &["--cpus", "0.25", "--timeout", "5s"], &guest(&c, "misbehave")?, &["loop"])?;
    assert_eq!(done.code, 124, "{}", done.stderr);
    let usage = c.json(&["ps", "--all"])?[0]["usage"].clone();
    let share = usage["cpu_us"].as_f64().unwrap_or(0.0) / usage["wall_us"].as_f64().unwrap_or(1.0);
    // Never more; less only where others use the machine.
    assert!((0.1..0.275).contains(&share), "asked for 0.25 of a core, used {share}");
    Ok(())
}

#[test]
fn kills_work_for_throttled_ones_too() -> Result {
    let c = one_agent("2")?;
    let misbehave = guest(&c, "misbehave")?;
    for (cpus, what) in [("0.5", &["sleep", "3600000"][..]), ("0.5", &["loop"]), ("0.01", &["loop"])] {
        let job = submit(&c, &["--cpus", cpus], &misbehave, what)?;
        eventually("it runs", || Ok(task(&c, &job)?["state"] == "RUNNING"))?;
        let start = std::time::Instant::now();
        c.ok(&["kill", "--grace", "0s", &job])?;
        assert_eq!(c.smalti(&["wait", &job])?.code, 137);
        eprintln!("{what:?} with {cpus} cpus ended {:?} after its kill, two client processes included", start.elapsed());
        assert_eq!(task(&c, &job)?["state"], "KILLED");
    }
    Ok(())
}

#[test]
fn the_operator_decides_for_a_role() -> Result {
    let c = agent_with(&["--process-for-role", "tenant"])?;
    let misbehave = guest(&c, "misbehave")?;
    for (role, kind) in [("tenant", "pooled"), ("other", "shared")] {
        let job = c.ok(&["submit", "--role", role, &misbehave, "--", "sleep", "3600000"])?.trim().to_owned();
        eventually(&format!("a {kind} executor has it"), || Ok(busy(&c, kind)?.len() == 1))?;
        assert_eq!(busy(&c, if kind == "shared" { "pooled" } else { "shared" })?.len(), 0);
        c.ok(&["kill", "--grace", "0s", &job])?;
        c.smalti(&["wait", &job])?;
        eventually("it is over", || Ok(busy(&c, kind)?.is_empty()))?;
    }
    Ok(())
}

#[test]
fn the_pool_is_overhead_and_in_nobodys_share() -> Result {
    let overhead = |pool: &str| -> Result<(u64, u64)> {
        let c = agent_with(&["--process-pool", pool])?;
        eventually("the pool is filled", || Ok(executors(&c)?.iter().filter(|e| e["state"] == "up").count().to_string() == pool))?;
        let agent = c.json(&["agents"])?[0].clone();
        assert_eq!((agent["total"]["mem"].as_u64(), agent["used"]["mem"].as_u64()), (Some(2 << 30), Some(0)), "{agent}");
        assert_eq!(agent["used"]["cpus"].as_f64(), Some(0.0));
        for executor in agent["executors"].as_array().context("a list")? {
            let status = std::fs::read_to_string(format!("/proc/{}/status", executor["pid"]))?;
            eprintln!("of the pool: {:?}", status.lines().filter(|l| l.starts_with("Rss")).collect::<Vec<_>>());
        }
        let part = agent["overhead_memory"]["process_pool"].as_u64().unwrap_or(0);
        Ok((agent["overhead"]["mem"].as_u64().context("an overhead")?, part))
    };
    let (none, part_of_none) = overhead("0")?;
    let (three, part_of_three) = overhead("3")?;
    assert!(part_of_none == 0 && part_of_three > 0);
    assert_eq!(three - none, part_of_three);
    Ok(())
}

#[test]
fn items_have_processes_of_their_own_and_their_outputs_are_kept() -> Result {
    let c = one_agent("2")?;
    let hello = guest(&c, "hello")?;
    let map = |class: &str| c.ok(&["map", "--isolation", class, "--items", "12", &hello, "--", "x"]);
    assert_eq!(map("process")?, map("instance")?);
    let done = c.smalti(&["map", "--isolation", "process", "--items", "5", &guest(&c, "misbehave")?, "--", "fail-item", "3"])?;
    assert_eq!(done.code, 3, "{}", done.stderr);
    assert!(done.stderr.contains("item 3 fails as asked"), "{}", done.stderr);
    Ok(())
}

#[test]
fn a_thousand_in_a_row_leave_nothing() -> Result {
    let c = one_agent("2")?;
    let job = submit(&c, &["--items", "1000", "--cpus", "0.5"], &guest(&c, "empty")?, &[])?;
    eventually("all items have ended", || Ok(c.json(&["jobs", "--all"])?[0]["state"] != "RUNNING"))?;
    let jobs = c.json(&["jobs", "--all"])?;
    assert_eq!((&jobs[0]["state"], &jobs[0]["items_finished"]), (&Value::from("FINISHED"), &Value::from(1000)), "{jobs}");
    assert_eq!(c.smalti(&["wait", &job])?.code, 0);
    eventually("only the pool is left", || {
        let agent = c.json(&["agents"])?[0].clone();
        Ok(agent["executors"].as_array().is_some_and(|e| e.len() == 2) && agent["used"]["cpus"].as_f64() == Some(0.0))
    })?;
    let homes = || -> Result<usize> { Ok(std::fs::read_dir(c.dir().join("agent-0/executors"))?.count()) };
    eventually("their directories are gone", || Ok(homes()? <= 2))
}
