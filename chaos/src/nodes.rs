//! The cluster that is broken: master, scheduler and agents, each as a process that can be killed and started again with the same data.
//!
//! Owns the processes, their cables, and the small file systems of the agents' data (as root). Decides nothing about what
//! breaks.

use crate::net::{Cable, Cut, Namespace, Net};
use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use smalti_test_ports::Ports;
use smalti_tests::{Paths, Process};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Tasks of exclusive jobs call the witness, on loopback.
const POLICY: &str = "[default]\nconnect = [\"public\", \"127.0.0.0/8:*\"]\n";
/// Size of the file system below an agent's data: enough for what the load needs, soon full when somebody fills it.
const AGENT_DISK: &str = "size=768m,mode=700";
/// How long a killed process may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(30);
/// How long a process may take to end when it is asked to.
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// An agent that is away this long is unreachable: short, so that it happens.
const AGENT_TIMEOUT: &str = "6s";

/// Who can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Master,
    Scheduler,
    Framework,
    Agent(usize),
}

/// One process of the cluster over its lives.
#[derive(Debug)]
struct Role {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    life: u32,
    process: Option<Process>,
    /// What joins it to the others.
    cable: Cable,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Cluster {
    // Dropped from the top: agents say goodbye while the master lives.
    agents: Vec<Role>,
    framework: Role,
    scheduler: Role,
    master: Role,
    master_address: SocketAddr,
    /// Where each life of the master listens; between two lives nobody does.
    _master_port: Ports,
    net: Net,
    paths: Paths,
    /// Where an agent's data is a file system of its own.
    mounts: Vec<PathBuf>,
    dir: tempfile::TempDir,
}

impl Cluster {
    pub(crate) fn start(agents: u32, keep: bool, mut net: Net) -> Result<Self> {
        let paths = Paths::find()?;
        let mut dir = tempfile::Builder::new().prefix("smalti-chaos-").tempdir().context("making a directory")?;
        dir.disable_cleanup(keep);
        let data = |name: &str| dir.path().join(name).display().to_string();
        let policy = dir.path().join("policy.toml");
        std::fs::write(&policy, POLICY).with_context(|| format!("writing {}", policy.display()))?;

        let port = smalti_test_ports::take_one();
        let cable = net.cable_of_master()?;
        let at = SocketAddr::from((cable.address(), port.address().port()));
        let args = ["master", "--agent-timeout", AGENT_TIMEOUT, "--ping-timeout", "4s", "--insecure-listen", "--listen"];
        let own = [at.to_string(), "--data-dir".to_owned(), data("master")];
        let mut master = Role::new("master", paths.smalti(), cable, &args, &own);
        master.start(dir.path())?;

        let cable = net.cable_to(at)?;
        let listen = SocketAddr::from((cable.address(), 0));
        let own = [listen.to_string(), "--data-dir".to_owned(), data("scheduler")];
        let mut scheduler = Role::new("scheduler", paths.smalti(), cable, &["scheduler", "--insecure-listen", "--listen"], &own);
        scheduler.connect(at);
        scheduler.start(dir.path())?;
        let program = std::env::current_exe().context("finding this program")?;
        let own = [paths.guest("tally")?.display().to_string(), "--store".to_owned(), data("framework.redb")];
        let mut framework = Role::new("framework", program, net.cable_to(at)?, &["framework", "--bundle"], &own);
        framework.connect(at);
        framework.start(dir.path())?;
        let mut cluster = Self {
            agents: Vec::new(),
            framework,
            scheduler,
            master,
            master_address: at,
            _master_port: port,
            net,
            paths,
            mounts: Vec::new(),
            dir,
        };
        for n in 0..agents {
            cluster.add_agent(n, &policy)?;
        }
        Ok(cluster)
    }

