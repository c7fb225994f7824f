//! Outputs that go to a store: when the job ends, what a restart remembers, and what is computed again.

use super::world::{World, cpus, map, spec};
use crate::*;
use smalti_types::*;
use std::sync::Arc;

fn submit(world: &mut World, policy: Policy, work: Work) -> JobId {
    let Admission::New(id) = world.core.admit("", 0xabcd) else { panic!("full") };
    let output_store = Some("s3://bucket/out".into());
    let spec = JobSpec { id, request: String::new(), name: "test".into(), role: Role::default(), policy, work, output_store };
    world.step(Event::Submit(Arc::new(spec)));
    id
}

fn single() -> Work {
    Work::Single(Box::new(SingleSpec { spec: spec(), resources: cpus(100), ports: 0 }))
}

fn deliverable(world: &World, job: JobId, most: u64) -> Deliverable {
    world.core.job(job).unwrap().deliverable(most).expect("it is not over")
}

fn items(work: &Deliverable) -> ItemSet {
    work.items.iter().fold(ItemSet::default(), |all, source| all.union(&source.items))
}

fn tell(world: &mut World, job: JobId, what: Delivered) {
    world.step(Event::Delivered { job, what });
}

fn trouble(agent: Option<&str>, for_good: bool) -> Delivered {
    Delivered::Trouble { why: "no such bucket".into(), for_good, agent: agent.map(|a| AgentId::new(a).unwrap()) }
}

#[test]
fn a_job_ends_when_its_outputs_are_there() {
    let mut world = World::new(&[(2000, 1_000)]);
    world.fate = Box::new(|item, attempt| match (item, attempt) {
        (3, 0) => Some((TaskState::Failed, Reason::ExitCode)),
        (7, _) => Some((TaskState::Failed, Reason::Trap)),
        _ => None,
    });
    let job = submit(&mut world, Policy { retries: 1, ..Policy::default() }, Work::Map(Box::new(map(100))));
    world.run(10_000_000);
    let view = world.view(job);
    assert_eq!((view.state, view.exit_code, view.phase.as_str(), view.items_stored), ("RUNNING", None, "storing outputs", 0));
    let work = deliverable(&world, job, 30);
    let first = items(&work);
    assert_eq!((first.len(), work.is_last), (30, true));
    assert_eq!([work.attempt(2), work.attempt(3), work.attempt(7)], [0, 1, 1], "the attempts that counted");
    tell(&mut world, job, Delivered::Items(first.clone()));
    // A scheduler that starts again goes on with the rest.
    let (spec, state) = world.core.record(job).map(|(a, b)| (a.clone(), b.clone())).unwrap();
    let json = (serde_json::to_string(&spec).unwrap(), serde_json::to_string(&state).unwrap());
    let stored = (serde_json::from_str(&json.0).unwrap(), serde_json::from_str(&json.1).unwrap());
    let again = Scheduler::restore(Time(1), 2, vec![stored]);
    assert_eq!(items(&again.job(job).unwrap().deliverable(1000).unwrap()), ItemSet::range(0, 100).difference(&first));
    tell(&mut world, job, Delivered::Items(ItemSet::range(0, 99)));
    assert_eq!(world.view(job).state, "RUNNING");
    tell(&mut world, job, Delivered::Items(ItemSet::range(99, 100)));
    let view = world.view(job);
    assert_eq!((view.state, view.exit_code, view.items_stored), ("FAILED", Some(134), 100), "as its items ended");
    assert_eq!(world.core.job(job).unwrap().deliverable(1), None);
}

#[test]
fn with_a_reduce_its_output_is_the_jobs() {
    let mut world = World::new(&[(2000, 1_000)]);
    let reduce = Some(ReduceSpec { spec: spec(), resources: cpus(100) });
    let job = submit(&mut world, Policy::default(), Work::Map(Box::new(MapSpec { reduce, ..map(10) })));
    world.run(10_000_000);
    let work = deliverable(&world, job, 1000);
    let (_, task, attempt, name) = work.task.clone().expect("the reduce");
    assert_eq!((work.items.len(), task, attempt, name), (0, job.task(TaskName::Reduce { round: 0 }), 0, "reduce"));
    tell(&mut world, job, Delivered::Task(3));
    assert_eq!(world.view(job).state, "RUNNING", "that is another attempt's");
    tell(&mut world, job, Delivered::Task(0));
    assert_eq!((world.view(job).state, world.view(job).exit_code), ("FINISHED", Some(0)));
}

