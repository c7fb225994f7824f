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
    /// How long a scheduler, a master or an agent that is away or stands still is waited for; jobs go on meanwhile
    #[arg(long, default_value = "15m", value_parser = duration, value_name = "TIME")]
    reconnect_timeout: DurationMs,
}

#[derive(Debug, Clone)]
pub(crate) struct Link {
    cluster: Cluster,
    jobs: Jobs,
    patience: Duration,
    away: Option<Away>,
    /// Whether losing the scheduler is worth a word: one of several links of a process says it.
    quiet: bool,
}

/// Nothing works.
#[derive(Debug, Clone)]
struct Away {
    since: Instant,
    /// How long to pause next.
    pause: Duration,
    /// What was said about it last.
    said: String,
    /// The scheduler lives, and waits for somebody else.
    somebody_else: bool,
}

/// Whether the other side itself says that it cannot answer now, rather than that it cannot be reached.
fn is_answer(status: &tonic::Status) -> bool {
    let code = matches!(status.code(), tonic::Code::DeadlineExceeded | tonic::Code::Unavailable);
    code && !status.message().is_empty() && std::error::Error::source(status).is_none()
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
        if let Some(away) = self.away.take().filter(|_| !self.quiet) {
            terminal::note(if away.somebody_else { "there is an answer again" } else { "found the scheduler again" });
        }
    }

    /// Says what is waited for, once until it changes.
    fn note(&mut self, what: &str, status: &tonic::Status) {
        let somebody_else = is_answer(status);
        let said = if somebody_else {
            let longest = crate::time::brief(u64::try_from(self.patience.as_micros()).unwrap_or(u64::MAX));
            let why = crate::output::printable(status.message());
            format!("{what}: {why}; asking again for up to {longest}, see --reconnect-timeout")
        } else {
            "lost the scheduler, connecting again; what runs goes on".to_owned()
        };
        let is_new = self.away.as_ref().is_none_or(|away| away.said != said);
        if is_new && !self.quiet {
            terminal::note(&said);
        }
        let (since, pause) = self.away.as_ref().map_or((Instant::now(), FIRST_PAUSE), |away| (away.since, away.pause));
        self.away = Some(Away { since, pause, said, somebody_else });
    }

    /// After a failed call: waits and finds the scheduler again, or fails for good.
    pub(crate) async fn again(&mut self, what: &str, status: &tonic::Status) -> Result<()> {
        if !is_passing(status) {
            return Err(Failure::rpc(what, status));
        }
        self.note(what, status);
        while let Some(away) = &mut self.away {
            if away.since.elapsed() > self.patience {
                let waited = self.patience.as_secs();
                return Err(Failure::new(format!("{} (given up after {waited} s, see --reconnect-timeout)", Failure::rpc(what, status))));
            }
            let pause = away.pause;
            away.pause = (pause * 2).min(LONGEST_PAUSE);
            tokio::time::sleep(pause).await;
            if let Ok(jobs) = self.cluster.jobs().await {
                self.jobs = jobs;
                break;
            }
        }
        Ok(())
    }
}
