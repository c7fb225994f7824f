//! What goes wrong: failing items, lost agents, kills, restarts of the scheduler.

use super::world::{World, cpus, map, spec};
use crate::*;
use smalti_types::protocol::FrameworkEvent;
use smalti_types::*;

fn retrying(retries: u32) -> Policy {
    Policy { retries, ..Policy::default() }
}

#[test]
fn a_failed_item_lets_the_others_finish_and_the_lowest_one_counts() {
    let mut world = World::new(&[(2000, 1_000), (2000, 1_000)]);
    world.fate = Box::new(|item, _| (item % 100 == 42).then_some((TaskState::Failed, Reason::ExitCode)));
    let reduce = Some(ReduceSpec { spec: spec(), resources: cpus(100) });
    let job = world.submit_map(MapSpec { reduce, ..map(500) });
    world.run(60_000_000);
    world.assert_silent();
    let view = world.view(job);
    assert_eq!((view.state, view.exit_code, view.items_finished, view.items_failed), ("FAILED", Some(3), 495, 5));
    assert!(view.message.starts_with("item 42:"), "{}", view.message);
    assert!(world.launches.is_empty(), "the reduce does not run");
    let items = world.core.job(job).unwrap().items(42, 2);
    assert_eq!((items[0].state, items[0].exit_code, items[1].state), (TaskState::Failed, Some(3), TaskState::Finished));
    assert_eq!(world.core.job(job).unwrap().item_output().unwrap().done_below, 500);
}

#[test]
fn fail_fast_stops_the_others() {
    let mut world = World::new(&[(2000, 20_000)]);
    world.fate = Box::new(|item, _| (item == 7).then_some((TaskState::Failed, Reason::Trap)));
    let job = world.submit(Policy { fail_fast: true, ..Policy::default() }, Work::Map(Box::new(map(1_000))));
    world.run(60_000_000);
    world.assert_silent();
    let view = world.view(job);
    assert_eq!((view.state, view.exit_code, view.items_failed), ("FAILED", Some(134), 1));
    assert!(world.runs.len() < 30);
}

#[test]
fn retries_are_new_attempts_after_a_back_off() {
    let mut world = World::new(&[(2000, 1_000)]);
    world.fate = Box::new(|item, attempt| (item == 5 && attempt < 2).then_some((TaskState::Failed, Reason::ExitCode)));
    let job = world.submit(retrying(2), Work::Map(Box::new(map(20))));
    world.run(60_000_000);
    world.assert_silent();
    assert_eq!((world.view(job).state, world.runs[&5], world.runs[&6]), ("FINISHED", 3, 1));
    assert!(world.now > 1_600_000, "200 ms and 400 ms of back-off");
    assert_eq!(world.core.job(job).unwrap().items(5, 1)[0].attempt, 2);

    let mut world = World::new(&[(2000, 1_000)]);
    world.fate = Box::new(|_, attempt| (attempt < 3).then_some((TaskState::Failed, Reason::ExitCode)));
    let job = world.submit(retrying(2), Work::Single(Box::new(SingleSpec { spec: spec(), resources: cpus(100), ports: 0 })));
    world.run(60_000_000);
    world.assert_silent();
    assert_eq!((world.view(job).state, world.launches.len()), ("FAILED", 3));
}

