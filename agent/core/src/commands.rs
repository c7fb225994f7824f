//! What the master wants: launches, items, kills, acknowledgements.
//!
//! Owns the checks of a launch and the meaning of a kill in every phase. The master is trusted not to lie, but nonsense is refused.

use crate::agent::{Agent, Out};
use crate::array::Part;
use crate::event::{Message, Run, ToExecutor};
use crate::parameters::ExecutorKind;
use crate::record::AttemptState;
use crate::restore::launched;
use crate::task::{Ending, Kill, Phase, Single, Task, Work};
use crate::updates::Stream;
use smalti_types::protocol::AgentCommand;
use smalti_types::{
    Bytes, DurationMs, FrameworkId, Input, ItemBatch, ItemSet, Launch, LaunchArray, Reason, Resources, Role, Sabotage, TaskKey, TaskSpec,
    TaskState, Time, UpdateKey,
};
use std::sync::Arc;

/// Beyond its grace period, a kill has this long before the executor is ended.
pub(crate) const KILL_MARGIN: DurationMs = DurationMs(10_000);
/// A throttled guest gets more cpu this long before its grace period ends, so that it can be stopped then: one tick.
const HURRY_BEFORE: DurationMs = DurationMs(100);
/// Why an array cannot be exclusive.
const NO_EXCLUSIVE_ITEMS: &str = "items of an array cannot be exclusive: only a single task runs under a lease";
/// Why nothing is launched any more.
const DRAINING: &str = "this agent is about to end and takes no more tasks";
/// Why nothing can be launched.
const NO_ROOM: &str = "the disk of the agent's data directory is full: it takes no tasks until there is room (see --disk-reserve)";
/// A grace period counts as at most this long: no deadline may lie beyond reach.
const LONGEST_GRACE: DurationMs = DurationMs(24 * 3_600 * 1_000);

impl Agent {
    pub(crate) fn command(&mut self, now: Time, command: AgentCommand, out: &mut Out) {
        match command {
            AgentCommand::Launch { framework, role, launch } => self.launch(now, framework, role, launch, out),
            AgentCommand::LaunchArray { framework, role, launch } => self.launch_array(now, framework, role, launch, out),
            AgentCommand::AssignItems { task, batch, open } => self.assign(now, &task, batch, open, out),
            AgentCommand::ReturnItems { task, most } => self.return_items(now, &task, most, out),
            AgentCommand::Kill { task, grace } => self.kill(now, &task, grace, out),
            AgentCommand::Acknowledge(UpdateKey { task, seq }) => self.acknowledge(now, &task, seq, out),
            AgentCommand::Lease { asked, lease } => self.lease_granted(now, asked, lease, out),
        }
    }

    fn launch(&mut self, now: Time, framework: FrameworkId, role: Role, launch: Launch, out: &mut Out) {
        let key = TaskKey { framework, task: launch.task.clone(), attempt: launch.attempt };
        let resources = launch.resources.clone();
        let checked = launch.resources.check_request().map_err(|e| e.to_string());
        let checked = checked.and_then(|()| supported(&launch.spec, &launch.resources, &self.parameters.total));
        let kind = self.parameters.process.kind(&role, &launch.spec, &resources);
        let work = Work::Single(Single::new(Arc::new(launch)));
        self.accept(now, (key, role, kind), work, checked.map(|()| resources), out);
    }

    fn launch_array(&mut self, now: Time, framework: FrameworkId, role: Role, launch: LaunchArray, out: &mut Out) {
        let key = TaskKey { framework, task: launch.task.clone(), attempt: launch.attempt };
        let checked = launch.slot_resources.check_request().and_then(|()| launch.slot_resources.checked_mul(launch.slots));
        let mut checked = checked.map_err(|e| e.to_string());
        if launch.slots == 0 {
            checked = Err("an array part needs at least one slot".into());
        } else if !launch.slot_resources.ports.is_empty() {
            checked = Err("items of an array cannot have ports".into());
        }
        let checked =
            checked.and_then(|sum| supported(&launch.template.spec, &launch.slot_resources, &self.parameters.total).map(|()| sum));
        let checked = checked.and_then(|sum| if launch.template.spec.exclusive { Err(NO_EXCLUSIVE_ITEMS.into()) } else { Ok(sum) });
        let kind = self.parameters.process.kind(&role, &launch.template.spec, &launch.slot_resources);
        let (part, refused) = Part::new(launch);
        self.counters.ignore_master(refused);
        self.accept(now, (key.clone(), role, kind), Work::Part(Box::new(part)), checked, out);
        if let Some(run) = self.keys.get(&key).copied() {
            self.end_if_exhausted(now, run, out);
        }
    }