    fn add_agent(&mut self, n: u32, policy: &Path) -> Result<()> {
        let name = format!("agent-{n}");
        let data = self.dir.path().join(&name);
        std::fs::create_dir(&data).with_context(|| format!("making {}", data.display()))?;
        if nix::unistd::geteuid().is_root() {
            mount(Some("smalti-chaos"), &data, Some("tmpfs"), MsFlags::empty(), Some(AGENT_DISK))
                .with_context(|| format!("mounting a file system at {}", data.display()))?;
            self.mounts.push(data.clone());
        }
        let ports = format!("{}-{}", 23_000 + n * 50, 23_049 + n * 50);
        let id = agent_name(n as usize);
        let args = ["agent", "--cpus", "2", "--mem", "2GiB", "--disk", "64MiB", "--isolation", "auto", "--ports", &ports, "--name", &id];
        let own = ["--network-policy".to_owned(), policy.display().to_string(), "--data-dir".to_owned(), data.display().to_string()];
        let mut role = Role::new(&name, self.paths.smalti(), self.net.cable_to(self.master_address)?, &args, &own);
        role.connect(self.master_address);
        role.start(self.dir.path())?;
        self.agents.push(role);
        Ok(())
    }

    pub(crate) const fn paths(&self) -> &Paths {
        &self.paths
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.master_address
    }

    pub(crate) const fn net(&self) -> &Net {
        &self.net
    }

    /// The namespaces of all processes that have one of their own.
    pub(crate) fn namespaces(&self) -> Vec<&Namespace> {
        self.everybody().into_iter().filter_map(|who| self.role(who).cable.namespace()).collect()
    }

    /// Those of the agents, where their tasks' sockets are.
    pub(crate) fn agents_namespaces(&self) -> Vec<&Namespace> {
        self.agents.iter().filter_map(|role| role.cable.namespace()).collect()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) const fn agents(&self) -> usize {
        self.agents.len()
    }

    /// Everybody.
    pub(crate) fn everybody(&self) -> Vec<Who> {
        let agents = (0..self.agents.len()).map(Who::Agent);
        [Who::Master, Who::Scheduler, Who::Framework].into_iter().chain(agents).collect()
    }

    fn role(&self, who: Who) -> &Role {
        match who {
            Who::Master => &self.master,
            Who::Scheduler => &self.scheduler,
            Who::Framework => &self.framework,
            Who::Agent(n) => &self.agents[n],
        }
    }

    fn role_mut(&mut self, who: Who) -> &mut Role {
        match who {
            Who::Master => &mut self.master,
            Who::Scheduler => &mut self.scheduler,
            Who::Framework => &mut self.framework,
            Who::Agent(n) => &mut self.agents[n],
        }
    }

    pub(crate) fn is_up(&self, who: Who) -> bool {
        self.role(who).process.is_some()
    }

    /// Ends it as a crash does.
    pub(crate) fn kill(&mut self, who: Who) -> Result<()> {
        let Some(mut process) = self.role_mut(who).process.take() else { return Ok(()) };
        process.signal(Signal::SIGKILL)?;
        process.wait(GONE_WITHIN)?;
        Ok(())
    }

    /// Starts it again with the same data. Does not wait until it is ready: its master may be away.
    pub(crate) fn restart(&mut self, who: Who) -> Result<()> {
        let dir = self.dir.path().to_owned();
        self.role_mut(who).spawn(&dir)
    }

    /// Starts what has ended by itself again, as a supervisor does. Only a full disk is a reason for that.
    pub(crate) fn revive(&mut self) -> Result<()> {
        for who in self.everybody() {
            let dir = self.dir.path().to_owned();
            let role = self.role_mut(who);
            let Some(process) = role.process.as_mut() else { continue };
            if !process.has_ended() {
                continue;
            }
            let log = process.log();
            let why = log.lines().last().unwrap_or_default();
            ensure!(why.contains("No space left on device"), "{} ended by itself and says:\n{log}", role.name);
            role.process = None;
            role.spawn(&dir)?;
        }
        Ok(())
    }

    pub(crate) fn signal(&self, who: Who, signal: Signal) -> Result<()> {
        self.role(who).process.as_ref().map_or(Ok(()), |process| process.signal(signal))
    }

    pub(crate) fn can_be_cut(&self, who: Who) -> bool {
        self.role(who).cable.can_be_cut()
    }

