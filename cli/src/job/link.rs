//! The connection to the scheduler, found again when it restarts: a job outlives both ends of it.

use crate::cluster::{Cluster, Jobs};
use crate::failure::{Failure, Result, is_passing};
use crate::terminal;
use crate::time::duration;
use clap::Args;
use smalti_types::DurationMs;
use std::time::{Duration, Instant};

/// First pause before trying again; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// How long to look for a scheduler that is away.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ReconnectOptions {
    /// How long a scheduler or master that is away is waited for; jobs go on meanwhile
    #[arg(long, default_value = "15m", value_parser = duration, value_name = "TIME")]
    reconnect_timeout: DurationMs,
}

#[derive(Debug, Clone)]
pub(crate) struct Link {
    cluster: Cluster,
    jobs: Jobs,
    patience: Duration,
    /// Since when nothing has worked, and how long to pause next.
    away: Option<(Instant, Duration)>,
    /// Whether losing the scheduler is worth a word: one of several links of a process says it.
    quiet: bool,
}

impl Link {
    pub(crate) async fn new(cluster: &Cluster, options: ReconnectOptions) -> Result<Self> {
        let patience = Duration::from_millis(options.reconnect_timeout.0);
        Ok(Self { cluster: cluster.clone(), jobs: cluster.jobs().await?, patience, away: None, quiet: false })
    }

    /// A second link over the same connections that does not repeat what the first one says.
    pub(crate) fn quiet_clone(&self) -> Self {
        Self { quiet: true, ..self.clone() }
    }

    /// The job API. Calls on clones share one connection.
    pub(crate) fn jobs(&self) -> Jobs {
        self.jobs.clone()
    }

    /// Something came through: patience starts anew.
    pub(crate) fn works(&mut self) {
        if self.away.take().is_some() && !self.quiet {
            terminal::note("found the scheduler again");
        }
    }

    /// After a failed call: waits and finds the scheduler again, or fails for good.
    pub(crate) async fn again(&mut self, what: &str, status: &tonic::Status) -> Result<()> {
        if !is_passing(status) {
            return Err(Failure::rpc(what, status));
        }
        loop {
            let (since, pause) = *self.away.get_or_insert_with(|| {
                if !self.quiet {
                    terminal::note(match status.code() {
                        tonic::Code::DeadlineExceeded => "no answer in time, asking again",
                        _ => "lost the scheduler, connecting again; what runs goes on",
                    });
                }
                (Instant::now(), FIRST_PAUSE)
            });
            if since.elapsed() > self.patience {
                let waited = self.patience.as_secs();
                return Err(Failure::new(format!("{} (given up after {waited} s, see --reconnect-timeout)", Failure::rpc(what, status))));
            }
            tokio::time::sleep(pause).await;
            self.away = Some((since, (pause * 2).min(LONGEST_PAUSE)));
            if let Ok(jobs) = self.cluster.jobs().await {
                self.jobs = jobs;
                return Ok(());
            }
        }
    }
}
