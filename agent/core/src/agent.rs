//! The agent's state and its single entry: one event in, decisions out.
//!
//! Owns the attempts, their index, what they hold, and the connection's state. The rules are beside it: `commands` (what the master
//! wants), `launch` (from prepared to started), `reports` (what executors say), `array` (items), `executors` (processes and slots).

use crate::event::{Event, Message, Run, ToExecutor};
use crate::exclusive::Leases;
use crate::executors::Pool;
use crate::losses::Losses;
use crate::parameters::Parameters;
use crate::process::Processes;
use crate::record::Record;
use crate::seen::Seen;
use crate::task::{Ending, Phase, Task, Work};
use smalti_types::protocol::RunningTask;
use smalti_types::{Digest, Effects, ExecutorId, FrameworkId, MilliCpus, Resources, StatusUpdate, TaskKey, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What a slot may use while its guest is stopped by force.
const HURRY_CPUS: MilliCpus = MilliCpus(1_000);

/// What one step decides.
pub(crate) type Out = Effects<Record, Message>;

/// What was ignored since the start, by who said it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Statements of executors about runs, modules or items that they do not hold, or repeats.
    pub executor_ignored: u64,
    /// Launches seen before, and items or kills for attempts that are not here.
    pub master_ignored: u64,
    /// Items that finished with exit code 0.
    pub items_finished: u64,
    /// Shared executors that died without having been told to.
    pub executors_lost: u64,
}

/// Most that one message counts for: a report may speak of 2^64 items, and the counter must still move with the next one.
const MOST_AT_ONCE: u64 = 1_000_000;

impl Counters {
    pub(crate) fn ignore_executor(&mut self, n: u64) {
        self.executor_ignored = self.executor_ignored.saturating_add(n.min(MOST_AT_ONCE));
    }

    pub(crate) fn ignore_master(&mut self, n: u64) {
        self.master_ignored = self.master_ignored.saturating_add(n);
    }
}

/// Everything that this agent runs.
#[derive(Debug)]
pub struct Agent {
    pub(crate) parameters: Parameters,
    pub(crate) tasks: BTreeMap<Run, Task>,
    pub(crate) keys: BTreeMap<TaskKey, Run>,
    pub(crate) next_run: u64,
    pub(crate) seen: Seen,
    pub(crate) pool: Pool,
    /// Attempts that wait for slots of their framework's executors, in order.
    pub(crate) waiting: BTreeMap<FrameworkId, VecDeque<Run>>,
    /// Attempts that wait for executors of their own.
    pub(crate) processes: Processes,
    /// Sum of what all attempts hold.
    pub(crate) held: Resources,
    pub(crate) connected: bool,
    /// Attempts that may have something to say at the end of this step.
    pub(crate) dirty: BTreeSet<Run>,
    /// Frameworks for which slots may have become free in this step.
    pub(crate) to_place: BTreeSet<FrameworkId>,
    pub(crate) counters: Counters,
    pub(crate) leases: Leases,
    pub(crate) losses: Losses,
    /// Whether the checkpoint has room for new work.
    pub(crate) room: bool,
    /// Whether the agent is about to end.
    pub(crate) draining: bool,
}

impl Agent {
    /// An agent without tasks and without a master.
    #[must_use]
    pub fn new(parameters: Parameters) -> Self {
        Self {
            seen: Seen::new(parameters.seen_per_framework),
            processes: Processes::new(parameters.pool_from_start),
            parameters,
            tasks: BTreeMap::new(),
            keys: BTreeMap::new(),
            next_run: 0,
            pool: Pool::default(),
            waiting: BTreeMap::new(),
            held: Resources::default(),
            connected: false,
            dirty: BTreeSet::new(),
            to_place: BTreeSet::new(),
            counters: Counters::default(),
            leases: Leases::default(),
            losses: Losses::default(),
            room: true,
            draining: false,
        }
    }

    /// Takes in one event. Total: what makes no sense is ignored and counted, or becomes a status.
    pub fn step(&mut self, now: Time, event: Event) -> Effects<Record, Message> {
        let mut out = Out::default();
        match event {
            Event::MasterConnected { epoch: _ } => {
                self.connected = true;
                self.dirty.extend(self.tasks.keys());
            }
            Event::MasterDisconnected => {
                self.connected = false;
                self.drop_unstarted(now, &mut out);
            }
            Event::Command(command) => self.command(now, command, &mut out),
            Event::Prepared { run, result } => self.prepared(now, run, result, &mut out),
            Event::SplitsThere { run, items } => self.splits_there(now, run, &items, &mut out),
            Event::Fetching { run, permille, text } => self.fetching(run, permille, text),
            Event::ExecutorStarted { executor, slots, cpu_us } => self.executor_started(now, &executor, slots, cpu_us, &mut out),
            Event::ExecutorFailed { executor, failure } => self.executor_failed(now, &executor, failure, &mut out),
            Event::ExecutorExited { executor, cause, out_of_memory } => {
                self.executor_exited(now, &executor, &cause, out_of_memory, &mut out);
            }
            Event::ExecutorBack { executor, slots } => self.executor_back(now, &executor, slots, &mut out),
            Event::Executor { executor, number, message } => self.executor_said(now, &executor, number, message, &mut out),
            Event::Drain => self.drain(now, &mut out),
            Event::Room(room) => self.room = room,
            Event::Tick => self.tick(now, &mut out),
        }
        self.finish_step(now, &mut out);
        out
    }

