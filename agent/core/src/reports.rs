//! What executors say, checked: an executor may be hostile, and can only harm what is its own.
//!
//! Owns the checks and their consequences. Nothing that an executor says can touch a run of another, an item that it does not hold, or a
//! slot that it has given back.

use crate::agent::{Agent, Out};
use crate::event::{ArrayReport, Failure, FromExecutor, Message, ModuleId, Run};
use crate::executor;
use crate::parameters::ExecutorKind;
use crate::task::{Ending, Phase, Task, Work};
use smalti_types::status::{MAX_MESSAGE_LEN, truncate};
use smalti_types::{ExecutorId, Reason, TaskState, Time, Usage};

/// Longest text of a progress report in bytes.
const PROGRESS_LEN: usize = 256;

impl Agent {
    pub(crate) fn executor_said(&mut self, now: Time, id: &ExecutorId, number: u64, message: FromExecutor, out: &mut Out) {
        if !self.pool.executors.get(id).is_some_and(|e| e.phase != executor::Phase::Starting) {
            self.counters.ignore_executor(1);
            return;
        }
        if self.hear(now, id, number, out).is_none() {
            return;
        }
        let ignored = self.counters.executor_ignored;
        match message {
            FromExecutor::ModuleLoaded { module, failure } => self.module_loaded(now, id, module, failure, out),
            FromExecutor::Started { run } => self.started(now, id, run),
            FromExecutor::Outcome { run, exit_code, failure, usage, result } => {
                let failure = (exit_code != Some(0) || failure.is_some()).then(|| checked_failure(failure, exit_code));
                self.outcome(now, id, run, Outcome { exit_code, failure, usage, result }, out);
            }
            FromExecutor::Report { run, report } => self.report(now, id, run, report, out),
            FromExecutor::Ended { run, slots } => self.slots_ended(now, id, run, &slots, out),
            FromExecutor::Progress { run, permille, text } => self.progress(id, run, permille, text),
            FromExecutor::Usage { runs } => self.usage(now, id, &runs),
            holds @ FromExecutor::Holds { .. } => self.holds(now, id, holds, out),
        }
        if self.counters.executor_ignored > ignored {
            self.distrust(now, id, out);
        }
    }

    fn module_loaded(&mut self, now: Time, id: &ExecutorId, module: ModuleId, failure: Option<Failure>, out: &mut Out) {
        let runs = self.pool.executors.get_mut(id).and_then(|e| e.loaded(module, failure.is_none()));
        let Some(runs) = runs else {
            if !self.forgotten_module(id, module, failure.is_none(), out) {
                self.counters.ignore_executor(1);
            } else if let (Some(failure), Some(run)) = (failure, self.starting_once(id)) {
                // An earlier life told it to start with that code.
                self.end(now, run, Ending::not_started(checked_failure(Some(failure), None)), out);
            }
            return;
        };
        for run in runs {
            let spread = self.tasks.get(&run).is_some_and(|t| t.phase == Phase::Spread);
            match &failure {
                None if spread => self.start_lane(now, run, id, module, out),
                None => self.start(now, run, module, out),
                Some(failure) => {
                    let checked = checked_failure(Some(failure.clone()), None);
                    if spread {
                        self.lanes_cannot_start(now, run, checked, out);
                        continue;
                    }
                    if let Some(Work::Part(part)) = self.tasks.get_mut(&run).map(|t| &mut t.work) {
                        part.return_queue();
                    }
                    self.end(now, run, Ending::not_started(checked), out);
                }
            }
        }
    }

    /// The single task that an executor of its own was told to start, and that it has not said to run.
    fn starting_once(&self, id: &ExecutorId) -> Option<Run> {
        let executor = self.pool.executors.get(id).filter(|e| e.kind.is_used_once())?;
        let run = executor.slots.first()?.run?;
        self.tasks.get(&run).filter(|task| matches!(task.phase, Phase::Starting(_))).map(|_| run)
    }

    fn started(&mut self, now: Time, id: &ExecutorId, run: Run) {
        let Some(task) = self.task_of(id, run) else { return };
        match (&task.phase, &task.work) {
            (Phase::Starting(place), Work::Single(_)) => {
                task.phase = Phase::Running(place.clone());
                // After a kill the state is already past this.
                if task.kill.is_none() {
                    task.say(now, TaskState::Running, Reason::None, "");
                }
                self.dirty.insert(run);
            }
            (Phase::Running(_) | Phase::Spread, Work::Part(_)) => {}
            _ => self.counters.ignore_executor(1),
        }
    }

