//! What the cluster works on meanwhile: clients as people use them, each with the outcome that it must have.
//!
//! Owns the clients' threads. A client is one `smalti` command; it must end well and print exactly what it was to print, whatever broke.

use crate::nodes::Cluster;
use crate::witness::Witness;
use anyhow::{Context, Result, bail};
use smalti_tests::Finished;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Items of each map.
const ITEMS: u64 = 20_000;
/// Work of each item, in microseconds.
const ITEM_US: &str = "300";
/// Clients that run single tasks one after the other.
const SINGLES: usize = 3;
/// Clients that run exclusive tasks.
const EXCLUSIVE: usize = 2;
/// How long an exclusive task runs.
const EXCLUSIVE_MS: &str = "2500";

/// What a client says, and ends, when there is nobody yet to take its job: nothing was promised, so whoever typed it types it again.
const NOBODY_THERE: [&str; 6] = [
    "error: no batch scheduler is registered",
    "error: no scheduler at",
    "error: no master at",
    "error: asking the master at",
    "error: looking for ",
    "error: uploading ",
];
/// When they do.
const AGAIN: Duration = Duration::from_millis(300);

/// A command with the outcome that it must have.
#[derive(Debug)]
pub(crate) struct Job {
    /// For people, and for the witness.
    pub(crate) name: String,
    pub(crate) exclusive: bool,
    pub(crate) expected: String,
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Job {
    /// What is wrong with its outcome, if anything.
    pub(crate) fn wrong(&self) -> Option<String> {
        // What each attempt printed is shown: one that was given up may have printed all of it.
        let attempts = 1 + self.stderr.matches("it is tried again").count();
        let wrong = self.code != 0 || !(1..=attempts).any(|n| self.stdout == self.expected.repeat(n));
        wrong.then(|| {
            format!("{}: exit code {}, printed {:?} instead of {:?}; {}", self.name, self.code, self.stdout, self.expected, self.stderr)
        })
    }
}

/// Everything that a client needs.
#[derive(Debug, Clone)]
struct Client {
    smalti: PathBuf,
    master: String,
    tally: String,
    beat: String,
    witness: String,
}

impl Client {
    fn run(&self, name: String, args: &[&str], expected: String, exclusive: bool, within: Duration) -> Result<Job> {
        let until = Instant::now() + within;
        let done = loop {
            let mut command = Command::new(&self.smalti);
            command.args(args).env("SMALTI_MASTER", &self.master);
            let left = until.saturating_duration_since(Instant::now());
            let done = Finished::of(command, b"", left).with_context(|| format!("{name} has no end"))?;
            if !NOBODY_THERE.iter().any(|words| done.stderr.starts_with(words)) {
                break done;
            }
            std::thread::sleep(AGAIN);
        };
        Ok(Job { name, exclusive, expected, code: done.code, stdout: done.stdout, stderr: done.stderr })
    }

    fn map(&self, n: u64, within: Duration) -> Result<Job> {
        let items = ITEMS.to_string();
        let args = ["map", "--retries", "3", "--cpus", "0.5", &self.tally, "--items", &items, "--reduce", &self.tally];
        let args = [&args[..], &["--reduce-arg", "--merge", "--", ITEM_US]].concat();
        let expected = format!("count {ITEMS} sum {} in order\n", ITEMS * (ITEMS - 1) / 2);
        self.run(format!("map-{n}"), &args, expected, false, within)
    }

    fn single(&self, client: usize, n: u64, within: Duration) -> Result<Job> {
        let word = format!("single-{client}-{n}");
        let args = ["run", "--retries", "3", "--cpus", "0.2", &self.tally, "--", "--say", &word, "20000"];
        self.run(word.clone(), &args, format!("{word}\n"), false, within)
    }

    fn exclusive(&self, client: usize, n: u64, within: Duration) -> Result<Job> {
        let name = format!("exclusive-{client}-{n}");
        let args =
            ["run", "--exclusive", "--role", "exclusive", "--retries", "5", "--cpus", "0.2", "--connect", &self.witness, &self.beat, "--"];
        let args = [&args[..], &[&self.witness, &name, EXCLUSIVE_MS]].concat();
        self.run(name.clone(), &args, format!("{name} has ended\n"), true, within)
    }
}

type Results = JoinHandle<Result<Vec<Job>>>;
/// Runs a client's next job.
type Next = Box<dyn Fn(&Client, u64, Duration) -> Result<Job> + Send>;

/// The clients.
#[derive(Debug)]
pub(crate) struct Load {
    clients: Vec<Results>,
}

impl Load {
    /// Starts clients that begin new jobs until then.
    pub(crate) fn start(cluster: &Cluster, witness: &Witness, until: Instant, stop: Arc<AtomicBool>) -> Result<Self> {
        let text = |path: PathBuf| path.display().to_string();
        let client = Client {
            smalti: cluster.paths().smalti(),
            master: cluster.address().to_string(),
            tally: text(cluster.paths().guest("tally")?),
            beat: text(cluster.paths().component("beat")?),
            witness: witness.address().to_string(),
        };
        let mut clients = Vec::new();
        let mut add = |run: Next| {
            let (client, stop) = (client.clone(), stop.clone());
            clients.push(std::thread::spawn(move || {
                let mut jobs = Vec::new();
                for n in 0.. {
                    if Instant::now() >= until || stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let within = until.saturating_duration_since(Instant::now()) + crate::SETTLE;
                    jobs.push(run(&client, n, within)?);
                }
                Ok(jobs)
            }));
        };
        add(Box::new(Client::map));
        for n in 0..SINGLES {
            add(Box::new(move |client, k, within| client.single(n, k, within)));
        }
        for n in 0..EXCLUSIVE {
            add(Box::new(move |client, k, within| client.exclusive(n, k, within)));
        }
        Ok(Self { clients })
    }

    /// Waits until every client has its outcome, and calls `look` meanwhile.
    pub(crate) fn finish(self, within: Duration, mut look: impl FnMut() -> Result<()>) -> Result<Vec<Job>> {
        let deadline = Instant::now() + within + Duration::from_secs(10);
        while !self.clients.iter().all(JoinHandle::is_finished) {
            if Instant::now() > deadline {
                bail!("after {within:?} without a fault, {} clients still wait", self.clients.iter().filter(|c| !c.is_finished()).count());
            }
            look()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut jobs = Vec::new();
        for client in self.clients {
            jobs.extend(client.join().map_err(|_| anyhow::anyhow!("a client's thread panicked"))??);
        }
        Ok(jobs)
    }
}
