//! A cluster on paper: drives the core, keeps every message until a test asks for it, checks all invariants after each step.

use crate::{AgentMessage, Config, Conn, Event, Master, Message, Record, Stored};
use smalti_types::protocol::{AgentCommand, Call, Claim, FrameworkEvent, Registration, RunningTask, Subscription};
use smalti_types::*;
use std::collections::BTreeMap;

pub(super) struct Cluster {
    pub(super) master: Master,
    pub(super) now: Time,
    conns: u64,
    ids: u64,
    to_agents: BTreeMap<Conn, Vec<AgentMessage>>,
    to_frameworks: BTreeMap<Conn, Vec<FrameworkEvent>>,
    pub(super) closed: Vec<Conn>,
    pub(super) records: Vec<Record>,
    /// What a restart finds.
    pub(super) stored: Stored,
    pub(super) config: Config,
}

/// What the brief examples use: thousandths of cpus from whole ones, gigabytes of memory.
pub(super) fn res(cpus: u64, gib: u64) -> Resources {
    Resources::new(MilliCpus(cpus * 1000), Bytes::gib(gib))
}

pub(super) fn spec() -> TaskSpec {
    TaskSpec::new(BundleRef { digest: Digest::of(b"guest"), uri: None })
}

pub(super) fn task(name: &str, resources: Resources) -> Operation {
    Operation::Launch(Launch { task: TaskId::new(name).unwrap(), attempt: 0, resources, spec: spec() })
}

pub(super) fn array(name: &str, slot: Resources, slots: u32, items: u64) -> Operation {
    Operation::LaunchArray(LaunchArray {
        task: TaskId::new(name).unwrap(),
        attempt: 0,
        slot_resources: slot,
        slots,
        template: ArrayTemplate { spec: spec(), total_items: items, split_inputs: vec![] },
        batch: ItemBatch { items: ItemSet::range(0, items), attempt: 0, splits: vec![] },
        open: false,
    })
}

pub(super) fn agent_info(name: &str, total: Resources) -> AgentInfo {
    AgentInfo {
        id: AgentId::new(name).unwrap(),
        hostname: format!("{name}.example"),
        total,
        overhead: Resources::default(),
        attributes: Attributes::default(),
        isolation: BTreeMap::new(),
        boot_id: "boot-1".into(),
        incarnation: 1,
    }
}

pub(super) fn framework_info(name: &str, role: &str) -> FrameworkInfo {
    FrameworkInfo {
        name: name.into(),
        principal: "somebody".into(),
        role: Role::new(role).unwrap(),
        failover_timeout: DurationMs(60_000),
        services: BTreeMap::new(),
    }
}

pub(super) fn refuse(ms: u64) -> Filters {
    Filters { refuse: DurationMs(ms) }
}

impl Cluster {
    pub(super) fn new() -> Self {
        Self::with(Config::default())
    }

    pub(super) fn with(config: Config) -> Self {
        let now = Time(1_000_000_000);
        Self {
            master: Master::new(config.clone(), MasterEpoch(7), now),
            now,
            conns: 0,
            ids: 0,
            to_agents: BTreeMap::new(),
            to_frameworks: BTreeMap::new(),
            closed: vec![],
            records: vec![],
            stored: Stored::default(),
            config,
        }
    }

    /// The master dies, and starts again after `ms` from what it wrote down. All connections are gone.
    pub(super) fn restart(&mut self, ms: u64) {
        self.now = self.now.after(DurationMs(ms));
        let epoch = MasterEpoch(self.master.epoch().0 + 1);
        self.master = Master::recover(self.config.clone(), epoch, self.now, self.stored.clone());
        self.to_agents.clear();
        self.to_frameworks.clear();
        self.closed.clear();
        self.batch(Event::Tick);
        self.silence();
    }