#[test]
fn what_failed_and_is_tried_again_is_told_while_the_job_lives() {
    let mut world = World::new(&[(2000, 1_000)]);
    world.fate = Box::new(|_, attempt| (attempt < 3).then_some((TaskState::Dropped, Reason::LaunchFailed)));
    let job = world.submit_single(cpus(100));
    let told = |world: &World| world.view(job).again;
    assert_eq!(told(&world), None);
    // At once, after 200 ms, after 400 ms.
    world.run(100_000);
    let again = told(&world).unwrap();
    assert_eq!((again.failure.attempt, again.failure.reason, again.next, again.items), (1, Reason::LaunchFailed, 2, 0));
    assert!(again.infrastructure && again.failure.agent.is_some() && again.not_before > Some(Time(world.now)), "{again:?}");
    world.fate = Box::new(|_, _| None);
    world.single_us = 1_000_000;
    world.run(500_000);
    let again = told(&world).unwrap();
    assert_eq!((again.next, again.not_before, world.view(job).state), (2, None, "RUNNING"), "it has begun");
    world.run(60_000_000);
    assert_eq!((told(&world), world.view(job).state), (None, "FINISHED"));
    world.assert_silent();

    let mut world = World::new(&[(2000, 1_000)]);
    world.fate = Box::new(|item, attempt| (item == 5 && attempt < 2).then_some((TaskState::Failed, Reason::ExitCode)));
    let job = world.submit(retrying(2), Work::Map(Box::new(map(20))));
    world.run(150_000);
    let again = world.view(job).again.unwrap();
    assert_eq!((again.items, again.failure.attempt, again.next, again.infrastructure), (1, 0, 1, false));
    world.run(60_000_000);
    assert_eq!(world.view(job).again, None);
    world.assert_silent();
}

#[test]
fn infrastructure_does_not_count_as_a_retry() {
    let mut world = World::new(&[(2000, 1_000)]);
    world.fate = Box::new(|_, attempt| (attempt < 3).then_some((TaskState::Failed, Reason::ExecutorTerminated)));
    let single = world.submit_single(cpus(100));
    let array = world.submit_map(map(10));
    world.run(60_000_000);
    world.assert_silent();
    assert_eq!((world.view(single).state, world.view(array).state), ("FINISHED", "FINISHED"));
}

#[test]
fn an_array_that_cannot_begin_is_not_launched_for_ever() {
    // An input that vanished: no retry helps, and none was asked for.
    let mut world = World::new(&[(1000, 1_000), (1000, 1_000)]);
    world.cannot_begin = Some((TaskState::Failed, Reason::InputFailed));
    let job = world.submit_map(map(100));
    world.run(60_000_000);
    world.assert_silent();
    assert_eq!((world.view(job).state, world.view(job).items_failed), ("FAILED", 100));
    assert!(world.parts_tried <= 4, "{} launches", world.parts_tried);
    // Executors that cannot be started: tried again after pauses, and not for ever.
    let mut world = World::new(&[(1000, 1_000), (1000, 1_000)]);
    world.cannot_begin = Some((TaskState::Dropped, Reason::LaunchFailed));
    let job = world.submit_map(map(100));
    world.run(600_000_000);
    world.assert_silent();
    assert_eq!(world.view(job).state, "FAILED");
    assert!(world.parts_tried <= 200, "{} launches", world.parts_tried);
}

#[test]
fn what_a_lost_agent_had_finished_is_computed_again() {
    let mut world = World::new(&[(1000, 10_000), (1000, 10_000)]);
    let reduce = Some(ReduceSpec { spec: spec(), resources: cpus(100) });
    let job = world.submit_map(MapSpec { reduce, ..map(100) });
    world.run(300_000);
    world.lose(1);
    world.run(60_000_000);
    world.assert_silent();
    assert_eq!(world.view(job).state, "FINISHED");
    assert!(world.runs.values().filter(|n| **n > 1).count() > 10);
    let Stdin::Outputs(sources) = &world.launches[0].spec.stdin else { panic!() };
    assert!(sources.iter().all(|s| s.agent.as_str() == "a0"));
    assert_eq!(sources.iter().map(|s| s.items.len()).sum::<u64>(), 100);
}

#[test]
fn parts_of_a_lost_agent_are_told_to_stop_at_once() {
    // The master has not heard of them, so it says nothing of their end; and when the agent is back after all, it says nothing new.
    let mut world = World::new(&[(1000, 10_000), (1000, 10_000)]);
    let job = world.submit_map(map(100));
    world.run(300_000);
    let event = FrameworkEvent::AgentLost { agent: world.agents[1].id.clone(), reason: "test".into() };
    world.step(Event::Framework { role: Role::default(), event });
    assert_eq!(world.calls.get("kill"), Some(&1));
    world.run(60_000_000);
    world.assert_silent();
    assert_eq!(world.view(job).state, "FINISHED");
}

