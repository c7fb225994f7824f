//! Class `process`: who waits for an executor of its own, in which order they get one, and how many are kept ready.
//!
//! Owns the queues and the pool's size. Every executor here is used for one task or item and then ends; the next one is started at
//! once. What is started at a time is bounded, and so is what is alive; whatever is more waits in its queue. Frameworks take turns,
//! however many runs of theirs wait, and none holds all that may be alive.
//!
//! Two things that the kernel does not bound are bounded here, in proportion to the cpus that a framework holds. Starts are nobody's
//! share: without a bound, somebody whose tasks end at once would have the whole machine start executors. And a quota is counted in
//! periods, of which each executor begins with a whole one: what ends within a period is never held back, so one item after the other
//! would use more than their slot was given.

use crate::agent::{Agent, Out, task_memory};
use crate::debts::Debts;
use crate::event::{Failure, Grant, Message, Run, ToExecutor};
use crate::executor::{Executor, Need, Phase as ExecutorPhase};
use crate::parameters::ExecutorKind;
use crate::task::{Ending, Phase, Place, Task, Work};
use crate::turns::Turns;
use smalti_types::{DurationMs, ExecutorId, FrameworkId, MilliCpus, PortSet, Reason, Time};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Who holds so much of the node's cpus, in quarters, and is alone on it has nobody to give way to. Less is not enough: the same program
/// is to take the same time whoever else is there, unless the operator lends cpu time.
const ALONE_QUARTERS: u64 = 3;

/// After an executor failed to start and nobody waited for it, no other is started for this long.
const PAUSE: DurationMs = DurationMs(2_000);

/// How long after the queues were served in vain they are served again, where only time is missing. A tick comes later.
const AGAIN: DurationMs = DurationMs(5);

/// The pool is filled again when the executor that a task took has ended, or after this long: what starts beside a short task, or beside
/// the news of its end, slows that down. Not if that was the last one.
const AFTER_BIND: DurationMs = DurationMs(10);

/// So much of a share may be used ahead, as with the kernel's quota: one period.
const PERIOD_US: u64 = 100_000;
/// So much may be started ahead: some tasks may come together.
const STARTS_AHEAD_US: u64 = 500_000;
/// What a framework may start however little it holds: some executors per second.
const LEAST_STARTS: MilliCpus = MilliCpus(50);
/// What a start takes until one was measured.
const START_NS: u64 = 10_000_000;
/// A start takes so many times what is counted in its executor's groups: the rest is the forge's, the agent's, and the kernel's at the
/// executor's end (`docs/performance.md`).
const AROUND: u64 = 2;
/// What is known grows by this part with each start that took more: a machine may become slower for good. Some minutes of a flood, when each
/// start takes more and there are fifty in a second, must not look like that: who shares the machine would pay for it.
const START_GROWS: u64 = 65_536;

/// Runs that wait for executors of their own.
#[derive(Debug)]
pub(crate) struct Processes {
    /// For pooled ones: each takes one, and goes to the back when it wants more.
    pub(crate) pooled: VecDeque<Run>,
    /// For networked ones, which are started for them.
    pub(crate) networked: VecDeque<Run>,
    /// Which framework gets the next one.
    turns: Turns,
    /// What starting their executors takes. Paid by all that a framework holds.
    starts: Debts,
    /// Whose starts nobody else has to wait for, as of the last time that the queues were served: they are not counted.
    alone: Option<FrameworkId>,
    /// What runs used beyond their share. Paid by what a framework holds and does not use, because it waits here.
    shares: Debts,
    /// What a start takes on this machine when nothing disturbs it, in nanoseconds of processor time. That is what each is charged with:
    /// all do the same, and that somebody else's work makes one slower is not the fault of whoever gets it.
    start_ns: u64,
    /// Whether the pool is kept filled: from the first use on, or from the start.
    warm: bool,
    /// Nothing is started before this.
    not_before: Time,
    /// What was given to a task last, and until when the pool waits for its end.
    lately: Option<(ExecutorId, Time)>,
    /// Whether something has changed since the queues were served.
    touched: bool,
    /// From when on they are served again even if nothing has.
    again: Option<Time>,
}