    pub(crate) fn cut(&self, who: Who, how: Cut) -> Result<()> {
        self.role(who).cable.cut(how).with_context(|| format!("cutting {who:?} off ({how:?})"))
    }

    pub(crate) fn mend(&self, who: Who) -> Result<()> {
        self.role(who).cable.mend().with_context(|| format!("mending the cable of {who:?}"))
    }

    /// Processes of the agent's executors, by their control groups.
    pub(crate) fn executors(&self, agent: usize) -> Vec<i32> {
        let group = format!("/smalti-{}/", agent_name(agent));
        processes().into_iter().filter(|pid| groups_of(*pid).contains(&group)).collect()
    }

    /// Whether the agent's data is a file system that can be filled without harm to others.
    pub(crate) fn data(&self, agent: usize) -> Option<&Path> {
        self.mounts.get(agent).map(PathBuf::as_path)
    }

    /// A client command.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(self.paths.smalti());
        c.args(args).env("SMALTI_MASTER", self.master_address.to_string());
        c
    }

    /// Lets the framework end what it began; what it says then.
    pub(crate) fn finish_framework(&mut self, within: Duration) -> Result<String> {
        let mut process = self.framework.process.take().context("the framework does not run")?;
        process.signal(Signal::SIGTERM)?;
        let status = process.wait(within).and_then(|status| {
            ensure!(status.success(), "the framework ended with {status}");
            process.wait_for_line("ended:")
        });
        status.with_context(|| process.log())
    }

    /// The directory stays, for who looks into the logs.
    pub(crate) fn keep(&mut self) {
        self.dir.disable_cleanup(true);
    }

    /// The last lines of everybody's last log.
    pub(crate) fn logs(&self) -> String {
        let tail = |role: &Role| {
            let log = role.process.as_ref().map(Process::log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(15).collect();
            format!("--- {}\n{}\n", role.name, lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        self.everybody().into_iter().map(|who| tail(self.role(who))).collect()
    }

    /// Ends everybody politely, agents first, and takes the file systems away.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let mut result = Ok(());
        for who in self.everybody().into_iter().rev() {
            if let Some(mut process) = self.role_mut(who).process.take() {
                let stopped = process.signal(Signal::SIGTERM).and_then(|()| process.wait(STOP_WITHIN));
                result = result.and(stopped.map(drop).with_context(|| format!("stopping {who:?}")));
            }
        }
        for path in self.mounts.drain(..) {
            result = result.and(umount2(&path, MntFlags::empty()).with_context(|| format!("unmounting {}", path.display())));
        }
        result
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("while cleaning up: {error:#}");
        }
    }
}

impl Role {
    fn new(name: &str, program: PathBuf, cable: Cable, args: &[&str], own: &[String]) -> Self {
        let args = args.iter().map(ToString::to_string).chain(own.iter().cloned()).collect();
        Self { name: name.to_owned(), program, args, life: 0, process: None, cable }
    }

    fn connect(&mut self, master: SocketAddr) {
        self.args.extend(["--master".to_owned(), self.cable.reaches(master).to_string()]);
    }

    /// Starts it and waits until it is ready; what it says then, without its own name.
    fn start(&mut self, dir: &Path) -> Result<String> {
        self.spawn(dir)?;
        let process = self.process.as_mut().context("it was just started")?;
        let kind = self.args[0].as_str();
        process.wait_for_line(&format!("ready: {kind}"))
    }

    fn spawn(&mut self, dir: &Path) -> Result<()> {
        self.life += 1;
        let mut command = Command::new(&self.program);
        command.args(&self.args).env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()));
        let name = format!("{}.{}", self.name, self.life);
        self.process = Some(match self.cable.namespace() {
            Some(namespace) => namespace.inside(|| Process::spawn_role(&name, command, dir))?,
            None => Process::spawn_role(&name, command, dir)?,
        });
        Ok(())
    }
}

/// Ids of this run's agents: their control groups are named so.
pub(crate) fn agent_name(n: usize) -> String {
    format!("chaos-{}-{n}", std::process::id())
}

/// All processes of this machine.
pub(crate) fn processes() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// The control groups of a process, or nothing when it is gone.
pub(crate) fn groups_of(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default()
}
