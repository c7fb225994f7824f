//! From records back to an agent, and from an agent to the records that a snapshot needs.
//!
//! Owns what each record means. An agent that is restored this way and resumed differs from the one that wrote the records only in what
//! a restart takes: attempts that were not in an executor yet are prepared again, and executors have to be found (`recovery`).

use crate::agent::{Agent, Out};
use crate::array::Part;
use crate::commands::KILL_MARGIN;
use crate::event::Run;
use crate::executor::Executor;
use crate::parameters::{ExecutorKind, Parameters};
use crate::queue::HandOut;
use crate::record::{AttemptState, ExecutorRecord, LaunchedWork, Record};
use crate::task::{Kill, Phase, Place, Single, Task, Work};
use crate::updates::Stream;
use smalti_types::{ArrayDelta, ExecutorId, FrameworkId, Role, Sabotage, StatusUpdate, TaskId, TaskKey, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Keys of one record of launches that were seen: no record is large.
const SEEN_AT_ONCE: usize = 4_096;

/// An attempt as its records say.
#[derive(Debug)]
struct Saved {
    key: TaskKey,
    role: Role,
    kind: ExecutorKind,
    disk_memory: u64,
    work: LaunchedWork,
    hand_outs: BTreeMap<u64, Arc<HandOut>>,
    state: AttemptState,
    deltas: BTreeMap<u64, ArrayDelta>,
    updates: BTreeMap<u64, StatusUpdate>,
    acknowledged: u64,
}

/// All of them.
#[derive(Debug, Default)]
struct SavedAgent {
    runs: u64,
    executors_started: u64,
    seen: Vec<(FrameworkId, Vec<(TaskId, u32)>)>,
    attempts: BTreeMap<Run, Saved>,
    executors: BTreeMap<ExecutorId, (Option<ExecutorRecord>, u64)>,
}

impl SavedAgent {
    fn take(&mut self, record: Record) {
        match record {
            Record::Numbers { runs, executors } => {
                self.runs = self.runs.max(runs);
                self.executors_started = self.executors_started.max(executors);
            }
            Record::Seen { framework, keys } => self.seen.push((framework, keys)),
            Record::Launched { run, key, role, kind, disk_memory, work } => {
                self.runs = self.runs.max(run.0);
                self.seen.push((key.framework.clone(), vec![(key.task.clone(), key.attempt)]));
                let (hand_outs, deltas, updates) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
                let state = AttemptState::default();
                let saved = Saved { key, role, kind, disk_memory, work, hand_outs, state, deltas, updates, acknowledged: 0 };
                self.attempts.insert(run, saved);
            }
            Record::HandOut { run, number, hand_out } => self.with(run, |a| drop(a.hand_outs.insert(number, hand_out))),
            Record::Attempt { run, state } => self.with(run, |a| a.take_state(state)),
            Record::Delta { run, number, delta } => self.with(run, |a| drop(a.deltas.insert(number, delta))),
            Record::Update { run, update } => self.with(run, |a| drop(a.updates.insert(update.key.seq, *update))),
            Record::Acknowledged { run, seq } => self.with(run, |a| {
                a.acknowledged = a.acknowledged.max(seq);
                a.updates.retain(|number, _| *number > seq);
            }),
            Record::Removed { run } => drop(self.attempts.remove(&run)),
            Record::Executor { executor, state } => self.executors.entry(executor).or_default().0 = Some(state),
            Record::Heard { executor, number } => self.executors.entry(executor).or_default().1 = number,
            Record::ExecutorGone { executor } => drop(self.executors.remove(&executor)),
        }
    }

    fn with(&mut self, run: Run, change: impl FnOnce(&mut Saved)) {
        if let Some(attempt) = self.attempts.get_mut(&run) {
            change(attempt);
        }
    }
}

impl Saved {
    /// What the new state does not name any more is not kept: a long log holds one that runs for months.
    fn take_state(&mut self, state: AttemptState) {
        if let Some(part) = &state.part {
            let told = part.told;
            self.deltas.retain(|number, _| *number > told);
            let named: BTreeSet<u64> = part.queued.iter().chain(&part.leased).map(|(number, _)| *number).collect();
            self.hand_outs.retain(|number, _| named.contains(number));
        }
        self.state = state;
    }

    fn has_ended(&self) -> bool {
        self.updates.values().next_back().is_some_and(|u| u.state.is_terminal())
    }

    fn task(self) -> Task {
        let ended = self.has_ended();
        let state = self.state;
        let phase = match &state.place {
            _ if ended => Phase::Ended,
            Some(place) => {
                let at = Place { executor: place.executor.clone(), slots: place.slots.clone() };
                if place.running { Phase::Running(at) } else { Phase::Starting(at) }
            }
            None if state.part.as_ref().is_some_and(|p| p.lanes.is_some()) => Phase::Spread,
            None => Phase::Preparing,
        };
        let work = match self.work {
            LaunchedWork::Single(launch) => {
                let mut single = Single::new(launch);
                single.began = state.began;
                Work::Single(single)
            }
            // All that it had to say is in its updates.
            LaunchedWork::Part(launch) if ended => Work::Part(Box::new(Part::restore(launch, None, &BTreeMap::new(), BTreeMap::new()))),
            LaunchedWork::Part(launch) => Work::Part(Box::new(Part::restore(launch, state.part.clone(), &self.hand_outs, self.deltas))),
        };
        let kill = state.kill.map(|k| Kill {
            grace: k.grace,
            deadline: k.deadline,
            hurry: Some(Time(k.deadline.0.saturating_sub(KILL_MARGIN.0 * 1_000))),
        });
        Task {
            key: self.key,
            role: self.role,
            kind: self.kind,
            unprepared: phase == Phase::Spread,
            phase,
            digest: None,
            work,
            disk_memory: self.disk_memory,
            stream: Stream::restore(self.acknowledged, self.updates),
            kill: if ended { None } else { kill },
            overdue: state.overdue,
            recorded: state,
        }
    }
}

impl Agent {
    /// An agent as these records describe it, without a master, its executors not found yet. After a boot of the machine nothing runs
    /// (`same_boot` false): only what has ended and is not acknowledged is kept. Go on with [`Agent::resume`].
    #[must_use]
    pub fn restore(parameters: Parameters, records: impl IntoIterator<Item = Record>, same_boot: bool) -> Self {
        let mut saved = SavedAgent::default();
        records.into_iter().for_each(|record| saved.take(record));
        let mut agent = Self::new(parameters);
        agent.next_run = saved.runs;
        agent.pool.started = saved.executors_started;
        for (framework, keys) in saved.seen {
            for (task, attempt) in keys {
                agent.seen.insert(&TaskKey { framework: framework.clone(), task, attempt });
            }
        }
        let executors = if same_boot { saved.executors } else { BTreeMap::new() };
        for (id, (state, heard)) in executors {
            if let Some(state) = state {
                agent.pool.executors.insert(id, Executor::restore(state, heard, Time(0)));
            }
        }
        for (run, attempt) in saved.attempts {
            if same_boot || attempt.has_ended() {
                agent.put_back(run, attempt.task());
            }
        }
        agent
    }

    fn put_back(&mut self, run: Run, task: Task) {
        // Every sum was checked when the attempt was taken in.
        self.held = self.held.checked_add(&task.resources()).unwrap_or_default();
        let memory = crate::agent::task_memory(&task);
        for (id, slots) in task.places() {
            let missing = || ExecutorRecord {
                kind: task.kind,
                framework: Some(task.key.framework.clone()),
                only: None,
                used: task.kind.is_used_once(),
                slots: slots.iter().max().map_or(1, |s| s + 1),
                modules: 0,
                stopping: false,
            };
            // Its record comes before anything is started in it; one that is missing is looked for all the same.
            let executor = self.pool.executors.entry(id).or_insert_with(|| Executor::restore(missing(), 0, Time(0)));
            executor.put(run, &slots, memory.saturating_mul(slots.len() as u64));
        }
        if task.is_exclusive() && task.phase != Phase::Ended {
            self.leases.exclusive.insert(run);
        }
        self.dirty.insert(run);
        self.keys.insert(task.key.clone(), run);
        self.tasks.insert(run, task);
    }

    /// Everything that a later life must know, as few records as possible: what a snapshot consists of.
    #[must_use]
    pub fn checkpoint(&self) -> Vec<Record> {
        let mut records = vec![Record::Numbers { runs: self.next_run, executors: self.pool.started }];
        for (framework, keys) in self.seen.frameworks() {
            let keys: Vec<_> = keys.cloned().collect();
            let chunks = keys.chunks(SEEN_AT_ONCE);
            records.extend(chunks.map(|keys| Record::Seen { framework: framework.clone(), keys: keys.to_vec() }));
        }
        for (run, task) in &self.tasks {
            let run = *run;
            records.push(launched(run, task));
            if task.phase != Phase::Ended {
                if let Work::Part(part) = &task.work {
                    records.extend(part.all_news(run));
                }
                records.push(Record::Attempt { run, state: task.attempt_state() });
            }
            let (updates, acknowledged) = task.stream.all();
            if acknowledged > 0 {
                records.push(Record::Acknowledged { run, seq: acknowledged });
            }
            records.extend(updates.map(|u| Record::Update { run, update: Box::new(u.clone()) }));
        }
        for (id, executor) in &self.pool.executors {
            if let Some(state) = executor.record() {
                records.push(Record::Executor { executor: id.clone(), state });
                records.push(Record::Heard { executor: id.clone(), number: executor.heard });
            }
        }
        records
    }

    /// Adds to `out` what has changed of an attempt since its last records.
    pub(crate) fn record_attempt(run: Run, task: &mut Task, out: &mut Out) {
        if task.phase != Phase::Ended
            && let Work::Part(part) = &mut task.work
        {
            part.take_news(run).for_each(|record| out.persist(record));
        }
        if !task.is_recorded() && !Sabotage::AgentForgetsStarts.is_on() {
            task.recorded = task.attempt_state();
            out.persist(Record::Attempt { run, state: task.recorded.clone() });
        }
        let (updates, acknowledged) = task.stream.take_news();
        updates
            .filter(|_| !Sabotage::AgentForgetsUpdates.is_on())
            .for_each(|u| out.persist(Record::Update { run, update: Box::new(u.clone()) }));
        if let Some(seq) = acknowledged {
            out.persist(Record::Acknowledged { run, seq });
        }
    }

    /// The same for the executors that were touched.
    pub(crate) fn record_executors(&mut self, out: &mut Out) {
        while let Some(id) = self.pool.touched.pop_first() {
            let Some(executor) = self.pool.executors.get_mut(&id) else {
                out.persist(Record::ExecutorGone { executor: id });
                continue;
            };
            let state = executor.record();
            if let Some(state) = state.filter(|s| executor.recorded.as_ref() != Some(s)) {
                executor.recorded = Some(state.clone());
                out.persist(Record::Executor { executor: id, state });
            }
        }
    }
}

/// The record of an attempt's description.
pub(crate) fn launched(run: Run, task: &Task) -> Record {
    let work = match &task.work {
        Work::Single(single) => LaunchedWork::Single(single.launch.clone()),
        Work::Part(part) => LaunchedWork::Part(part.launch.clone()),
    };
    Record::Launched { run, key: task.key.clone(), role: task.role.clone(), kind: task.kind, disk_memory: task.disk_memory, work }
}
