//! Noisy neighbours: what a benign tenant keeps of its throughput when another one does its worst on the same agent.
//!
//! Two frameworks in two roles, half a core each. The victim computes: an array, and a stream of single tasks. It is measured
//! alone under the same limits, then beside an attacker that spins, allocates, writes to a disk, prints, opens files, reports
//! progress, submits distinct bundles and single tasks as fast as it gets offers, and fetches large inputs. Alternating, so that
//! a change of the machine hits both; a ratio is that of a pair of windows, one after the other. The agent gives one of the two cores to tasks: master, agent, and here the clients and the attacker's
//! server live on the other, as they do elsewhere outside of what is advertised.

mod attacker;
mod guests;
mod origin;
mod tenant;
mod victim;

use crate::figures::Figures;
use anyhow::{Context, Result, bail};
use attacker::Attacker;
use smalti_tests::{AgentConfig, Cluster, Config};
use smalti_types::Isolation;
use std::time::{Duration, Instant};
use tenant::Counts;
use victim::Victim;

/// How long is measured, and how often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) window: Duration,
    pub(crate) repetitions: usize,
}

pub(crate) const FULL: Effort = Effort { window: Duration::from_secs(10), repetitions: 5 };
pub(crate) const QUICK: Effort = Effort { window: Duration::from_secs(4), repetitions: 2 };

/// From the first launch to the beginning of a window: executors start, the flood rises.
const SETTLE: Duration = Duration::from_secs(2);
/// How long the victim's first results may take.
const BEGIN_WITHIN: Duration = Duration::from_secs(30);
/// The attacker's client and server give way to the other processes: elsewhere they are on machines of their own.
const NICE: i32 = 19;

/// Measures these classes. Gives those that could not be measured.
pub(crate) fn measure(effort: Effort, classes: &[Isolation], figures: &mut Figures) -> Result<Vec<&'static str>> {
    let agent = AgentConfig { cpus: "1".into(), mem: "4GiB".into(), ..AgentConfig::default() };
    let env = vec![("RUST_LOG".into(), "warn".into())];
    println!("settings: 1 agent with --cpus 1 on this machine of {} cores, 0.5 cpus for each of two roles", cores());
    let mut not_measured = Vec::new();
    for class in classes.iter().copied() {
        let cluster = Cluster::start(Config { agents: vec![agent.clone()], scheduler: false, env: env.clone(), ..Config::default() })?;
        if let Err(e) = one_class(&cluster, class, effort, figures) {
            // The other class's figures are worth having all the same.
            println!("NOT MEASURED: class {}: {e:#}\n{}", word(class), cluster.logs());
            not_measured.push(word(class));
        }
    }
    Ok(not_measured)
}

fn one_class(cluster: &Cluster, class: Isolation, effort: Effort, figures: &mut Figures) -> Result<()> {
    let ours = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(1).build().context("starting tokio")?;
    let theirs = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(1)
        .on_thread_start(|| {
            // Where that is not allowed the attacker is only louder.
            let _ = rustix::process::setpriority_process(None, NICE);
        })
        .build()
        .context("starting tokio")?;
    let victim = ours.block_on(Victim::start(&cluster.address, class))?;
    ours.block_on(begun(&victim))?;
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for _ in 0..effort.repetitions {
        alone.push(ours.block_on(window(&victim, effort))?);
        let attacker = theirs.block_on(Attacker::start(&cluster.address, class))?;
        std::thread::sleep(SETTLE);
        let (before, bundles) = (attacker.counts(), Attacker::bundles());
        together.push(ours.block_on(window(&victim, effort))?);
        let (bundles, counts) = (Attacker::bundles() - bundles, attacker.counts().since(before));
        println!("{}: the attacker meanwhile: {counts}; {bundles} distinct bundles; last {}", word(class), attacker.last_failure());
        theirs.block_on(attacker.stop())?;
    }
    ours.block_on(victim.stop())?;
    enter(figures, class, &alone, &together);
    Ok(())
}

/// What the victim got done per second: items, single tasks.
type Rates = (f64, f64);

/// Waits for the victim's first results.
async fn begun(victim: &Victim) -> Result<()> {
    let until = Instant::now() + BEGIN_WITHIN;
    loop {
        let counts = victim.counts();
        if counts.failed > 0 {
            bail!("the victim's tasks fail: {}", victim.last_failure());
        }
        if counts.items > 0 && counts.singles > 0 {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("the victim has no results after {BEGIN_WITHIN:?}: {counts}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn window(victim: &Victim, effort: Effort) -> Result<Rates> {
    let (before, began) = (victim.counts(), Instant::now());
    tokio::time::sleep(effort.window).await;
    let done: Counts = victim.counts().since(before);
    let seconds = began.elapsed().as_secs_f64();
    if done.failed > 0 {
        bail!("{} of the victim's tasks failed: {}", done.failed, victim.last_failure());
    }
    #[expect(clippy::cast_precision_loss, reason = "rates")]
    Ok((done.items as f64 / seconds, done.singles as f64 / seconds))
}

fn enter(figures: &mut Figures, class: Isolation, alone: &[Rates], together: &[Rates]) {
    let name = |what: &str| format!("noisy_{}_{what}", word(class));
    for (what, of) in [("items_per_s", (|r: &Rates| r.0) as fn(&Rates) -> f64), ("singles_per_s", |r: &Rates| r.1)] {
        let (quiet, loud) = (name(&format!("{what}_alone")), name(&format!("{what}_together")));
        figures.add(&quiet, alone.iter().map(of).collect());
        figures.add(&loud, together.iter().map(of).collect());
        let ratios = alone.iter().zip(together).map(|(quiet, loud)| of(loud) / of(quiet)).collect();
        figures.add(&name(&what.replace("_per_s", "_ratio")), ratios);
    }
    figures.lower(&name("ratio"), &name("items_ratio"), &name("singles_ratio"));
}

fn word(class: Isolation) -> &'static str {
    match class {
        Isolation::Instance => "instance",
        Isolation::Process => "process",
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}
