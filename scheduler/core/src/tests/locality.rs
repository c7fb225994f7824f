//! Where content lies: agents that hold a bundle or inputs go first, and are waited for, for a while.

use super::world::{World, cpus, map, spec};
use crate::*;
use proptest::prelude::*;
use smalti_types::*;
use std::collections::BTreeMap;

const MIB: u64 = 1 << 20;
const SECOND: u64 = 1_000_000;
/// The end of patience is noticed with a tick, and offers are on their way for a while.
const SLACK: u64 = 150_000;

fn input(name: u64, mib: u64) -> Input {
    let digest = Some(Digest::of(&name.to_le_bytes()));
    Input { guest_path: Some(format!("/in/{name}")), uri: None, digest, length: mib * MIB, etag: None, packing: None }
}

fn key(input: &Input) -> HoldingKey {
    HoldingKey::of_input(input).unwrap()
}

fn reading(resources: Resources, inputs: &[Input]) -> Work {
    Work::Single(Box::new(SingleSpec { spec: TaskSpec { inputs: inputs.to_vec(), ..spec() }, resources, ports: 0 }))
}

fn array(items: u64, inputs: &[Input]) -> MapSpec {
    let template = ArrayTemplate { spec: TaskSpec { inputs: inputs.to_vec(), ..spec() }, total_items: items, split_inputs: Vec::new() };
    MapSpec { template, ..map(items) }
}

fn agent_of(world: &World, job: JobId) -> Option<String> {
    world.core.job(job).unwrap().state.run.as_ref().unwrap().agent.as_ref().map(ToString::to_string)
}

/// Slots of an array by agent, of parts that live.
fn slots(world: &World, job: JobId) -> BTreeMap<String, u32> {
    let pool = world.core.job(job).unwrap().state.pool.as_ref().unwrap();
    let mut all = BTreeMap::new();
    for (_, part) in pool.parts().filter(|(_, p)| p.is_live()) {
        *all.entry(part.agent.to_string()).or_default() += part.slots;
    }
    all
}

/// Agents of one core each; the first one is busy for so long, and the scheduler knows that it holds this.
fn with_busy_holder(agents: usize, busy_us: u64, holds: &[Input]) -> World {
    let mut world = World::new(&vec![(1000, 1_000); agents]);
    world.agents[0].holdings = holds.iter().map(key).collect();
    world.single_us = busy_us;
    let constraints = vec![Constraint { attribute: "zone".into(), value: "z0".into() }];
    let job = world.submit(Policy { constraints, ..Policy::default() }, reading(cpus(1000), &[]));
    world.run(10_000);
    assert_eq!(agent_of(&world, job).as_deref(), Some("a0"));
    world.single_us = 5_000;
    world
}

#[test]
fn a_task_goes_to_who_holds_most_of_what_it_reads() {
    let (large, small) = (input(1, 8), input(2, 2));
    let bundle = HoldingKey::of_digest(&spec().bundle.digest);
    let inputs = [large.clone(), small.clone()];
    for (held, goes_to) in [
        ([vec![], vec![], vec![]], "a0"),
        ([vec![], vec![bundle], vec![]], "a1"),
        ([vec![], vec![bundle], vec![key(&small)]], "a2"),
        ([vec![key(&small)], vec![bundle, key(&small)], vec![]], "a1"),
        ([vec![key(&small), bundle], vec![], vec![key(&large)]], "a2"),
        ([vec![key(&large)], vec![key(&large)], vec![key(&large), key(&small)]], "a2"),
    ] {
        let mut world = World::new(&[(1000, 1), (1000, 1), (1000, 1)]);
        world.core = Scheduler::new().with_locality_wait(DurationMs(0));
        for (agent, held) in world.agents.iter_mut().zip(&held) {
            agent.holdings.clone_from(held);
        }
        let job = world.submit(Policy::default(), reading(cpus(1000), &inputs));
        world.run(SECOND);
        assert_eq!(agent_of(&world, job).as_deref(), Some(goes_to), "{held:?}");
        world.assert_silent();
    }
}

