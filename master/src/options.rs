//! What an operator may set, and the defaults.

use crate::StartError;
use serde::{Deserialize, Serialize};
use smalti_master_core::Config;
use smalti_proto::convert::HEARTBEAT_INTERVAL_MS;
use smalti_types::{Bytes, DurationMs};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The shortest lease, and the shortest silence that counts, in milliseconds: agents say something three times in each.
const SHORTEST_MS: u64 = 1_000;

/// Options of `smalti master`.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Options {
    /// Where to listen. Port 0 takes any free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:5050")]
    pub listen: SocketAddr,
    /// Directory for what must survive a restart, and for bundles. Default: $XDG_DATA_HOME/smalti/master, or
    /// ~/.local/share/smalti/master.
    #[arg(long, value_name = "DIR", env = "SMALTI_MASTER_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where bundles are kept: a directory, file:///DIR, or s3://BUCKET/PREFIX (credentials from the AWS_… environment).
    /// Default: `bundles` below the data directory.
    #[arg(long, value_name = "URL")]
    pub bundle_store: Option<String>,
    /// Where agents, frameworks and fail-over deadlines are kept over restarts: redb:PATH, or memory for a master that forgets them
    /// when it stops. Default: `registry.redb` in the data directory.
    #[arg(long, value_name = "redb:PATH|memory")]
    pub registry: Option<String>,
    /// Largest bundle that is taken in.
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub max_bundle: Bytes,
    /// Listen beyond loopback although nobody is authenticated.
    #[arg(long)]
    pub insecure_listen: bool,
    /// How long an agent may be away before its tasks are reported UNREACHABLE, exclusive ones apart: for those --exclusive-lease counts. Not
    /// shorter than --ping-timeout; shorter than 14 days, after which an agent is removed.
    #[arg(long, value_name = "TIME", default_value = "75s", value_parser = parse_span)]
    pub agent_timeout: DurationMs,
    /// How long an executor may run exclusive tasks (at most once) after its agent last asked for a lease. It is renewed three times in
    /// that time. Longer: tasks stand a longer absence of the master, and are started elsewhere later. At least 1s.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = parse_span)]
    pub exclusive_lease: DurationMs,
    /// By how many percent the clock of an agent's machine may be slower than the master's: so much longer than the lease is waited before an
    /// exclusive task of an agent that is away is given up. 0 to 100.
    #[arg(long, value_name = "PERCENT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub clock_drift: u32,
    /// What is waited beyond that, for a guest to be stopped where its lease ended.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_span)]
    pub lease_margin: DurationMs,
    /// How long a connected agent may say nothing before its connection is ended. Not longer than --agent-timeout; at least 1s.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = parse_span)]
    pub ping_timeout: DurationMs,
    /// How long a framework may keep an offer without answering it.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_span)]
    pub offer_timeout: DurationMs,
    /// Connections served at the same time; more wait in the listen queue.
    #[arg(long, value_name = "N", default_value_t = 60_000)]
    pub max_connections: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 5050)),
            data_dir: None,
            bundle_store: None,
            registry: None,
            max_bundle: Bytes::gib(1),
            insecure_listen: false,
            agent_timeout: DurationMs(75_000),
            exclusive_lease: DurationMs(15_000),
            clock_drift: 5,
            lease_margin: DurationMs(1_000),
            ping_timeout: DurationMs(15_000),
            offer_timeout: DurationMs(30_000),
            max_connections: 60_000,
        }
    }
}

impl Options {
    /// How often agents are to beat, so that one that is well is never taken for one that is silent: two beats may be late.
    #[must_use]
    pub(crate) fn agents_beat(&self) -> DurationMs {
        DurationMs((self.ping_timeout.0 / 3).clamp(1, HEARTBEAT_INTERVAL_MS))
    }

