//! Whatever the speeds, the fates and the losses: every item ends exactly once, and nothing is left over.

use super::world::{World, cpus, map, spec};
use crate::*;
use proptest::prelude::*;
use smalti_types::*;

fn any_agents() -> impl Strategy<Value = Vec<(u64, u64)>> {
    proptest::collection::vec((1_u64..6, prop_oneof![Just(10_u64), Just(500), Just(7_000), Just(90_000)]), 1..4)
        .prop_map(|v| v.into_iter().map(|(slots, us)| (slots * 1000, us)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_item_ends_once(
        agents in any_agents(), items in 0_u64..800, retries in 0_u32..3, bad in 1_u64..50, infra in any::<bool>(),
        reduce in any::<bool>(), rounds in 1_u32..3, singles in 0_usize..5, lose_at in proptest::option::of(0_u64..2_000_000),
        kill_at in proptest::option::weighted(0.2, 0_u64..2_000_000), fail_fast in proptest::bool::weighted(0.2),
    ) {
        let mut world = World::new(&agents);
        let reason = if infra { Reason::ExecutorTerminated } else { Reason::ExitCode };
        world.fate = Box::new(move |item, attempt| (item % bad == 7 && attempt < 2).then_some((TaskState::Failed, reason)));
        let reduce = reduce.then(|| ReduceSpec { spec: spec(), resources: cpus(700) });
        let rounds = if reduce.is_some() { rounds } else { 1 };
        let job = world.submit(Policy { retries, fail_fast, ..Policy::default() }, Work::Map(Box::new(MapSpec { reduce, rounds, ..map(items) })));
        for _ in 0..singles {
            world.submit_single(cpus(300));
        }
        // The last agent stays, or nothing could ever end.
        let mut moments: Vec<(u64, bool)> = lose_at.filter(|_| agents.len() > 1).map(|t| (t, true)).into_iter().chain(kill_at.map(|t| (t, false))).collect();
        moments.sort_unstable();
        for (at, lose) in moments {
            let wait = (1_000_000 + at).saturating_sub(world.now);
            world.run(wait);
            if lose { world.lose(0) } else { world.step(Event::Kill { job, grace: None }) }
        }
        world.run(600_000_000);
        world.assert_silent();
        let view = world.view(job);
        let pool = world.core.job(job).unwrap().state.pool.as_ref().unwrap();
        prop_assert!(pool.is_settled());
        prop_assert_eq!(pool.finished.len() + pool.failed.len() + pool.cancelled.len(), items);
        let fails = (0..items).any(|i| i % bad == 7) && !infra && retries < 2;
        if kill_at.is_none() {
            prop_assert_eq!(view.state, if fails { "FAILED" } else { "FINISHED" });
            if !fails { prop_assert_eq!(pool.finished.len(), items); }
        }
    }
}
