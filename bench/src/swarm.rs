//! Many simulated agents in one process. Each has a connection of its own to a real master, registers, beats, takes launches of single
//! tasks, says RUNNING and FINISHED, says them again until they are acknowledged, and comes back when its connection breaks.
//!
//! Owns the agents and the counts. Deliberately absent: running anything (a task is a span of time), outputs, array parts, which are refused.

mod link;
mod tasks;

use anyhow::{Context, Result, bail};
use smalti_types::{AgentId, AgentInfo, Attributes, Resources};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

/// Connections that are being made at once: fewer than a listener's queue.
const CONNECTING: usize = 64;

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Options {
    /// The master, `host:port`.
    pub master: String,
    /// How many agents.
    pub agents: u64,
    /// Names are this and a number.
    pub prefix: String,
    /// What each has.
    pub total: Resources,
    /// How long a task runs.
    pub task_time: Duration,
}

/// What has happened so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Agents that are registered now.
    pub registered: AtomicU64,
    /// Connections after an agent's first.
    pub reconnects: AtomicU64,
    /// Tasks that were launched.
    pub launched: AtomicU64,
    /// Tasks that have ended, in whatever way.
    pub ended: AtomicU64,
    /// Heartbeats that were sent.
    pub beats: AtomicU64,
}

impl Counts {
    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// One of them.
    #[must_use]
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [registered, launched, ended, reconnects] = [&self.registered, &self.launched, &self.ended, &self.reconnects].map(Self::get);
        write!(f, "registered {registered}, launched {launched}, ended {ended}, reconnects {reconnects}")
    }
}

/// Agents that run. Dropping it ends their connections; the master sees them go away.
#[derive(Debug)]
pub struct Swarm {
    /// What has happened so far.
    pub counts: Arc<Counts>,
    agents: u64,
    leave: watch::Sender<bool>,
    running: JoinSet<()>,
    fatal: mpsc::Receiver<String>,
}

impl Swarm {
    /// Starts the agents of this process. They connect in the background, see [`Self::registered`].
    ///
    /// # Errors
    /// When this process may not have as many connections.
    pub fn start(options: &Options) -> Result<Self> {
        crate::files::allow(options.agents)?;
        let (leave, leaving) = watch::channel(false);
        let (tell, fatal) = mpsc::channel(1);
        let (counts, turn) = (Arc::<Counts>::default(), Arc::new(Semaphore::new(CONNECTING)));
        let mut running = JoinSet::new();
        for n in 0..options.agents {
            let agent = link::Agent {
                master: options.master.clone(),
                info: info(options, n)?,
                tasks: tasks::Tasks::new(options.task_time),
                counts: counts.clone(),
                leaving: leaving.clone(),
                turn: turn.clone(),
            };
            let tell = tell.clone();
            running.spawn(async move {
                if let Err(why) = agent.run().await {
                    // One is enough for whoever reads it.
                    let _ = tell.try_send(why);
                }
            });
        }
        Ok(Self { counts, agents: options.agents, leave, running, fatal })
    }

    /// Waits until all are registered.
    ///
    /// # Errors
    /// When the master refuses one, is none, or they are not all there in time.
    pub async fn registered(&mut self, within: Duration) -> Result<()> {
        let all = async {
            while Counts::get(&self.counts.registered) < self.agents {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::select! {
            () = all => Ok(()),
            why = self.fatal.recv() => bail!(why.unwrap_or_else(|| "the agents ended".into())),
            () = tokio::time::sleep(within) => bail!("after {within:?}: {} of {} agents", self.counts, self.agents),
        }
    }

    /// Resolves when an agent cannot go on, with the reason.
    pub async fn failed(&mut self) -> String {
        match self.fatal.recv().await {
            Some(why) => why,
            None => std::future::pending().await,
        }
    }

    /// All say goodbye: the master forgets them.
    pub async fn leave(mut self) {
        self.leave.send_replace(true);
        while self.running.join_next().await.is_some() {}
    }
}

fn info(options: &Options, n: u64) -> Result<AgentInfo> {
    let id = AgentId::new(format!("{}-{n}", options.prefix)).with_context(|| format!("the prefix {:?}", options.prefix))?;
    Ok(AgentInfo {
        hostname: id.to_string(),
        id,
        total: options.total.clone(),
        overhead: Resources::default(),
        attributes: Attributes::default(),
        isolation: BTreeMap::from([("simulated".to_owned(), "off: nothing runs here".to_owned())]),
        boot_id: format!("{}-{}", options.prefix, std::process::id()),
        incarnation: u64::from(std::process::id()),
    })
}