#[test]
fn outputs_lost_while_the_reduce_runs_are_computed_again_if_it_fails() {
    let mut world = World::new(&[(1000, 10_000), (1000, 10_000)]);
    world.fate = Box::new(|item, attempt| (item == u64::MAX && attempt == 0).then_some((TaskState::Failed, Reason::InputFailed)));
    world.single_us = 300_000;
    let reduce = Some(ReduceSpec { spec: spec(), resources: cpus(100) });
    let job = world.submit_map(MapSpec { reduce, ..map(20) });
    world.run(200_000);
    assert_eq!(world.view(job).phase, "reduce");
    let agent = world.core.job(job).unwrap().state.run.as_ref().unwrap().agent.clone().unwrap();
    let other = world.agents.iter().position(|a| a.id != agent).unwrap();
    world.lose(other);
    world.run(60_000_000);
    world.assert_silent();
    assert_eq!((world.view(job).state, world.launches.len()), ("FINISHED", 2));
    assert_eq!(world.launches[1].attempt, 1);
}

#[test]
fn a_killed_array_ends_killed() {
    let mut world = World::new(&[(2000, 50_000), (2000, 50_000)]);
    let job = world.submit_map(map(1_000));
    world.run(300_000);
    world.step(Event::Kill { job, grace: None });
    world.run(60_000_000);
    world.assert_silent();
    let view = world.view(job);
    assert_eq!((view.state, view.exit_code), ("KILLED", Some(137)));
    assert!(view.items_finished > 0 && view.items_finished < 100);
}

#[test]
fn a_killed_task_ends_killed() {
    let mut world = World::new(&[(2000, 50_000)]);
    world.single_us = 10_000_000;
    let job = world.submit_single(cpus(100));
    world.run(300_000);
    world.step(Event::Kill { job, grace: Some(DurationMs(10)) });
    world.run(1_000_000);
    assert_eq!((world.view(job).state, world.view(job).exit_code), ("KILLED", Some(137)));
}

#[test]
fn a_scheduler_that_starts_again_goes_on() {
    let mut world = World::new(&[(2000, 5_000), (2000, 5_000)]);
    let job = world.submit_map(map(400));
    world.run(200_000);
    // As the store keeps it.
    let kept: Vec<(JobSpec, JobState)> = world
        .core
        .jobs()
        .map(|j| {
            let (spec, state) = world.core.record(j.id()).unwrap();
            let json = (serde_json::to_string(spec).unwrap(), serde_json::to_string(state).unwrap());
            (serde_json::from_str(&json.0).unwrap(), serde_json::from_str(&json.1).unwrap())
        })
        .collect();
    assert_eq!(&kept[0].1, &world.core.job(job).unwrap().state);
    world.core = Scheduler::restore(Time(world.now), 7, kept);
    world.core.check_invariants().unwrap();
    assert_eq!(world.core.next_number(), 7);
    // Agents ignore items that they have: the fake does not, so the master is not told again here.
    world.core.roles.values_mut().for_each(|r| r.framework = FrameworkId::new("F1-0").ok());
    world.run(60_000_000);
    world.assert_silent();
    assert_eq!((world.view(job).state, world.view(job).items_finished), ("FINISHED", 400));
}

#[test]
fn a_bundle_that_cannot_run_fails_the_whole_array_at_once() {
    let mut world = World::new(&[(2000, 5_000)]);
    let job = world.submit(retrying(5), Work::Map(Box::new(map(10_000))));
    world.run(5_000);
    let key = TaskKey { framework: FrameworkId::new("F1-0").unwrap(), task: TaskId::new("j1-abcd.m0.0").unwrap(), attempt: 0 };
    let update = StatusUpdate::new(key, 0, TaskState::Failed, Reason::MissingImport, "env.foo", Time(0));
    let event = FrameworkEvent::Updates(vec![(None, update)]);
    world.step(Event::Framework { role: Role::default(), event });
    let view = world.view(job);
    assert_eq!((view.state, view.exit_code, view.items_failed), ("FAILED", Some(126), 10_000));
}

