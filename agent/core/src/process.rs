//! Class `process`: who waits for an executor of its own, in which order they get one, and how many are kept ready.
//!
//! Owns the queues and the pool's size. Every executor here is used for one task or item and then ends; the next one is started at
//! once. What is started at a time is bounded, and so is what is alive; whatever is more waits in its queue.

use crate::agent::{Agent, Out, task_memory};
use crate::event::{Failure, Grant, Message, Run, ToExecutor};
use crate::executor::{Executor, Need, Phase as ExecutorPhase};
use crate::parameters::ExecutorKind;
use crate::task::{Ending, Phase, Place, Task, Work};
use smalti_types::{DurationMs, ExecutorId, PortSet, Reason, Time};
use std::collections::VecDeque;
use std::sync::Arc;

/// After an executor failed to start and nobody waited for it, no other is started for this long.
const PAUSE: DurationMs = DurationMs(2_000);

/// Runs that wait for executors of their own.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    /// For pooled ones: each takes one, and goes to the back when it wants more.
    pub(crate) pooled: VecDeque<Run>,
    /// For networked ones, which are started for them.
    pub(crate) networked: VecDeque<Run>,
    /// Whether the pool is kept filled: from the first use on, or from the start.
    warm: bool,
    /// Nothing is started before this.
    not_before: Time,
    /// Whether something has changed since the queues were served.
    touched: bool,
}

impl Processes {
    pub(crate) fn new(warm: bool) -> Self {
        Self { warm, touched: warm, ..Self::default() }
    }

    /// The queues are served at the end of this step.
    pub(crate) fn touch(&mut self) {
        self.touched = true;
    }

    fn queue(&mut self, kind: ExecutorKind) -> &mut VecDeque<Run> {
        if kind == ExecutorKind::Networked { &mut self.networked } else { &mut self.pooled }
    }

    /// In how many queues a run is, and how often.
    pub(crate) fn places_of(&self, run: Run) -> usize {
        self.pooled.iter().chain(&self.networked).filter(|r| **r == run).count()
    }

    pub(crate) fn forget(&mut self, run: Run) {
        self.pooled.retain(|r| *r != run);
        self.networked.retain(|r| *r != run);
    }
}

/// How many executors a run could use at once.
fn wants(task: &Task) -> usize {
    match (&task.phase, &task.work) {
        (Phase::Waiting, Work::Single(_)) => 1,
        (Phase::Spread, Work::Part(part)) if part.has_next() && !task.unprepared => {
            part.lanes.free().min(usize::try_from(part.queue.len()).unwrap_or(usize::MAX))
        }
        _ => 0,
    }
}

impl Agent {
    /// Puts a run into its queue, once, if it wants an executor.
    pub(crate) fn queue_process(&mut self, run: Run) {
        let Some(task) = self.tasks.get(&run).filter(|t| t.kind.is_used_once()) else { return };
        self.processes.touch();
        if wants(task) > 0 && self.processes.places_of(run) == 0 {
            let kind = task.kind;
            self.processes.warm |= kind == ExecutorKind::Pooled;
            self.processes.queue(kind).push_back(run);
        }
    }

    /// Gives executors to those who wait, and starts what is missing.
    pub(crate) fn serve_processes(&mut self, now: Time, out: &mut Out) {
        if !std::mem::take(&mut self.processes.touched) {
            return;
        }
        self.hand_out(now, ExecutorKind::Pooled, out);
        self.hand_out(now, ExecutorKind::Networked, out);
        self.discard_unwanted(now, out);
        self.start_missing(now, out);
    }

    /// One turn for each run in a queue, again and again until nobody gets anything.
    fn hand_out(&mut self, now: Time, kind: ExecutorKind, out: &mut Out) {
        let mut without = 0;
        while without < self.processes.queue(kind).len() {
            let Some(run) = self.processes.queue(kind).pop_front() else { return };
            let wanting = |agent: &Self| agent.tasks.get(&run).map_or(0, wants) > 0;
            if !wanting(self) {
                continue;
            }
            let only = (kind == ExecutorKind::Networked).then_some(run);
            match self.pool.fresh(kind, only) {
                Some(executor) => {
                    without = 0;
                    self.bind(now, run, &executor, out);
                    if wanting(self) {
                        self.processes.queue(kind).push_back(run);
                    }
                }
                // Whoever comes first gets the next one.
                None if kind == ExecutorKind::Pooled => return self.processes.pooled.push_front(run),
                None => {
                    without += 1;
                    self.processes.networked.push_back(run);
                }
            }
        }
    }

    /// An executor gets the one task or item of its life.
    fn bind(&mut self, now: Time, run: Run, id: &ExecutorId, out: &mut Out) {
        let is_part = self.tasks.get(&run).is_some_and(|t| t.phase == Phase::Spread);
        if is_part && !self.take_lane(run, id) {
            return;
        }
        let (Some(task), Some(executor)) = (self.tasks.get_mut(&run), self.pool.executors.get_mut(id)) else { return };
        let Some(digest) = task.digest else { return };
        executor.used = true;
        executor.framework = Some(task.key.framework.clone());
        let slots = executor.reserve(run, 1);
        self.pool.touched.insert(id.clone());
        self.dirty.insert(run);
        if !is_part {
            task.phase = Phase::Loading(Place { executor: id.clone(), slots });
        }
        let fuel = task.fuel();
        let raised = executor.add_memory(task_memory(task), now);
        out.send(Message::BindExecutor { executor: id.clone(), key: task.key.clone() });
        if let Some(bytes) = raised {
            out.send(Message::SetExecutorMemory { executor: id.clone(), bytes });
        }
        if let Need::Load(module, _) = executor.need((digest, fuel), run) {
            out.send(Message::ToExecutor { executor: id.clone(), message: ToExecutor::LoadModule { module, run, fuel } });
        }
    }

