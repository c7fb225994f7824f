//! Starting and stopping a whole cluster.

use crate::paths::Paths;
use crate::process::{Finished, Process};
use anyhow::{Context, Result, bail};
use smalti_test_ports::Ports;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Longest time any one command of a test may take before it counts as hanging.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// What tasks may fetch, below the cluster's directory.
const FETCH_POLICY: &str = "fetch-policy.toml";

/// One agent of a test cluster.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Cores it advertises.
    pub cpus: String,
    /// Memory it advertises.
    pub mem: String,
    /// Ports that it advertises; some of its own otherwise.
    pub ports: Option<Arc<Ports>>,
    /// Further flags.
    pub flags: Vec<String>,
    /// The control group (v2) that it is started in, as a service manager would; by default that of the test.
    pub group: Option<PathBuf>,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self { cpus: "2".into(), mem: "2GiB".into(), ports: None, flags: Vec::new(), group: None }
    }
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its agents.
    pub agents: Vec<AgentConfig>,
    /// `auto`, `required` or `none`.
    pub isolation: String,
    /// Whether to start the batch scheduler.
    pub scheduler: bool,
    /// Further flags of the master.
    pub master_flags: Vec<String>,
    /// Further flags of the scheduler.
    pub scheduler_flags: Vec<String>,
    /// Environment of all processes.
    pub env: Vec<(String, String)>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            agents: vec![AgentConfig::default(); 2],
            isolation: "auto".into(),
            scheduler: true,
            master_flags: Vec::new(),
            scheduler_flags: Vec::new(),
            env: Vec::new(),
        }
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    // Order matters: fields are dropped from the top, and agents should say goodbye while the master lives.
    /// The agents, in the order of the configuration.
    pub agents: Vec<Process>,
    /// The batch scheduler.
    pub scheduler: Option<Process>,
    /// The master.
    pub master: Process,
    /// `127.0.0.1:PORT` of the master.
    pub address: String,
    /// The master's port: the next one listens there again, after a moment in which nobody does.
    port: Ports,
    /// Where binaries and guests are.
    pub paths: Paths,
    config: Config,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts a cluster and waits until every part is ready.
    ///
    /// # Errors
    /// When a part does not become ready; the message has its log.
    pub fn start(config: Config) -> Result<Self> {
        let paths = Paths::find()?;
        let dir = tempfile::Builder::new().prefix("smalti-test-").tempdir().context("temporary directory")?;
        // Tests have origins of their own on this machine.
        let policy = dir.path().join(FETCH_POLICY);
        std::fs::write(
            &policy,
            "[default]\naddresses = [\"public\", \"127.0.0.0/8:*\", \"[::1]:*\"]\nstore = [\"s3://bucket/\", \"file:///\"]\n",
        )
        .context("writing the fetch policy")?;
        let port = smalti_test_ports::take_one();
        let (master, address) = start_master(&paths, &config, dir.path(), &port)?;
        let scheduler = if config.scheduler { Some(start_scheduler(&paths, &config, dir.path(), &address)?) } else { None };
        let mut cluster = Self { agents: Vec::new(), scheduler, master, address, port, paths: paths.clone(), config: config.clone(), dir };
        for agent in &config.agents {
            cluster.add_agent(agent)?;
        }
        Ok(cluster)
    }

    /// Starts one more agent and waits until it is registered. Returns its index.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn add_agent(&mut self, agent: &AgentConfig) -> Result<usize> {
        let n = self.agents.len();
        let process = self.start_agent(n, agent)?;
        self.agents.push(process);
        Ok(n)
    }

    /// Kills an agent as a crash would, and starts it again with the same data; waits until it is registered.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn crash_agent(&mut self, n: usize, again: &AgentConfig) -> Result<()> {
        self.kill_agent(n)?;
        self.restart_agent(n, again)
    }

    /// Kills an agent as a crash would.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn kill_agent(&mut self, n: usize) -> Result<()> {
        self.agents[n].signal(nix::sys::signal::Signal::SIGKILL)?;
        self.agents[n].wait(COMMAND_TIMEOUT).map(drop)
    }

    /// Starts an agent that has ended again, with the same data; waits until it is registered.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart_agent(&mut self, n: usize, again: &AgentConfig) -> Result<()> {
        self.agents[n] = self.start_agent(n, again)?;
        Ok(())
    }

    /// Kills the master as a crash would, and starts it again at the same address with the same data.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn crash_master(&mut self) -> Result<()> {
        self.master.signal(nix::sys::signal::Signal::SIGKILL)?;
        self.master.wait(COMMAND_TIMEOUT)?;
        self.master = start_master(&self.paths, &self.config, self.dir.path(), &self.port)?.0;
        Ok(())
    }

    /// Ends the scheduler with `signal`, and starts it again with the same data, at another port.
    ///
    /// # Errors
    /// When there is none, or it does not become ready.
    pub fn restart_scheduler(&mut self, signal: nix::sys::signal::Signal) -> Result<()> {
        let mut scheduler = self.scheduler.take().context("a scheduler")?;
        scheduler.signal(signal)?;
        scheduler.wait(COMMAND_TIMEOUT)?;
        self.scheduler = Some(start_scheduler(&self.paths, &self.config, self.dir.path(), &self.address)?);
        Ok(())
    }

    /// Kills master and scheduler, and starts the scheduler first, as a boot of their machine may; waits until both are ready.
    ///
    /// # Errors
    /// When there is no scheduler, or one of them does not become ready.
    pub fn boot_scheduler_before_master(&mut self) -> Result<()> {
        let mut scheduler = self.scheduler.take().context("a scheduler")?;
        for process in [&mut scheduler, &mut self.master] {
            process.signal(nix::sys::signal::Signal::SIGKILL)?;
            process.wait(COMMAND_TIMEOUT)?;
        }
        let mut scheduler = spawn_scheduler(&self.paths, &self.config, self.dir.path(), &self.address)?;
        self.master = start_master(&self.paths, &self.config, self.dir.path(), &self.port)?.0;
        scheduler.wait_for_line("ready: scheduler")?;
        self.scheduler = Some(scheduler);
        Ok(())
    }

    fn start_agent(&self, n: usize, agent: &AgentConfig) -> Result<Process> {
        let name = format!("agent-{n}");
        let ports = agent.ports.as_ref().map_or_else(|| format!("{}-{}", 20_000 + n * 100, 20_099 + n * 100), |ports| ports.range());
        let mut c = match &agent.group {
            None => Command::new(self.paths.smalti()),
            Some(group) => {
                let mut c = Command::new("sh");
                c.args(["-c", "echo 0 > \"$0\" && exec \"$@\""]).arg(group.join("cgroup.procs")).arg(self.paths.smalti());
                c
            }
        };
        c.args(["agent", "--master", &self.address, "--data-dir"]).arg(self.dir.path().join(&name));
        c.args(["--cpus", &agent.cpus, "--mem", &agent.mem, "--disk", "1GiB", "--ports", &ports, "--isolation", &self.config.isolation]);
        // Tests end agents with whatever still runs on them.
        if !agent.flags.iter().any(|flag| flag.starts_with("--drain-timeout")) {
            c.args(["--drain-timeout", "0s"]);
        }
        c.arg("--fetch-policy").arg(self.dir.path().join(FETCH_POLICY));
        c.args(&agent.flags).env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()));
        c.envs(self.config.env.iter().cloned());
        let mut process = Process::spawn_role(&name, c, self.dir.path())?;
        process.wait_for_line("ready: agent")?;
        Ok(process)
    }

    /// The cluster's directory: data of every part, and their logs.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A client command against this cluster, not yet started.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(self.paths.smalti());
        c.args(args).env("SMALTI_MASTER", &self.address);
        c
    }

    /// Runs a client command to its end.
    ///
    /// # Errors
    /// When it cannot be started or hangs.
    pub fn smalti(&self, args: &[&str]) -> Result<Finished> {
        self.smalti_with_stdin(args, b"")
    }

    /// Runs a client command to its end with `stdin` as its input.
    ///
    /// # Errors
    /// When it cannot be started or hangs.
    pub fn smalti_with_stdin(&self, args: &[&str], stdin: &[u8]) -> Result<Finished> {
        Finished::of(self.command(args), stdin, COMMAND_TIMEOUT).with_context(|| self.logs())
    }

    /// Runs a client command that must succeed; returns its stdout.
    ///
    /// # Errors
    /// When its exit code is not 0.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        let done = self.smalti(args)?;
        if done.code != 0 {
            bail!("smalti {args:?} ended with {}: {}{}\n{}", done.code, done.stdout, done.stderr, self.logs());
        }
        Ok(done.stdout)
    }

    /// Runs a client command with `--output json` that must succeed; returns the value.
    ///
    /// # Errors
    /// When its exit code is not 0 or its stdout is not JSON.
    pub fn json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let args: Vec<&str> = args.iter().copied().chain(["--output", "json"]).collect();
        let text = self.ok(&args)?;
        serde_json::from_str(&text).with_context(|| format!("smalti {args:?} printed {text:?}"))
    }

    /// The logs of all processes, for messages of failed tests.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for process in std::iter::once(&self.master).chain(&self.scheduler).chain(&self.agents) {
            let log = process.log();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            text.push_str("--- log\n");
            for line in tail.into_iter().rev() {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }
}

