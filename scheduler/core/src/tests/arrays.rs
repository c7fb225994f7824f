//! Task arrays: balance, tails, frames, reduces and rounds.

use super::world::{World, cpus, map, spec};
use crate::*;
use smalti_types::*;

#[test]
fn every_item_runs_once_on_both_agents() {
    let mut world = World::new(&[(2000, 3_000), (2000, 3_000)]);
    let job = world.submit_map(map(1_000));
    world.run(60_000_000);
    world.assert_silent();
    let view = world.view(job);
    assert_eq!((view.state, view.exit_code, view.items_finished), ("FINISHED", Some(0), 1_000));
    assert!(world.runs.len() == 1_000 && world.runs.values().all(|n| *n == 1));
    assert!(world.items_by_agent.values().all(|n| (450..=550).contains(n)), "{:?}", world.items_by_agent);
    // 1000 items of 3 ms in 4 slots: 750 ms, and little beside it.
    assert!(world.now - 1_000_000 < 900_000, "{}", world.now);
}

#[test]
fn a_hundred_thousand_items_need_few_frames() {
    let mut world = World::new(&[(1000, 20), (1000, 20)]);
    let job = world.submit_map(map(100_000));
    world.run(600_000_000);
    world.assert_silent();
    assert_eq!(world.view(job).items_finished, 100_000);
    assert!(world.calls["assign"] < 100, "{:?}", world.calls);
    assert!(world.calls.values().sum::<u64>() < 200, "{:?}", world.calls);
}

#[test]
fn the_last_items_are_not_left_behind_a_slow_agent() {
    // One agent is twenty times slower.
    let mut world = World::new(&[(2000, 2_000), (2000, 40_000)]);
    let job = world.submit_map(map(2_000));
    world.run(60_000_000);
    world.assert_silent();
    assert_eq!(world.view(job).items_finished, 2_000);
    // Perfect: 2000 items at 1000/s + 50/s: 1.90 s. The tail may cost one slow item and some round trips.
    let took = world.now - 1_000_000;
    assert!(took < 2_050_000, "{took} {:?} {:?}", world.calls, world.items_by_agent);
}

#[test]
fn items_queued_behind_a_part_that_turns_slow_are_taken_back() {
    let mut world = World::new(&[(1000, 1_000), (1000, 1_000)]);
    let job = world.submit_map(map(3_000));
    world.run(900_000);
    world.agents[1].item_us = 300_000;
    world.run(60_000_000);
    world.assert_silent();
    assert_eq!(world.view(job).items_finished, 3_000);
    assert!(world.calls["return"] > 0);
    assert!(world.now < 1_000_000 + 4_500_000, "{} {:?}", world.now, world.calls);
}

#[test]
fn slow_items_are_not_queued_deep() {
    let mut world = World::new(&[(2000, 1_000_000)]);
    world.submit_map(map(50));
    world.run(5_000_000);
    let job = world.core.jobs().next().unwrap();
    assert!(job.view().items_running <= 2, "{:?}", job.view());
}

#[test]
fn max_parallel_bounds_the_slots() {
    let mut world = World::new(&[(4000, 5_000), (4000, 5_000)]);
    let policy = Policy { max_parallel: Some(3), ..Policy::default() };
    let job = world.submit(policy, Work::Map(Box::new(map(200))));
    world.run(60_000_000);
    world.assert_silent();
    assert_eq!((world.view(job).items_finished, world.max_slots), (200, 3));
}

#[test]
fn two_arrays_share_an_offer() {
    let mut world = World::new(&[(4000, 10_000)]);
    let (a, b) = (world.submit_map(map(400)), world.submit_map(map(400)));
    world.run(500_000);
    let slots = |id| world.core.job(id).unwrap().state.pool.as_ref().unwrap().slots();
    assert_eq!((slots(a), slots(b)), (2, 2));
    world.run(60_000_000);
    world.assert_silent();
}

#[test]
fn an_array_without_items_is_done_at_once() {
    let mut world = World::new(&[(1000, 1)]);
    let job = world.submit_map(map(0));
    assert_eq!(world.view(job).state, "FINISHED");
    world.run(1_000_000);
    world.assert_silent();
}

fn with_reduce(items: u64, rounds: u32) -> MapSpec {
    MapSpec { reduce: Some(ReduceSpec { spec: spec(), resources: cpus(500) }), rounds, ..map(items) }
}

#[test]
fn a_reduce_reads_every_item_once() {
    let mut world = World::new(&[(2000, 3_000), (2000, 5_000)]);
    let job = world.submit_map(with_reduce(300, 1));
    world.run(60_000_000);
    world.assert_silent();
    assert_eq!(world.view(job).state, "FINISHED");
    assert_eq!(world.launches.len(), 1);
    let launch = &world.launches[0];
    assert_eq!(launch.task.as_str(), "j1-abcd.r0");
    let Stdin::Outputs(sources) = &launch.spec.stdin else { panic!("{:?}", launch.spec.stdin) };
    assert_eq!(sources.iter().map(|s| s.items.len()).sum::<u64>(), 300);
    assert_eq!(sources.iter().flat_map(|s| s.items.ranges()).copied().collect::<ItemSet>(), ItemSet::range(0, 300));
    assert!(matches!(world.core.job(job).unwrap().output(true), OutputPlan::Task { over: true, .. }));
}

#[test]
fn a_rounds_result_is_the_next_rounds_state() {
    let mut world = World::new(&[(2000, 3_000)]);
    let job = world.submit_map(with_reduce(10, 3));
    world.run(60_000_000);
    world.assert_silent();
    assert_eq!((world.view(job).state, world.runs.values().sum::<u32>()), ("FINISHED", 30));
    assert_eq!(world.stored.iter().map(|(r, t)| (*r, t.as_str())).collect::<Vec<_>>(), [(0, "j1-abcd.r0"), (1, "j1-abcd.r1")]);
    let states: Vec<_> = world.launches.iter().map(|l| l.spec.inputs.first().map(|i| (i.guest_path.clone(), i.digest))).collect();
    assert_eq!(states[0], None);
    assert_eq!(states[2], Some((Some("/smalti/state".into()), Some(Digest::of(b"1")))));
    assert!(world.launches[2].spec.env.contains(&("SMALTI_ROUND".into(), "2".into())));
}

#[test]
fn a_long_array_makes_room_for_later_jobs() {
    let mut world = World::new(&[(2000, 20_000), (2000, 20_000)]);
    let long = world.submit_map(map(2_000));
    world.run(500_000);
    let single = world.submit_single(cpus(1000));
    let other = world.submit_map(map(50));
    world.run(1_500_000);
    assert_eq!(world.view(single).state, "FINISHED");
    assert!(world.view(other).items_finished > 0, "{:?}", world.view(other));
    world.run(60_000_000);
    world.assert_silent();
    assert_eq!((world.view(long).items_finished, world.view(other).items_finished), (2_000, 50));
    // 2050 items of 20 ms in 4 slots take 10.25 s.
    assert!(world.now < 1_000_000 + 11_500_000, "{}", world.now);
}
