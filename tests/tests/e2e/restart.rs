//! The agent is killed under whatever runs on it, and comes back: executors run on, nothing is lost, nothing runs twice.

use crate::executors::executor_pids;
use crate::{Result, eventually, guest};
use anyhow::Context;
use nix::sys::signal::Signal;
use serde_json::Value;
use smalti_tests::{AgentConfig, Cluster, Config, patience};
use std::path::PathBuf;
use std::time::Duration;

/// One agent of two cpus with further flags, as it is started each time.
fn agent(flags: &[&str]) -> AgentConfig {
    AgentConfig { flags: flags.iter().map(|f| (*f).to_owned()).collect(), ..AgentConfig::default() }
}

fn start(agent: &AgentConfig) -> Result<Cluster> {
    Cluster::start(Config { agents: vec![agent.clone()], ..Config::default() })
}

fn task(c: &Cluster, job: &str) -> Result<Value> {
    let tasks = c.json(&["ps", "--all"])?;
    Ok(tasks.as_array().context("a list")?.iter().find(|t| t["job_id"] == job).cloned().unwrap_or_default())
}

fn submit(c: &Cluster, args: &[&str]) -> Result<String> {
    Ok(c.ok(&[&["submit"], args].concat())?.trim().to_owned())
}

fn until_running(c: &Cluster, job: &str) -> Result {
    eventually("it runs", || Ok(task(c, job)?["state"] == "RUNNING"))
}

fn log_file(c: &Cluster) -> PathBuf {
    c.dir().join("agent-0/checkpoint/log")
}

/// Its executor is the same process, and its attempt the first one still.
fn same(c: &Cluster, job: &str, workers: &[i32]) -> Result {
    assert_eq!(executor_pids(c, " work")?, workers, "the executor runs on");
    let task = task(c, job)?;
    assert_eq!((&task["state"], &task["attempt"]), (&"RUNNING".into(), &0.into()), "{task}");
    Ok(())
}

#[test]
fn a_running_task_does_not_notice_and_ends_once_with_all_its_output() -> Result {
    for class in ["instance", "process"] {
        let config = agent(&["--process-pool", "0"]);
        let mut c = start(&config)?;
        let job = submit(&c, &["--isolation", class, &guest(&c, "misbehave")?, "--", "until-stopped"])?;
        until_running(&c, &job)?;
        let workers = executor_pids(&c, " work")?;
        assert_eq!(workers.len(), 1);
        for _ in 0..2 {
            c.crash_agent(0, &config)?;
            same(&c, &job, &workers)?;
        }
        c.ok(&["kill", &job])?;
        c.smalti(&["wait", &job])?;
        assert_eq!(c.ok(&["logs", &job])?, "running\nasked to stop\n", "{class}");
        let task = task(&c, &job)?;
        assert_eq!((&task["state"], &task["attempt"]), (&"KILLED".into(), &0.into()), "{task}");
        // What comes afterwards is as ever, and new ones get numbers that were never used.
        assert_eq!(c.smalti(&["run", "--isolation", class, &guest(&c, "misbehave")?, "--", "exit", "4"])?.code, 4);
    }
    Ok(())
}

#[test]
fn a_task_that_ends_while_its_agent_is_away_is_told_afterwards() -> Result {
    let config = agent(&[]);
    let mut c = start(&config)?;
    let job = submit(&c, &[&guest(&c, "misbehave")?, "--", "sleep", "1000"])?;
    until_running(&c, &job)?;
    c.kill_agent(0)?;
    // Long enough for the guest; what matters is not when, but that nobody was there.
    std::thread::sleep(Duration::from_millis(1_500));
    c.restart_agent(0, &config)?;
    assert_eq!(c.smalti(&["wait", &job])?.code, 0);
    let task = task(&c, &job)?;
    assert_eq!((&task["state"], &task["attempt"]), (&"FINISHED".into(), &0.into()), "{task}");
    Ok(())
}

