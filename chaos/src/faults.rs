//! What breaks, when, and when it is mended.
//!
//! Owns the faults that are in force. Everything that is broken is mended after a while, at the latest by [`Faults::heal`].

use crate::nodes::{Cluster, Who};
use crate::rng::Rng;
use anyhow::{Context, Result};
use clap::ValueEnum;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Between two faults, in milliseconds.
const PAUSE_MS: (u64, u64) = (300, 1_500);
/// How long a killed process stays away.
const AWAY_MS: (u64, u64) = (0, 3_000);
/// How long a process stands still.
const STILL_MS: (u64, u64) = (200, 4_000);
/// How long a cable is cut: sometimes longer than an agent may be away.
const CUT_MS: (u64, u64) = (500, 12_000);
/// How long a disk is full.
const FULL_MS: (u64, u64) = (500, 3_000);
/// What is written at a time to fill a disk.
const FILL_BYTES: usize = 1 << 20;
/// Seconds of a day.
const DAY: f64 = 86_400.0;

/// Ways to break something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// SIGKILL to master, scheduler or an agent
    Kill,
    /// SIGSTOP to one of them, and SIGCONT later
    Stop,
    /// A cable is cut, in one of the ways that the network has
    Cut,
    /// SIGKILL to a process of an executor
    Executor,
    /// An agent's disk is full (as root)
    Fill,
}

/// How something is mended.
#[derive(Debug)]
enum Repair {
    Start(Who),
    Continue(Who),
    Mend(Who),
    Empty(PathBuf),
}

/// The faults.
#[derive(Debug)]
pub(crate) struct Faults {
    rng: Rng,
    kinds: Vec<Kind>,
    repairs: Vec<(Instant, Repair)>,
    done: BTreeMap<Kind, u32>,
    /// What broke and what was mended, with the time as in the processes' logs, for who reads those.
    log: File,
}

impl Faults {
    /// `log` is written.
    pub(crate) fn new(rng: Rng, without: &[Kind], log: &Path) -> Result<Self> {
        // Kills of processes are what happens most.
        let all = [Kind::Kill, Kind::Kill, Kind::Kill, Kind::Stop, Kind::Cut, Kind::Cut, Kind::Executor, Kind::Executor, Kind::Fill];
        let kinds = all.into_iter().filter(|k| !without.contains(k)).collect();
        let log = File::create(log).with_context(|| format!("making {}", log.display()))?;
        Ok(Self { rng, kinds, repairs: Vec::new(), done: BTreeMap::new(), log })
    }

    /// Waits a little, mends what is due, breaks something else.
    pub(crate) fn next(&mut self, cluster: &mut Cluster) -> Result<()> {
        let until = self.later(PAUSE_MS);
        loop {
            let now = Instant::now();
            self.mend(cluster, now)?;
            cluster.revive()?;
            let next = self.repairs.iter().map(|(at, _)| *at).min().map_or(until, |at| at.min(until));
            if now >= until {
                break;
            }
            std::thread::sleep(next.saturating_duration_since(now));
        }
        let Some(kind) = self.rng.pick(&self.kinds).copied() else { return Ok(()) };
        if self.inject(kind, cluster)? {
            *self.done.entry(kind).or_default() += 1;
        }
        Ok(())
    }

    /// Mends everything.
    pub(crate) fn heal(&mut self, cluster: &mut Cluster) -> Result<()> {
        let last = self.repairs.iter().map(|(at, _)| *at).max().unwrap_or_else(Instant::now);
        self.mend(cluster, last)
    }

    /// What broke how often, for people.
    pub(crate) fn summary(&self) -> String {
        let counts: Vec<String> = self.done.iter().map(|(kind, n)| format!("{n} × {kind:?}")).collect();
        if counts.is_empty() { "no fault".to_owned() } else { counts.join(", ") }
    }

