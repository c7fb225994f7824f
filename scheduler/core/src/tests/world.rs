//! A recording fake: a master with agents in virtual time. It offers what is free, runs items at a speed per agent, reports
//! as agents do, and checks all invariants after every event. At the end it must have fallen silent.

use crate::*;
use smalti_types::protocol::{Call, FrameworkEvent};
use smalti_types::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// One way between scheduler and agent, in microseconds.
const LATENCY: u64 = 500;

pub(super) struct Agent {
    pub(super) id: AgentId,
    pub(super) free: Resources,
    pub(super) attributes: Attributes,
    pub(super) holdings: Vec<HoldingKey>,
    /// Microseconds per item.
    pub(super) item_us: u64,
    /// From launch until it runs.
    pub(super) start_us: u64,
    pub(super) alive: bool,
    parts: BTreeMap<TaskId, FakePart>,
}

struct FakePart {
    slots: u32,
    each: Resources,
    open: bool,
    started: bool,
    killed: bool,
    queue: VecDeque<u64>,
    /// When each busy slot ends its item.
    busy: BTreeMap<u64, u64>,
    finished: ItemSet,
    failed: Vec<FailedItem>,
    returned: ItemSet,
    done_since: u64,
    reported: u64,
    seq: u64,
    given: ItemSet,
}

enum Due {
    ToScheduler(Event),
    ToMaster(Call),
    Run(AgentId, TaskId),
    Single(AgentId, TaskId, u32, Resources),
}

type Fate = Box<dyn Fn(u64, u32) -> Option<(TaskState, Reason)>>;

pub(super) struct World {
    pub(super) core: Scheduler,
    pub(super) now: u64,
    pub(super) agents: Vec<Agent>,
    due: BTreeMap<(u64, u64), Due>,
    next: u64,
    suppressed: bool,
    refused: BTreeMap<AgentId, (u64, Resources)>,
    offered: BTreeMap<OfferId, (AgentId, Resources)>,
    next_offer: u64,
    next_tick: u64,
    pub(super) calls: BTreeMap<&'static str, u64>,
    /// (item, attempt) of each start of an item.
    pub(super) runs: BTreeMap<u64, u32>,
    pub(super) items_by_agent: BTreeMap<AgentId, u64>,
    /// How an item or single task ends on which attempt.
    pub(super) fate: Fate,
    /// Why no array part can begin, if so; and how many have tried.
    pub(super) cannot_begin: Option<(TaskState, Reason)>,
    pub(super) parts_tried: u32,
    /// An agent where every item ends with a trap, and how many have.
    pub(super) broken: Option<AgentId>,
    pub(super) failed_on_broken: u64,
    /// Words of every status.
    pub(super) words: String,
    pub(super) single_us: u64,
    /// Agents keep what they fetch for a task, and say so.
    pub(super) caches: bool,
    /// Ports that other programs have, on every agent.
    pub(super) held: PortSet,
    pub(super) launches: Vec<Launch>,
    pub(super) stored: Vec<(u32, TaskId)>,
    pub(super) max_slots: u32,
    attempts: BTreeMap<u64, u32>,
    pub(super) handled: BTreeSet<(TaskId, u32, u64)>,
    sent: BTreeSet<(TaskId, u32, u64)>,
    live_singles: BTreeSet<(TaskId, u32)>,
}

pub(super) fn cpus(milli: u64) -> Resources {
    Resources::new(MilliCpus(milli), Bytes(milli << 16))
}

pub(super) fn spec() -> TaskSpec {
    TaskSpec::new(BundleRef { digest: Digest::of(b"guest"), uri: None })
}

pub(super) fn map(items: u64) -> MapSpec {
    MapSpec {
        template: ArrayTemplate { spec: spec(), total_items: items, split_inputs: Vec::new() },
        splits: Vec::new(),
        slot_resources: cpus(1000),
        reduce: None,
        rounds: 1,
        initial_state: None,
    }
}