    /// What the core is to go by.
    ///
    /// # Errors
    /// [`StartError::Times`] when the options contradict each other.
    pub(crate) fn core_config(&self) -> Result<Config, StartError> {
        let config = Config {
            agent_timeout: self.agent_timeout,
            offer_timeout: self.offer_timeout,
            lease: self.exclusive_lease,
            lease_drift_percent: self.clock_drift.into(),
            lease_margin: self.lease_margin,
            ..Config::default()
        };
        let (lease, span, most) = (self.exclusive_lease, config.lease_span(), config.agent_removal);
        let short = |flag: &str, is: DurationMs| format!("--{flag} {} ms is below the least, {SHORTEST_MS} ms", is.0);
        let wrong = if lease.0 < SHORTEST_MS {
            short("exclusive-lease", lease)
        } else if self.ping_timeout.0 < SHORTEST_MS {
            short("ping-timeout", self.ping_timeout)
        } else if self.clock_drift > 100 {
            format!("--clock-drift {} is above 100 percent", self.clock_drift)
        } else if self.agent_timeout < self.ping_timeout {
            format!("--agent-timeout {} ms is shorter than --ping-timeout {} ms", self.agent_timeout.0, self.ping_timeout.0)
        } else if self.agent_timeout >= config.agent_removal {
            format!("--agent-timeout {} ms is not shorter than the {} ms after which an agent is removed", self.agent_timeout.0, most.0)
        } else if span >= config.agent_removal {
            format!(
                "--exclusive-lease {} ms, with {} % for --clock-drift and --lease-margin {} ms, is not shorter than the {} ms after which an \
                 agent is removed",
                lease.0, self.clock_drift, self.lease_margin.0, most.0
            )
        } else {
            return Ok(config);
        };
        Err(StartError::Times(wrong))
    }

    /// The data directory in force.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share"));
        let base = || std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute()).or_else(home);
        let default = || base().map_or_else(|| PathBuf::from("/var/lib/smalti/master"), |b| b.join("smalti/master"));
        self.data_dir.clone().unwrap_or_else(default)
    }
}

/// Reads `500ms`, `30s`, `2m`, `1h`, or plain seconds.
fn parse_span(text: &str) -> Result<DurationMs, String> {
    let bad = || format!("`{text}` is not a time span: write it like 500ms, 30s or 2m");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(factor).filter(|ms| *ms > 0).map(DurationMs).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn flags_and_defaults_agree() {
        let line = Line::parse_from(["master"]).options;
        assert_eq!(format!("{line:?}"), format!("{:?}", Options { data_dir: line.data_dir.clone(), ..Options::default() }));
        let line = Line::parse_from(["master", "--agent-timeout", "2m", "--max-bundle", "5MiB"]).options;
        assert_eq!((line.agent_timeout, line.max_bundle), (DurationMs(120_000), Bytes::mib(5)));
    }

    #[test]
    fn the_defaults_are_those_of_the_core_and_contradictions_are_named() {
        assert_eq!(Options::default().core_config().unwrap(), Config::default());
        let refused = |args: &[&str]| {
            let options = Line::parse_from(["master"].iter().chain(args)).options;
            let text = options.core_config().unwrap_err().to_string();
            assert!(text.starts_with("master: ") && !text.contains('\n'), "{text}");
            text
        };
        assert!(refused(&["--exclusive-lease", "999ms"]).contains("--exclusive-lease 999 ms is below"));
        assert!(refused(&["--ping-timeout", "500ms"]).contains("--ping-timeout 500 ms is below"));
        assert!(refused(&["--agent-timeout", "10s"]).contains("shorter than --ping-timeout 15000 ms"));
        assert!(refused(&["--agent-timeout", "336h"]).contains("not shorter than the 1209600000 ms after which"));
        assert!(refused(&["--exclusive-lease", "330h"]).contains("with 5 % for --clock-drift and --lease-margin 1000 ms"));
        assert!(Line::try_parse_from(["master", "--clock-drift", "101"]).is_err());
        assert!(Options { clock_drift: 101, ..Options::default() }.core_config().is_err(), "also from a file");
        let options = Line::parse_from(["master", "--exclusive-lease", "2s", "--clock-drift", "0", "--lease-margin", "500ms"]).options;
        assert_eq!(options.core_config().unwrap().lease_span(), DurationMs(2_500));
    }

    #[test]
    fn spans_are_read() {
        assert_eq!(parse_span("500ms"), Ok(DurationMs(500)));
        assert_eq!(parse_span("7"), Ok(DurationMs(7_000)));
        for bad in ["", "0s", "-1s", "1d", "s", "99999999999999999999s"] {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
    }
}
