//! Exclusive tasks: they start and go on only under a lease, which the master gives to the agent and executors enforce.
//!
//! Owns which attempts need the lease and until when it reaches. The clock of leases is the machine's (`CLOCK_BOOTTIME`), which is not
//! known here: whether one has run out is the executor's to say. Deliberately absent: asking for it (the shell's, with heartbeats).

use crate::agent::{Agent, Out};
use crate::event::{Message, Run, ToExecutor};
use crate::task::{Ending, Phase, Task, Work};
use smalti_types::{BootTime, DurationMs, Reason, TaskState, Time};
use std::collections::BTreeSet;

/// The agent's lease.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    /// Exclusive attempts that have not ended.
    pub(crate) exclusive: BTreeSet<Run>,
    /// Those that are ready to start and wait for a lease.
    pub(crate) waiting: BTreeSet<Run>,
    until: Option<BootTime>,
    /// From then on a new one is waited for: what is left of this one would be short.
    stale: Time,
}

impl Leases {
    /// How long a task that starts now may run.
    fn usable(&self, now: Time) -> Option<BootTime> {
        self.until.filter(|_| now < self.stale)
    }

    /// An attempt has ended.
    pub(crate) fn forget(&mut self, run: Run) {
        self.exclusive.remove(&run);
        self.waiting.remove(&run);
    }
}

/// The end of an exclusive attempt that did not begin while it might.
pub(crate) fn unstarted() -> Ending {
    let why = "the agent lost its master, or was restarted, before this exclusive task had begun: it may have been given up by now";
    Ending::new(TaskState::Dropped, Reason::LeaseExpired, why)
}

impl Task {
    /// Whether it runs under a lease only.
    pub(crate) fn is_exclusive(&self) -> bool {
        matches!(&self.work, Work::Single(single) if single.launch.spec.exclusive)
    }
}

impl Agent {
    /// Whether some attempt needs a lease: the shell asks for one, again and again.
    #[must_use]
    pub fn wants_lease(&self) -> bool {
        !self.leases.exclusive.is_empty()
    }

    /// The lease for an attempt that is to start. Without one the attempt is remembered, and starts with the next.
    pub(crate) fn lease_for(&mut self, now: Time, run: Run) -> Option<BootTime> {
        let until = self.leases.usable(now);
        if until.is_none() {
            self.leases.waiting.insert(run);
        }
        until
    }

    /// The master has answered.
    pub(crate) fn lease_granted(&mut self, now: Time, asked: BootTime, lease: DurationMs, out: &mut Out) {
        let until = asked.after(lease);
        // Answers may overtake each other on their way through two connections.
        if self.leases.until.is_some_and(|known| known >= until) {
            return;
        }
        self.leases.until = Some(until);
        self.leases.stale = now.after(DurationMs(lease.0 / 2));
        for run in &self.leases.exclusive {
            let Some(task) = self.tasks.get(run) else { continue };
            if let Phase::Starting(place) | Phase::Running(place) = &task.phase {
                out.send(Message::ToExecutor { executor: place.executor.clone(), message: ToExecutor::Renew { run: *run, until } });
            }
        }
        for run in std::mem::take(&mut self.leases.waiting) {
            let Some(task) = self.tasks.get(&run) else { continue };
            let (Phase::Loading(place), Some(digest)) = (&task.phase, task.digest) else { continue };
            let module = self.pool.executors.get(&place.executor).and_then(|e| e.module(&(digest, task.fuel())));
            if let Some(module) = module {
                self.start(now, run, module, out);
            }
        }
    }

    /// The connection on which they came is gone, or this is another life of the agent: exclusive attempts that have not begun never will.
    /// Their master may have given them up meanwhile and let others begin in their place; the next one need not know that, and would
    /// grant a lease. What has begun did so under a lease, and nobody gives it up before that is over.
    pub(crate) fn drop_unstarted(&mut self, now: Time, out: &mut Out) {
        let begun = |task: &Task| matches!(task.phase, Phase::Starting(_) | Phase::Running(_));
        let exclusive = self.leases.exclusive.iter();
        let late: Vec<Run> = exclusive.filter(|run| self.tasks.get(run).is_some_and(|t| !begun(t))).copied().collect();
        for run in late {
            self.end(now, run, unstarted(), out);
        }
    }

    /// The lease as an executor that was found again should have it.
    pub(crate) fn renew(&self, run: Run) -> Option<ToExecutor> {
        let until = self.leases.until.filter(|_| self.leases.exclusive.contains(&run))?;
        Some(ToExecutor::Renew { run, until })
    }
}