/// What is to be started next.
enum Next {
    Pooled,
    Networked(Run),
}

impl Processes {
    pub(crate) fn new(warm: bool) -> Self {
        Self {
            pooled: VecDeque::new(),
            networked: VecDeque::new(),
            turns: Turns::default(),
            starts: Debts::new(STARTS_AHEAD_US, LEAST_STARTS),
            alone: None,
            shares: Debts::new(PERIOD_US, MilliCpus::SMALLEST),
            start_ns: START_NS,
            warm,
            not_before: Time(0),
            lately: None,
            touched: warm,
            again: None,
        }
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

/// What a start is known to take, in nanoseconds, after one that took `cost_us`.
fn learn(known_ns: u64, cost_us: u64) -> u64 {
    cost_us.saturating_mul(1_000).clamp(1_000, known_ns.saturating_add(known_ns.div_ceil(START_GROWS)))
}

/// How many executors a run could use at once.
fn wants(task: &Task) -> usize {
    match (&task.phase, &task.work) {
        (Phase::Waiting, Work::Single(_)) => 1,
        (Phase::Spread, Work::Part(part)) if part.has_next() && !task.unprepared => {
            part.lanes.free().min(usize::try_from(part.ready_len()).unwrap_or(usize::MAX))
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
        if !std::mem::take(&mut self.processes.touched) && self.processes.again.is_none_or(|at| now < at) {
            return;
        }
        self.processes.again = None;
        self.processes.alone = self.who_is_alone();
        self.pay_debts(now);
        self.hand_out_pooled(now, out);
        self.hand_out_networked(now, out);
        self.discard_unwanted(now, out);
        self.start_missing(now, out);
        self.pay_debts(now);
        self.processes.again = self.processes.lately.as_ref().map(|(_, until)| *until).filter(|until| now < *until);
        if self.processes.shares.holds_anybody_back() || self.processes.starts.holds_anybody_back() {
            self.processes.again = Some(now.after(AGAIN));
        }
    }

    /// Time has gone by for those who have debts.
    fn pay_debts(&mut self, now: Time) {
        let mut waiting = BTreeMap::<FrameworkId, MilliCpus>::new();
        let add = |all: &mut BTreeMap<FrameworkId, MilliCpus>, framework: &FrameworkId, cpus: u64| {
            let sum = all.entry(framework.clone()).or_default();
            *sum = MilliCpus(sum.0.saturating_add(cpus));
        };
        if !self.processes.shares.is_empty() {
            for task in self.processes.pooled.iter().chain(&self.processes.networked).filter_map(|run| self.tasks.get(run)) {
                add(&mut waiting, &task.key.framework, task.cpus().0.saturating_mul(wants(task) as u64));
            }
        }
        self.processes.shares.pay(now, waiting);
        let mut held = BTreeMap::new();
        // Starts are charged while the queues are served: then the rates have to be known.
        if !self.processes.starts.is_empty() || !self.processes.pooled.is_empty() || !self.processes.networked.is_empty() {
            for task in self.tasks.values().filter(|t| t.kind.is_used_once()) {
                add(&mut held, &task.key.framework, task.resources().cpus.0);
            }
            let (part, whole) = (self.parameters.start_cpus.0, self.parameters.total.cpus.0.max(1));
            held.values_mut().for_each(|cpus| *cpus = MilliCpus(cpus.0.saturating_mul(part) / whole));
        }
        self.processes.starts.pay(now, held);
    }

    /// The framework that has this node for itself: who has been alone on it and held enough is that, whatever it still holds, until somebody
    /// else comes or nothing of it is left. The last tasks of many would otherwise wait for nobody's sake.
    fn who_is_alone(&self) -> Option<FrameworkId> {
        let nobody_waits = self.processes.pooled.is_empty() && self.processes.networked.is_empty();
        if nobody_waits && self.processes.alone.is_none() {
            return None;
        }
        let mut live = self.tasks.values().filter(|task| task.phase != Phase::Ended).map(|task| &task.key.framework);
        let first = live.next()?;
        let enough = self.held.cpus.0.saturating_mul(4) >= self.parameters.total.cpus.0.saturating_mul(ALONE_QUARTERS);
        let may = enough || self.parameters.lend_cpu || self.processes.alone.as_ref() == Some(first);
        (may && live.all(|framework| framework == first)).then(|| first.clone())
    }

    /// Whether a framework has to wait because of what it has started.
    fn starts_hold_back(&self, framework: &FrameworkId) -> bool {
        self.processes.alone.as_ref() != Some(framework) && self.processes.starts.holds_back(framework)
    }

    /// Whether a framework may have no further executor now.
    fn is_held_back(&self, framework: &FrameworkId) -> bool {
        self.processes.shares.holds_back(framework) || self.starts_hold_back(framework)
    }

    /// A run in an executor of its own has ended, or an item of it: what it used since `began`, against its share.
    pub(crate) fn process_used(&mut self, now: Time, run: Run, began: Time, cpu_us: u64) {
        let Some(task) = self.tasks.get(&run) else { return };
        self.processes.shares.add_beyond(&task.key.framework, task.cpus(), now.micros_since(began), cpu_us);
    }

    /// One of the pool for each framework in turn, until there is none left or nobody may have one.
    fn hand_out_pooled(&mut self, now: Time, out: &mut Out) {
        let tasks = &self.tasks;
        self.processes.pooled.retain(|run| tasks.get(run).map_or(0, wants) > 0);
        while let Some(executor) = self.pool.fresh(ExecutorKind::Pooled, None) {
            let Some((at, framework)) = self.next_pooled() else { return };
            if self.pool.count_fresh(ExecutorKind::Pooled) == 1 && self.leaves_the_last_one(&framework) {
                return;
            }
            let Some(run) = self.processes.pooled.remove(at) else { return };
            self.charge_start(&framework);
            self.bind(now, run, &executor, out);
            if self.tasks.get(&run).map_or(0, wants) > 0 {
                self.processes.pooled.push_back(run);
            }
        }
    }

    /// The place in the queue of the run that gets the pool's next executor, and whose it is.
    fn next_pooled(&self) -> Option<(usize, FrameworkId)> {
        let held = self.held_processes();
        let waiting = self.processes.pooled.iter().enumerate().filter_map(|(at, run)| Some((at, &self.tasks.get(run)?.key.framework)));
        let may = waiting.filter(|(_, framework)| self.room_of_one(&held, framework) > 0 && !self.is_held_back(framework));
        may.min_by_key(|(_, framework)| self.processes.turns.of(framework)).map(|(at, framework)| (at, framework.clone()))
    }

    /// Whether somebody whose turn would come before that of `framework` has tasks in processes of their own. Such a one may want
    /// the next executor any moment, and would wait for a start each time if others took the last ready one again and again.
    fn leaves_the_last_one(&self, framework: &FrameworkId) -> bool {
        let turns = &self.processes.turns;
        let earlier = |task: &Task| task.kind == ExecutorKind::Pooled && turns.of(&task.key.framework) < turns.of(framework);
        self.parameters.pool > 0 && self.tasks.values().any(earlier)
    }

    /// How many executors that are used once each framework holds.
    fn held_processes(&self) -> BTreeMap<FrameworkId, usize> {
        let mut held = BTreeMap::new();
        for framework in self.pool.executors.values().filter(|e| e.kind.is_used_once()).filter_map(|e| e.framework.as_ref()) {
            *held.entry(framework.clone()).or_default() += 1;
        }
        held
    }

    /// How many more a framework may have: nobody holds more than three quarters of what may be alive.
    fn room_of_one(&self, held: &BTreeMap<FrameworkId, usize>, framework: &FrameworkId) -> usize {
        let most = self.parameters.most_processes as usize;
        (most - most / 4).saturating_sub(held.get(framework).copied().unwrap_or(0))
    }

    /// One turn for each run that waits for executors started for it, again and again until nobody gets anything.
    fn hand_out_networked(&mut self, now: Time, out: &mut Out) {
        let mut without = 0;
        while without < self.processes.networked.len() {
            let Some(run) = self.processes.networked.pop_front() else { return };
            let wanting = |agent: &Self| agent.tasks.get(&run).map_or(0, wants) > 0;
            if !wanting(self) {
                continue;
            }
            let may = self.tasks.get(&run).is_some_and(|task| !self.processes.shares.holds_back(&task.key.framework));
            match self.pool.fresh(ExecutorKind::Networked, Some(run)).filter(|_| may) {
                Some(executor) => {
                    without = 0;
                    self.bind(now, run, &executor, out);
                    if wanting(self) {
                        self.processes.networked.push_back(run);
                    }
                }
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
        self.processes.lately = Some((id.clone(), now.after(AFTER_BIND)));
        self.pool.touched.insert(id.clone());
        self.dirty.insert(run);
        if !is_part {
            task.phase = Phase::Loading(Place { executor: id.clone(), slots });
        }
        let fuel = task.fuel();
        let raised = executor.add_memory(task_memory(task), now);
        out.send(Message::BindExecutor { executor: id.clone(), key: task.key.clone() });
        let need = executor.need((digest, fuel), run);
        // First, so that it loads the code while its limits are set: there is room for code from the start.
        if let Need::Load(module, _) = need {
            out.send(Message::ToExecutor { executor: id.clone(), message: ToExecutor::LoadModule { module, run, fuel } });
        }
        if let Some(bytes) = raised {
            out.send(Message::SetExecutorMemory { executor: id.clone(), bytes });
        }
        // What it is told after that it does after that: a start need not wait for word that the code is there. If it cannot be loaded, that
        // is said first.
        if !is_part && let Need::Load(module, _) = need {
            self.start(now, run, module, out);
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
        while self.pool.starting_once() < self.parameters.most_starting as usize
            && let Some(next) = self.next_start(now)
        {
            if self.pool.count(true) >= self.parameters.most_processes as usize {
                if matches!(next, Next::Networked(_)) {
                    self.end_a_ready_one(now, out);
                }
                return;
            }
            match next {
                Next::Networked(run) => self.start_networked(now, run, out),
                Next::Pooled => self.start_process(Executor::new(ExecutorKind::Pooled, None, 1, 0, now), None, out),
            }
        }
    }

    /// Ready executors that nobody waits for may be all that may be alive: whoever they were started for has gone. One of them ends, so
    /// that one of another kind can be started.
    fn end_a_ready_one(&mut self, now: Time, out: &mut Out) {
        let waiting: usize = self.processes.pooled.iter().filter_map(|run| self.tasks.get(run)).map(wants).sum();
        let ready = self.pool.count_fresh(ExecutorKind::Pooled);
        let soon = self.pool.executors.values().any(|e| e.kind.is_used_once() && matches!(e.phase, ExecutorPhase::Stopping(_)));
        if ready > waiting
            && !soon
            && let Some(id) = self.pool.fresh(ExecutorKind::Pooled, None)
        {
            self.discard(now, &id, out);
        }
    }

    /// What is missing most: for whoever's turn it is, and for the pool before those who had more than others.
    fn next_start(&self, now: Time) -> Option<Next> {
        let (held, turns) = (self.held_processes(), &self.processes.turns);
        // Ready executors are not to pile up for those who may not have them yet.
        let room = |framework| if self.starts_hold_back(framework) { 0 } else { self.room_of_one(&held, framework) };
        let networked = self.processes.networked.iter().filter_map(|run| {
            let task = self.tasks.get(run)?;
            let missing = wants(task) > self.pool.coming(ExecutorKind::Networked, Some(*run));
            let may = missing && room(&task.key.framework) > 0;
            may.then(|| (turns.of(&task.key.framework), Next::Networked(*run)))
        });
        let mut wanted = BTreeMap::<&FrameworkId, usize>::new();
        for task in self.processes.pooled.iter().filter_map(|run| self.tasks.get(run)) {
            *wanted.entry(&task.key.framework).or_default() += wants(task);
        }
        wanted.iter_mut().for_each(|(framework, n)| *n = (*n).min(room(framework)));
        let waiting: usize = wanted.values().sum();
        let kept = if self.processes.warm && !self.refill_waits(now) { self.parameters.pool as usize } else { 0 };
        let coming = self.pool.coming(ExecutorKind::Pooled, None);
        let first = wanted.iter().filter(|(_, n)| **n > 0).map(|(framework, _)| turns.of(framework)).min();
        let turn = first.filter(|_| waiting > coming).unwrap_or_else(|| turns.of_nobody());
        let pooled = (waiting.saturating_add(kept) > coming).then_some((turn, Next::Pooled));
        networked.chain(pooled).min_by_key(|(turn, _)| *turn).map(|(_, next)| next)
    }

    /// Whether there is a ready one still, and a task that has just begun is not to be disturbed.
    fn refill_waits(&self, now: Time) -> bool {
        let lives = |(of, until): &(ExecutorId, Time)| now < *until && self.pool.executors.contains_key(of);
        self.processes.lately.as_ref().is_some_and(lives) && self.pool.count_fresh(ExecutorKind::Pooled) > 0
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
        // Charged when it begins: a task that is killed before it has its executor has cost a start all the same.
        self.charge_start(&grant.key.framework);
        self.start_process(executor, Some(Arc::new(grant)), out);
    }

    /// A framework has one more executor.
    fn charge_start(&mut self, framework: &FrameworkId) {
        self.processes.turns.take(framework);
        if self.processes.alone.as_ref() != Some(framework) {
            self.processes.starts.add(framework, self.processes.start_ns / 1_000);
        }
    }

    fn start_process(&mut self, executor: Executor, grant: Option<Arc<Grant>>, out: &mut Out) {
        let (kind, framework, memory) = (executor.kind, executor.framework.clone(), executor.limit());
        if let Some(executor) = self.pool.add(executor) {
            out.persist(self.numbers());
            out.send(Message::StartExecutor { executor, kind, framework, grant, slots: 1, memory });
        }
    }

    /// One has started, and this is what that took in its groups, where it is counted.
    pub(crate) fn process_started(&mut self, cpu_us: Option<u64>) {
        self.processes.touch();
        if let Some(cost_us) = cpu_us {
            self.processes.start_ns = learn(self.processes.start_ns, cost_us.saturating_mul(AROUND));
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
            Reason::LaunchFailed => Failure { message: format!("its executor could not be started: {}", why.message), ..why },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_does_not_make_starts_dearer_and_a_slower_machine_does() {
        let after = |starts: u32, cost_us| (0..starts).fold(learn(START_NS, 6_000), |known, _| learn(known, cost_us));
        assert_eq!(after(0, 0), 6_000_000);
        // A minute of fifty in a second, each of which takes twice as much.
        assert!(after(3_000, 12_000) < 6_300_000);
        assert_eq!(after(100_000, 12_000), 12_000_000);
        assert_eq!(learn(after(100_000, 12_000), 5_000), 5_000_000);
        assert_eq!(learn(1_000, 0), 1_000);
    }
}