#[test]
fn a_store_that_refuses_is_told_on_the_job_and_ends_it() {
    for work in [single(), Work::Map(Box::new(map(10)))] {
        let mut world = World::new(&[(2000, 1_000)]);
        let job = submit(&mut world, Policy::default(), work);
        world.run(10_000_000);
        tell(&mut world, job, trouble(None, false));
        let view = world.view(job);
        assert_eq!((view.state, view.message.as_str()), ("RUNNING", "no such bucket"), "it may pass");
        tell(&mut world, job, trouble(None, true));
        let view = world.view(job);
        assert_eq!((view.state, view.exit_code, view.reason), ("FAILED", Some(125), Reason::OutputFailed));
        assert!(view.message.contains("no such bucket") && view.message.contains("smalti logs"), "{}", view.message);
    }
}

#[test]
fn trouble_while_items_run_ends_nothing() {
    let mut world = World::new(&[(1000, 100_000)]);
    let job = submit(&mut world, Policy::default(), Work::Map(Box::new(map(20))));
    world.run(1_000_000);
    tell(&mut world, job, trouble(None, true));
    tell(&mut world, job, trouble(Some("a0"), true));
    assert_eq!((world.view(job).state, world.view(job).message.as_str()), ("RUNNING", "no such bucket"));
    world.run(10_000_000);
    tell(&mut world, job, Delivered::Items(ItemSet::range(0, 20)));
    assert_eq!(world.view(job).state, "FINISHED");
    assert!(world.runs.values().all(|runs| *runs == 1));
}

#[test]
fn outputs_that_are_lost_before_they_are_there_are_computed_again_and_others_not() {
    let mut world = World::new(&[(2000, 1_000), (2000, 1_000)]);
    let job = submit(&mut world, Policy::default(), Work::Map(Box::new(map(200))));
    world.run(10_000_000);
    let on = |world: &World, agent: &str| {
        let work = deliverable(world, job, 1000);
        work.items.iter().filter(|s| s.agent.as_str() == agent).fold(ItemSet::default(), |all, s| all.union(&s.items))
    };
    let lost = on(&world, "a1");
    assert!(lost.len() > 2, "both have some");
    let there = lost.clone().take_first(2);
    tell(&mut world, job, Delivered::Items(there.clone()));
    world.lose(1);
    world.run(60_000_000);
    let again: ItemSet = world.runs.iter().filter(|(_, runs)| **runs > 1).fold(ItemSet::default(), |mut all, (item, _)| {
        all.insert(*item);
        all
    });
    assert_eq!(again, lost.difference(&there));
    assert_eq!(world.core.job(job).unwrap().only_stored(), there);
    let rest = items(&deliverable(&world, job, 1000));
    tell(&mut world, job, Delivered::Items(rest));
    assert_eq!((world.view(job).state, world.view(job).items_stored), ("FINISHED", 200));
}

#[test]
fn a_task_whose_output_cannot_be_read_runs_again_and_one_that_failed_does_not() {
    let mut world = World::new(&[(2000, 1_000)]);
    let job = submit(&mut world, Policy::default(), single());
    world.run(10_000_000);
    tell(&mut world, job, trouble(Some("a0"), true));
    world.run(10_000_000);
    assert_eq!(deliverable(&world, job, 1).task.map(|t| t.2), Some(1));
    tell(&mut world, job, Delivered::Task(1));
    assert_eq!((world.view(job).state, world.launches.len()), ("FINISHED", 2));

    let mut world = World::new(&[(2000, 1_000)]);
    world.fate = Box::new(|_, _| Some((TaskState::Failed, Reason::Trap)));
    let job = submit(&mut world, Policy::default(), single());
    world.run(10_000_000);
    if world.view(job).exit_code.is_none() {
        tell(&mut world, job, trouble(Some("a0"), true));
    }
    assert_eq!((world.view(job).state, world.view(job).exit_code, world.launches.len()), ("FAILED", Some(134), 1));
}

#[test]
fn a_kill_waits_for_no_store() {
    let mut world = World::new(&[(2000, 1_000)]);
    let job = submit(&mut world, Policy::default(), Work::Map(Box::new(map(10))));
    world.run(10_000_000);
    assert_eq!(world.view(job).state, "RUNNING");
    world.step(Event::Kill { job, grace: None });
    assert_eq!((world.view(job).state, world.view(job).exit_code), ("KILLED", Some(137)));
}