impl World {
    pub(super) fn new(agents: &[(u64, u64)]) -> Self {
        let agents = agents.iter().enumerate().map(|(i, (milli, item_us))| Agent {
            id: AgentId::new(format!("a{i}")).unwrap(),
            free: Resources { ports: "31000-31009".parse().unwrap(), ..cpus(*milli) },
            attributes: format!("zone=z{i}").parse().unwrap(),
            holdings: Vec::new(),
            item_us: *item_us,
            start_us: 20_000,
            alive: true,
            parts: BTreeMap::new(),
        });
        let mut world = Self {
            core: Scheduler::new(),
            now: 1_000_000,
            agents: agents.collect(),
            due: BTreeMap::new(),
            next: 0,
            suppressed: false,
            refused: BTreeMap::new(),
            offered: BTreeMap::new(),
            next_offer: 1,
            next_tick: 1_000_000,
            calls: BTreeMap::new(),
            runs: BTreeMap::new(),
            items_by_agent: BTreeMap::new(),
            fate: Box::new(|_, _| None),
            cannot_begin: None,
            parts_tried: 0,
            broken: None,
            failed_on_broken: 0,
            words: "fate".into(),
            single_us: 5_000,
            caches: false,
            held: PortSet::default(),
            launches: Vec::new(),
            stored: Vec::new(),
            max_slots: 0,
            attempts: BTreeMap::new(),
            handled: BTreeSet::new(),
            sent: BTreeSet::new(),
            live_singles: BTreeSet::new(),
        };
        world.core.next_number = 1;
        world
    }

    pub(super) fn submit(&mut self, policy: Policy, work: Work) -> JobId {
        let Admission::New(id) = self.core.admit("", 0xabcd) else { panic!("full") };
        let spec = JobSpec { id, request: String::new(), name: "test".into(), role: Role::default(), policy, work, output_store: None };
        self.step(Event::Submit(Arc::new(spec)));
        id
    }

    pub(super) fn submit_map(&mut self, map: MapSpec) -> JobId {
        self.submit(Policy::default(), Work::Map(Box::new(map)))
    }

    pub(super) fn submit_single(&mut self, resources: Resources) -> JobId {
        self.submit(Policy::default(), Work::Single(Box::new(SingleSpec { spec: spec(), resources, ports: 0 })))
    }

    pub(super) fn step(&mut self, event: Event) {
        let effects = self.core.step(Time(self.now), event);
        self.core.check_invariants().unwrap();
        for message in effects.commit(|_| Ok::<_, ()>(())).unwrap() {
            match message {
                Message::Connect(role) => {
                    let framework = FrameworkId::new("F1-0").unwrap();
                    let event = FrameworkEvent::Subscribed { framework, epoch: MasterEpoch(1) };
                    self.later(LATENCY, Due::ToScheduler(Event::Framework { role, event }));
                }
                Message::Call { call, .. } => {
                    let name = match &call {
                        Call::Accept { .. } => "accept",
                        Call::Decline { .. } => "decline",
                        Call::Revive => "revive",
                        Call::Suppress => "suppress",
                        Call::Kill { .. } => "kill",
                        Call::AssignItems { .. } => "assign",
                        Call::ReturnItems { .. } => "return",
                        Call::Reconcile(_) => "reconcile",
                        other => panic!("nobody expected {other:?}"),
                    };
                    *self.calls.entry(name).or_default() += 1;
                    self.later(LATENCY, Due::ToMaster(call));
                }
                Message::Handled { key, .. } => {
                    let name = (key.task.task, key.task.attempt, key.seq);
                    assert!(name.2 == 0 || self.handled.insert(name), "acknowledged twice");
                }
                Message::Changed(_) => {}
                Message::StoreOutput { job, round, task, .. } => {
                    self.stored.push((round, task));
                    let digest = Some(Digest::of(format!("{round}").as_bytes()));
                    let input = Input { guest_path: None, uri: None, digest, length: 1, etag: None, packing: None };
                    self.later(2 * LATENCY, Due::ToScheduler(Event::OutputStored { job, round, result: Ok(input) }));
                }
            }
        }
        let slots = self.agents.iter().flat_map(|a| a.parts.values()).map(|p| p.slots).sum();
        self.max_slots = self.max_slots.max(slots);
    }

    fn later(&mut self, us: u64, due: Due) {
        self.next += 1;
        self.due.insert((self.now + us, self.next), due);
    }

