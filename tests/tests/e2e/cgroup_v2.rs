//! What holds where there is nothing but cgroup v2: the kernel's own files say which limits are in force, and a delegated part
//! of the hierarchy is enough. `cargo xtask test-v2` runs these in a machine that has it.

use crate::{Result, eventually, guest};
use anyhow::Context;
use smalti_tests::{AgentConfig, Cluster, Config};
use std::path::{Path, PathBuf};

/// Where a pure v2 host has its hierarchy.
const ROOT: &str = "/sys/fs/cgroup";
/// How systemd marks a group that it leaves to a service.
const MARK: &str = "user.delegate";

/// The group below which this test may make others; `None`, said aloud, where the host has no pure v2 hierarchy for us.
pub(crate) fn playground() -> Option<PathBuf> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.trim().strip_prefix("0::/").filter(|rest| !rest.contains('\n')).map(|rest| Path::new(ROOT).join(rest));
    // Beside the test's own group; in the root there is no beside.
    let place = own.map(|own| if own == Path::new(ROOT) { own } else { own.parent().map_or(own.clone(), Path::to_owned) });
    let place = place.filter(|p| p.join("cgroup.controllers").exists() && nix::unistd::access(p, nix::unistd::AccessFlags::W_OK).is_ok());
    if place.is_none() {
        eprintln!("NOT TESTED: no pure cgroup v2 hierarchy that may be written here; `cargo xtask test-v2` makes one");
    }
    place
}

/// A group as systemd makes it for a service with `Delegate=yes`; removed at the end.
struct Service {
    group: PathBuf,
}

impl Service {
    fn new(playground: &Path, test: &str) -> Result<Self> {
        let group = playground.join(format!("smalti-{test}-{}.service", std::process::id()));
        // What the group gets is what the one above hands on.
        let _ = std::fs::write(playground.join("cgroup.subtree_control"), "+cpu +memory +pids");
        std::fs::create_dir(&group)?;
        rustix::fs::setxattr(&group, MARK, b"1", rustix::fs::XattrFlags::empty()).context("marking a group as delegated")?;
        Ok(Self { group })
    }

    /// A group in it for the main process: systemd's `DelegateSubgroup=`.
    fn subgroup(&self) -> Result<PathBuf> {
        let sub = self.group.join("main");
        std::fs::create_dir(&sub)?;
        Ok(sub)
    }

    fn children(&self) -> Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.group)?.collect::<std::io::Result<Vec<_>>>()?;
        let directories = entries.into_iter().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        Ok(directories.map(|e| e.file_name().to_string_lossy().into_owned()).collect())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(self.group.join("main"));
        if let Err(e) = std::fs::remove_dir(&self.group) {
            eprintln!("NOT CLEANED UP: {}: {e}, it has {:?}", self.group.display(), self.children());
        }
    }
}

fn in_group(group: &Path) -> Result<Cluster> {
    let agent = AgentConfig { cpus: "1".into(), group: Some(group.to_owned()), ..AgentConfig::default() };
    Cluster::start(Config { agents: vec![agent], isolation: "required".into(), ..Config::default() })
}

fn agent_id(c: &Cluster) -> Result<String> {
    Ok(c.json(&["agents"])?[0]["id"].as_str().context("an id")?.to_owned())
}

/// Starts a task that spins at `cpus`, and gives the job and the executor's group once it runs.
fn spinning(c: &Cluster, agent_group: &Path, cpus: &str) -> Result<(String, PathBuf)> {
    let job = c.ok(&["submit", "--cpus", cpus, &guest(c, "misbehave")?, "--", "loop"])?.trim().to_owned();
    let mut found = None;
    eventually("a slot is held back", || {
        found = executors(agent_group)?.into_iter().find(|e| busy_slot(e).is_some());
        Ok(found.is_some())
    })?;
    Ok((job, found.context("an executor")?))
}

fn executors(agent_group: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(agent_group).with_context(|| agent_group.display().to_string())?;
    Ok(entries.filter_map(|e| e.ok()).filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect())
}

/// The slot that was throttled.
fn busy_slot(executor: &Path) -> Option<PathBuf> {
    let slots = std::fs::read_dir(executor).ok()?.filter_map(|e| e.ok()).map(|e| e.path());
    slots.filter(|s| s.join("cpu.stat").exists()).find(|s| field(s, "nr_throttled").is_ok_and(|n| n > 0))
}

fn text(group: &Path, file: &str) -> Result<String> {
    let path = group.join(file);
    Ok(std::fs::read_to_string(&path).with_context(|| path.display().to_string())?.trim().to_owned())
}

/// A number of `cpu.stat`.
fn field(group: &Path, key: &str) -> Result<u64> {
    let stat = text(group, "cpu.stat")?;
    let value = stat.lines().find_map(|l| l.strip_prefix(key)?.trim().parse().ok());
    value.with_context(|| format!("{key} in {stat:?}"))
}

