//! More bundles than an agent can keep: who needs one that is there goes ahead, and nobody is passed over for ever.

use super::world::{World, cpus, spec};
use crate::*;
use smalti_types::*;

fn bundle(n: u8) -> Digest {
    Digest::of(&[n])
}

fn running(n: u8) -> Work {
    let spec = TaskSpec { bundle: BundleRef { digest: bundle(n), uri: None }, ..spec() };
    Work::Single(Box::new(SingleSpec { spec, resources: cpus(1000), ports: 0 }))
}

/// One agent with room for one task, which holds this bundle whatever it runs.
fn holding(n: u8) -> World {
    let mut world = World::new(&[(1000, 1)]);
    world.single_us = 5_000;
    world.agents[0].holdings = vec![HoldingKey::of_digest(&bundle(n))];
    world
}

fn launched(world: &World) -> Vec<Digest> {
    world.launches.iter().map(|launch| launch.spec.bundle.digest).collect()
}

#[test]
fn tasks_go_bundle_by_bundle_beginning_with_what_is_there() {
    let mut world = holding(3);
    for n in [1, 2, 3, 1, 2, 3, 1, 2, 3] {
        world.submit(Policy::default(), running(n));
    }
    world.run(1_000_000);
    world.assert_silent();
    // What was fetched for the oldest counts as there, although offers do not say so yet.
    assert_eq!(launched(&world), [3, 3, 3, 1, 1, 1, 2, 2, 2].map(bundle));
}

#[test]
fn priority_comes_before_what_is_there() {
    let mut world = holding(2);
    world.submit(Policy { priority: 1, ..Policy::default() }, running(1));
    world.submit(Policy::default(), running(2));
    world.run(1_000_000);
    assert_eq!(launched(&world), [1, 2].map(bundle));
}

#[test]
fn the_oldest_has_its_turn_after_some_hundred_others() {
    let mut world = holding(2);
    world.submit(Policy::default(), running(1));
    for _ in 0..600 {
        world.submit(Policy::default(), running(2));
    }
    world.run(60_000_000);
    world.assert_silent();
    let turn = launched(&world).iter().position(|digest| *digest == bundle(1)).unwrap();
    assert!((100..=256).contains(&turn), "{turn}");
    assert_eq!(world.launches.len(), 601);
}