#[test]
fn a_bundle_alone_beats_a_few_bytes_and_is_not_waited_for() {
    let bundle = HoldingKey::of_digest(&spec().bundle.digest);
    let few = Input { length: 1_000, ..input(1, 0) };
    let mut world = World::new(&[(1000, 1), (1000, 1), (1000, 1)]);
    world.agents[1].holdings = vec![key(&few)];
    world.agents[2].holdings = vec![bundle];
    let jobs: Vec<_> = (0..3).map(|_| world.submit(Policy::default(), reading(cpus(1000), std::slice::from_ref(&few)))).collect();
    world.run(4_000);
    let agents: Vec<_> = jobs.iter().map(|job| agent_of(&world, *job).unwrap()).collect();
    assert_eq!(agents, ["a2", "a0", "a1"], "with the bundle held, the rest go as they come");
    world.run(SECOND);
    world.assert_silent();
}

#[test]
fn thousands_of_tasks_with_holders_travel_in_few_accepts() {
    let bundle = HoldingKey::of_digest(&spec().bundle.digest);
    let mut world = World::new(&[(8000, 1), (8000, 1), (8000, 1)]);
    world.agents[1].holdings = vec![bundle];
    world.agents[2].holdings = vec![bundle, key(&input(1, 64))];
    world.run(1);
    for n in 0..2_000 {
        let inputs: &[Input] = if n % 2 == 0 { &[] } else { &[input(1, 64)] };
        world.submit(Policy::default(), reading(cpus(10), inputs));
    }
    world.run(60 * SECOND);
    world.assert_silent();
    assert_eq!(world.launches.len(), 2_000);
    assert!(world.calls["accept"] <= 30, "{:?}", world.calls);
}

#[test]
fn an_array_fills_holders_first_and_evenly() {
    let data = input(1, 64);
    for (items, expected) in [
        (4, [("a1", 2), ("a2", 2)].as_slice()),
        (8, [("a1", 4), ("a2", 4)].as_slice()),
        (12, [("a0", 2), ("a1", 4), ("a2", 4), ("a3", 2)].as_slice()),
    ] {
        let mut world = World::new(&[(4000, SECOND), (4000, SECOND), (4000, SECOND), (4000, SECOND)]);
        world.core = Scheduler::new().with_locality_wait(DurationMs(0));
        world.agents[1].holdings = vec![key(&data)];
        world.agents[2].holdings = vec![key(&data)];
        let job = world.submit_map(array(items, std::slice::from_ref(&data)));
        world.run(100_000);
        let expected: BTreeMap<String, u32> = expected.iter().map(|(a, n)| ((*a).to_owned(), *n)).collect();
        assert_eq!(slots(&world, job), expected);
        world.run(60 * SECOND);
        world.assert_silent();
    }
}

#[test]
fn the_next_iteration_over_an_input_runs_where_it_lies() {
    let data = input(1, 64);
    let mut world = World::new(&[(2000, 1_000), (2000, 1_000), (2000, 1_000)]);
    world.caches = true;
    let mut agents = Vec::new();
    for _ in 0..5 {
        let job = world.submit(Policy::default(), reading(cpus(1000), std::slice::from_ref(&data)));
        world.run(SECOND);
        agents.push(agent_of(&world, job).unwrap());
        // Something else takes turns with it, and would go to the first agent, too.
        world.submit(Policy::default(), reading(cpus(1000), &[input(2, 64)]));
        world.run(SECOND);
    }
    assert!(agents.iter().all(|a| *a == agents[0]), "{agents:?}");
    world.assert_silent();
}

#[test]
fn a_busy_holder_is_waited_for() {
    let data = input(1, 64);
    let mut world = with_busy_holder(2, SECOND, std::slice::from_ref(&data));
    let begin = world.now;
    let job = world.submit(Policy::default(), reading(cpus(500), std::slice::from_ref(&data)));
    let other = world.submit(Policy::default(), reading(cpus(500), &[]));
    world.run(500_000);
    assert_eq!((agent_of(&world, job), agent_of(&world, other).as_deref()), (None, Some("a1")), "others have what it lets pass");
    let waits = world.core.job(job).unwrap().waits_for(Time(world.now)).unwrap();
    assert_eq!((waits.agent.as_str(), waits.bytes), ("a0", 64 * MIB));
    assert!(waits.until.micros_since(waits.since) == 3 * SECOND && waits.since.0 - begin < 10_000, "{waits:?}");
    world.run(2 * SECOND);
    assert_eq!(agent_of(&world, job).as_deref(), Some("a0"));
    assert_eq!((world.view(job).state, world.core.job(job).unwrap().waits_for(Time(world.now))), ("FINISHED", None));
    world.run(60 * SECOND);
    world.assert_silent();
}

