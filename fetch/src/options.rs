//! What an operator can say about fetching, for whoever fetches: agents and schedulers.
//!
//! Owns the flags, and [`Setup`]: the same, read and checked.

use crate::policy::{Policy, PolicyError};
use crate::retry::Limits;
use serde::Deserialize;
use smalti_types::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Largest file that a flag may name, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Flags about fetching.
#[derive(Debug, Clone, PartialEq, Eq, Default, clap::Args)]
pub struct FetchOptions {
    /// What tasks of each role may fetch, see docs/fetching.md [default: every scheme, public addresses]
    #[arg(long, value_name = "FILE")]
    pub fetch_policy: Option<PathBuf>,
    /// Certificates (PEM) of authorities that are trusted beside the system's (repeatable)
    #[arg(long, value_name = "FILE")]
    pub fetch_ca: Vec<PathBuf>,
    /// Proxy for everything but the cluster itself; $NO_PROXY lists exceptions [default: $HTTPS_PROXY, $HTTP_PROXY or $ALL_PROXY]
    #[arg(long, value_name = "URL", env = "SMALTI_FETCH_PROXY", hide_env_values = true)]
    pub fetch_proxy: Option<String>,
    /// Most bytes a second that all transfers take together [default: no limit]
    #[arg(long, value_name = "SIZE")]
    pub fetch_rate: Option<Bytes>,
    /// Most connections to one host [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub fetch_per_host: Option<u16>,
    /// A transfer that brings nothing, or next to nothing, for so many seconds has failed and is tried again [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub fetch_stall: Option<u32>,
    /// How often a transfer that brings nothing is tried [default: 7]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub fetch_attempts: Option<u32>,
    /// Credentials for OCI registries, in the form of Docker's config.json
    #[arg(long, value_name = "FILE")]
    pub registry_auth: Option<PathBuf>,
}

/// How to fetch. [`Setup::new`] gives the defaults.
#[derive(Clone)]
pub struct Setup {
    /// Who may fetch what.
    pub policy: Policy,
    /// `host:port` of the master, whose store has what names no URI.
    pub master: String,
    /// Services of the cluster, which no task may have fetched from, as `host:port`.
    pub services: Vec<String>,
    /// Directories below which `file://` may read. Empty: `file://` is refused. `["/"]`: every file.
    pub file_roots: Vec<PathBuf>,
    /// Directories below which outputs may be written.
    pub output_roots: Vec<PathBuf>,
    /// Settings of S3 by the names of their environment variables (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, …). They are the
    /// cluster's; a task cannot bring its own.
    pub s3: Vec<(String, String)>,
    /// Certificates of authorities that are trusted beside the system's: PEM files.
    pub ca: Vec<Vec<u8>>,
    /// For everything but the cluster itself.
    pub proxy: Option<String>,
    /// Hosts that are reached without it.
    pub no_proxy: Option<String>,
    /// Bytes a second.
    pub rate: Option<u64>,
    /// Most connections to one host.
    pub per_host: usize,
    /// A transfer on which nothing arrives for this long has failed.
    pub stall: Duration,
    /// How often, and how soon again.
    pub retries: Limits,
    /// Basic credentials by registry.
    pub registry_auth: BTreeMap<String, String>,
}

impl std::fmt::Debug for Setup {
    /// Without credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup").field("master", &self.master).field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// Why fetching cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file cannot be read.
    #[error("cannot read {}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The policy makes no sense.
    #[error("the fetch policy {}: {source}", path.display())]
    Policy {
        /// In which file.
        path: PathBuf,
        /// What is wrong.
        source: PolicyError,
    },
    /// No HTTP client: certificates or proxy cannot be used.
    #[error("cannot set up the HTTP client: {0}")]
    Http(#[source] reqwest::Error),
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    auth: Option<String>,
}

impl Setup {
    /// The defaults: public addresses, no `file://`, S3 as this process's environment says, about six seconds of tries: as long as a master
    /// needs to restart.
    #[must_use]
    pub fn new(master: impl Into<String>) -> Self {
        let variable = |names: &[&str]| names.iter().find_map(|n| std::env::var(n).ok().filter(|v| !v.is_empty()));
        let master = master.into();
        Self {
            policy: Policy::default(),
            services: vec![master.clone()],
            master,
            file_roots: Vec::new(),
            output_roots: Vec::new(),
            s3: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .filter(|(name, _)| name.starts_with("AWS_"))
                .collect(),
            ca: Vec::new(),
            proxy: variable(&["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]),
            no_proxy: variable(&["NO_PROXY", "no_proxy"]),
            rate: None,
            per_host: 16,
            stall: Duration::from_secs(30),
            retries: Limits { attempts: 7, backoff: Duration::from_millis(100) },
            registry_auth: BTreeMap::new(),
        }
    }

    /// The same with what the operator says.
    ///
    /// # Errors
    /// Files that cannot be read or make no sense.
    pub fn apply(mut self, options: &FetchOptions) -> Result<Self, SetupError> {
        if let Some(path) = &options.fetch_policy {
            self.policy = text(path)?.parse().map_err(|source| SetupError::Policy { path: path.clone(), source })?;
        }
        for path in &options.fetch_ca {
            let pem = read(path)?;
            let found =
                reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| SetupError::File { path: path.clone(), why: e.to_string() })?;
            if found.is_empty() {
                return Err(SetupError::File { path: path.clone(), why: "there is no certificate in PEM form in it".into() });
            }
            self.ca.push(pem);
        }
        if let Some(path) = &options.registry_auth {
            let config: DockerConfig =
                serde_json::from_slice(&read(path)?).map_err(|e| SetupError::File { path: path.clone(), why: e.to_string() })?;
            self.registry_auth = config.auths.into_iter().filter_map(|(registry, a)| Some((registry, a.auth?))).collect();
        }
        self.proxy = options.fetch_proxy.clone().or(self.proxy);
        self.rate = options.fetch_rate.map(|b| b.0).or(self.rate);
        self.per_host = options.fetch_per_host.map_or(self.per_host, usize::from);
        self.stall = options.fetch_stall.map_or(self.stall, |s| Duration::from_secs(s.into()));
        self.retries.attempts = options.fetch_attempts.unwrap_or(self.retries.attempts);
        Ok(self)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, SetupError> {
    let failed = |why: String| SetupError::File { path: path.to_owned(), why };
    let length = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
    if length > MAX_FILE {
        return Err(failed(format!("it has {length} bytes, more than {MAX_FILE}")));
    }
    std::fs::read(path).map_err(|e| failed(e.to_string()))
}

fn text(path: &Path) -> Result<String, SetupError> {
    String::from_utf8(read(path)?).map_err(|_| SetupError::File { path: path.to_owned(), why: "it is not UTF-8".into() })
}