    /// Runs until nothing happens any more but ticks, or the time is over.
    pub(super) fn run(&mut self, limit_us: u64) {
        let end = self.now + limit_us;
        loop {
            let next = self.due.keys().next().map_or(u64::MAX, |k| k.0);
            if next == u64::MAX && self.core.live.is_empty() || self.now > end {
                return;
            }
            if self.next_tick <= next {
                self.now = self.next_tick;
                self.next_tick += 100_000;
                self.step(Event::Tick);
                self.offer();
                continue;
            }
            // One batch of the master: what happens at the same time is allocated together.
            self.now = next;
            while self.due.first_key_value().is_some_and(|((at, _), _)| *at == next) {
                match self.due.pop_first().unwrap().1 {
                    Due::ToScheduler(event) => self.step(event),
                    Due::ToMaster(call) => self.call(call),
                    Due::Run(agent, task) => self.run_part(&agent, &task),
                    Due::Single(agent, task, attempt, resources) => self.end_single(&agent, &task, attempt, &resources),
                }
            }
            self.offer();
        }
    }

    fn offer(&mut self) {
        if self.suppressed || self.core.roles.values().all(|r| r.framework.is_none()) {
            return;
        }
        let mut offers = Vec::new();
        for agent in self.agents.iter_mut().filter(|a| a.alive && a.free.cpus.0 > 0) {
            if self.refused.get(&agent.id).is_some_and(|(until, what)| self.now < *until && what.contains(&agent.free)) {
                continue;
            }
            let id = OfferId { epoch: MasterEpoch(1), number: self.next_offer };
            self.next_offer += 1;
            let resources = std::mem::take(&mut agent.free);
            self.offered.insert(id, (agent.id.clone(), resources.clone()));
            offers.push(Offer {
                id,
                framework: FrameworkId::new("F1-0").unwrap(),
                role: Role::default(),
                agent: agent.id.clone(),
                hostname: "host".into(),
                resources,
                attributes: agent.attributes.clone(),
                holdings: agent.holdings.clone(),
            });
        }
        if !offers.is_empty() {
            let event = Event::Framework { role: Role::default(), event: FrameworkEvent::Offers(offers) };
            self.later(LATENCY, Due::ToScheduler(event));
        }
    }

    fn agent(&mut self, id: &AgentId) -> &mut Agent {
        self.agents.iter_mut().find(|a| a.id == *id).unwrap()
    }

    fn give_back(&mut self, agent: &AgentId, resources: &Resources) {
        let agent = self.agent(agent);
        agent.free = agent.free.checked_add(resources).unwrap();
    }

    fn call(&mut self, call: Call) {
        match call {
            Call::Accept { offers, operations, filters } => {
                let (agent, mut left) = self.offered.remove(&offers[0]).expect("an offer is used once");
                for operation in operations {
                    if !self.agent(&agent).alive {
                        let (task, attempt) = match operation {
                            Operation::Launch(l) => (l.task, l.attempt),
                            Operation::LaunchArray(l) => (l.task, l.attempt),
                        };
                        self.update(&agent, &task, attempt, 0, TaskState::Dropped, Reason::InvalidOffers, None);
                        continue;
                    }
                    left = left.checked_sub(&operation.resources().unwrap()).expect("the offer covers it");
                    match operation {
                        Operation::Launch(launch) => self.launch(&agent, launch),
                        Operation::LaunchArray(launch) => self.launch_array(&agent, launch),
                    }
                }
                self.give_back(&agent, &left);
                let free = self.agent(&agent).free.clone();
                self.refused.insert(agent, (self.now + filters.refuse.0 * 1000, free));
            }
            Call::Decline { offers, filters } => {
                for offer in offers {
                    let (agent, resources) = self.offered.remove(&offer).expect("an offer is answered once");
                    self.give_back(&agent, &resources);
                    let free = self.agent(&agent).free.clone();
                    self.refused.insert(agent, (self.now + filters.refuse.0 * 1000, free));
                }
            }
            Call::Revive => {
                self.suppressed = false;
                self.refused.clear();
            }
            Call::Suppress => self.suppressed = true,
            Call::AssignItems { task, batch, open, .. } => self.assign(&task, batch, open),
            Call::ReturnItems { task, most, .. } => self.take_back(&task, most),
            Call::Kill { task, attempt, .. } => self.kill(&task, attempt),
            _ => {}
        }
    }

    fn keep(&mut self, agent: &AgentId, spec: &TaskSpec, splits: &[Input]) {
        if !self.caches {
            return;
        }
        let names = spec.inputs.iter().chain(splits).filter_map(HoldingKey::of_input);
        let names: Vec<_> = names.chain([HoldingKey::of_digest(&spec.bundle.digest)]).collect();
        let holdings = &mut self.agent(agent).holdings;
        holdings.extend(names);
        holdings.sort_unstable();
        holdings.dedup();
    }

