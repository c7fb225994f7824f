//! Random events of hostile and honest peers: nothing panics, all invariants hold after each step, and what was free at
//! the start is free at the end.

use super::fixture::*;
use crate::{Config, Conn, Event, Master, Message, Stored};
use proptest::prelude::*;
use smalti_types::protocol::{Call, Claim, FrameworkEvent, Registration, RunningTask, Subscription};
use smalti_types::*;
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
enum Move {
    Register { agent: u8, size: u8, boot: bool, tasks: Vec<(u8, u8)>, ends: Vec<(u8, u8)> },
    Leave { conn: u8 },
    Goodbye { conn: u8 },
    Remove { agent: u8 },
    Subscribe { framework: u8, role: bool, known: bool },
    Unsubscribe { conn: u8 },
    Update { conn: u8, framework: u8, task: u8, seq: u8, state: u8, slots: u8 },
    Accept { conn: u8, offers: u8, tasks: Vec<(u8, u8, bool)>, refuse: u16 },
    Decline { conn: u8, offer: u8, refuse: u16 },
    Call { conn: u8, which: u8, task: u8, seq: u8 },
    Pass { ms: u32 },
    BatchEnd,
    Lease { conn: u8 },
    Restart { ms: u32 },
}

fn any_move() -> impl Strategy<Value = Move> {
    let pairs = || proptest::collection::vec((0_u8..3, 0_u8..6), 0..3);
    prop_oneof![
        3 => (0_u8..3, 1_u8..9, any::<bool>(), pairs(), pairs())
            .prop_map(|(agent, size, boot, tasks, ends)| Move::Register { agent, size, boot, tasks, ends }),
        1 => any::<u8>().prop_map(|conn| Move::Leave { conn }),
        1 => any::<u8>().prop_map(|conn| Move::Goodbye { conn }),
        1 => (0_u8..3).prop_map(|agent| Move::Remove { agent }),
        3 => (0_u8..3, any::<bool>(), any::<bool>()).prop_map(|(framework, role, known)| Move::Subscribe { framework, role, known }),
        1 => any::<u8>().prop_map(|conn| Move::Unsubscribe { conn }),
        8 => (any::<u8>(), 0_u8..3, 0_u8..6, 0_u8..5, 0_u8..13, 0_u8..4)
            .prop_map(|(conn, framework, task, seq, state, slots)| Move::Update { conn, framework, task, seq, state, slots }),
        8 => (any::<u8>(), 0_u8..3, proptest::collection::vec((0_u8..6, 0_u8..4, any::<bool>()), 0..4), 0_u16..9_000)
            .prop_map(|(conn, offers, tasks, refuse)| Move::Accept { conn, offers, tasks, refuse }),
        3 => (any::<u8>(), any::<u8>(), 0_u16..9_000).prop_map(|(conn, offer, refuse)| Move::Decline { conn, offer, refuse }),
        6 => (any::<u8>(), 0_u8..8, 0_u8..6, 0_u8..5).prop_map(|(conn, which, task, seq)| Move::Call { conn, which, task, seq }),
        3 => (0_u32..40_000).prop_map(|ms| Move::Pass { ms }),
        6 => Just(Move::BatchEnd),
        2 => any::<u8>().prop_map(|conn| Move::Lease { conn }),
        1 => (0_u32..90_000).prop_map(|ms| Move::Restart { ms }),
    ]
}

struct World {
    master: Master,
    now: Time,
    conns: u64,
    agents: Vec<Conn>,
    frameworks: Vec<Conn>,
    ids: Vec<FrameworkId>,
    offers: Vec<OfferId>,
    config: Config,
    stored: Stored,
    /// Ends that frameworks were told, and when exclusive tasks last held a lease or could have got one: (agent, time).
    leases: BTreeMap<AgentId, Time>,
    names: BTreeMap<Conn, AgentId>,
}

fn maybe_exclusive(mut operation: Operation, exclusive: bool) -> Operation {
    if let Operation::Launch(launch) = &mut operation {
        launch.spec.exclusive = exclusive;
    }
    operation
}

fn pick<T: Copy>(all: &[T], n: u8) -> Option<T> {
    all.get(usize::from(n) % all.len().max(1)).copied()
}

impl World {
    fn id(&self, n: u8) -> FrameworkId {
        self.ids.get(usize::from(n)).cloned().unwrap_or_else(|| FrameworkId::new(format!("F0-{n}")).unwrap())
    }