#[test]
fn every_limit_is_in_the_kernels_files() -> Result {
    let Some(playground) = playground() else { return Ok(()) };
    let service = Service::new(&playground, "limits")?;
    let c = in_group(&service.group)?;
    let agents = c.json(&["agents"])?;
    for layer in ["cgroup_cpu", "cgroup_memory", "cgroup_pids"] {
        assert_eq!(agents[0]["isolation"][layer], "on (v2)", "{agents}");
    }
    let agent_group = service.group.join(format!("smalti-{}", agent_id(&c)?));
    assert_eq!(
        text(&agent_group, "cpu.max")?,
        "110000 100000",
        "all executors together: what the agent advertises, and a tenth for starts"
    );
    let (job, executor) = spinning(&c, &agent_group, "0.3")?;
    assert_eq!(text(&executor, "cgroup.type")?, "domain threaded");
    let limit: u64 = text(&executor, "memory.max")?.parse().context("memory.max")?;
    assert!(limit > 0 && limit < 4 << 30, "{limit}");
    if executor.join("memory.swap.max").exists() {
        assert_eq!(text(&executor, "memory.swap.max")?, "0");
    }
    assert!(text(&executor, "pids.max")?.parse::<u64>().is_ok());
    let slot = busy_slot(&executor).context("a slot")?;
    assert_eq!((text(&slot, "cgroup.type")?, text(&slot, "cpu.max")?), ("threaded".into(), "30000 100000".into()));
    assert_eq!(text(&slot, "cgroup.threads")?.lines().count(), 1);
    // Its share, by the kernel's own account, whatever the machine's speed: 30 ms in each period in which it was held back.
    let (cpu, throttled, periods) = (field(&slot, "usage_usec")?, field(&slot, "nr_throttled")?, field(&slot, "nr_periods")?);
    eventually("twenty more periods are over", || Ok(field(&slot, "nr_periods")? >= periods + 20))?;
    let used = field(&slot, "usage_usec")? - cpu;
    let periods = field(&slot, "nr_periods")? - periods;
    assert!(field(&slot, "nr_throttled")? > throttled);
    // The period that has just begun may not be counted yet, and a tenth more is what the kernel lets slip.
    assert!(used <= (periods + 1) * 33_000, "{used} us in {periods} periods");
    c.ok(&["kill", "--grace", "0s", &job])?;
    c.smalti(&["wait", &job])?;
    Ok(())
}

#[test]
fn an_agent_alone_in_its_group_makes_room_and_puts_everything_back() -> Result {
    let Some(playground) = playground() else { return Ok(()) };
    let service = Service::new(&playground, "alone")?;
    // Twice: what the first leaves must not keep the second from joining the group.
    for _ in 0..2 {
        let mut c = in_group(&service.group)?;
        let id = agent_id(&c)?;
        let own = std::fs::read_to_string(format!("/proc/{}/cgroup", c.agents[0].pid()))?;
        assert!(own.trim().ends_with(&format!("/agent-{id}")), "{own}");
        assert_eq!(c.smalti(&["run", &guest(&c, "hello")?])?.code, 0);
        c.agents[0].stop();
        assert_eq!(service.children()?, Vec::<String>::new(), "{}", c.logs());
        assert_eq!(text(&service.group, "cgroup.subtree_control")?, "");
    }
    Ok(())
}

#[test]
fn a_killed_agents_executors_stay_in_their_groups_and_are_limited_by_the_next_one() -> Result {
    let Some(playground) = playground() else { return Ok(()) };
    let service = Service::new(&playground, "crash")?;
    let (first, second) = (service.subgroup()?, Service::new(&playground, "crash-elsewhere")?);
    let mut c = in_group(&first)?;
    let id = agent_id(&c)?;
    let agent_group = service.group.join(format!("smalti-{id}"));
    let (job, executor) = spinning(&c, &agent_group, "0.3")?;
    let processes = text(&executor, "cgroup.procs")?;
    assert!(processes.lines().count() >= 2, "{processes}");
    let config = AgentConfig { cpus: "1".into(), group: Some(first), ..AgentConfig::default() };
    c.crash_agent(0, &config)?;
    assert_eq!(agent_id(&c)?, id);
    assert_eq!(text(&executor, "cgroup.procs")?, processes, "the same processes in the same group");
    let slot = busy_slot(&executor).context("the slot that runs")?;
    assert_eq!(text(&slot, "cpu.max")?, "30000 100000");
    // A third start, from another group than the one that the second used: what runs stays where it is.
    let elsewhere = AgentConfig { group: Some(second.group.clone()), ..config };
    c.crash_agent(0, &elsewhere)?;
    assert_eq!(text(&executor, "cgroup.procs")?, processes, "and again");
    let moved = second.group.join(format!("smalti-{id}"));
    // Its slots' limits are the new agent's to set.
    let again = c.ok(&["submit", "--cpus", "0.2", &guest(&c, "misbehave")?, "--", "loop"])?;
    let limited = |wanted: &str| Ok(executors(&executor)?.iter().any(|s| text(s, "cpu.max").is_ok_and(|limit| limit == wanted)));
    eventually("a second task runs beside it under its own limit", || limited("20000 100000"))?;
    for job in [job.as_str(), again.trim()] {
        c.ok(&["kill", "--grace", "0s", job])?;
        assert_eq!(c.smalti(&["wait", job])?.code, 137);
    }
    c.agents[0].stop();
    assert!(!agent_group.exists() && !moved.exists(), "groups of both places are removed");
    assert_eq!((service.children()?, second.children()?), (vec!["main".to_owned()], vec![]), "{}", c.logs());
    Ok(())
}
