//! `smalti dev`: a whole cluster on this machine, as separate processes on loopback, until Ctrl-C.

use crate::dev::child::Child;
use crate::dev::plan::{self, Total};
use crate::dev::scratch::Home;
use crate::failure::{Exit, Failure, Result, SUCCESS, io_text};
use crate::job::options::size;
use crate::output;
use crate::time::duration;
use clap::{Args, ValueEnum};
use futures::future::{join_all, select_all};
use smalti_agent::ProcessOptions;
use smalti_types::{Bytes, DurationMs, MilliCpus, PortSet};
use std::path::PathBuf;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Where clients look when nothing else is said.
const DEFAULT_LISTEN: &str = "127.0.0.1:5050";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Isolation {
    /// Use the limits that the kernel gives, and say which are missing
    Auto,
    /// Refuse to start without control groups
    Required,
    /// No control groups
    None,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Cpus, memory, disk and ports are divided between the agents. Without --data-dir, everything is removed at the end.\n\nExamples:\n  smalti dev\n  smalti dev --agents 1 --cpus 4 --mem 4GiB\n  smalti dev --listen 127.0.0.1:6060 --data-dir ~/.smalti"
)]
pub(crate) struct Dev {
    /// How many agents
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    agents: u32,
    /// Cores of all agents together [default: those of this machine]
    #[arg(long, value_name = "N")]
    cpus: Option<MilliCpus>,
    /// Memory of all agents together
    #[arg(long, default_value = "4GiB", value_parser = size, value_name = "SIZE")]
    mem: Bytes,
    /// Disk of all agents together
    #[arg(long, default_value = "10GiB", value_parser = size, value_name = "SIZE")]
    disk: Bytes,
    /// Ports of all agents together
    #[arg(long, default_value = "31000-32000", value_name = "RANGES")]
    ports: PortSet,
    /// Address of the master
    #[arg(long, default_value = DEFAULT_LISTEN, value_name = "HOST:PORT")]
    listen: String,
    /// Keep everything in this directory
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Directory below which file:// bundles and inputs may lie [default: this one]
    #[arg(long, value_name = "DIR")]
    file_root: Option<PathBuf>,
    /// Directory below which --output-store file://DIR may write [default: none]
    #[arg(long, value_name = "DIR")]
    output_root: Option<PathBuf>,
    /// How long a job lets offers pass at most while another agent holds its inputs [default: 3s]
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    locality_wait: Option<DurationMs>,
    /// How much to insist on the kernel's limits
    #[arg(long, value_enum, default_value = "auto")]
    isolation: Isolation,
    #[command(flatten)]
    process: ProcessOptions,
    /// Show what the processes log, not only their warnings
    #[arg(short, long)]
    verbose: bool,
}

impl Dev {
    pub(crate) async fn run(self) -> Result<Exit> {
        let mut signals = Signals::new()?;
        let mut home = Home::new(self.data_dir.as_deref())?;
        let mut children = Children::default();
        let result = tokio::select! {
            result = self.serve(&mut home, &mut children) => result,
            () = signals.wait() => Ok(()),
        };
        // From here on, a second Ctrl-C changes nothing: stopping takes seconds at most.
        children.stop().await;
        tokio::task::block_in_place(|| home.remove());
        result.map(|()| SUCCESS)
    }

    /// Starts everything and watches over it. Returns only when something fails.
    async fn serve(&self, home: &mut Home, children: &mut Children) -> Result<()> {
        let total = self.total()?;
        let shares = plan::divide(&total).map_err(Failure::new)?;
        let log = std::env::var("RUST_LOG").unwrap_or_else(|_| if self.verbose { "info" } else { "warn" }.into());
        let dir = home.dir().to_owned();
        let files = self.file_root()?;
        let master = children.master.insert(Child::start(&plan::master(&self.listen, &dir), &log)?).ready().await?;
        let (policy, fetch_policy) = (dir.join(plan::POLICY_NAME), dir.join(plan::FETCH_POLICY_NAME));
        for (path, text) in [(&policy, plan::NETWORK_POLICY), (&fetch_policy, plan::FETCH_POLICY)] {
            // One that was kept may have been changed.
            if !path.exists() {
                std::fs::write(path, text).map_err(|e| Failure::io("writing the policy", path, &e))?;
            }
        }
        let mut further = vec![("fetch-policy", fetch_policy.clone().into_os_string())];
        further.extend(self.output_root()?.map(|root| ("output-root", root.into())));
        further.extend(self.locality_wait.map(|wait| ("locality-wait", format!("{}ms", wait.0).into())));
        let scheduler = plan::scheduler(&master, &dir, &files, &further);
        let scheduler = children.scheduler.insert(Child::start(&scheduler, &log)?).ready().await?;
        let own = [
            ("isolation", self.isolation_name().to_owned()),
            ("network-policy", policy.display().to_string()),
            ("fetch-policy", fetch_policy.display().to_string()),
            ("protect", scheduler),
        ];
        let further: Vec<_> = own.into_iter().chain(self.process.flags()).collect();
        for (i, share) in shares.iter().enumerate() {
            children.agents.push(Child::start(&plan::agent(i + 1, &master, &dir, share, &files, &further), &log)?);
        }
        for agent in &mut children.agents {
            home.add_agent(&agent.ready().await?);
        }
        output::write(self.greeting(&master, &total, home).as_bytes())?;
        Err(Failure::new(format!("{}; stopping the others", children.first_end().await)))
    }

