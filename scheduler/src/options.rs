//! What an operator can say about a scheduler.

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use smalti_scheduler_core::LOCALITY_WAIT;
use smalti_types::{DurationMs, Role};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Options of `smalti scheduler`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Options {
    /// Address of the master
    #[arg(long, env = "SMALTI_MASTER", default_value = "127.0.0.1:5050", value_name = "HOST:PORT")]
    pub master: String,
    /// Where clients connect; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:5052", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Where jobs are kept
    #[arg(long, default_value = "/var/lib/smalti/scheduler", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Role of jobs that name none
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub role: String,
    /// Name under which the framework shows in `smalti frameworks`
    #[arg(long, default_value = "batch", value_name = "NAME")]
    pub name: String,
    /// Directories below which file:// inputs and unpinned bundles may lie (repeatable)
    #[arg(long, value_name = "DIR")]
    pub file_root: Vec<PathBuf>,
    /// Directories below which jobs may have their outputs written with --output-store file://DIR (repeatable)
    #[arg(long, value_name = "DIR")]
    pub output_root: Vec<PathBuf>,
    /// From where and for whom things are resolved.
    #[command(flatten)]
    #[serde(skip)]
    pub fetch: smalti_fetch::FetchOptions,
    /// How long a job lets offers pass at most while another agent holds its inputs; 0s: not at all
    #[arg(long, value_name = "DURATION", default_value = "3s")]
    pub locality_wait: DurationMs,
    /// Listen beyond loopback although nothing checks who connects
    #[arg(long)]
    pub insecure_listen: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            master: "127.0.0.1:5050".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 5052)),
            data_dir: "/var/lib/smalti/scheduler".into(),
            role: "default".into(),
            name: "batch".into(),
            file_root: Vec::new(),
            output_root: Vec::new(),
            fetch: smalti_fetch::FetchOptions::default(),
            locality_wait: LOCALITY_WAIT,
            insecure_listen: false,
        }
    }
}

impl Options {
    /// The role of jobs that name none.
    pub(crate) fn role(&self) -> anyhow::Result<Role> {
        Role::new(&self.role).context("--role")
    }

    /// Refuses what must not be, before anything is touched.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.role()?;
        if self.listen.ip().is_loopback() {
            return Ok(());
        }
        if !self.insecure_listen {
            bail!(
                "refusing to listen on {}: nothing authenticates clients yet, so only loopback addresses are safe; \
                 use --listen 127.0.0.1:{}, or --insecure-listen to do it anyway",
                self.listen,
                self.listen.port()
            );
        }
        tracing::warn!(listen = %self.listen, "listening beyond loopback without authentication: whoever reaches this port can run code on the cluster");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn spans_are_read_and_nonsense_is_named() {
        let wait = |text: &str| Command::try_parse_from(["x", &format!("--locality-wait={text}")]).map(|c| c.options.locality_wait.0);
        assert_eq!(["0s", "500ms", "3s", "2m"].map(|text| wait(text).unwrap()), [0, 500, 3_000, 120_000]);
        for bad in ["", "s", "5d", "-1s", "99999999999999999999s"] {
            let refused = wait(bad).unwrap_err().to_string();
            assert!(refused.contains("--locality-wait"), "{bad}: {refused}");
        }
        assert!(wait("5d").unwrap_err().to_string().contains("like 500ms"));
        let none = Command::try_parse_from(["x"]).unwrap().options;
        assert_eq!((none.locality_wait, LOCALITY_WAIT), (Options::default().locality_wait, LOCALITY_WAIT));
    }
}