    fn launch(&mut self, agent: &AgentId, launch: Launch) {
        self.keep(agent, &launch.spec, &[]);
        let (task, attempt) = (launch.task.clone(), launch.attempt);
        assert!(self.live_singles.insert((task.clone(), attempt)));
        let due = Due::Single(agent.clone(), task.clone(), attempt, launch.resources.clone());
        let in_use = launch.resources.ports.intersection(&self.held);
        if !in_use.is_empty() {
            self.live_singles.remove(&(task.clone(), attempt));
            self.give_back(agent, &launch.resources);
            self.launches.push(launch);
            let ended = (TaskState::Dropped, Reason::LaunchFailed);
            return self.say(agent, &task, (attempt, 1), ended, |update| update.ports_in_use = in_use);
        }
        self.launches.push(launch);
        self.update(agent, &task, attempt, 1, TaskState::Running, Reason::None, None);
        let us = self.single_us;
        self.later(us, due);
    }

    fn end_single(&mut self, agent: &AgentId, task: &TaskId, attempt: u32, resources: &Resources) {
        if !self.agent(agent).alive || !self.live_singles.remove(&(task.clone(), attempt)) {
            return;
        }
        self.give_back(agent, resources);
        let (state, reason) = (self.fate)(u64::MAX, attempt).unwrap_or((TaskState::Finished, Reason::None));
        self.update(agent, task, attempt, 2, state, reason, None);
    }

    fn kill(&mut self, task: &TaskId, attempt: u32) {
        if self.live_singles.remove(&(task.clone(), attempt)) {
            let launch = self.launches.iter().find(|l| l.task == *task && l.attempt == attempt).unwrap().clone();
            let agent = self.due.values().find_map(|d| match d {
                Due::Single(a, t, n, _) if t == task && *n == attempt => Some(a.clone()),
                _ => None,
            });
            let agent = agent.unwrap();
            self.give_back(&agent, &launch.resources);
            self.update(&agent, task, attempt, 2, TaskState::Killed, Reason::KilledByRequest, None);
        }
        if let Some((agent, part)) = self.part(task) {
            part.killed = true;
            part.queue.clear();
            let agent = agent.clone();
            self.later(0, Due::Run(agent, task.clone()));
        }
    }

    fn part(&mut self, task: &TaskId) -> Option<(&AgentId, &mut FakePart)> {
        self.agents.iter_mut().find_map(|a| a.parts.get_mut(task).map(|p| (&a.id, p)))
    }

    fn launch_array(&mut self, agent: &AgentId, launch: LaunchArray) {
        self.keep(agent, &launch.template.spec, &launch.template.split_inputs);
        self.parts_tried += 1;
        if let Some((state, reason)) = self.cannot_begin {
            // As an agent does when the bundle or an input cannot be had.
            let held = launch.slot_resources.checked_mul(launch.slots).expect("an offer covers it");
            self.give_back(agent, &held);
            let delta = ArrayDelta { returned: launch.batch.items, ..ArrayDelta::default() };
            return self.update(agent, &launch.task, launch.attempt, 1, state, reason, Some(delta));
        }
        let part = FakePart {
            slots: launch.slots,
            each: launch.slot_resources,
            open: launch.open,
            started: false,
            killed: false,
            queue: launch.batch.items.iter().collect(),
            busy: BTreeMap::new(),
            finished: ItemSet::default(),
            failed: Vec::new(),
            returned: ItemSet::default(),
            done_since: 0,
            reported: self.now,
            seq: 0,
            given: launch.batch.items.clone(),
        };
        for item in launch.batch.items.iter() {
            self.attempts.insert(item, launch.batch.attempt);
        }
        let start = self.agent(agent).start_us;
        assert!(self.agent(agent).parts.insert(launch.task.clone(), part).is_none(), "a part is launched once");
        self.later(start, Due::Run(agent.clone(), launch.task));
    }