    fn key(&self, framework: u8, task: u8) -> TaskKey {
        key(&self.id(framework), &format!("t{task}"))
    }

    /// The master dies after its last whole batch, and goes on from what it wrote down.
    fn restart(&mut self) {
        let epoch = MasterEpoch(self.master.epoch().0 + 1);
        self.master = Master::recover(self.config.clone(), epoch, self.now, self.stored.clone());
        self.step(Event::Tick);
    }

    /// Nobody may hear that an exclusive task ended by the master's word while its agent may still run it.
    fn check_lease(&self, agent: Option<&AgentId>, update: &StatusUpdate) {
        if update.key.seq == 0 && update.reason == Reason::LeaseExpired && update.state == TaskState::Lost {
            let granted = agent.and_then(|a| self.leases.get(a)).copied().unwrap_or_default();
            assert!(self.now >= granted.after(self.config.lease_span()), "{update:?} before the lease of {granted:?} is over");
        }
    }

    fn step(&mut self, event: Event) {
        if let Event::AgentLease { conn, .. } = &event
            && self.master.agent_views().any(|a| self.master.agent_connection(&a.info.id) == Some(*conn))
        {
            self.leases.insert(self.names[conn].clone(), self.now);
        }
        let effects = self.master.step(self.now, event.clone());
        if let Err(e) = self.master.check_invariants() {
            panic!("after {event:?}: {e}");
        }
        let stored = &mut self.stored;
        let messages = effects.commit(|records| {
            records.into_iter().for_each(|record| stored.apply(record));
            Ok::<_, ()>(())
        });
        check_stored(&self.master, &self.stored);
        for message in messages.unwrap() {
            match message {
                Message::ToFramework { event: FrameworkEvent::Updates(updates), .. } => {
                    updates.iter().for_each(|(agent, update)| self.check_lease(agent.as_ref(), update));
                }
                Message::ToFramework { event: FrameworkEvent::Offers(offers), .. } => self.offers.extend(offers.iter().map(|o| o.id)),
                Message::ToFramework { event: FrameworkEvent::Subscribed { framework, .. }, .. } if !self.ids.contains(&framework) => {
                    self.ids.push(framework);
                }
                _ => {}
            }
        }
    }

    fn conn(&mut self) -> Conn {
        self.conns += 1;
        Conn(self.conns)
    }