    /// What follows from any event.
    pub(crate) fn finish_step(&mut self, now: Time, out: &mut Out) {
        for framework in std::mem::take(&mut self.to_place) {
            self.place(now, &framework, out);
        }
        self.serve_processes(now, out);
        self.flush(now, out);
        self.record_executors(out);
    }

    /// What a registration says: attempts that are not terminal, and all unacknowledged updates in order per task. They count as
    /// sent with it.
    pub fn registration(&mut self, now: Time) -> (Vec<RunningTask>, Vec<StatusUpdate>) {
        let (mut running, mut unacknowledged) = (Vec::new(), Vec::new());
        for task in self.tasks.values_mut() {
            task.stream.register(now, &mut unacknowledged);
            if task.phase == Phase::Ended {
                continue;
            }
            // A part's slots as its last update says, so that the updates that follow go on from there.
            let (resources, slot_resources) = match &task.work {
                Work::Single(single) => (single.launch.resources.clone(), None),
                Work::Part(part) => (part.resources(part.told_slots), Some(part.launch.slot_resources.clone())),
            };
            let exclusive = matches!(&task.work, Work::Single(single) if single.launch.spec.exclusive);
            running.push(RunningTask { key: task.key.clone(), state: task.state(), resources, slot_resources, exclusive });
        }
        (running, unacknowledged)
    }

    /// What was ignored since the start.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Attempts that are here, terminal and not acknowledged ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether nothing runs and nothing waits to be acknowledged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Attempts that are not terminal.
    #[must_use]
    pub fn live(&self) -> usize {
        self.tasks.values().filter(|t| t.phase != Phase::Ended).count()
    }

    /// Attempts that are here, with whether they have ended and whether they are array parts.
    pub fn attempts(&self) -> impl Iterator<Item = (&TaskKey, bool, bool)> {
        self.tasks.values().map(|t| (&t.key, t.phase == Phase::Ended, matches!(t.work, Work::Part(_))))
    }

    /// Attempts that are in executors, with the bundle that each runs.
    pub fn bundles_in_use(&self) -> impl Iterator<Item = (&TaskKey, Digest)> {
        self.tasks.values().filter(|t| t.phase.place().is_some() || t.phase == Phase::Spread).map(|t| (&t.key, t.work.bundle()))
    }

    /// Whether `key` is here and not terminal.
    #[must_use]
    pub fn is_live(&self, key: &TaskKey) -> bool {
        self.keys.get(key).and_then(|run| self.tasks.get(run)).is_some_and(|t| t.phase != Phase::Ended)
    }

    /// Whether the answer to a preparation is waited for.
    #[must_use]
    pub fn is_preparing(&self, run: Run) -> bool {
        self.tasks.get(&run).is_some_and(|t| t.phase == Phase::Preparing || t.unprepared)
    }

    /// Sum of what all attempts hold.
    #[must_use]
    pub const fn held(&self) -> &Resources {
        &self.held
    }

    /// Time-outs of all kinds.
    fn tick(&mut self, now: Time, out: &mut Out) {
        let mut stuck: Vec<(ExecutorId, String)> = Vec::new();
        let mut hurried: Vec<Run> = Vec::new();
        for (run, task) in &mut self.tasks {
            self.dirty.insert(*run);
            if let (Some(place), Work::Part(part)) = (task.phase.place(), &mut task.work)
                && part.should_ask()
            {
                let message = ToExecutor::Unlease { run: *run, most: 0 };
                out.send(Message::ToExecutor { executor: place.executor.clone(), message });
            }
            if task.kill.is_some_and(|k| k.hurry.is_some_and(|at| now >= at)) {
                hurried.push(*run);
            }
            let why = if task.kill.is_some_and(|k| now >= k.deadline) {
                format!("it did not stop {} in time", task.key)
            } else if task.overdue.is_some_and(|d| now >= d) {
                format!("it did not end {} at its time limit", task.key)
            } else {
                continue;
            };
            stuck.extend(task.places().into_iter().map(|(executor, _)| (executor, why.clone())));
        }
        for run in hurried {
            self.hurry(run, out);
        }
        self.processes.touch();
        self.losses.forget(now);
        let held_back = self.waiting.keys().filter(|f| self.losses.may_start(now, f));
        self.to_place.extend(held_back.cloned());
        for (executor, why) in stuck {
            self.end_executor(now, &executor, why, out);
        }
        for executor in self.pool.take_idle(now, self.parameters.idle_stop) {
            out.send(Message::StopExecutor { executor });
        }
        for executor in self.pool.take_overdue(now) {
            out.send(Message::KillExecutor { executor, why: "it did not end when told to".into() });
        }
        for (id, executor) in &mut self.pool.executors {
            if let Some(bytes) = executor.lower(now) {
                out.send(Message::SetExecutorMemory { executor: id.clone(), bytes });
            }
        }
    }