    /// Takes an attempt in, or says at once why not.
    fn accept(
        &mut self,
        now: Time,
        (key, role, kind): (TaskKey, Role, ExecutorKind),
        work: Work,
        wanted: Result<Resources, String>,
        out: &mut Out,
    ) {
        if self.keys.contains_key(&key) || !self.seen.insert(&key) {
            self.counters.ignore_master(1);
            return;
        }
        let disk_memory = if self.parameters.disk_in_memory { disk_of(&work).0 } else { 0 };
        self.next_run += 1;
        let run = Run(self.next_run);
        let (phase, stream) = (Phase::Preparing, Stream::default());
        let recorded = AttemptState::default();
        let task = Task {
            key: key.clone(),
            role,
            kind,
            phase,
            digest: None,
            work,
            disk_memory,
            stream,
            kill: None,
            overdue: None,
            unprepared: false,
            recorded,
        };
        out.persist(launched(run, &task));
        if task.is_exclusive() {
            self.leases.exclusive.insert(run);
        }
        self.keys.insert(key, run);
        self.tasks.insert(run, task);
        self.dirty.insert(run);
        let refusal = match wanted {
            Err(message) => Some(Ending::new(TaskState::Error, Reason::InvalidTask, message)),
            Ok(_) if self.draining => Some(Ending::new(TaskState::Dropped, Reason::LaunchFailed, DRAINING)),
            Ok(_) if !self.room => Some(Ending::new(TaskState::Dropped, Reason::LaunchFailed, NO_ROOM)),
            Ok(wanted) => self.hold(&wanted).err().map(|message| Ending::new(TaskState::Dropped, Reason::LaunchFailed, message)),
        };
        if let Some(ending) = refusal {
            self.refuse(now, run, ending, out);
            return;
        }
        self.prepare(run, out);
    }

    /// Lets an attempt be prepared, for the first time or again.
    pub(crate) fn prepare(&self, run: Run, out: &mut Out) {
        let Some(task) = self.tasks.get(&run) else { return };
        let most = if task.kind.is_used_once() { u32::MAX } else { self.parameters.most_slots_per_executor.max(1) };
        let (spec, split_inputs): (&TaskSpec, Arc<[Input]>) = match &task.work {
            Work::Single(single) => (&single.launch.spec, Arc::new([])),
            Work::Part(part) => (&part.launch.template.spec, part.launch.template.split_inputs.clone().into()),
        };
        out.send(Message::Prepare {
            run,
            key: task.key.clone(),
            role: task.role.clone(),
            spec: Arc::new(spec.clone()),
            split_inputs,
            array: matches!(task.work, Work::Part(_)),
            alone: task.kind.is_used_once(),
            disk: disk_of(&task.work),
            slots: task.slots_needed().min(most),
            keep: task.unprepared,
        });
    }

    /// Ends an attempt that never held anything.
    fn refuse(&mut self, now: Time, run: Run, ending: Ending, out: &mut Out) {
        let Some(task) = self.tasks.get_mut(&run) else { return };
        if let Work::Part(part) = &mut task.work {
            part.return_queue();
        }
        task.say_end(now, ending);
        task.phase = Phase::Ended;
        out.send(Message::Ended { run, key: task.key.clone() });
        self.leases.forget(run);
    }

    /// Counts `wanted` as held, if there is room.
    fn hold(&mut self, wanted: &Resources) -> Result<(), String> {
        let sum = self.held.checked_add(wanted).map_err(|e| format!("this agent has no room: {e}"))?;
        if let Some(lack) = self.parameters.total.first_lack(&sum) {
            return Err(format!("this agent has no room: with what it already runs, {lack}"));
        }
        self.held = sum;
        Ok(())
    }

    fn assign(&mut self, now: Time, key: &TaskKey, batch: ItemBatch, open: bool, out: &mut Out) {
        let room = self.room && !self.draining;
        let told = self.told_and_not_acknowledged(key, batch.attempt);
        let Some((run, part)) = self.live_part(key) else {
            // The part's terminal update says which items it had; the framework hands out the others again.
            self.counters.ignore_master(batch.items.len());
            return;
        };
        let refused = part.assign(batch, open, &told);
        if !room {
            // What is not leased yet goes back: the framework gives it to another agent.
            part.return_queue();
        }
        self.counters.ignore_master(refused);
        self.dirty.insert(run);
        self.feed(now, run, out);
        self.end_if_exhausted(now, run, out);
    }

    /// Items that ended as this attempt or a later one, or were returned, as updates say that the framework may not have taken yet: when it
    /// hands them out again, it does not know. An acknowledgement comes before what is handed out because of it.
    fn told_and_not_acknowledged(&self, key: &TaskKey, attempt: u32) -> ItemSet {
        let mut told = ItemSet::default();
        let task = self.keys.get(key).and_then(|run| self.tasks.get(run));
        let Some(task) = task.filter(|_| !Sabotage::ArrayTakesEndedItems.is_on()) else { return told };
        for delta in task.stream.all().0.filter_map(|u| u.array.as_ref()) {
            told.extend(&delta.finished);
            told.extend(&delta.returned);
            told.extend(&delta.failed.iter().filter(|f| f.attempt >= attempt).map(|f| f.item).collect());
        }
        told
    }

