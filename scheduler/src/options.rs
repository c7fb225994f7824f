//! What an operator can say about a scheduler.

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use smalti_types::Role;
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
