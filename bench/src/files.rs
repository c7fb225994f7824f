//! Open files: each simulated agent is a connection. The soft limit is raised to the hard one.

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors beside the connections: binaries, logs, the runtime's own.
const OTHERS: u64 = 128;

/// Makes room for `connections` sockets in this process.
///
/// # Errors
/// When the hard limit is too low; the message says what to do.
pub fn allow(connections: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    let needed = connections.saturating_add(OTHERS);
    anyhow::ensure!(
        hard >= needed,
        "{connections} agents need {needed} open files in this process, and its hard limit is {hard}: raise it (ulimit -Hn {needed} as root, or \
         LimitNOFILE= of the service), or take fewer agents"
    );
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")?;
    }
    Ok(())
}
