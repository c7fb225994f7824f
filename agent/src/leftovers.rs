//! What an earlier run of this agent left behind: executors that still run, their groups and directories.
//!
//! Owns ending and removing it, at the start and at the end. Keeping tasks across a restart of the agent is not done here (yet): whatever
//! is found is ended.

use crate::cgroup::Cgroups;
use crate::executor_link::ExecutorLink;
use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use smalti_executor_protocol::supervision::SOCKET_NAME;
use smalti_types::AgentId;
use std::path::Path;
use std::time::{Duration, Instant};

/// In the data directory: where the agent's groups were made last.
const GROUPS_FILE: &str = "control-groups";
/// Between two tries to remove the agent's groups at its end.
const CLOSE_PAUSE: Duration = Duration::from_millis(10);

/// Ends executors of an earlier run and removes what they had.
///
/// # Errors
/// When something of it cannot be removed.
pub(crate) async fn end(cgroups: &Cgroups, id: &AgentId, data_dir: &Path, executors_dir: &Path, within: Duration) -> anyhow::Result<()> {
    // Where there are no groups, sockets tell who still runs.
    for entry in std::fs::read_dir(executors_dir).into_iter().flatten().flatten() {
        let socket = entry.path().join(SOCKET_NAME);
        let Ok(link) = ExecutorLink::connect(&socket).await else { continue };
        if let Ok((pid, _)) = link.peer()
            && pid > 1
        {
            tracing::info!(pid, "ending an executor of an earlier run");
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let groups = cgroups.clone();
    let removed =
        tokio::task::spawn_blocking(move || groups.cleanup_stale(&[], within)).await?.context("removing groups of an earlier run")?;
    if removed > 0 {
        tracing::info!(removed, "removed executors' groups of an earlier run");
    }
    let file = data_dir.join(GROUPS_FILE);
    let elsewhere = cgroups.elsewhere(&std::fs::read_to_string(&file).unwrap_or_default(), id.as_str());
    for groups in [&elsewhere, &elsewhere.was_beside(), &cgroups.was_beside()] {
        close(groups, within).await;
    }
    std::fs::write(&file, cgroups.places()).with_context(|| format!("writing {}", file.display()))?;
    match std::fs::remove_dir_all(executors_dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).with_context(|| format!("removing {}", executors_dir.display())),
        _ => Ok(()),
    }
}

/// Removes the agent's groups at its end; what fails is said and left to the next start.
pub(crate) async fn close(cgroups: &Cgroups, within: Duration) {
    let groups = cgroups.clone();
    let closed = tokio::task::spawn_blocking(move || {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Executors that have just ended remove their groups at the same time, each on a thread of its own. What one of the
            // two finds half gone is no failure yet: both come to their end.
            let result = groups.cleanup_stale(&[], left).and_then(|_| groups.close());
            if result.is_ok() || left.is_zero() {
                return result;
            }
            std::thread::sleep(CLOSE_PAUSE);
        }
    })
    .await;
    match closed {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::warn!("cannot remove the agent's control groups: {e}"),
        Err(e) => tracing::warn!("removing the agent's control groups: {e}"),
    }
}