    fn total(&self) -> Result<Total> {
        let cpus = match self.cpus {
            Some(cpus) => cpus,
            None => {
                let n = std::thread::available_parallelism()
                    .map_err(|e| Failure::new(format!("counting processors: {}; use --cpus", io_text(&e))))?;
                MilliCpus(n.get() as u64 * 1000)
            }
        };
        Ok(Total { agents: self.agents, cpus, mem: self.mem, disk: self.disk, ports: self.ports.clone() })
    }

    /// Where `file://` may point: the directory given, else the one we are in.
    fn file_root(&self) -> Result<PathBuf> {
        let root = self.file_root.clone().unwrap_or_else(|| ".".into());
        std::fs::canonicalize(&root).map_err(|e| Failure::io("the --file-root", &root, &e))
    }

    fn output_root(&self) -> Result<Option<PathBuf>> {
        let real = |root: &PathBuf| std::fs::canonicalize(root).map_err(|e| Failure::io("the --output-root", root, &e));
        self.output_root.as_ref().map(real).transpose()
    }

    const fn isolation_name(&self) -> &'static str {
        match self.isolation {
            Isolation::Auto => "auto",
            Isolation::Required => "required",
            Isolation::None => "none",
        }
    }

    fn greeting(&self, master: &str, total: &Total, home: &Home) -> String {
        let export = if master == DEFAULT_LISTEN { String::new() } else { format!("  export SMALTI_MASTER={master}\n") };
        let agents = if total.agents == 1 { "1 agent".to_owned() } else { format!("{} agents", total.agents) };
        let end = if home.is_temporary() {
            "Ctrl-C stops it and removes everything.".to_owned()
        } else {
            format!("Ctrl-C stops it; its data stays in {}.", home.dir().display())
        };
        format!(
            "ready: dev {master}\nA cluster with {agents}, {} cpus and {} of memory. In another terminal:\n{export}  smalti run hello.wasm -- world\n  smalti agents\n{end}\n",
            total.cpus, total.mem
        )
    }
}

/// In the order in which they are stopped: nothing is left to schedule, then nothing to run it, then nobody to tell.
#[derive(Default)]
struct Children {
    scheduler: Option<Child>,
    agents: Vec<Child>,
    master: Option<Child>,
}

impl Children {
    async fn first_end(&mut self) -> String {
        let all = self.scheduler.iter_mut().chain(&mut self.agents).chain(&mut self.master);
        select_all(all.map(|child| Box::pin(child.ended()))).await.0
    }

    async fn stop(&mut self) {
        if let Some(scheduler) = &mut self.scheduler {
            scheduler.stop().await;
        }
        join_all(self.agents.iter_mut().map(Child::stop)).await;
        if let Some(master) = &mut self.master {
            master.stop().await;
        }
    }
}

/// What ends a cluster: Ctrl-C, a kill, a terminal that closes.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|e| Failure::new(format!("waiting for signals: {}", io_text(&e))));
        Ok(Self([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?]))
    }

    async fn wait(&mut self) {
        let [int, term, hup] = &mut self.0;
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = hup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        dev: Dev,
    }

    #[test]
    fn the_greeting_says_how_to_use_it_in_a_few_lines() {
        let dev = Command::try_parse_from(["x", "--cpus", "2"]).unwrap().dev;
        let home = Home::new(Some(&std::env::temp_dir())).unwrap();
        let text = dev.greeting("127.0.0.1:6060", &dev.total().unwrap(), &home);
        assert!(text.starts_with("ready: dev 127.0.0.1:6060\n") && text.contains("export SMALTI_MASTER=127.0.0.1:6060"), "{text}");
        assert!(text.lines().count() <= 7 && !dev.greeting(DEFAULT_LISTEN, &dev.total().unwrap(), &home).contains("export"));
    }

    #[test]
    fn nonsense_is_refused() {
        for args in [["--agents", "0"], ["--ports", "0-70000"], ["--isolation", "maybe"], ["--mem", "x"]] {
            assert!(Command::try_parse_from(["x"].iter().chain(&args)).is_err(), "{args:?}");
        }
    }
}