    fn event(&mut self, step: Move) -> Option<Event> {
        Some(match step {
            Move::Register { agent, size, boot, tasks, ends } => {
                let conn = self.conn();
                let mut info = agent_info(&format!("a{agent}"), res(size.into(), size.into()));
                info.boot_id = format!("boot-{boot}");
                let slot = res(1, 1);
                let running = |(f, t): (u8, u8)| RunningTask {
                    key: self.key(f, t),
                    state: if t == 5 { TaskState::Killed } else { TaskState::Running },
                    resources: slot.checked_mul(u32::from(t % 3)).unwrap(),
                    slot_resources: (t % 2 == 0).then(|| slot.clone()),
                    exclusive: t == 3,
                };
                let end = |(f, t): (u8, u8)| StatusUpdate::new(self.key(f, t), 3, TaskState::Failed, Reason::Trap, "", self.now);
                let registration = Registration {
                    info,
                    tasks: tasks.into_iter().map(running).collect(),
                    unacknowledged: ends.into_iter().map(end).collect(),
                };
                self.agents.push(conn);
                self.names.insert(conn, registration.info.id.clone());
                Event::AgentRegistered { conn, registration }
            }
            Move::Leave { conn } => Event::AgentDisconnected { conn: pick(&self.agents, conn)? },
            Move::Goodbye { conn } => Event::AgentDeregistered { conn: pick(&self.agents, conn)?, reason: "bye".into() },
            Move::Remove { agent } => Event::AgentRemoved { agent: AgentId::new(format!("a{agent}")).unwrap(), reason: "so".into() },
            Move::Subscribe { framework, role, known } => {
                let conn = self.conn();
                let info = framework_info("f", if role { "x" } else { "y" });
                let id = known.then(|| self.id(framework));
                let fresh = FrameworkId::new(format!("F7-{}", conn.0)).unwrap();
                self.frameworks.push(conn);
                Event::FrameworkSubscribed { conn, subscription: Subscription { info, id, claim: Claim::default() }, fresh }
            }
            Move::Unsubscribe { conn } => Event::FrameworkDisconnected { conn: pick(&self.frameworks, conn)? },
            Move::Update { conn, framework, task, seq, state, slots } => {
                let state = TaskState::ALL[usize::from(state)];
                let mut update = StatusUpdate::new(self.key(framework, task), seq.into(), state, Reason::None, "", self.now);
                update.array = Some(ArrayDelta { slots: slots.into(), ..ArrayDelta::default() });
                Event::AgentUpdates { conn: pick(&self.agents, conn)?, updates: vec![update] }
            }
            Move::Accept { conn, offers, tasks, refuse: ms } => {
                let operation = |(t, size, single): (u8, u8, bool)| {
                    let name = format!("t{t}");
                    if single { maybe_exclusive(task(&name, res(size.into(), 1)), t == 3) } else { array(&name, res(1, 1), size.into(), 4) }
                };
                let recent = self.offers.iter().rev().take(offers.into()).copied().collect();
                let operations = tasks.into_iter().map(operation).collect();
                let call = Call::Accept { offers: recent, operations, filters: refuse(ms.into()) };
                Event::FrameworkCall { conn: pick(&self.frameworks, conn)?, call }
            }
            Move::Decline { conn, offer, refuse: ms } => {
                let call = Call::Decline { offers: pick(&self.offers, offer).into_iter().collect(), filters: refuse(ms.into()) };
                Event::FrameworkCall { conn: pick(&self.frameworks, conn)?, call }
            }
            Move::Call { conn, which, task, seq } => {
                let task = TaskId::new(format!("t{task}")).unwrap();
                let batch = ItemBatch { items: ItemSet::range(0, seq.into()), attempt: 0, splits: vec![] };
                let call = match which {
                    0 => Call::Revive,
                    1 => Call::Suppress,
                    2 => Call::Kill { task, attempt: 0, grace: None },
                    3 | 4 => Call::Acknowledge(vec![(task, 0, seq.into())]),
                    5 => Call::Reconcile(vec![(task, 0, None)]),
                    6 => Call::AssignItems { task, attempt: 0, batch, open: true },
                    _ if seq == 0 => Call::Teardown,
                    _ => Call::ReturnItems { task, attempt: 0, most: 3 },
                };
                Event::FrameworkCall { conn: pick(&self.frameworks, conn)?, call }
            }
            Move::Pass { ms } => {
                self.now = self.now.after(DurationMs(ms.into()));
                Event::Tick
            }
            Move::BatchEnd => Event::BatchEnd,
            Move::Lease { conn } => Event::AgentLease { conn: pick(&self.agents, conn)?, asked: BootTime(1) },
            Move::Restart { ms } => {
                self.now = self.now.after(DurationMs(ms.into()));
                self.restart();
                return None;
            }
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(512), ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_the_books_are_right(moves in proptest::collection::vec(any_move(), 1..120)) {
        let now = Time(1_000_000_000);
        // Bounds so small that they are met.
        let config = Config {
            remembered_attempts: 4, remembered_frameworks: 2, pending_per_attempt: 2, pending_bytes: 900, pending_bytes_total: 1_500,
            remembered_attempts_total: 7, remembered_refusals: 3, resend_window: 2,
            ..Config::default()
        };
        let mut world = World {
            master: Master::new(config.clone(), MasterEpoch(7), now),
            now, conns: 0, agents: vec![], frameworks: vec![], ids: vec![], offers: vec![],
            config, stored: Stored::default(), leases: BTreeMap::new(), names: BTreeMap::new(),
        };
        for step in moves {
            if let Some(event) = world.event(step) {
                world.step(event);
            }
        }
        // Everybody leaves: nothing may be held by anybody.
        for conn in world.frameworks.clone() {
            world.step(Event::FrameworkCall { conn, call: Call::Teardown });
        }
        world.now = world.now.after(DurationMs(3_600_000));
        world.step(Event::Tick);
        prop_assert_eq!(world.master.cluster_view().frameworks, 0);
        prop_assert_eq!(world.stored.frameworks.len(), 0);
        prop_assert_eq!(world.master.offer_views().count(), 0);
        for n in 0..3 {
            world.step(Event::AgentRemoved { agent: AgentId::new(format!("a{n}")).unwrap(), reason: "end".into() });
        }
        prop_assert_eq!(world.master.cluster_view().agents, 0);
    }
}