#[test]
fn an_array_goes_on_and_every_item_ends_once_with_its_output() -> Result {
    const ITEMS: usize = 60_000;
    for class in ["instance", "process"] {
        let config = agent(&[]);
        let mut c = start(&config)?;
        let items = if class == "process" { 200 } else { ITEMS };
        let path = c.dir().join("print_item.wat");
        std::fs::write(&path, include_str!("print_item.wat"))?;
        let job = submit(&c, &["--isolation", class, "--items", &items.to_string(), &path.display().to_string()])?;
        for _ in 0..3 {
            let done = |c: &Cluster| Ok::<_, anyhow::Error>(c.json(&["jobs", "--all"])?.to_string().contains("SUCCEEDED"));
            std::thread::sleep(Duration::from_millis(150));
            if done(&c)? {
                break;
            }
            c.crash_agent(0, &config)?;
        }
        assert_eq!(c.smalti(&["wait", &job])?.code, 0, "{}", c.logs());
        let out = c.ok(&["logs", &job])?;
        let expected: String = (0..items).map(|i| format!("{i}\n")).collect();
        assert!(out == expected, "{class}: {} lines of {items}", out.lines().count());
    }
    Ok(())
}

#[test]
fn a_torn_end_of_the_log_is_cut_and_said_and_the_task_runs_on() -> Result {
    use std::os::unix::fs::FileExt;
    let config = agent(&[]);
    let mut c = start(&config)?;
    let job = submit(&c, &[&guest(&c, "misbehave")?, "--", "until-stopped"])?;
    until_running(&c, &job)?;
    let workers = executor_pids(&c, " work")?;
    c.kill_agent(0)?;
    let bytes = std::fs::read(log_file(&c))?;
    let end = bytes.iter().rposition(|b| *b != 0).context("a log of zeros")? + 1;
    // The beginning of a record that never came to its end.
    std::fs::File::options().write(true).open(log_file(&c))?.write_all_at(&bytes[28..60], end as u64)?;
    c.restart_agent(0, &config)?;
    let log = c.agents[0].log();
    assert!(log.contains("was cut at byte"), "{log}");
    same(&c, &job, &workers)?;
    c.ok(&["kill", "--grace", "0s", &job])?;
    assert_eq!(c.smalti(&["wait", &job])?.code, 137);
    Ok(())
}

#[test]
fn a_damaged_log_stops_the_agent_with_instructions_that_work() -> Result {
    use std::os::unix::fs::FileExt;
    let config = agent(&[]);
    let mut c = start(&config)?;
    let job = submit(&c, &[&guest(&c, "misbehave")?, "--", "until-stopped"])?;
    until_running(&c, &job)?;
    let workers = executor_pids(&c, " work")?;
    c.kill_agent(0)?;
    let file = std::fs::File::options().read(true).write(true).open(log_file(&c))?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 50)?;
    file.write_all_at(&[byte[0] ^ 0x10], 50)?;
    let refused = c.restart_agent(0, &config).err().context("it started with a damaged log")?.to_string();
    assert!(refused.contains("is damaged at byte") && refused.contains("move the log's directory away"), "{refused}");
    assert_eq!(executor_pids(&c, " work")?, workers, "nothing was touched");
    std::fs::rename(c.dir().join("agent-0/checkpoint"), c.dir().join("moved"))?;
    c.restart_agent(0, &config)?;
    eventually("its task is lost and tried again", || {
        let task = task(&c, &job)?;
        Ok(task["state"] == "RUNNING" && task["attempt"].as_u64() > Some(0))
    })?;
    assert!(executor_pids(&c, " work")?.iter().all(|pid| !workers.contains(pid)), "the old executor was ended");
    Ok(())
}

#[test]
fn a_checkpoint_that_lost_a_file_stops_the_agent_and_goes_on_once_that_is_back() -> Result {
    let config = agent(&[]);
    let mut c = start(&config)?;
    let job = submit(&c, &[&guest(&c, "misbehave")?, "--", "until-stopped"])?;
    until_running(&c, &job)?;
    let workers = executor_pids(&c, " work")?;
    c.kill_agent(0)?;
    let boot = c.dir().join("agent-0/checkpoint/boot_id");
    for (file, why) in [(log_file(&c), "it is not there"), (boot.clone(), "it says that the machine was started since")] {
        let away = c.dir().join("away");
        std::fs::rename(&file, &away)?;
        let refused = c.restart_agent(0, &config).err().context("it started without a file")?.to_string();
        assert!(refused.contains(why) && refused.contains("away and start the agent again"), "{refused}");
        std::fs::rename(&away, &file)?;
    }
    let noted = std::fs::read_to_string(&boot)?;
    std::fs::write(&boot, "garbage")?;
    let refused = c.restart_agent(0, &config).err().context("it started with another boot")?.to_string();
    assert!(refused.contains("was started later than that"), "{refused}");
    std::fs::write(&boot, noted)?;
    assert_eq!(executor_pids(&c, " work")?, workers, "nothing was touched");
    c.restart_agent(0, &config)?;
    same(&c, &job, &workers)
}