/// How long after its submission the job was launched.
fn launched_after(world: &mut World, job: JobId) -> u64 {
    let begin = world.now;
    while agent_of(world, job).is_none() {
        assert!(world.now < begin + 60 * SECOND, "never");
        world.run(1);
    }
    world.now - begin
}

#[test]
fn patience_ends_and_then_it_goes_anywhere_at_once() {
    let data = input(1, 64);
    let mut world = with_busy_holder(2, 60 * SECOND, std::slice::from_ref(&data));
    let job = world.submit(Policy::default(), reading(cpus(1000), std::slice::from_ref(&data)));
    let took = launched_after(&mut world, job);
    assert_eq!(agent_of(&world, job).as_deref(), Some("a1"));
    assert!((3 * SECOND..3 * SECOND + SLACK).contains(&took), "{took}");
    // Who had nothing to offer all that time is not waited for by the next one.
    world.run(100_000);
    let next = world.submit(Policy::default(), reading(cpus(1000), std::slice::from_ref(&data)));
    assert!(launched_after(&mut world, next) < SLACK);
    world.run(60 * SECOND);
    world.assert_silent();
}

#[test]
fn nobody_waits_for_what_is_small_or_unknown_or_when_told_not_to() {
    let (large, small) = (input(1, 64), Input { length: MIB - 1, ..input(1, 0) });
    let unpinned = Input { digest: None, uri: Some("http://h/x".into()), ..large.clone() };
    let cases = [
        ("held", vec![large.clone()], vec![large.clone()], 3_000, 3 * SECOND),
        ("not held", vec![input(2, 64)], vec![large.clone()], 3_000, 0),
        ("small", vec![small.clone()], vec![small], 3_000, 0),
        ("no name", vec![unpinned.clone()], vec![unpinned], 3_000, 0),
        ("a third", vec![large.clone()], vec![large.clone(), input(2, 128)], 3_000, 0),
        ("shorter for less", vec![input(3, 8)], vec![input(3, 8)], 3_000, 750_000),
        ("switched off", vec![large.clone()], vec![large], 0, 0),
    ];
    for (name, held, reads, wait, expected) in cases {
        let holds: Vec<Input> = held.into_iter().filter(|i| HoldingKey::of_input(i).is_some()).collect();
        let mut world = with_busy_holder(2, 60 * SECOND, &holds);
        world.core = std::mem::take(&mut world.core).with_locality_wait(DurationMs(wait));
        let job = world.submit(Policy::default(), reading(cpus(1000), &reads));
        let took = launched_after(&mut world, job);
        assert!((expected..expected + SLACK).contains(&took), "{name}: {took}");
    }
}

#[test]
fn a_lost_or_avoided_holder_is_not_waited_for() {
    let data = input(1, 64);
    let mut world = with_busy_holder(2, 60 * SECOND, std::slice::from_ref(&data));
    let job = world.submit(Policy::default(), reading(cpus(1000), std::slice::from_ref(&data)));
    world.run(SECOND);
    assert_eq!(agent_of(&world, job), None);
    world.lose(0);
    assert!(launched_after(&mut world, job) < SLACK);
    // Another zone: the holder may not have it.
    let mut world = with_busy_holder(2, 60 * SECOND, std::slice::from_ref(&data));
    let constraints = vec![Constraint { attribute: "zone".into(), value: "z1".into() }];
    let job = world.submit(Policy { constraints, ..Policy::default() }, reading(cpus(1000), &[data]));
    assert!(launched_after(&mut world, job) < SLACK);
}

#[test]
fn a_clock_that_steps_back_does_not_lengthen_the_wait() {
    let data = input(1, 64);
    let mut world = with_busy_holder(2, 60 * SECOND, std::slice::from_ref(&data));
    let job = world.submit(Policy::default(), reading(cpus(1000), std::slice::from_ref(&data)));
    world.run(10_000);
    let core = world.core.job(job).unwrap();
    assert!(core.is_patient(Time(world.now)) && core.waits_for(Time(world.now)).is_some());
    assert!(!core.is_patient(Time(5)) && core.waits_for(Time(5)).is_none());
}

