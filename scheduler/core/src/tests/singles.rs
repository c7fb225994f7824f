//! Single tasks: order, ports, constraints, thousands at once.

use super::world::{World, cpus, spec};
use crate::*;
use smalti_types::*;

#[test]
fn one_task_runs_and_its_exit_code_is_the_jobs() {
    let mut world = World::new(&[(1000, 1)]);
    let job = world.submit_single(cpus(500));
    world.run(1_000_000);
    world.assert_silent();
    let view = world.view(job);
    assert_eq!((view.state, view.exit_code, view.kind), ("FINISHED", Some(0), "run"));
    assert_eq!(world.launches[0].task.as_str(), "j1-abcd.t");
    assert_eq!(world.calls["accept"], 1);
}

#[test]
fn thousands_of_tasks_travel_in_few_accepts() {
    let mut world = World::new(&[(8000, 1), (8000, 1)]);
    world.run(1);
    for _ in 0..5_000 {
        world.submit_single(cpus(10));
    }
    world.run(60_000_000);
    world.assert_silent();
    assert_eq!(world.launches.len(), 5_000);
    assert!(world.calls["accept"] <= 40, "{:?}", world.calls);
}

#[test]
fn ports_are_chosen_from_the_offer_lowest_first() {
    let mut world = World::new(&[(4000, 1)]);
    world.single_us = 1_000_000;
    for _ in 0..3 {
        world.submit(Policy::default(), Work::Single(Box::new(SingleSpec { spec: spec(), resources: cpus(100), ports: 4 })));
    }
    world.run(500_000);
    let ports: Vec<_> = world.launches.iter().map(|l| l.resources.ports.to_string()).collect();
    assert_eq!(ports, ["31000-31003", "31004-31007"], "ten ports are not enough for three");
    world.run(60_000_000);
    world.assert_silent();
}

#[test]
fn a_port_that_another_program_has_is_left_to_it_as_long_as_there_are_others() {
    let mut world = World::new(&[(4000, 1)]);
    let server = |ports| Work::Single(Box::new(SingleSpec { spec: spec(), resources: cpus(100), ports }));
    let given = |world: &World| world.launches.last().unwrap().resources.ports.to_string();
    world.held = "31000,31002".parse().unwrap();
    let job = world.submit(Policy::default(), server(1));
    world.run(10_000_000);
    assert_eq!((world.launches.len(), given(&world).as_str(), world.view(job).state), (2, "31001", "FINISHED"));
    // The next one does not try again what failed a moment ago, nor does one that wants more.
    world.submit(Policy::default(), server(1));
    world.run(10_000_000);
    assert_eq!((world.launches.len(), given(&world).as_str()), (3, "31001"));
    world.submit(Policy::default(), server(3));
    world.run(10_000_000);
    assert_eq!((world.launches.len(), given(&world).as_str()), (5, "31001,31003-31004"));
    // Where the others are not enough it is tried, and works once the other program is gone.
    let all = world.submit(Policy::default(), server(10));
    world.run(1_000_000);
    assert_eq!((given(&world).as_str(), world.view(all).state), ("31000-31009", "RUNNING"));
    world.held = PortSet::default();
    world.run(20_000_000);
    assert_eq!(world.view(all).state, "FINISHED");
    // And after a while it is as good as any.
    world.now += 300_000_000;
    world.submit(Policy::default(), server(1));
    world.run(10_000_000);
    assert_eq!(given(&world), "31000");
    world.assert_silent();
}

#[test]
fn an_agent_whose_ports_are_free_comes_first() {
    let mut world = World::new(&[(4000, 1), (4000, 1)]);
    let work = Work::Single(Box::new(SingleSpec { spec: spec(), resources: cpus(100), ports: 10 }));
    let first = AgentId::new("a0").unwrap();
    world.core.shunned.note(Time(world.now), &first, &"31009".parse().unwrap());
    let job = world.submit(Policy::default(), work);
    world.run(10_000_000);
    let agent = world.core.job(job).unwrap().state.run.as_ref().unwrap().agent.clone();
    assert_eq!((agent, world.launches.len()), (AgentId::new("a1").ok(), 1));
    world.assert_silent();
}

#[test]
fn constraints_and_priorities_hold() {
    let mut world = World::new(&[(1000, 1), (1000, 1)]);
    let policy = |priority, zone: &str| Policy {
        priority,
        constraints: vec![Constraint { attribute: "zone".into(), value: zone.into() }],
        ..Policy::default()
    };
    let work = || Work::Single(Box::new(SingleSpec { spec: spec(), resources: cpus(1000), ports: 0 }));
    let late = world.submit(policy(0, "z1"), work());
    let first = world.submit(policy(5, "z1"), work());
    let never = world.submit(policy(9, "z7"), work());
    world.run(3_000_000);
    let order: Vec<_> = world.launches.iter().map(|l| l.task.to_string()).collect();
    assert_eq!(order, [format!("{first}.t"), format!("{late}.t")]);
    assert_eq!(world.core.job(late).unwrap().state.run.as_ref().unwrap().agent, AgentId::new("a1").ok());
    assert_eq!(world.view(never).state, "PENDING");
    world.step(Event::Kill { job: never, grace: None });
    assert_eq!((world.view(never).state, world.view(never).exit_code), ("KILLED", Some(137)));
    world.run(1_000_000);
    world.assert_silent();
}

#[test]
fn a_repeated_request_is_the_same_job() {
    let mut world = World::new(&[(1000, 1)]);
    let Admission::New(id) = world.core.admit("again", 1) else { panic!() };
    let work = Work::Single(Box::new(SingleSpec { spec: spec(), resources: cpus(100), ports: 0 }));
    let spec = JobSpec {
        id,
        request: "again".into(),
        name: String::new(),
        role: Role::default(),
        policy: Policy::default(),
        work,
        output_store: None,
    };
    world.step(Event::Submit(spec.into()));
    assert_eq!(world.core.admit("again", 2), Admission::Existing(id));
}

#[test]
fn history_is_bounded_and_forgotten_jobs_leave_nothing() {
    let mut world = World::new(&[(8000, 1)]);
    for _ in 0..1_200 {
        world.submit_single(cpus(1000));
    }
    world.run(60_000_000);
    assert_eq!(world.core.jobs().count(), 1_200, "young jobs are kept");
    world.now += 100_000_000;
    world.step(Event::Tick);
    assert_eq!(world.core.jobs().count(), 1_000);
}