fn role(paths: &Paths, config: &Config, args: &[&str]) -> Command {
    let mut c = Command::new(paths.smalti());
    c.args(args).env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()));
    c.envs(config.env.iter().cloned());
    c
}

/// A master and its address.
fn start_master(paths: &Paths, config: &Config, dir: &Path, port: &Ports) -> Result<(Process, String)> {
    let data = dir.join("master").display().to_string();
    let mut command = role(paths, config, &["master", "--listen", &port.address().to_string(), "--data-dir", &data]);
    command.args(&config.master_flags);
    let mut master = Process::spawn_role("master", command, dir)?;
    let address = master.wait_for_line("ready: master")?;
    Ok((master, address))
}

fn start_scheduler(paths: &Paths, config: &Config, dir: &Path, master: &str) -> Result<Process> {
    let mut scheduler = spawn_scheduler(paths, config, dir, master)?;
    scheduler.wait_for_line("ready: scheduler")?;
    Ok(scheduler)
}

fn spawn_scheduler(paths: &Paths, config: &Config, dir: &Path, master: &str) -> Result<Process> {
    let data = dir.join("scheduler").display().to_string();
    let policy = dir.join(FETCH_POLICY).display().to_string();
    let args =
        ["scheduler", "--master", master, "--listen", "127.0.0.1:0", "--data-dir", &data, "--file-root", "/", "--fetch-policy", &policy];
    let mut command = role(paths, config, &args);
    command.args(&config.scheduler_flags);
    Process::spawn_role("scheduler", command, dir)
}
