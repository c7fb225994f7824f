//! What an operator may set, and the defaults.

use serde::{Deserialize, Serialize};
use smalti_proto::convert::HEARTBEAT_INTERVAL_MS;
use smalti_types::{Bytes, DurationMs};
use std::net::SocketAddr;
use std::path::PathBuf;

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
    /// How long an agent may be away before its tasks are reported UNREACHABLE.
    #[arg(long, value_name = "TIME", default_value = "75s", value_parser = parse_span)]
    pub agent_timeout: DurationMs,
    /// How long a connected agent may say nothing before its connection is ended.
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
    fn spans_are_read() {
        assert_eq!(parse_span("500ms"), Ok(DurationMs(500)));
        assert_eq!(parse_span("7"), Ok(DurationMs(7_000)));
        for bad in ["", "0s", "-1s", "1d", "s", "99999999999999999999s"] {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
    }
}