    fn assign(&mut self, task: &TaskId, batch: ItemBatch, open: bool) {
        for item in batch.items.iter() {
            self.attempts.insert(item, batch.attempt);
        }
        let Some((_, part)) = self.part(task) else { return };
        assert!(part.open || batch.items.is_empty(), "a closed part gets no more");
        assert!(part.given.is_disjoint(&batch.items), "an item is given once");
        part.given.extend(&batch.items);
        part.queue.extend(batch.items.iter());
        part.open = open;
        self.nudge(task);
    }

    fn take_back(&mut self, task: &TaskId, most: u64) {
        let Some((_, part)) = self.part(task) else { return };
        for _ in 0..most {
            let Some(item) = part.queue.pop_back() else { break };
            part.returned.insert(item);
            part.given = part.given.difference(&ItemSet::range(item, item + 1));
        }
        self.nudge(task);
    }

    /// Something was said to a part. One that is not ready yet goes on getting ready, and is over when there is nothing left to do.
    fn nudge(&mut self, task: &TaskId) {
        let Some(agent) = self.part(task).map(|(agent, _)| agent.clone()) else { return };
        let Some(part) = self.agents.iter_mut().find_map(|a| a.parts.get_mut(task)) else { return };
        if part.started || part.killed {
            return self.later(0, Due::Run(agent, task.clone()));
        }
        let over = !part.open && part.queue.is_empty();
        if part.returned.is_empty() && !over {
            return;
        }
        part.seq += 1;
        let (seq, held) = (part.seq, part.each.checked_mul(part.slots).expect("an offer covers it"));
        let (slots, outstanding) = (if over { 0 } else { part.slots }, part.queue.len() as u64);
        let delta = ArrayDelta { returned: std::mem::take(&mut part.returned), outstanding, slots, ..ArrayDelta::default() };
        if over {
            self.agents.iter_mut().for_each(|a| drop(a.parts.remove(task)));
            self.give_back(&agent, &held);
        }
        let state = if over { TaskState::Finished } else { TaskState::Staging };
        self.update(&agent, task, 0, seq, state, Reason::None, Some(delta));
    }

