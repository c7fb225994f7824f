//! What an earlier run of this agent left behind: executors that still run, their groups and directories.
//!
//! Owns ending and removing it, at the start and at the end. Executors that the checkpoint knows are left alone: they are taken up again.

use crate::cgroup::Cgroups;
use crate::executor_link::ExecutorLink;
use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use smalti_executor_protocol::supervision::SOCKET_NAME;
use smalti_types::{AgentId, ExecutorId};
use std::path::Path;
use std::time::{Duration, Instant};

/// In the data directory: where the agent's groups were made last, and where executors of earlier lives have theirs.
const GROUPS_FILE: &str = "control-groups";
/// Between two of these places: each is lines, none of them empty.
const PLACES_BETWEEN: &str = "\n\n";
/// Between two tries to remove the agent's groups at its end.
const CLOSE_PAUSE: Duration = Duration::from_millis(10);

/// Ends executors of an earlier run, but for those in `keep`, and removes what they had. Gives the places where some of those that are kept
/// have their groups, other than the present one: they are to be closed at the end, too.
///
/// # Errors
/// When something of it cannot be removed.
pub(crate) async fn end(
    cgroups: &Cgroups,
    id: &AgentId,
    data_dir: &Path,
    executors_dir: &Path,
    keep: &[ExecutorId],
    within: Duration,
) -> anyhow::Result<Vec<Cgroups>> {
    // Where there are no groups, sockets tell who still runs.
    let is_kept = |entry: &std::fs::DirEntry| keep.iter().any(|id| entry.file_name().to_str() == Some(id.as_str()));
    for entry in std::fs::read_dir(executors_dir).into_iter().flatten().flatten().filter(|e| !is_kept(e)) {
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
    let kept = keep.to_vec();
    let removed =
        tokio::task::spawn_blocking(move || groups.cleanup_stale(&kept, within)).await?.context("removing groups of an earlier run")?;
    if removed > 0 {
        tracing::info!(removed, "removed executors' groups of an earlier run");
    }
    let file = data_dir.join(GROUPS_FILE);
    // The latest place first; earlier ones as long as executors of theirs go on.
    let (mut places, mut in_use) = (vec![cgroups.places()], Vec::new());
    for place in std::fs::read_to_string(&file).unwrap_or_default().split(PLACES_BETWEEN) {
        let elsewhere = cgroups.elsewhere(place, id.as_str());
        close(&elsewhere.was_beside(), &[], within).await;
        let left = elsewhere.executors().unwrap_or_default();
        if left.iter().any(|id| keep.contains(id)) {
            close(&elsewhere, keep, within).await;
            places.push(place.to_owned());
            in_use.push(elsewhere);
        } else {
            close(&elsewhere, &[], within).await;
        }
    }
    close(&cgroups.was_beside(), &[], within).await;
    std::fs::write(&file, places.join(PLACES_BETWEEN)).with_context(|| format!("writing {}", file.display()))?;
    for entry in std::fs::read_dir(executors_dir).into_iter().flatten().flatten().filter(|e| !is_kept(e)) {
        let path = entry.path();
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).with_context(|| format!("removing {}", path.display())),
            _ => {}
        }
    }
    Ok(in_use)
}

/// Removes the agent's groups at its end, unless executors in `keep` are there; what fails is said and left to the next start.
pub(crate) async fn close(cgroups: &Cgroups, keep: &[ExecutorId], within: Duration) {
    let (groups, keep) = (cgroups.clone(), keep.to_vec());
    let closed = tokio::task::spawn_blocking(move || {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Executors that have just ended remove their groups at the same time, each on a thread of its own. What one of the
            // two finds half gone is no failure yet: both come to their end.
            let result = groups.cleanup_stale(&keep, left).and_then(|_| if keep.is_empty() { groups.close() } else { Ok(()) });
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