    fn return_items(&mut self, now: Time, key: &TaskKey, most: u64, out: &mut Out) {
        let Some((run, part)) = self.live_part(key) else {
            self.counters.ignore_master(1);
            return;
        };
        let unlease = part.return_items(most);
        self.dirty.insert(run);
        if let Some(Phase::Running(place)) = self.tasks.get(&run).map(|t| &t.phase)
            && unlease > 0
        {
            out.send(Message::ToExecutor { executor: place.executor.clone(), message: ToExecutor::Unlease { run, most: unlease } });
        }
        // Those of a part whose items have executors of their own are never leased ahead: it may have none left.
        self.end_if_exhausted(now, run, out);
    }

    fn kill(&mut self, now: Time, key: &TaskKey, grace: Option<DurationMs>, out: &mut Out) {
        let Some(run) = self.keys.get(key).copied() else {
            self.counters.ignore_master(1);
            return;
        };
        let Some(task) = self.tasks.get_mut(&run) else { return };
        if let Work::Part(part) = &mut task.work
            && task.phase != Phase::Ended
        {
            part.return_queue();
        }
        match &task.phase {
            Phase::Ended => {}
            Phase::Preparing | Phase::Waiting | Phase::Loading(_) => self.end(now, run, Ending::killed(), out),
            Phase::Starting(_) | Phase::Running(_) | Phase::Spread => {
                let grace = DurationMs(grace.unwrap_or_else(|| task.grace()).0.min(LONGEST_GRACE.0));
                let deadline = now.after(grace).after(KILL_MARGIN);
                if task.kill.is_some_and(|k| k.deadline <= deadline) {
                    return;
                }
                let hurry = now.after(DurationMs(grace.0.saturating_sub(HURRY_BEFORE.0)));
                let first = task.kill.replace(Kill { grace, deadline, hurry: Some(hurry) }).is_none();
                match &mut task.work {
                    // Unstarted items come back as returned, and the slots leave one by one.
                    Work::Part(part) => part.ending = true,
                    Work::Single(_) if first => task.say(now, TaskState::Killing, Reason::KilledByRequest, ""),
                    Work::Single(_) => {}
                }
                self.dirty.insert(run);
                let executor = task.phase.place().map(|p| p.executor.clone());
                if hurry <= now {
                    self.hurry(run, out);
                }
                match executor {
                    Some(executor) => out.send(Message::ToExecutor { executor, message: ToExecutor::Kill { run, grace } }),
                    None => self.kill_lanes(now, run, grace, out),
                }
            }
        }
    }

    fn acknowledge(&mut self, now: Time, key: &TaskKey, seq: u64, out: &mut Out) {
        if let Some(run) = self.keys.get(key).copied()
            && let Some(task) = self.tasks.get_mut(&run)
            && task.stream.acknowledge(seq)
        {
            self.dirty.insert(run);
            // A part that had too much to tell may go on.
            self.feed(now, run, out);
        }
    }

    /// Items that nobody has begun with go back, and no more are taken.
    pub(crate) fn drain(&mut self, now: Time, out: &mut Out) {
        self.draining = true;
        let parts: Vec<TaskKey> = self.tasks.values().filter(|t| matches!(t.work, Work::Part(_))).map(|t| t.key.clone()).collect();
        for key in parts {
            let Some((run, part)) = self.live_part(&key) else { continue };
            part.return_queue();
            self.dirty.insert(run);
            if let Some(Phase::Running(place)) = self.tasks.get(&run).map(|t| &t.phase) {
                let message = ToExecutor::Unlease { run, most: u64::MAX };
                out.send(Message::ToExecutor { executor: place.executor.clone(), message });
            }
            self.feed(now, run, out);
            self.end_if_exhausted(now, run, out);
        }
        // What waits for slots may wait for ever.
        let waiting: Vec<TaskKey> =
            self.tasks.values().filter(|t| matches!(t.phase, Phase::Preparing | Phase::Waiting)).map(|t| t.key.clone()).collect();
        for key in waiting {
            let Some(run) = self.keys.get(&key).copied() else { continue };
            self.end(now, run, Ending::new(TaskState::Dropped, Reason::LaunchFailed, DRAINING), out);
        }
    }

    fn live_part(&mut self, key: &TaskKey) -> Option<(Run, &mut Part)> {
        let run = *self.keys.get(key)?;
        let task = self.tasks.get_mut(&run).filter(|t| t.phase != Phase::Ended)?;
        match &mut task.work {
            Work::Part(part) => Some((run, part)),
            Work::Single(_) => None,
        }
    }
}

/// Size of the disk of each of its slots.
fn disk_of(work: &Work) -> Bytes {
    match work {
        Work::Single(single) => single.launch.resources.disk,
        Work::Part(part) => part.launch.slot_resources.disk,
    }
}

/// Refuses what makes no sense and what this agent cannot do yet.
fn supported(spec: &TaskSpec, resources: &Resources, total: &Resources) -> Result<(), String> {
    spec.check_grants(resources).map_err(|e| e.to_string())?;
    if resources.disk.0 > 0 && total.disk.0 == 0 {
        return Err("this agent has no disk for tasks: it may not mount file systems, or was told not to".into());
    }
    Ok(())
}