    /// Networked executors whose attempt does not wait for them any more. The pool's are kept: somebody will come.
    fn discard_unwanted(&mut self, now: Time, out: &mut Out) {
        let fresh = self.pool.executors.iter().filter(|(_, e)| e.kind == ExecutorKind::Networked && e.is_fresh());
        let of = |run: Option<Run>| run.and_then(|r| self.tasks.get(&r)).map_or(0, wants);
        let unwanted: Vec<ExecutorId> = fresh.filter(|(_, e)| of(e.only) == 0).map(|(id, _)| id.clone()).collect();
        for id in unwanted {
            self.discard(now, &id, out);
        }
    }

    /// Starts what is missing, as far as the bounds allow.
    fn start_missing(&mut self, now: Time, out: &mut Out) {
        if now < self.processes.not_before {
            return;
        }
        let starting = self.pool.starting_once();
        let room = (self.parameters.most_starting as usize).saturating_sub(starting);
        let mut room = room.min((self.parameters.most_processes as usize).saturating_sub(self.pool.count(true)));
        for run in self.processes.networked.clone() {
            let missing = self.tasks.get(&run).map_or(0, wants);
            let missing = missing.saturating_sub(self.pool.coming(ExecutorKind::Networked, Some(run))).min(room);
            room -= missing;
            for _ in 0..missing {
                self.start_networked(now, run, out);
            }
        }
        let waiting: usize = self.processes.pooled.iter().filter_map(|run| self.tasks.get(run)).map(wants).sum();
        let kept = if self.processes.warm { self.parameters.pool as usize } else { 0 };
        let missing = waiting.saturating_add(kept).saturating_sub(self.pool.coming(ExecutorKind::Pooled, None));
        for _ in 0..missing.min(room) {
            let executor = Executor::new(ExecutorKind::Pooled, None, 1, 0, now);
            self.start_process(executor, None, out);
        }
    }

    fn start_networked(&mut self, now: Time, run: Run, out: &mut Out) {
        let Some(task) = self.tasks.get(&run) else { return };
        let (ports, connect) = match &task.work {
            Work::Single(single) => (single.launch.resources.ports.clone(), single.launch.spec.connect.clone()),
            Work::Part(part) => (PortSet::default(), part.launch.template.spec.connect.clone()),
        };
        let grant = Grant { run, key: task.key.clone(), role: task.role.clone(), ports, connect };
        let mut executor = Executor::new(ExecutorKind::Networked, Some(task.key.framework.clone()), 1, 0, now);
        executor.only = Some(run);
        self.start_process(executor, Some(Arc::new(grant)), out);
    }

    fn start_process(&mut self, executor: Executor, grant: Option<Arc<Grant>>, out: &mut Out) {
        let (kind, framework, memory) = (executor.kind, executor.framework.clone(), executor.limit());
        if let Some(executor) = self.pool.add(executor) {
            out.persist(self.numbers());
            out.send(Message::StartExecutor { executor, kind, framework, grant, slots: 1, memory });
        }
    }

    /// Ends an executor that is used, or that nobody wants. Its slot is nobody's from now on.
    pub(crate) fn discard(&mut self, now: Time, id: &ExecutorId, out: &mut Out) {
        let Some(executor) = self.pool.executors.get_mut(id).filter(|e| e.kind.is_used_once()) else { return };
        executor.used = true;
        let memory = executor.tasks_memory;
        executor.release(&[0], memory, now);
        self.pool.touched.insert(id.clone());
        if executor.phase == ExecutorPhase::Up {
            self.pool.stop(id, now);
            out.send(Message::DiscardExecutor { executor: id.clone() });
        }
        self.processes.touch();
    }

    /// An executor that is used once could not be started: whoever waited for it is not started.
    pub(crate) fn process_failed(&mut self, now: Time, executor: &Executor, why: Failure, out: &mut Out) {
        self.processes.touch();
        let run = executor.only.or_else(|| self.processes.pooled.front().copied());
        let Some(task) = run.and_then(|r| self.tasks.get(&r)).filter(|t| wants(t) > 0) else {
            self.processes.not_before = now.after(PAUSE);
            return;
        };
        let busy = matches!(&task.work, Work::Part(part) if part.lanes.is_busy());
        let Some(run) = run.filter(|_| !busy) else {
            // Other executors of the part run: there will be room for this one, too.
            self.processes.not_before = now.after(PAUSE);
            return;
        };
        let failure = match why.reason {
            Reason::LaunchFailed => Failure::new(Reason::LaunchFailed, format!("its executor could not be started: {}", why.message)),
            // What the task asks for cannot be had: nothing is wrong with the executor.
            _ => why,
        };
        if task.phase == Phase::Spread {
            self.lanes_cannot_start(now, run, failure, out);
        } else {
            self.end(now, run, Ending::not_started(failure), out);
        }
    }

    /// One that nobody had used yet died by itself: the next one may do the same.
    pub(crate) fn process_lost(&mut self, now: Time) {
        self.processes.not_before = now.after(PAUSE);
        self.processes.touch();
    }
}
