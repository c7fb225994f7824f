//! What one simulated agent has: tasks that run for a while, and what was said of them and is not acknowledged.
//!
//! Pure but for the time that it is told. Bounded: the master launches no more than the agent has resources for, and no more than
//! [`MOST`] are taken.

use smalti_types::protocol::{AgentCommand, RunningTask};
use smalti_types::{FrameworkId, Launch, LaunchArray, Reason, Resources, StatusUpdate, TaskKey, TaskState, Time};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Tasks at once, those that have ended and are not acknowledged included.
const MOST: usize = 20_000;
/// What is not acknowledged is said again after this long.
const AGAIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Task {
    resources: Resources,
    exclusive: bool,
    state: TaskState,
    said: u64,
    updates: Vec<StatusUpdate>,
    last: Instant,
}

/// The tasks of one agent.
#[derive(Debug)]
pub(crate) struct Tasks {
    task_time: Duration,
    all: BTreeMap<TaskKey, Task>,
    /// In the order of their ends, since all take the same time.
    ends: VecDeque<(Instant, TaskKey)>,
}

/// What a step leads to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) updates: Vec<StatusUpdate>,
    pub(crate) launched: u64,
    pub(crate) ended: u64,
}

impl Tasks {
    pub(crate) fn new(task_time: Duration) -> Self {
        Self { task_time, all: BTreeMap::new(), ends: VecDeque::new() }
    }

    /// When the next task ends.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.ends.front().map(|(at, _)| *at)
    }

    /// For the first message of a connection.
    pub(crate) fn registration(&self) -> (Vec<RunningTask>, Vec<StatusUpdate>) {
        let live = self.all.iter().filter(|(_, t)| !t.state.is_terminal()).map(|(key, t)| RunningTask {
            key: key.clone(),
            state: t.state,
            resources: t.resources.clone(),
            slot_resources: None,
            exclusive: t.exclusive,
        });
        (live.collect(), self.all.values().flat_map(|t| t.updates.iter().cloned()).collect())
    }

    pub(crate) fn command(&mut self, command: AgentCommand, now: Instant, time: Time, out: &mut Outcome) {
        match command {
            AgentCommand::Launch { framework, launch, .. } => self.launch(framework, launch, now, time, out),
            AgentCommand::LaunchArray { framework, launch, .. } => refuse_array(framework, launch, time, out),
            AgentCommand::Kill { task, .. } => {
                let words = (TaskState::Killed, Reason::KilledByRequest, "killed");
                self.say(&task, words, now, time, out);
            }
            AgentCommand::Acknowledge(key) => {
                let Some(task) = self.all.get_mut(&key.task) else { return };
                task.updates.retain(|u| u.key.seq != key.seq);
                if task.state.is_terminal() && task.updates.is_empty() {
                    self.all.remove(&key.task);
                }
            }
            AgentCommand::AssignItems { .. } | AgentCommand::ReturnItems { .. } | AgentCommand::Lease { .. } => {}
        }
    }

    fn launch(&mut self, framework: FrameworkId, launch: Launch, now: Instant, time: Time, out: &mut Outcome) {
        let key = TaskKey { framework, task: launch.task, attempt: launch.attempt };
        if self.all.contains_key(&key) {
            return;
        }
        out.launched += 1;
        let exclusive = launch.spec.exclusive;
        let task = Task { resources: launch.resources, exclusive, state: TaskState::Staging, said: 0, updates: Vec::new(), last: now };
        self.all.insert(key.clone(), task);
        if self.all.len() > MOST {
            return self.say(&key, (TaskState::Dropped, Reason::LaunchFailed, "this simulated agent has too many tasks"), now, time, out);
        }
        self.say(&key, (TaskState::Running, Reason::None, ""), now, time, out);
        self.ends.push_back((now + self.task_time, key));
        // A task that takes no time is over with the same message.
        self.elapse(now, time, out);
    }

    /// Ends tasks whose time is over.
    pub(crate) fn elapse(&mut self, now: Instant, time: Time, out: &mut Outcome) {
        while let Some((_, key)) = self.ends.pop_front_if(|(at, _)| *at <= now) {
            self.say(&key, (TaskState::Finished, Reason::None, ""), now, time, out);
        }
    }

    fn say(&mut self, key: &TaskKey, (state, reason, text): (TaskState, Reason, &str), now: Instant, time: Time, out: &mut Outcome) {
        let Some(task) = self.all.get_mut(key).filter(|t| !t.state.is_terminal()) else { return };
        (task.said, task.state, task.last) = (task.said + 1, state, now);
        let exit_code = (state == TaskState::Finished).then_some(0);
        let update = StatusUpdate { exit_code, ..StatusUpdate::new(key.clone(), task.said, state, reason, text, time) };
        out.ended += u64::from(state.is_terminal());
        out.updates.push(update.clone());
        task.updates.push(update);
    }

    /// What has waited long for its acknowledgement, again.
    pub(crate) fn again(&mut self, now: Instant) -> Vec<StatusUpdate> {
        let mut updates = Vec::new();
        for task in self.all.values_mut().filter(|t| !t.updates.is_empty() && now >= t.last + AGAIN) {
            task.last = now;
            updates.extend(task.updates.iter().cloned());
        }
        updates
    }
}