#[test]
fn an_agent_where_items_keep_failing_is_avoided_and_named() {
    let mut world = World::new(&[(2000, 5_000), (2000, 5_000)]);
    let bad = world.agents[1].id.clone();
    world.broken = Some(bad.clone());
    let job = world.submit(retrying(6), Work::Map(Box::new(map(2_000))));
    world.run(1_000_000);
    let text = world.core.job(job).unwrap().tasks()[0].message.clone();
    assert!(text.contains("attempts in a row failed on agent a1 (TRAP)"), "{text}");
    world.run(120_000_000);
    world.assert_silent();
    assert_eq!((world.view(job).state, world.view(job).items_finished), ("FINISHED", 2_000));
    assert!(world.failed_on_broken < 40, "{} items were wasted on the broken agent", world.failed_on_broken);
}

#[test]
fn a_lost_agent_is_no_other_one_to_wait_for() {
    let mut world = World::new(&[(1000, 10), (1000, 10)]);
    world.fate = Box::new(|item, attempt| (item % 8 == 7 && attempt < 2).then_some((TaskState::Failed, Reason::ExitCode)));
    let job = world.submit(retrying(2), Work::Map(Box::new(map(134))));
    // Offered, and gone with the first launch on its way.
    world.run(0);
    world.lose(0);
    world.run(10_000_000);
    world.assert_silent();
    assert_eq!((world.view(job).state, world.view(job).items_finished), ("FINISHED", 134));
}

#[test]
fn a_part_that_begins_late_is_waited_for_in_the_end() {
    let mut world = World::new(&[(2000, 5_000)]);
    world.agents[0].start_us = 10_000_000;
    let job = world.submit_map(map(2));
    world.run(60_000_000);
    let view = world.view(job);
    assert_eq!((view.state, view.items_finished), ("FINISHED", 2), "{} parts, each begins from the start", world.parts_tried);
    assert!(world.parts_tried < 8, "{}", world.parts_tried);
}

#[test]
fn what_fails_everywhere_is_avoided_nowhere() {
    let mut world = World::new(&[(2000, 5_000), (2000, 5_000)]);
    world.fate = Box::new(|_, attempt| (attempt < 4).then_some((TaskState::Failed, Reason::ExitCode)));
    let job = world.submit(retrying(4), Work::Map(Box::new(map(20))));
    world.run(20_000_000);
    world.assert_silent();
    assert_eq!(world.view(job).state, "FINISHED");
    assert!(world.now < 10_000_000, "four back-offs and no more: {} us", world.now);
}

fn say(world: &mut World, agent: &str, task: &str, attempt: u32, state: TaskState, reason: Reason, message: &str) {
    let key = TaskKey { framework: FrameworkId::new("F1-0").unwrap(), task: TaskId::new(task).unwrap(), attempt };
    let update = StatusUpdate::new(key, 0, state, reason, message, Time(0));
    let event = FrameworkEvent::Updates(vec![(AgentId::new(agent).ok(), update)]);
    world.step(Event::Framework { role: Role::default(), event });
}

#[test]
fn what_an_unreachable_agent_has_runs_elsewhere_as_a_new_attempt() {
    let mut world = World::new(&[(1000, 10_000), (1000, 10_000)]);
    let job = world.submit_map(map(100));
    world.run(200_000);
    let part = world.core.job(job).unwrap().state.pool.as_ref().unwrap().parts().find(|(_, p)| p.agent.as_str() == "a1").unwrap();
    let (task, had, done) = (format!("{job}.m0.{}", part.0), part.1.outstanding.clone(), part.1.finished.len());
    assert!(!had.is_empty() && done > 0);
    world.cut_off(1);
    say(&mut world, "a1", &task, 0, TaskState::Unreachable, Reason::AgentDisconnected, "");
    let attempts: Vec<u32> = had.iter().map(|i| world.core.job(job).unwrap().items(i, 1)[0].attempt).collect();
    assert!(attempts.iter().all(|a| *a == 1), "{attempts:?}");
    world.run(60_000_000);
    let view = world.view(job);
    assert_eq!((view.state, view.items_finished), ("FINISHED", 100));
    assert!(view.items_by_agent[&AgentId::new("a1").unwrap()] >= done, "what it had finished counts");
    // It comes back with what nobody waits for any more.
    let kills = world.calls.get("kill").copied().unwrap_or(0);
    say(&mut world, "a1", &task, 0, TaskState::Running, Reason::None, "");
    assert_eq!(world.calls["kill"], kills + 1);
}