#[test]
fn an_array_waits_once_a_round() {
    let data = input(1, 64);
    // The holder has room for two slots, and the array wants all there are.
    let mut world = World::new(&[(2000, 100_000), (2000, 100_000)]);
    world.agents[1].holdings = vec![key(&data)];
    let reduce = Some(ReduceSpec { spec: spec(), resources: cpus(100) });
    let job = world.submit_map(MapSpec { reduce, rounds: 2, ..array(120, std::slice::from_ref(&data)) });
    let begin = world.now;
    for _ in 0..2 {
        world.run(2_900_000);
        assert_eq!(slots(&world, job), [("a1".to_owned(), 2)].into());
        let waits = world.core.job(job).unwrap().waits_for(Time(world.now)).unwrap();
        assert_eq!((waits.agent.as_str(), waits.bytes), ("a1", 64 * MIB));
        world.run(300_000);
        assert_eq!(slots(&world, job), [("a0".to_owned(), 2), ("a1".to_owned(), 2)].into());
        assert!(world.core.job(job).unwrap().waits_for(Time(world.now)).is_none());
        let round = world.core.job(job).unwrap().state.round;
        while world.core.job(job).unwrap().state.round == round && world.view(job).state == "RUNNING" {
            world.run(1);
        }
    }
    assert_eq!(world.view(job).state, "FINISHED");
    // Two rounds of 12 s of work on two cores for 3 s, on four for the rest.
    assert!(world.now - begin < 2 * 4_700_000, "{}", world.now - begin);
    world.run(SECOND);
    world.assert_silent();
}

#[test]
fn a_state_is_looked_for_in_the_first_round_alone() {
    let state = input(1, 64);
    let mut world = World::new(&[(1000, 1_000), (1000, 1_000)]);
    let reduce = Some(ReduceSpec { spec: spec(), resources: cpus(100) });
    let job = world.submit_map(MapSpec { reduce, rounds: 2, initial_state: Some(state.clone()), ..map(10) });
    let wanted = |world: &World| world.core.job(job).unwrap().wanted().inputs.clone();
    assert_eq!(wanted(&world), [(key(&state), 64 * MIB)]);
    while world.core.job(job).unwrap().state.round == 0 {
        world.run(1);
    }
    assert_eq!(wanted(&world), []);
    world.run(SECOND);
    world.assert_silent();
}

#[test]
fn a_job_that_lets_offers_pass_does_not_make_others_give_way() {
    let data = input(1, 64);
    let mut world = World::new(&[(1000, 20_000), (1000, 20_000), (1000, 20_000)]);
    world.agents[0].holdings = vec![key(&data)];
    let long = world.submit(Policy { max_parallel: Some(2), ..Policy::default() }, Work::Map(Box::new(map(1_000))));
    world.run(500_000);
    let before = slots(&world, long);
    assert_eq!(before.values().sum::<u32>(), 2);
    let job = world.submit(Policy::default(), reading(cpus(1000), &[data]));
    world.run(2 * SECOND);
    assert_eq!((slots(&world, long), agent_of(&world, job)), (before, None));
    world.run(60 * SECOND);
    world.assert_silent();
}

#[test]
fn a_restored_job_waits_as_a_new_one_does() {
    let data = input(1, 64);
    let mut world = with_busy_holder(2, 20 * SECOND, std::slice::from_ref(&data));
    let job = world.submit(Policy::default(), reading(cpus(1000), std::slice::from_ref(&data)));
    world.run(SECOND);
    assert_eq!(agent_of(&world, job), None);
    let ids: Vec<JobId> = world.core.jobs().map(Job::id).collect();
    let kept = ids.iter().filter_map(|id| world.core.record(*id)).map(|(spec, state)| (spec.clone(), state.clone())).collect();
    world.core = Scheduler::restore(Time(world.now), 7, kept);
    world.core.roles.values_mut().for_each(|r| r.framework = FrameworkId::new("F1-0").ok());
    // Nothing is known now; but once the holder is offered, it is again.
    let holder = Offer {
        id: OfferId { epoch: MasterEpoch(1), number: 0 },
        framework: FrameworkId::new("F1-0").unwrap(),
        role: Role::default(),
        agent: world.agents[0].id.clone(),
        hostname: String::new(),
        resources: cpus(10),
        attributes: Attributes::default(),
        holdings: world.agents[0].holdings.clone(),
    };
    world.core.roles.get_mut(&Role::default()).unwrap().known.note(Time(world.now), &holder);
    let took = launched_after(&mut world, job);
    assert_eq!(agent_of(&world, job).as_deref(), Some("a1"));
    assert!(took > 2 * SECOND, "{took}");
}