#[test]
fn after_a_boot_of_the_machine_nothing_is_taken_up() -> Result {
    let config = agent(&[]);
    let mut c = start(&config)?;
    let job = submit(&c, &[&guest(&c, "misbehave")?, "--", "until-stopped"])?;
    until_running(&c, &job)?;
    c.kill_agent(0)?;
    // As a boot leaves it: nothing that was started belongs to the present one.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    for executor in std::fs::read_dir(c.dir().join("agent-0/executors"))? {
        let record = executor?.path().join("executor.json");
        std::fs::write(&record, std::fs::read_to_string(&record)?.replace(boot.trim(), "another-boot"))?;
    }
    std::fs::write(c.dir().join("agent-0/checkpoint/boot_id"), "another boot\n")?;
    c.restart_agent(0, &config)?;
    assert!(c.agents[0].log().contains("the machine was started again"), "{}", c.agents[0].log());
    eventually("it is tried again", || {
        let task = task(&c, &job)?;
        Ok(task["state"] == "RUNNING" && task["attempt"].as_u64() > Some(0))
    })
}

#[test]
fn an_executor_that_died_with_its_agent_ends_its_task_with_the_cause() -> Result {
    let config = agent(&[]);
    let mut c = start(&config)?;
    let job = submit(&c, &[&guest(&c, "misbehave")?, "--", "until-stopped"])?;
    until_running(&c, &job)?;
    let workers = executor_pids(&c, " work")?;
    c.kill_agent(0)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(workers[0]), Signal::SIGKILL)?;
    c.restart_agent(0, &config)?;
    eventually("a new attempt runs", || {
        let task = task(&c, &job)?;
        Ok(task["state"] == "RUNNING" && task["attempt"].as_u64() > Some(0))
    })?;
    let why = c.ok(&["explain", &job])?;
    assert!(why.contains("SIGKILL") || why.contains("signal 9"), "{why}");
    Ok(())
}

#[test]
fn an_agent_that_is_told_to_keep_its_tasks_leaves_them_to_the_next() -> Result {
    let config = agent(&["--keep-tasks"]);
    let mut c = start(&config)?;
    let job = submit(&c, &[&guest(&c, "misbehave")?, "--", "until-stopped"])?;
    until_running(&c, &job)?;
    let workers = executor_pids(&c, " work")?;
    c.agents[0].signal(Signal::SIGTERM)?;
    assert!(c.agents[0].wait(Duration::from_secs(20))?.success(), "{}", c.agents[0].log());
    let config = agent(&[]);
    c.restart_agent(0, &config)?;
    same(&c, &job, &workers)?;
    c.ok(&["kill", "--grace", "0s", &job])?;
    assert_eq!(c.smalti(&["wait", &job])?.code, 137);
    Ok(())
}

#[test]
fn an_agent_that_ends_lets_its_tasks_end_and_a_second_signal_does_not() -> Result {
    let config = agent(&["--drain-timeout", "60s"]);
    let mut c = start(&config)?;
    let job = submit(&c, &[&guest(&c, "misbehave")?, "--", "sleep", "700"])?;
    until_running(&c, &job)?;
    c.agents[0].signal(Signal::SIGTERM)?;
    assert!(c.agents[0].wait(Duration::from_secs(30))?.success(), "{}", c.agents[0].log());
    assert_eq!(c.smalti(&["wait", &job])?.code, 0);
    assert_eq!(executor_pids(&c, "")?, [] as [i32; 0]);

    c.restart_agent(0, &config)?;
    let job = submit(&c, &[&guest(&c, "misbehave")?, "--", "until-stopped"])?;
    until_running(&c, &job)?;
    c.agents[0].signal(Signal::SIGTERM)?;
    let until = std::time::Instant::now() + patience(Duration::from_secs(30));
    while !c.agents[0].log().contains("ending: tasks have") {
        anyhow::ensure!(std::time::Instant::now() < until, "it does not say that it ends: {}", c.agents[0].log());
        std::thread::sleep(Duration::from_millis(5));
    }
    c.agents[0].signal(Signal::SIGTERM)?;
    assert!(c.agents[0].wait(Duration::from_secs(30))?.success(), "{}", c.agents[0].log());
    assert!(c.agents[0].log().contains("ending at once"), "{}", c.agents[0].log());
    assert_eq!(executor_pids(&c, "")?, [] as [i32; 0]);
    Ok(())
}