    fn note(&mut self, what: &str) -> Result<()> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() % DAY;
        let (hours, minutes) = (time / 3600.0, time / 60.0 % 60.0);
        writeln!(self.log, "{:02.0}:{:02.0}:{:06.3} {what}", hours.floor(), minutes.floor(), time % 60.0)
            .context("writing the log of faults")
    }

    fn later(&mut self, (low, high): (u64, u64)) -> Instant {
        Instant::now() + Duration::from_millis(self.rng.between(low, high))
    }

    fn repair(&mut self, after: (u64, u64), repair: Repair) {
        let at = self.later(after);
        self.repairs.push((at, repair));
    }

    fn mend(&mut self, cluster: &mut Cluster, now: Instant) -> Result<()> {
        let (due, later) = std::mem::take(&mut self.repairs).into_iter().partition(|(at, _)| *at <= now);
        self.repairs = later;
        let due: Vec<(Instant, Repair)> = due;
        for (_, repair) in due {
            self.note(&format!("{repair:?}"))?;
            match repair {
                Repair::Start(who) => cluster.restart(who)?,
                Repair::Continue(who) => cluster.signal(who, Signal::SIGCONT)?,
                Repair::Mend(who) => cluster.mend(who)?,
                Repair::Empty(file) => std::fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?,
            }
        }
        Ok(())
    }

    /// Whether somebody is broken in another way already: one fault at a time for each, so that it is known what is being tried.
    fn is_broken(&self, who: Who) -> bool {
        self.repairs.iter().any(|(_, repair)| match repair {
            Repair::Start(other) | Repair::Continue(other) | Repair::Mend(other) => *other == who,
            Repair::Empty(_) => false,
        })
    }

    /// Breaks something; false where nothing could be broken this way.
    fn inject(&mut self, kind: Kind, cluster: &mut Cluster) -> Result<bool> {
        let whole = cluster.everybody().into_iter().filter(|who| cluster.is_up(*who) && !self.is_broken(*who));
        let mut whole: Vec<Who> = whole.collect();
        if kind == Kind::Cut {
            whole.retain(|who| cluster.can_be_cut(*who));
        }
        let agents = Vec::from_iter(0..cluster.agents());
        match kind {
            Kind::Kill => {
                let Some(who) = self.rng.pick(&whole).copied() else { return Ok(false) };
                self.note(&format!("Kill({who:?})"))?;
                cluster.kill(who)?;
                self.repair(AWAY_MS, Repair::Start(who));
            }
            Kind::Stop => {
                let Some(who) = self.rng.pick(&whole).copied() else { return Ok(false) };
                self.note(&format!("Stop({who:?})"))?;
                cluster.signal(who, Signal::SIGSTOP)?;
                self.repair(STILL_MS, Repair::Continue(who));
            }
            Kind::Cut => {
                let Some(who) = self.rng.pick(&whole).copied() else { return Ok(false) };
                let Some(how) = self.rng.pick(cluster.net().cuts()).copied() else { return Ok(false) };
                self.note(&format!("Cut({who:?}, {how:?})"))?;
                cluster.cut(who, how)?;
                self.repair(CUT_MS, Repair::Mend(who));
            }
            Kind::Executor => {
                let Some(agent) = self.rng.pick(&agents) else { return Ok(false) };
                let processes = cluster.executors(*agent);
                let Some(pid) = self.rng.pick(&processes) else { return Ok(false) };
                self.note(&format!("Executor({agent}, process {pid})"))?;
                // It may have ended by itself meanwhile.
                return Ok(kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok());
            }
            Kind::Fill => {
                let Some(agent) = self.rng.pick(&agents) else { return Ok(false) };
                let Some(data) = cluster.data(*agent) else { return Ok(false) };
                let file = data.join("fill");
                if file.exists() {
                    return Ok(false);
                }
                self.note(&format!("Fill({agent})"))?;
                fill(&file)?;
                self.repair(FULL_MS, Repair::Empty(file));
            }
        }
        Ok(true)
    }
}

/// Writes until the file system is full.
fn fill(path: &PathBuf) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    let block = vec![0; FILL_BYTES];
    while file.write_all(&block).is_ok() {}
    Ok(())
}