    /// Brings a part up to the present: ends items, starts others, reports, lets slots go.
    fn run_part(&mut self, agent: &AgentId, task: &TaskId) {
        let (now, attempts) = (self.now, &self.attempts);
        let Some(a) = self.agents.iter_mut().find(|a| a.id == *agent && a.alive) else { return };
        let item_us = a.item_us;
        let Some(part) = a.parts.get_mut(task) else { return };
        let first = !part.started;
        part.started = true;
        let ended: Vec<u64> = part.busy.iter().filter(|(_, end)| **end <= now).map(|(i, _)| *i).collect();
        for item in ended {
            part.busy.remove(&item);
            let attempt = attempts[&item];
            let broken = (self.broken.as_ref() == Some(agent)).then_some((TaskState::Failed, Reason::Trap));
            self.failed_on_broken += u64::from(broken.is_some());
            match broken.or_else(|| (self.fate)(item, attempt)) {
                None => part.finished.insert(item),
                Some((state, reason)) => {
                    part.failed.push(FailedItem { item, attempt, state, reason, message: "fate".into(), exit_code: Some(3) })
                }
            }
            part.done_since += 1;
            *self.items_by_agent.entry(agent.clone()).or_default() += 1;
        }
        if part.killed {
            part.busy.clear();
        }
        let mut wake = None;
        while part.busy.len() < part.slots as usize {
            let Some(item) = part.queue.pop_front() else { break };
            part.busy.insert(item, now + item_us);
            *self.runs.entry(item).or_default() += 1;
            wake = Some(now + item_us);
        }
        let idle = part.slots - u32::try_from(part.busy.len()).unwrap();
        let mut freed = 0;
        if !part.open || part.killed {
            part.slots -= idle;
            freed = idle;
        }
        let over = part.slots == 0;
        let news = part.done_since > 0 || !part.returned.is_empty();
        let due = over || freed > 0 || !part.returned.is_empty() || part.queue.is_empty() || now - part.reported > 20_000;
        let freed = part.each.checked_mul(freed).unwrap();
        let state = match (over, part.killed) {
            (false, _) => TaskState::Running,
            (true, true) => TaskState::Killed,
            (true, false) => TaskState::Finished,
        };
        let killed = part.killed;
        let mut report = None;
        if first || over || (news && due) || freed.cpus.0 > 0 {
            part.seq += 1;
            part.reported = now;
            // What has failed may come again.
            part.given = part.given.difference(&part.failed.iter().map(|f| f.item).collect());
            let delta = ArrayDelta {
                finished: std::mem::take(&mut part.finished),
                failed: std::mem::take(&mut part.failed),
                returned: std::mem::take(&mut part.returned),
                results: Vec::new(),
                outstanding: (part.queue.len() + part.busy.len()) as u64,
                slots: part.slots,
                usage: Usage { wall_us: item_us * std::mem::take(&mut part.done_since), ..Usage::default() },
            };
            report = Some((part.seq, delta));
        }
        let busy: Vec<u64> = part.busy.values().copied().collect();
        a.free = a.free.checked_add(&freed).unwrap();
        if over {
            a.parts.remove(task);
        }
        if let Some((seq, delta)) = report {
            let reason = if killed && over { Reason::KilledByRequest } else { Reason::None };
            self.update(agent, task, 0, seq, state, reason, Some(delta));
        }
        if let Some(at) = wake.or(busy.first().copied()).filter(|_| !over) {
            self.later(at.max(now) - now, Due::Run(agent.clone(), task.clone()));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a test's shorthand")]
    fn update(
        &mut self,
        agent: &AgentId,
        task: &TaskId,
        attempt: u32,
        seq: u64,
        state: TaskState,
        reason: Reason,
        array: Option<ArrayDelta>,
    ) {
        self.say(agent, task, (attempt, seq), (state, reason), |update| update.array = array);
    }

    fn say(
        &mut self,
        agent: &AgentId,
        task: &TaskId,
        (attempt, seq): (u32, u64),
        (state, reason): (TaskState, Reason),
        more: impl FnOnce(&mut StatusUpdate),
    ) {
        let key = TaskKey { framework: FrameworkId::new("F1-0").unwrap(), task: task.clone(), attempt };
        let mut update = StatusUpdate::new(key, seq, state, reason, self.words.as_str(), Time(self.now));
        more(&mut update);
        update.exit_code = if state == TaskState::Finished { Some(0) } else { Some(3) };
        if seq > 0 {
            self.sent.insert((task.clone(), attempt, seq));
        }
        let event = FrameworkEvent::Updates(vec![(Some(agent.clone()), update)]);
        self.later(LATENCY, Due::ToScheduler(Event::Framework { role: Role::default(), event }));
    }

    /// Nothing is heard of the agent any more, and nobody says so.
    pub(super) fn cut_off(&mut self, agent: usize) {
        self.agents[agent].alive = false;
        self.agents[agent].parts.clear();
    }

    /// The agent and all it had are gone.
    pub(super) fn lose(&mut self, agent: usize) {
        let id = self.agents[agent].id.clone();
        self.agents[agent].alive = false;
        let parts: Vec<TaskId> = std::mem::take(&mut self.agents[agent].parts).into_keys().collect();
        for task in parts {
            self.update(&id, &task, 0, 0, TaskState::Gone, Reason::AgentRemoved, None);
        }
        let singles: Vec<(TaskId, u32)> = self
            .due
            .values()
            .filter_map(|d| match d {
                Due::Single(a, t, n, _) if *a == id => Some((t.clone(), *n)),
                _ => None,
            })
            .collect();
        for (task, attempt) in singles {
            if self.live_singles.remove(&(task.clone(), attempt)) {
                self.update(&id, &task, attempt, 0, TaskState::Gone, Reason::AgentRemoved, None);
            }
        }
        let event = FrameworkEvent::AgentLost { agent: id, reason: "test".into() };
        self.later(LATENCY, Due::ToScheduler(Event::Framework { role: Role::default(), event }));
    }

    pub(super) fn view(&self, job: JobId) -> JobView {
        self.core.job(job).unwrap().view()
    }

    /// Everything was answered, nothing runs, everything was given back.
    pub(super) fn assert_silent(&self) {
        assert!(self.due.is_empty() && self.core.live.is_empty(), "still something to do");
        assert!(self.offered.is_empty(), "offers are held: {:?}", self.offered);
        assert_eq!(self.handled, self.sent, "every update is acknowledged once");
        assert!(self.suppressed, "no offers are wanted any more");
        assert!(self.agents.iter().all(|a| a.parts.is_empty()));
        assert!(self.core.jobs().all(|j| !j.is_live()), "the scheduler believes that something runs");
    }
}