#[test]
fn a_restart_does_not_forget_under_which_framework_a_task_runs() {
    let mut world = World::new(&[(1000, 10_000)]);
    world.single_us = 50_000_000;
    let job = world.submit_single(cpus(100));
    world.run(200_000);
    let (spec, state) = world.core.record(job).unwrap();
    let kept = (spec.clone(), state.clone());
    world.core = Scheduler::restore(Time(world.now), 7, vec![kept]);
    world.step(Event::Tick);
    let framework = || FrameworkId::new("F1-0").unwrap();
    let subscribed = FrameworkEvent::Subscribed { framework: framework(), epoch: MasterEpoch(1) };
    world.step(Event::Framework { role: Role::default(), event: subscribed });
    say(&mut world, "a0", &format!("{job}.t"), 0, TaskState::Finished, Reason::None, "");
    let view = world.view(job);
    assert_eq!((view.state, view.framework), ("FINISHED", Some(framework())), "its output can be read");
}

#[test]
fn an_exclusive_task_starts_again_only_after_its_end() {
    for (exclusive, end) in [(false, TaskState::Lost), (true, TaskState::Lost), (true, TaskState::Unreachable)] {
        let mut world = World::new(&[(1000, 10_000), (1000, 10_000)]);
        world.single_us = 50_000_000;
        let spec = TaskSpec { exclusive, ..spec() };
        let job = world.submit(Policy::default(), Work::Single(Box::new(SingleSpec { spec, resources: cpus(100), ports: 0 })));
        world.run(200_000);
        let task = format!("{job}.t");
        say(&mut world, "a0", &task, 0, TaskState::Unreachable, Reason::AgentDisconnected, "");
        world.run(200_000);
        assert_eq!(world.launches.len(), if exclusive { 1 } else { 2 });
        if exclusive {
            say(&mut world, "a0", &task, 0, end, Reason::LeaseExpired, "");
            world.run(200_000);
            assert_eq!((world.launches.len(), world.launches[1].attempt), (2, 1));
        }
    }
    let template = ArrayTemplate { spec: TaskSpec { exclusive: true, ..spec() }, ..map(1).template };
    let array = MapSpec { template, ..map(1) };
    let spec = JobSpec {
        id: JobId::new(1, 0),
        request: String::new(),
        name: String::new(),
        role: Role::default(),
        policy: Policy::default(),
        work: Work::Map(Box::new(array)),
        output_store: None,
    };
    assert!(spec.check().unwrap_err().to_string().contains("exclusive"));
}

#[test]
fn outputs_that_a_reduce_cannot_read_are_computed_again_and_do_not_count_as_its_failure() {
    let mut world = World::new(&[(1000, 10_000), (1000, 10_000)]);
    world.single_us = 100_000;
    let unread = "the outputs of earlier items cannot be read: the output of j1-abcd.m0.1 on agent a1 cannot be read: gone";
    world.words = unread.into();
    world.fate = Box::new(|item, attempt| (item == u64::MAX && attempt < 2).then_some((TaskState::Failed, Reason::InputFailed)));
    let reduce = Some(ReduceSpec { spec: spec(), resources: cpus(100) });
    let job = world.submit_map(MapSpec { reduce, ..map(40) });
    world.run(60_000_000);
    world.assert_silent();
    assert_eq!(world.view(job).state, "FINISHED");
    assert_eq!(world.launches.iter().map(|l| l.attempt).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(world.runs.values().filter(|n| **n > 1).count() > 5, "what lay on a1 was computed again");
}
