//! Random events, sensible and not: nothing panics, the invariants hold after each, and in the end everything is accounted for.

use super::fake::*;
use crate::task::Phase;
use crate::{ArrayReport, Event, Failure, FromExecutor, HeldPart, ItemFailure, Message, ModuleId, Run, ToExecutor};
use proptest::prelude::*;
use smalti_types::protocol::AgentCommand;
use smalti_types::*;
use std::collections::{BTreeMap, BTreeSet};

const RUNS: std::ops::Range<u64> = 1..13;

fn name(n: u8) -> String {
    format!("t{}", n % 6)
}

fn listening() -> Resources {
    Resources { ports: "31000".parse().unwrap(), ..Resources::new(MilliCpus(500), Bytes::mib(1)) }
}

fn item_set() -> impl Strategy<Value = ItemSet> {
    (0_u64..40, 0_u64..12).prop_map(|(first, n)| ItemSet::range(first, first + n))
}

fn from_executor() -> impl Strategy<Value = FromExecutor> {
    let run = RUNS.prop_map(Run);
    let failure =
        prop_oneof![Just(None), Just(Some(Failure::new(Reason::Trap, "trap"))), Just(Some(Failure::new(Reason::Reconciliation, "")))];
    prop_oneof![
        3 => (1_u32..4, any::<bool>()).prop_map(|(m, ok)| FromExecutor::ModuleLoaded {
            module: ModuleId(m),
            failure: (!ok).then(|| Failure::new(Reason::MissingImport, "no")),
        }),
        2 => run.clone().prop_map(|run| FromExecutor::Started { run }),
        2 => (run.clone(), proptest::option::of(-1_i32..3), failure).prop_map(|(run, exit_code, failure)| FromExecutor::Outcome {
            run, exit_code, failure, usage: Usage::default(), result: None,
        }),
        4 => (run.clone(), item_set(), item_set(), proptest::collection::vec(0_u64..40, 0..4), 0_u64..100_000).prop_map(
            |(run, finished, returned, failed, wall_us)| {
                let failed = failed.into_iter().map(|item| ItemFailure { item, exit_code: Some(1), failure: None }).collect();
                let results = finished.iter().map(|i| (i, vec![1, 2, 3])).collect();
                let usage = Usage { wall_us, ..Usage::default() };
                FromExecutor::Report { run, report: ArrayReport { finished, failed, returned, results, usage, unstarted: wall_us % 2, busy: u32::from(wall_us % 3 == 0) } }
            }
        ),
        2 => (run.clone(), proptest::collection::vec(0_u32..6, 0..4)).prop_map(|(run, slots)| FromExecutor::Ended { run, slots }),
        1 => (run, 0_u16..2000).prop_map(|(run, permille)| FromExecutor::Progress { run, permille, text: "x".into() }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let command = |c| Event::Command(c);
    prop_oneof![
        3 => (1_u32..3, any::<u8>()).prop_map(|(f, n)| launch(f, &name(n))),
        3 => (1_u32..3, any::<u8>(), 0_u32..6, 0_u64..30, any::<bool>()).prop_map(|(f, n, s, i, open)| part(f, &name(n), s, i, 40, open)),
        3 => (1_u32..3, any::<u8>()).prop_map(|(f, n)| launch_own(f, &name(n))),
        2 => (1_u32..3, any::<u8>(), 0_u32..4, 0_u64..30, any::<bool>())
            .prop_map(|(f, n, s, i, open)| part_with(f, &name(n), s, i, 40, open, own())),
        3 => (1_u32..3, any::<u8>(), 0_u32..6, 0_u64..30, any::<bool>(), any::<bool>()).prop_map(|(f, n, s, i, open, process)| {
            part_of_splits(f, &name(n), s, i, 40, open, if process { own() } else { spec() })
        }),
        1 => (1_u32..3, any::<u8>(), 0_u64..45, 0_u64..12, any::<bool>()).prop_map(|(f, n, a, k, open)| {
            let batch = ItemBatch { items: ItemSet::range(a, a + k), attempt: 0, splits: splits(a..a + k) };
            Event::Command(AgentCommand::AssignItems { task: key(f, &name(n)), batch, open })
        }),
        8 => (RUNS, item_set()).prop_map(|(run, items)| Event::SplitsThere { run: Run(run), items }),
        1 => (1_u32..3, any::<u8>()).prop_map(|(f, n)| launch_with(f, &name(n), listening(), spec())),
        4 => (1_u32..3, any::<u8>(), 0_u64..45, 0_u64..12, any::<bool>()).prop_map(|(f, n, a, k, open)| assign(f, &name(n), a, a + k, open)),
        2 => (1_u32..3, any::<u8>(), 0_u64..10).prop_map(move |(f, n, most)| command(AgentCommand::ReturnItems { task: key(f, &name(n)), most })),
        2 => (1_u32..3, any::<u8>()).prop_map(|(f, n)| kill(f, &name(n))),
        3 => (1_u32..3, any::<u8>(), 1_u64..5).prop_map(move |(f, n, seq)| command(AgentCommand::Acknowledge(UpdateKey { task: key(f, &name(n)), seq }))),
        1 => Just(Event::MasterDisconnected),
        2 => Just(Event::MasterConnected { epoch: MasterEpoch(1) }),
        6 => (RUNS, 0_u8..8).prop_map(|(run, ok)| if ok > 0 { prepared(run) } else {
            Event::Prepared { run: Run(run), result: Err(Failure::new(Reason::FetchFailed, "404")) }
        }),
        4 => (1_u32..8).prop_map(|e| Event::ExecutorStarted { executor: executor(e), slots: 4, cpu_us: None }),
        8 => (1_u32..8).prop_map(|e| Event::ExecutorStarted { executor: executor(e), slots: 1, cpu_us: None }),
        1 => (1_u32..8).prop_map(|e| Event::ExecutorFailed { executor: executor(e), failure: Failure::new(Reason::LaunchFailed, "no") }),
        2 => (1_u32..8, any::<bool>()).prop_map(|(e, out_of_memory)| {
            Event::ExecutorExited { executor: executor(e), cause: "gone".into(), out_of_memory }
        }),
        20 => (1_u32..8, from_executor()).prop_map(|(e, m)| from(e, m)),
        2 => Just(Event::Tick),
    ]
}

/// What happens: an event, or the agent's process dies and comes back.
#[expect(clippy::large_enum_variant, reason = "a test's list of what happens")]
#[derive(Debug, Clone)]
enum Happening {
    Event(Event),
    /// Some executors are found again and say what they hold; the others are gone.
    Restart {
        found: u8,
        holds: Vec<FromExecutor>,
    },
}

fn holds() -> impl Strategy<Value = FromExecutor> {
    let runs = || proptest::collection::vec(RUNS.prop_map(Run), 0..3);
    let part = (RUNS.prop_map(Run), item_set()).prop_map(|(run, items)| HeldPart { run, items, slots: vec![0] });
    (proptest::collection::vec((1_u32..4).prop_map(ModuleId), 0..2), runs(), proptest::collection::vec(part, 0..3))
        .prop_map(|(modules, tasks, parts)| FromExecutor::Holds { modules, tasks, parts })
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        30 => event().prop_map(Happening::Event),
        1 => (any::<u8>(), proptest::collection::vec(holds(), 8)).prop_map(|(found, holds)| Happening::Restart { found, holds }),
    ]
}

/// The agent's process dies and comes back.
fn restart(w: &mut World, found: u8, holds: Vec<FromExecutor>) {
    w.restart(true);
    let ids: Vec<ExecutorId> = w.agent.to_find().cloned().collect();
    for (i, (id, holds)) in ids.into_iter().zip(holds).enumerate() {
        if found & (1 << i) == 0 {
            w.event(Event::ExecutorExited { executor: id, cause: "gone".into(), out_of_memory: false });
            continue;
        }
        let slots = w.agent.pool.executors[&id].slots.len();
        w.event(Event::ExecutorBack { executor: id.clone(), slots: u32::try_from(slots).unwrap() });
        w.event(Event::Executor { executor: id, number: 0, message: holds });
    }
}

/// What the master was told: per attempt the updates by number, as a framework that drops repeats sees them.
#[derive(Default)]
struct Told {
    updates: BTreeMap<TaskKey, BTreeMap<u64, StatusUpdate>>,
}

impl Told {
    fn take(&mut self, updates: Vec<StatusUpdate>) {
        for update in updates {
            let known = self.updates.entry(update.key.task.clone()).or_default();
            if let Some(before) = known.get(&update.key.seq) {
                assert_eq!(*before, update, "the same number says the same");
            }
            known.insert(update.key.seq, update);
        }
    }

    /// Numbers without gaps, states in order, one terminal state at the end, items told once.
    fn check(&self) {
        for (key, updates) in &self.updates {
            let numbers: Vec<u64> = updates.keys().copied().collect();
            assert_eq!(numbers, (1..=updates.len() as u64).collect::<Vec<_>>(), "{key}");
            let mut state = TaskState::Staging;
            let mut slots = u32::MAX;
            for update in updates.values() {
                assert!(state.may_become(update.state), "{key}: {state} -> {}", update.state);
                state = update.state;
                if let Some(delta) = &update.array {
                    assert!(delta.slots <= slots, "{key}: slots never come back");
                    slots = delta.slots;
                    let mut here = BTreeSet::new();
                    let items = delta.finished.iter().chain(delta.returned.iter()).chain(delta.failed.iter().map(|f| f.item));
                    assert!(items.into_iter().all(|i| here.insert(i)), "{key}: an item twice in one delta");
                }
            }
            assert!(state.is_terminal(), "{key} ended as {state}");
        }
    }
}

/// What the shell fetches for items: nothing is leased before.
#[derive(Default)]
struct Shelf {
    asked: BTreeSet<(Run, u64)>,
    there: BTreeSet<(Run, u64)>,
}

impl Shelf {
    fn act(&mut self, message: &Message) {
        match message {
            Message::FetchSplits { run, wanted, .. } => {
                assert!(!wanted.is_empty());
                for (split, input) in wanted {
                    assert!(*input == large() && !self.there.contains(&(*run, split.item)) && self.asked.insert((*run, split.item)));
                }
            }
            Message::DropSplits { run, items } => {
                assert!(!items.is_empty());
                self.drop(|(r, item)| r == run && items.contains(*item));
            }
            Message::Prepare { run, .. } | Message::Ended { run, .. } => self.drop(|(r, _)| r == run),
            Message::ToExecutor { message: ToExecutor::Lease { run, splits, .. }, .. } => {
                splits.iter().for_each(|s| assert!(!self.asked.contains(&(*run, s.item)), "item {} of {run:?} is leased early", s.item));
            }
            _ => {}
        }
    }

    fn drop(&mut self, gone: impl Fn(&(Run, u64)) -> bool) {
        self.asked.retain(|x| !gone(x));
        self.there.retain(|x| !gone(x));
    }

    /// Of these items, those that it was asked for.
    fn fetch(&mut self, run: Run, items: &ItemSet) -> ItemSet {
        let came: ItemSet = items.iter().filter(|item| self.asked.remove(&(run, *item))).collect();
        self.there.extend(came.iter().map(|item| (run, item)));
        came
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn everything_is_accounted_for(events in proptest::collection::vec((happening(), 0_u64..50), 1..120)) {
        let bounds = crate::Parameters { most_executors: 3, most_slots: 9, most_slots_per_executor: 4, pool: 1, most_processes: 3, most_starting: 2, ..parameters() };
        let mut w = World::new(crate::Parameters { total: Resources { ports: listening().ports, ..bounds.total.clone() }, ..bounds });
        let mut bound = BTreeSet::new();
        let (mut told, mut ended, mut shelf) = (Told::default(), BTreeSet::new(), Shelf::default());
        let mut drain = move |w: &mut World, told: &mut Told, shelf: &mut Shelf| {
            while let Some(message) = w.said.pop_front() {
                shelf.act(&message);
                match message {
                    Message::Updates(updates) => told.take(updates),
                    Message::Ended { run, .. } => assert!(ended.insert(run), "{run:?} ended twice"),
                    Message::BindExecutor { executor, key } => assert!(bound.insert(executor.clone()), "{executor} also got {key}"),
                    _ => {}
                }
            }
        };
        for (event, ms) in events {
            w.now = Time(w.now.0 + ms * 1_000);
            let event = match event {
                Happening::Event(Event::SplitsThere { run, items }) => Event::SplitsThere { run, items: shelf.fetch(run, &items) },
                Happening::Event(event) => event,
                Happening::Restart { found, holds } => {
                    shelf = Shelf::default();
                    restart(&mut w, found, holds);
                    drain(&mut w, &mut told, &mut shelf);
                    continue;
                }
            };
            if matches!(event, Event::MasterConnected { .. }) {
                let (_, unacknowledged) = w.agent.registration(w.now);
                told.take(unacknowledged);
            }
            // A framework acknowledges only what it was told.
            if let Event::Command(AgentCommand::Acknowledge(k)) = &event
                && !told.updates.get(&k.task).is_some_and(|u| u.contains_key(&k.seq))
            {
                continue;
            }
            w.event(event);
            drain(&mut w, &mut told, &mut shelf);
        }
        // Every executor dies and every preparation fails: what was begun must come to its end.
        w.event(Event::MasterConnected { epoch: MasterEpoch(2) });
        for _ in 0..8 {
            for run in RUNS {
                w.event(Event::Prepared { run: Run(run), result: Err(Failure::new(Reason::FetchFailed, "404")) });
            }
            while let Some(id) = w.agent.pool.executors.keys().next().cloned() {
                w.event(Event::ExecutorExited { executor: id, cause: "gone".into(), out_of_memory: false });
            }
            // The pool pauses after failures that nobody waited for.
            w.after_ms(2_000);
        }
        // Only a part whose items each get an executor of their own can be left without one: while it has no items.
        for task in w.agent.tasks.values().filter(|t| t.phase != Phase::Ended).map(|t| (t.key.clone(), t.phase.clone())).collect::<Vec<_>>() {
            prop_assert_eq!(task.1, Phase::Spread);
            w.event(Event::Command(AgentCommand::Kill { task: task.0, grace: None }));
        }
        drain(&mut w, &mut told, &mut shelf);
        prop_assert_eq!(w.agent.live(), 0);
        prop_assert!(w.agent.held().is_empty());
        let mut rounds = 0;
        while !w.agent.tasks.is_empty() {
            rounds += 1;
            prop_assert!(rounds < 10, "updates that nobody can acknowledge: {:#?}", w.agent.tasks);
            w.after_ms(31_000);
            let keys: Vec<UpdateKey> = told.updates.values().flat_map(|u| u.values().map(|u| u.key.clone())).collect();
            drain(&mut w, &mut told, &mut shelf);
            for key in keys {
                w.event(Event::Command(AgentCommand::Acknowledge(key)));
            }
            drain(&mut w, &mut told, &mut shelf);
        }
        told.check();
    }
}