    /// A known agent whose machine was restarted; its acknowledgement has been read.
    pub(super) fn agent_with_boot(&mut self, name: &str, boot: &str) {
        let mut info = agent_info(name, res(4, 4));
        (info.boot_id, info.incarnation) = (boot.into(), 2);
        let conn = self.register(info, vec![], vec![]);
        assert_eq!(self.commands_after_registered(conn), vec![]);
        self.closed.clear();
    }

    /// One event, without an allocation after it.
    pub(super) fn step(&mut self, event: Event) {
        let effects = self.master.step(self.now, event.clone());
        if let Err(e) = self.master.check_invariants() {
            panic!("after {event:?}: {e}");
        }
        let (records, stored) = (&mut self.records, &mut self.stored);
        let messages = effects.commit(|r| {
            r.iter().cloned().for_each(|record| stored.apply(record));
            records.extend(r);
            Ok::<_, ()>(())
        });
        let messages = messages.unwrap();
        check_stored(&self.master, &self.stored);
        for message in messages {
            match message {
                Message::ToAgent { conn, message } => self.to_agents.entry(conn).or_default().push(message),
                Message::ToFramework { conn, event } => self.to_frameworks.entry(conn).or_default().push(event),
                Message::Close { conn, .. } => self.closed.push(conn),
            }
        }
    }

    /// A batch of one event.
    pub(super) fn batch(&mut self, event: Event) {
        self.step(event);
        self.step(Event::BatchEnd);
    }

    pub(super) fn pass(&mut self, ms: u64) {
        self.now = self.now.after(DurationMs(ms));
        self.batch(Event::Tick);
    }

    pub(super) fn conn(&mut self) -> Conn {
        self.conns += 1;
        Conn(self.conns)
    }

    pub(super) fn register(&mut self, info: AgentInfo, tasks: Vec<RunningTask>, unacknowledged: Vec<StatusUpdate>) -> Conn {
        let conn = self.conn();
        self.batch(Event::AgentRegistered { conn, registration: Registration { info, tasks, unacknowledged } });
        conn
    }

    /// A new agent, whose acknowledgement has been read.
    pub(super) fn agent(&mut self, name: &str, total: Resources) -> Conn {
        let conn = self.register(agent_info(name, total), vec![], vec![]);
        assert_eq!(self.commands_after_registered(conn), vec![]);
        conn
    }

    pub(super) fn commands_after_registered(&mut self, conn: Conn) -> Vec<AgentCommand> {
        let mut messages = self.to_agents.remove(&conn).unwrap_or_default().into_iter();
        assert_eq!(messages.next(), Some(AgentMessage::Registered { epoch: self.master.epoch() }));
        messages.map(as_command).collect()
    }

    pub(super) fn commands(&mut self, conn: Conn) -> Vec<AgentCommand> {
        self.to_agents.remove(&conn).unwrap_or_default().into_iter().map(as_command).collect()
    }

    pub(super) fn agent_messages(&mut self, conn: Conn) -> Vec<AgentMessage> {
        self.to_agents.remove(&conn).unwrap_or_default()
    }

    pub(super) fn subscribe(&mut self, info: FrameworkInfo, id: Option<FrameworkId>) -> Conn {
        self.subscribe_as(info, id, Claim::default())
    }

    pub(super) fn subscribe_as(&mut self, info: FrameworkInfo, id: Option<FrameworkId>, claim: Claim) -> Conn {
        let conn = self.conn();
        self.ids += 1;
        let fresh = FrameworkId::new(format!("F7-{}", self.ids)).unwrap();
        self.batch(Event::FrameworkSubscribed { conn, subscription: Subscription { info, id, claim }, fresh });
        conn
    }

    /// A new framework; its subscription has been read.
    pub(super) fn framework(&mut self, name: &str) -> (Conn, FrameworkId) {
        let conn = self.subscribe(framework_info(name, "default"), None);
        (conn, self.subscribed(conn))
    }

    pub(super) fn subscribed(&mut self, conn: Conn) -> FrameworkId {
        let events = self.to_frameworks.entry(conn).or_default();
        let FrameworkEvent::Subscribed { framework, .. } = events.remove(0) else { panic!("not subscribed: {events:?}") };
        framework
    }