/// Said once: whoever launched it hears of it from the master's own reconciliation if that is lost.
fn refuse_array(framework: FrameworkId, launch: LaunchArray, time: Time, out: &mut Outcome) {
    let key = TaskKey { framework, task: launch.task, attempt: launch.attempt };
    let text = "simulated agents run single tasks only";
    out.launched += 1;
    out.ended += 1;
    out.updates.push(StatusUpdate::new(key, 1, TaskState::Dropped, Reason::LaunchFailed, text, time));
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_types::{BundleRef, Bytes, Digest, MilliCpus, Role, TaskId, TaskSpec, UpdateKey};

    fn launch(name: &str) -> AgentCommand {
        let spec = TaskSpec::new(BundleRef { digest: Digest::of(b"x"), uri: None });
        let launch = Launch { task: TaskId::new(name).unwrap(), attempt: 0, resources: Resources::new(MilliCpus(100), Bytes(1)), spec };
        AgentCommand::Launch { framework: FrameworkId::new("F").unwrap(), role: Role::default(), launch }
    }

    fn states(out: &Outcome) -> Vec<TaskState> {
        out.updates.iter().map(|u| u.state).collect()
    }

    #[test]
    fn a_task_runs_for_its_time_and_is_forgotten_when_all_is_acknowledged() {
        let (mut tasks, now, mut out) = (Tasks::new(Duration::from_secs(1)), Instant::now(), Outcome::default());
        tasks.command(launch("a"), now, Time(1), &mut out);
        tasks.command(launch("a"), now, Time(1), &mut out);
        assert_eq!((states(&out), out.launched), (vec![TaskState::Running], 1), "a repeat starts nothing");
        assert_eq!(tasks.registration().0.len(), 1);
        tasks.elapse(now + Duration::from_millis(999), Time(2), &mut out);
        tasks.elapse(now + Duration::from_secs(1), Time(3), &mut out);
        assert_eq!((states(&out), out.ended), (vec![TaskState::Running, TaskState::Finished], 1));
        let (live, unacknowledged) = tasks.registration();
        assert_eq!((live.len(), unacknowledged.len()), (0, 2));
        assert_eq!(tasks.again(now + Duration::from_secs(2)).len(), 0);
        assert_eq!(tasks.again(now + Duration::from_secs(12)).len(), 2);
        for seq in [1, 2] {
            let task = out.updates[0].key.task.clone();
            tasks.command(AgentCommand::Acknowledge(UpdateKey { task, seq }), now, Time(4), &mut out);
        }
        assert!(tasks.all.is_empty());
    }

    #[test]
    fn what_is_killed_does_not_finish_and_what_takes_no_time_is_over_at_once() {
        let (mut tasks, now, mut out) = (Tasks::new(Duration::from_secs(1)), Instant::now(), Outcome::default());
        tasks.command(launch("a"), now, Time(1), &mut out);
        let task = out.updates[0].key.task.clone();
        tasks.command(AgentCommand::Kill { task, grace: None }, now, Time(2), &mut out);
        tasks.elapse(now + Duration::from_secs(9), Time(3), &mut out);
        assert_eq!(states(&out), [TaskState::Running, TaskState::Killed]);
        let (mut tasks, mut out) = (Tasks::new(Duration::ZERO), Outcome::default());
        tasks.command(launch("b"), now, Time(1), &mut out);
        assert_eq!(states(&out), [TaskState::Running, TaskState::Finished]);
    }
}
