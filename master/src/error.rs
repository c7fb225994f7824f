//! Why a master does not start: one line each, with what, on what, why, and what to do.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a master does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The listen address is reachable from other machines.
    #[error(
        "master: refusing to listen on {0}: it is beyond loopback, and nobody is authenticated yet; listen on 127.0.0.1, or pass \
         --insecure-listen if everybody who can reach this address may run anything on the cluster"
    )]
    BeyondLoopback(SocketAddr),
    /// Options about time contradict each other.
    #[error("master: {0}; choose others, see `smalti master --help`")]
    Times(String),
    /// The port is taken, or the address is not this machine's.
    #[error("master: cannot listen on {addr}: {cause}; {advice}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// What the operating system says.
        cause: std::io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// The data directory cannot be used.
    #[error("master: cannot {action} data directory {}: {cause}; name one that this user can write with --data-dir", dir.display())]
    DataDir {
        /// What was tried.
        action: &'static str,
        /// Where.
        dir: PathBuf,
        /// Why it failed.
        cause: std::io::Error,
    },
    /// Another master uses the data directory.
    #[error("master: data directory {} is in use by another master; stop it, or name another with --data-dir", .0.display())]
    InUse(PathBuf),
    /// The registry cannot be used.
    #[error(transparent)]
    Registry(#[from] crate::RegistryError),
    /// The bundle store cannot be opened.
    #[error("master: cannot open the bundle store {url}: {cause}; --bundle-store takes a directory, file:///DIR or s3://BUCKET/PREFIX")]
    BundleStore {
        /// Which.
        url: String,
        /// Why.
        cause: String,
    },
}

impl StartError {
    pub(crate) fn listen(addr: SocketAddr, cause: std::io::Error) -> Self {
        let advice = match cause.kind() {
            std::io::ErrorKind::AddrInUse => "another process has this port: stop it, or choose another with --listen",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need privileges: choose another with --listen",
            _ => "choose an address of this machine with --listen",
        };
        Self::Listen { addr, cause, advice }
    }
}
