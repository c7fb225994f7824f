//! Finding an executor of an earlier life of this agent again.
//!
//! One [`Launcher::adopt`] is: the record, the same boot, a pidfd, the same start time behind it, the socket, the supervisor at its
//! other end, Welcome, Hello, the worker in the group that is already there. Groups are attached and never made, threads never moved:
//! guests run meanwhile. What cannot be adopted is ended and cleaned up, and its cause told as the exit of one that was watched.
//! Deliberately absent: what it says after Hello, and what becomes of its tasks.

use super::process::{self, ProcessHandle};
use super::record::Record;
use super::threads::{self, Threads};
use super::{Launcher, Ready, Running, blocking, handshake};
use crate::cgroup::ExecutorGroup;
use crate::detect::boot_id;
use crate::executor_link::ExecutorLink;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use smalti_executor_protocol::supervision::{ExecutorKind, SOCKET_NAME};
use smalti_executor_protocol::v1::Welcome;
use smalti_types::ExecutorId;
use std::path::Path;
use std::time::Duration;

/// How long one that cannot be adopted may take to end by itself: its connection is closed before its last thread is gone.
const LAST_MOMENT: Duration = Duration::from_millis(200);

/// An executor that cannot be adopted. Nothing of it runs any more, or it is being ended; its groups and directory are being removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct Gone {
    /// How it ended, or why it was ended: for status messages.
    pub cause: String,
    /// Whether the kernel killed it, or a part of it, at its memory limit.
    pub oom: bool,
}

/// Why one that lives is of no use.
type Why = String;

impl Launcher {
    /// Takes over the executor that an earlier life of this agent started under this name. `confirmed` is the number of its last message
    /// whose effects are kept; what it says first on the returned link are the later ones, then what it holds.
    ///
    /// # Errors
    /// When it is not there any more, or cannot be used: it is ended then.
    pub async fn adopt(&self, id: &ExecutorId, confirmed: u64) -> Result<Running, Gone> {
        let home = self.options.executors_dir.join(id.as_str());
        let record = match Record::load(&home) {
            Ok(record) if record.id == *id => record,
            Ok(record) => return Err(self.give_up(id, &home, &format!("its record is that of executor {}", record.id)).await),
            Err(e) => return Err(self.give_up(id, &home, &format!("its record cannot be read: {e}")).await),
        };
        let group = self.options.cgroups.attach(id, record.slots, &record.cgroups);
        let (of, within) = (record.clone(), group.clone());
        let Some(process) = blocking(move || find(&of, within)).await else {
            let cause = if record.boot_id == boot_id() { None } else { Some("the machine was started again".to_owned()) };
            let exit = process::find_cause(&home, &group, record.max_memory);
            process::remove_later(group, home);
            return Err(Gone { cause: cause.unwrap_or(exit.cause), oom: exit.oom });
        };
        let within = self.options.start_timeout;
        let adopted = match tokio::time::timeout(within, self.reach(&record, confirmed, &home, &group, &process)).await {
            Ok(adopted) => adopted,
            Err(_) => Err(format!("it did not answer within {within:?}")),
        };
        let exit = process::watch(process.clone(), group.clone(), home, record.max_memory);
        match adopted {
            Ok((ready, threads)) => {
                let (isolation, warnings) = self.look_at((&ready, &threads), &process, &group, record.namespaces);
                let Ready { link, hello, worker, spawned, .. } = ready;
                let (uid, exit) = (spawned.uid.ok(), Box::pin(exit));
                Ok(Running {
                    hello,
                    link,
                    group,
                    process,
                    exit,
                    worker,
                    start_cpu_us: None,
                    uid,
                    broker: None,
                    grants: None,
                    isolation,
                    warnings,
                })
            }
            Err(why) => {
                // Perhaps it was about to end when it was asked: then how it ended is the better cause.
                let lived = !process.ends_within(LAST_MOMENT).await;
                process.kill();
                let exit = exit.await;
                Err(Gone { cause: if lived { format!("ended because it cannot be taken over: {why}") } else { exit.cause }, oom: exit.oom })
            }
        }
    }

    /// Connects and exchanges the first words.
    async fn reach(
        &self,
        record: &Record,
        confirmed: u64,
        home: &Path,
        group: &ExecutorGroup,
        process: &ProcessHandle,
    ) -> Result<(Ready, Threads), Why> {
        let kind = record.kind()?;
        let socket = home.join(SOCKET_NAME);
        let mut link = ExecutorLink::connect(&socket).await.map_err(|e| format!("connecting to {}: {e}", socket.display()))?;
        let (peer, _) = link.peer().map_err(|e| format!("asking who listens on {}: {e}", socket.display()))?;
        if peer != process.pid() {
            return Err(format!("process {peer} listens on its socket, not its supervisor {}", process.pid()));
        }
        let welcome =
            Welcome { slots: record.slots, max_memory_bytes: record.max_memory.0, network: kind == ExecutorKind::Networked, confirmed };
        let (hello, _) = handshake(&mut link, welcome, &record.id, home).await.map_err(|e| e.to_string())?;
        let (worker, threads) = threads::find(&record.id, record.slots, &hello, process, group).map_err(|e| e.to_string())?;
        let spawned = super::Spawned { uid: record.user().map_err(str::to_owned), warnings: record.warnings.clone(), control: None };
        Ok((Ready { link, hello, worker, spawned, broker: None }, threads))
    }

    /// Ends and removes what may be left of an executor about which nothing is known.
    async fn give_up(&self, id: &ExecutorId, home: &Path, why: &str) -> Gone {
        let socket = home.join(SOCKET_NAME);
        if let Some(peer) = listener(&socket).await
            && let Some(Ok(fd)) = Pid::from_raw(peer).map(|pid| pidfd_open(pid, PidfdFlags::empty()))
            // It still listens: so the descriptor names it and nobody who got its number meanwhile.
            && listener(&socket).await == Some(peer)
        {
            let _ = pidfd_send_signal(&fd, Signal::KILL);
        }
        let group = self.options.cgroups.attach(id, 0, "");
        process::remove_later(group, home.to_owned());
        Gone { cause: format!("it cannot be found again: {why}"), oom: false }
    }
}

/// Who listens on a socket.
async fn listener(socket: &Path) -> Option<i32> {
    ExecutorLink::connect(socket).await.ok()?.peer().ok().map(|(pid, _)| pid).filter(|pid| *pid > 1)
}

/// The supervisor or the only process, if it still runs. If it does not, how it ended is recorded by now.
fn find(record: &Record, group: ExecutorGroup) -> Option<ProcessHandle> {
    if record.boot_id != boot_id() {
        return None;
    }
    let process = match record.alone {
        true => ProcessHandle::open_alone(record.supervisor, group),
        false => ProcessHandle::open(record.supervisor, record.pid_namespace, group),
    };
    let process = process.ok()?;
    // Behind the descriptor: had the number become somebody else's before, the time would be another.
    let same = process::start_time(record.supervisor).is_ok_and(|time| time == record.start_time);
    let alive = same && process.is_alive();
    if same && !alive {
        process.until_recorded();
    }
    alive.then_some(process)
}