    pub(super) fn events(&mut self, conn: Conn) -> Vec<FrameworkEvent> {
        self.to_frameworks.remove(&conn).unwrap_or_default()
    }

    /// The framework's next event must be offers, and the only one.
    pub(super) fn offers(&mut self, conn: Conn) -> Vec<Offer> {
        let events = self.events(conn);
        let [FrameworkEvent::Offers(offers)] = &events[..] else { panic!("offers expected: {events:?}") };
        offers.clone()
    }

    pub(super) fn offer(&mut self, conn: Conn) -> Offer {
        let offers = self.offers(conn);
        assert_eq!(offers.len(), 1, "{offers:?}");
        offers.into_iter().next().unwrap()
    }

    /// All updates that wait, each as (task, state, reason, seq); nothing but updates may wait.
    pub(super) fn updates(&mut self, conn: Conn) -> Vec<(String, TaskState, Reason, u64)> {
        let mut all = vec![];
        for event in self.events(conn) {
            let FrameworkEvent::Updates(updates) = event else { panic!("updates expected: {event:?}") };
            all.extend(updates.into_iter().map(|(_, u)| (u.key.task.task.to_string(), u.state, u.reason, u.key.seq)));
        }
        all
    }

    pub(super) fn call(&mut self, conn: Conn, call: Call) {
        self.batch(Event::FrameworkCall { conn, call });
    }

    pub(super) fn accept(&mut self, conn: Conn, offers: &[OfferId], operations: Vec<Operation>, filters: Filters) {
        self.call(conn, Call::Accept { offers: offers.to_vec(), operations, filters });
    }

    pub(super) fn update(&mut self, agent: Conn, key: &TaskKey, seq: u64, state: TaskState) {
        let update = StatusUpdate::new(key.clone(), seq, state, Reason::None, "", self.now);
        self.batch(Event::AgentUpdates { conn: agent, updates: vec![update] });
    }

    /// Used, offered, free of an agent.
    pub(super) fn books(&self, name: &str) -> (Resources, Resources, Resources) {
        let view = self.master.agent_views().find(|a| a.info.id.as_str() == name).unwrap();
        (view.used, view.offered, view.free)
    }

    /// Nobody was told anything that the test has not looked at.
    pub(super) fn silence(&mut self) {
        self.to_agents.retain(|_, m| !m.is_empty());
        self.to_frameworks.retain(|_, m| !m.is_empty());
        assert!(self.to_agents.is_empty() && self.to_frameworks.is_empty(), "{:?} {:?}", self.to_agents, self.to_frameworks);
        assert_eq!(self.closed, vec![], "closed");
    }
}

fn as_command(message: AgentMessage) -> AgentCommand {
    match message {
        AgentMessage::Command(command) => command,
        other => panic!("a command expected: {other:?}"),
    }
}

pub(super) fn key(framework: &FrameworkId, name: &str) -> TaskKey {
    TaskKey { framework: framework.clone(), task: TaskId::new(name).unwrap(), attempt: 0 }
}

/// What a restart would find is what the master knows now.
pub(super) fn check_stored(master: &Master, stored: &Stored) {
    let agents: BTreeMap<AgentId, AgentInfo> = master.agent_views().map(|a| (a.info.id.clone(), a.info)).collect();
    assert_eq!(agents, stored.agents);
    let mut known = 0;
    for view in master.framework_views() {
        match stored.frameworks.get(&view.id) {
            Some(there) => {
                known += 1;
                assert_eq!((&there.info, there.away_until), (&view.info, view.failover_deadline), "{}", view.id);
            }
            None => assert!(view.info.name.is_empty(), "only frameworks that never subscribed need not be stored: {view:?}"),
        }
        assert!(!stored.removed.contains_key(&view.id), "{} is removed and there", view.id);
    }
    assert_eq!(known, stored.frameworks.len());
}