#[test]
fn what_is_known_follows_the_offers_and_is_bounded() {
    use crate::known::Known;
    let offer = |agent: u64, names: std::ops::Range<u64>| Offer {
        id: OfferId { epoch: MasterEpoch(1), number: 0 },
        framework: FrameworkId::new("F1-0").unwrap(),
        role: Role::default(),
        agent: AgentId::new(format!("a{agent}")).unwrap(),
        hostname: String::new(),
        resources: cpus(10),
        attributes: Attributes::default(),
        holdings: names.map(HoldingKey).collect(),
    };
    let mut known = Known::default();
    known.note(Time(1), &offer(1, 0..10));
    known.note(Time(2), &offer(2, 5..20));
    known.note(Time(3), &offer(1, 3..12));
    known.check().unwrap();
    assert!(known.is_silent_since(&AgentId::new("a2").unwrap(), Time(2)) && !known.is_silent_since(&AgentId::new("a1").unwrap(), Time(2)));
    known.note(Time(4), &offer(1, 0..0));
    known.forget_before(Time(2));
    assert!(!known.is_empty());
    known.forget_before(Time(3));
    assert!(known.is_empty());
    for n in 0..2_200 {
        known.note(Time(n), &offer(n, n..n + MAX_HOLDINGS as u64));
    }
    known.check().unwrap();
    assert!(!known.forget(&AgentId::new("a0").unwrap()) && known.forget(&AgentId::new("a2199").unwrap()));
}

fn any_inputs() -> impl Strategy<Value = Vec<Input>> {
    let length = prop_oneof![Just(0_u64), Just(1), Just(10), Just(64), Just(500)];
    // No two at one path.
    let all = proptest::collection::btree_map(0_u64..6, length, 0..3);
    all.prop_map(|all| all.into_iter().map(|(name, mib)| input(name * 1_000 + mib, mib)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nobody_waits_longer_while_there_is_room(
        agents in proptest::collection::vec((1_u64..4, any_inputs()), 1..5),
        jobs in proptest::collection::vec((any_inputs(), any::<bool>(), 0_u64..2_000_000, proptest::bool::weighted(0.3)), 1..12),
        wait in prop_oneof![Just(0_u64), Just(400), Just(3_000)], caches in any::<bool>(), lose in proptest::option::of(0_u64..4_000_000),
    ) {
        // The last agent has room for everything, and holds nothing to begin with.
        let mut list: Vec<(u64, u64)> = agents.iter().map(|(slots, _)| (slots * 1000, 30_000)).collect();
        list.push((64_000, 30_000));
        let mut world = World::new(&list);
        world.core = Scheduler::new().with_locality_wait(DurationMs(wait));
        (world.caches, world.single_us) = (caches, 700_000);
        for (agent, (_, held)) in world.agents.iter_mut().zip(&agents) {
            agent.holdings = held.iter().map(key).collect();
        }
        let mut lose = lose.map(|us| world.now + us).filter(|_| agents.len() > 1);
        let mut submitted = Vec::new();
        for (inputs, single, pause, constrained) in jobs {
            world.run(pause);
            if lose.is_some_and(|at| at < world.now) {
                lose = None;
                world.lose(0);
            }
            let constraints = vec![Constraint { attribute: "zone".into(), value: format!("z{}", agents.len()) }];
            let policy = Policy { constraints: if constrained { constraints } else { Vec::new() }, ..Policy::default() };
            let work = if single { reading(cpus(1000), &inputs) } else { Work::Map(Box::new(array(5, &inputs))) };
            submitted.push((world.submit(policy, work), world.now));
            let begun = |world: &World, job| world.core.job(job).unwrap().state.begun;
            let late = |world: &World, at: u64| world.now > at + wait * 1_000 + SLACK;
            prop_assert!(submitted.iter().all(|(job, at)| begun(&world, *job) || !late(&world, *at)), "{:?}", submitted);
        }
        let end = world.now + wait * 1_000 + SLACK;
        while world.now < end {
            world.run(50_000);
            for (job, at) in &submitted {
                let job = world.core.job(*job).unwrap();
                prop_assert!(job.state.begun || world.now <= at + wait * 1_000 + SLACK, "{} waits: {:?}", job.id(), job.patience);
            }
            if world.core.live.is_empty() {
                break;
            }
        }
        world.run(600 * SECOND);
        world.assert_silent();
        for (job, _) in submitted {
            prop_assert_eq!(world.view(job).state, "FINISHED");
        }
    }
}