    fn outcome(&mut self, now: Time, id: &ExecutorId, run: Run, outcome: Outcome, out: &mut Out) {
        let Some(task) = self.task_of(id, run) else { return };
        if !matches!((&task.phase, &task.work), (Phase::Starting(_) | Phase::Running(_), Work::Single(_))) {
            self.counters.ignore_executor(1);
            return;
        }
        let usage = match &task.work {
            Work::Single(single) => single.bounds().cut(now, &outcome.usage),
            Work::Part(_) => Usage::default(),
        };
        let mut ending = match (&task.kill, outcome.failure) {
            (Some(_), None) => Ending::killed(),
            (Some(_), Some(failure)) => Ending { message: failure.message, ..Ending::killed() },
            (None, None) => Ending::new(TaskState::Finished, Reason::None, ""),
            (None, Some(failure)) => Ending::new(TaskState::Failed, failure.reason, failure.message),
        };
        ending.exit_code = outcome.exit_code;
        ending.usage = Some(usage);
        ending.result = outcome.result;
        self.end(now, run, ending, out);
    }

    fn report(&mut self, now: Time, id: &ExecutorId, run: Run, report: ArrayReport, out: &mut Out) {
        let Some(task) = self.task_of(id, run) else { return };
        if task.phase == Phase::Spread {
            return self.lane_report(now, id, run, report, out);
        }
        let (Phase::Running(_), Work::Part(part)) = (&task.phase, &mut task.work) else {
            self.counters.ignore_executor(1);
            return;
        };
        let (finished, ignored) = part.report(report, task.kill.is_some());
        self.counters.items_finished = self.counters.items_finished.saturating_add(finished);
        self.counters.ignore_executor(ignored);
        self.dirty.insert(run);
        self.feed(now, run, out);
    }

    fn slots_ended(&mut self, now: Time, id: &ExecutorId, run: Run, slots: &[u32], out: &mut Out) {
        let Some(task) = self.task_of(id, run) else { return };
        let killing = task.kill.is_some();
        let (Phase::Running(place), Work::Part(part)) = (&mut task.phase, &mut task.work) else {
            self.counters.ignore_executor(1);
            return;
        };
        if !part.ending {
            self.counters.ignore_executor(1);
            return;
        }
        // It names slots that the part has, so there are no more: a longer list is not even looked through.
        let plausible = slots.len() <= place.slots.len();
        let (gone, kept): (Vec<u32>, Vec<u32>) = place.slots.iter().partition(|s| plausible && slots.contains(s));
        if gone.is_empty() {
            self.counters.ignore_executor(1);
            return;
        }
        if kept.is_empty() {
            // The last slots' resources go with the terminal update.
            let ending = if part.leased_len() > 0 {
                let failure = Failure::new(Reason::ExecutorTerminated, "the executor ended the part without an outcome of this item");
                part.abandon(TaskState::Failed, &failure);
                Ending::new(TaskState::Failed, Reason::ExecutorTerminated, "the executor ended the part before its items")
            } else if killing {
                Ending::killed()
            } else {
                Ending::new(TaskState::Finished, Reason::None, "")
            };
            self.end(now, run, ending, out);
            return;
        }
        place.slots = kept;
        let n = u32::try_from(gone.len()).unwrap_or(u32::MAX);
        let back = part.resources(n);
        part.give_back(n);
        let memory = part.launch.slot_resources.mem.0 * u64::from(n);
        let framework = task.key.framework.clone();
        self.to_place.insert(framework);
        self.held = self.held.checked_sub(&back).unwrap_or_default();
        if let Some(executor) = self.pool.executors.get_mut(id) {
            executor.release(&gone, memory, now);
        }
        if self.parameters.lend_cpu {
            out.send(Message::SlotsIdle { run, slots: gone });
        }
        self.dirty.insert(run);
    }

    fn progress(&mut self, id: &ExecutorId, run: Run, permille: u16, mut text: String) {
        let Some(task) = self.task_of(id, run) else { return };
        if let (Phase::Running(_), Work::Single(single)) = (&task.phase, &mut task.work) {
            truncate(&mut text, PROGRESS_LEN);
            single.progress = Some((permille.min(1000), text));
            self.dirty.insert(run);
        }
    }

    /// Somebody waits for a transfer and wants to see it move.
    pub(crate) fn fetching(&mut self, run: Run, permille: u16, mut text: String) {
        let Some(task) = self.tasks.get_mut(&run).filter(|t| t.phase == Phase::Preparing) else { return };
        truncate(&mut text, PROGRESS_LEN);
        match &mut task.work {
            Work::Single(single) => single.progress = Some((permille.min(1000), text)),
            Work::Part(part) => part.fetching = Some(text),
        }
        self.dirty.insert(run);
    }