    /// A guest that is to be stopped by force gets the cpu that this takes: throttled, it would not come to the point where it ends.
    pub(crate) fn hurry(&mut self, run: Run, out: &mut Out) {
        let Some(task) = self.tasks.get_mut(&run) else { return };
        if let Some(kill) = &mut task.kill {
            kill.hurry = None;
        }
        let cpus = task.cpus().max(HURRY_CPUS);
        for (id, slots) in task.places() {
            let Some(executor) = self.pool.executors.get_mut(&id) else { continue };
            for slot in slots {
                if executor.set_cpus(slot, cpus) {
                    out.send(Message::SetSlotCpus { executor: id.clone(), slot, cpus });
                }
            }
        }
    }

    /// Says what is due, sends it when there is a master, and records what has changed.
    fn flush(&mut self, now: Time, out: &mut Out) {
        let mut updates = Vec::new();
        for run in std::mem::take(&mut self.dirty) {
            let Some(task) = self.tasks.get_mut(&run) else { continue };
            if self.connected {
                task.say_due(now);
                task.stream.take_due(now, &mut updates);
            }
            if task.phase == Phase::Ended && task.stream.in_flight() == 0 {
                self.keys.remove(&task.key);
                self.tasks.remove(&run);
                out.persist(Record::Removed { run });
                continue;
            }
            Self::see_to_splits(&self.pool, run, task, out);
            Self::record_attempt(run, task, out);
        }
        if !updates.is_empty() {
            out.send(Message::Updates(updates));
        }
    }

    /// Ends an attempt: its last update, its resources, its slots.
    pub(crate) fn end(&mut self, now: Time, run: Run, ending: Ending, out: &mut Out) {
        let Some(task) = self.tasks.get_mut(&run) else { return };
        if task.phase == Phase::Ended {
            return;
        }
        // Every sum was checked when it was made, so taking away cannot fail.
        self.held = self.held.checked_sub(&task.resources()).unwrap_or_default();
        self.leases.forget(run);
        if let Work::Part(part) = &mut task.work {
            part.pieces.reset();
        }
        let used = task.used_in_process(&ending);
        // Somebody gets ready what nobody needs any more.
        if std::mem::take(&mut task.unprepared) || task.phase == Phase::Preparing {
            out.send(Message::CancelPrepare { run });
        }
        task.say_end(now, ending);
        let code = task.digest.map(|digest| (digest, task.fuel()));
        let memory = task_memory(task);
        let key = task.key.clone();
        match std::mem::replace(&mut task.phase, Phase::Ended) {
            Phase::Waiting if task.kind.is_used_once() => self.processes.forget(run),
            Phase::Spread => {
                self.processes.forget(run);
                let ids = if let Work::Part(part) = &mut task.work { std::mem::take(&mut part.lanes).into_executors() } else { Vec::new() };
                for id in ids {
                    self.discard(now, &id, out);
                }
            }
            Phase::Loading(place) | Phase::Starting(place) | Phase::Running(place) if task.kind.is_used_once() => {
                self.discard(now, &place.executor, out);
            }
            Phase::Waiting => {
                if let Some(queue) = self.waiting.get_mut(&task.key.framework) {
                    queue.retain(|r| *r != run);
                    if queue.is_empty() {
                        self.waiting.remove(&task.key.framework);
                    }
                }
                self.to_place.insert(task.key.framework.clone());
            }
            Phase::Loading(place) | Phase::Starting(place) | Phase::Running(place) => {
                if let Some(executor) = self.pool.executors.get_mut(&place.executor) {
                    executor.release(&place.slots, memory * place.slots.len() as u64, now);
                    if let Some(code) = code {
                        executor.done_with(code, run);
                    }
                }
                self.to_place.insert(task.key.framework.clone());
            }
            Phase::Preparing | Phase::Ended => {}
        }
        if let Some((began, cpu_us)) = used {
            self.process_used(now, run, began, cpu_us);
        }
        out.send(Message::Ended { run, key });
        self.dirty.insert(run);
    }

    /// Ends an executor that does not do what it was told; its tasks end with it, when it has gone.
    pub(crate) fn end_executor(&mut self, now: Time, id: &ExecutorId, why: String, out: &mut Out) {
        let Some(executor) = self.pool.executors.get_mut(id) else { return };
        if !matches!(executor.phase, crate::executor::Phase::Up | crate::executor::Phase::Back) {
            return;
        }
        executor.phase = crate::executor::Phase::Stopping(None);
        executor.idle_since = now;
        self.pool.touched.insert(id.clone());
        out.send(Message::KillExecutor { executor: id.clone(), why });
    }
}

/// Memory of one slot of an attempt, with its disk where that lies in memory.
pub(crate) fn task_memory(task: &Task) -> u64 {
    let memory = match &task.work {
        Work::Single(single) => single.launch.resources.mem.0,
        Work::Part(part) => part.launch.slot_resources.mem.0,
    };
    memory.saturating_add(task.disk_memory)
}