    /// What runs have used so far. Each has a slot of its own, so it cannot speak of more than it has slots.
    fn usage(&mut self, now: Time, id: &ExecutorId, runs: &[(Run, Usage)]) {
        let slots = self.pool.executors.get(id).map_or(0, |e| e.slots.len());
        if runs.len() > slots {
            self.counters.ignore_executor(1);
            return;
        }
        for (run, usage) in runs {
            let Some(task) = self.task_of(id, *run) else { continue };
            match (&task.phase, &mut task.work) {
                (Phase::Running(_), Work::Single(single)) => single.note_usage(now, usage),
                (Phase::Running(_), Work::Part(part)) => part.note_running(now, usage),
                (Phase::Spread, Work::Part(part)) => {
                    let all = part.lanes.note_usage(id, usage);
                    part.note_running(now, &all);
                }
                _ => {
                    self.counters.ignore_executor(1);
                    continue;
                }
            }
            self.dirty.insert(*run);
        }
    }

    pub(crate) fn executor_exited(&mut self, now: Time, id: &ExecutorId, cause: &str, out_of_memory: bool, out: &mut Out) {
        if self.pool.executors.get(id).is_some_and(|e| e.phase == executor::Phase::Starting) {
            return self.executor_failed(now, id, Failure::new(Reason::LaunchFailed, cause), out);
        }
        let Some(executor) = self.pool.executors.remove(id) else { return };
        self.pool.touched.insert(id.clone());
        if let (ExecutorKind::Shared, Some(framework)) = (executor.kind, &executor.framework)
            && !matches!(executor.phase, executor::Phase::Stopping(_))
        {
            self.losses.add(now, framework, cause);
            self.counters.executors_lost = self.counters.executors_lost.saturating_add(1);
        }
        if executor.kind.is_used_once() {
            self.processes.touch();
            if executor.is_fresh() {
                self.process_lost(now);
            }
        }
        // Only where nobody else's memory is counted can the limit be the task's own.
        let own_limit = out_of_memory && executor.kind != ExecutorKind::Shared;
        let reason = if own_limit { Reason::MemoryLimit } else { Reason::ExecutorTerminated };
        let died = if own_limit {
            format!("the kernel ended its executor process at the memory limit of {}, the host's own part included", executor.limit())
        } else {
            format!("the executor died: {cause}")
        };
        let mut runs: Vec<Run> = executor.slots.iter().filter_map(|s| s.run).collect();
        runs.sort_unstable();
        runs.dedup();
        for run in runs {
            let Some(task) = self.tasks.get_mut(&run) else { continue };
            let failure = Failure::new(reason, died.clone());
            if task.phase == Phase::Spread {
                self.lane_failed(now, run, id, &failure, out);
                continue;
            }
            let ending = match &task.kill {
                Some(_) => Ending { message: failure.message.clone(), ..Ending::killed() },
                None => Ending::new(TaskState::Failed, failure.reason, failure.message.clone()),
            };
            if let Work::Part(part) = &mut task.work {
                let killed = Failure::new(Reason::KilledByRequest, failure.message.clone());
                match &task.kill {
                    Some(_) => part.abandon(TaskState::Killed, &killed),
                    None => part.abandon(TaskState::Failed, &failure),
                }
            }
            self.end(now, run, ending, out);
        }
        // There is room for another executor now: everybody who waits may start one.
        self.to_place.extend(self.waiting.keys().cloned());
    }

    /// The attempt that `id` speaks of, if it is in its slots.
    fn task_of(&mut self, id: &ExecutorId, run: Run) -> Option<&mut Task> {
        let task = self.tasks.get_mut(&run).filter(|t| t.is_in(id));
        if task.is_none() {
            self.counters.ignore_executor(1);
        }
        task
    }
}

/// A task's outcome after its check.
struct Outcome {
    exit_code: Option<i32>,
    /// `None`: exit code 0.
    failure: Option<Failure>,
    usage: Usage,
    result: Option<Vec<u8>>,
}

/// What an executor may say of its guests. Other reasons are the agent's or the master's to give: an executor that claims them lies.
pub(crate) fn checked_failure(failure: Option<Failure>, exit_code: Option<i32>) -> Failure {
    let Some(mut failure) = failure else {
        return match exit_code {
            Some(code) => Failure::new(Reason::ExitCode, format!("exit code {code}")),
            None => Failure::new(Reason::Trap, "the executor gave neither an exit code nor a reason"),
        };
    };
    truncate(&mut failure.message, MAX_MESSAGE_LEN);
    let allowed = matches!(
        failure.reason,
        Reason::ExitCode
            | Reason::Trap
            | Reason::TimeLimit
            | Reason::MemoryLimit
            | Reason::OutputLimit
            | Reason::FuelLimit
            | Reason::HandleLimit
            | Reason::DiskLimit
            | Reason::InstanceLimit
            | Reason::KilledByRequest
            | Reason::InvalidBundle
            | Reason::MissingImport
            | Reason::NoEntryPoint
            | Reason::InputFailed
            | Reason::OutputFailed
            | Reason::LaunchFailed
            | Reason::LeaseExpired
    );
    if allowed { failure } else { Failure::new(Reason::Trap, format!("the executor gave an impossible reason: {}", failure.message)) }
}
