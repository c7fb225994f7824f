//! The master's core alone, with as many agents and frameworks as the design promises: one change, and a full cycle.

use crate::Effort;
use crate::figures::Figures;
use anyhow::{Context, Result};
use smalti_bench::cores::master::{cluster, conn};
use smalti_master_core::{Conn, Event};
use smalti_types::protocol::Call;
use smalti_types::{Filters, FrameworkId, Offer};
use std::collections::BTreeMap;
use std::time::Instant;

const AGENTS: u64 = 50_000;
const FRAMEWORKS: u64 = 1_000;

pub(crate) fn measure(effort: Effort, figures: &mut Figures) -> Result<()> {
    let (mut changes, mut cycles) = (Vec::new(), Vec::new());
    for _ in 0..effort.repetitions {
        let (change, cycle) = once(AGENTS, FRAMEWORKS)?;
        changes.push(change);
        cycles.push(cycle);
    }
    figures.add("alloc_change_ms_50k", changes);
    figures.add("alloc_cycle_ms_50k", cycles);
    Ok(())
}

/// Milliseconds of one change, and of a full cycle.
pub(crate) fn once(agents: u64, frameworks: u64) -> Result<(f64, f64)> {
    let (mut master, now) = cluster(agents, frameworks)?;
    let _ = master.step(now, Event::BatchEnd);
    // Each framework refuses what it was offered: everything has to be given to somebody else.
    let mut offers: BTreeMap<FrameworkId, Vec<Offer>> = BTreeMap::new();
    master.offer_views().for_each(|offer| offers.entry(offer.framework.clone()).or_default().push(offer));
    for (framework, offers) in &offers {
        let call = Call::Decline { offers: offers.iter().map(|o| o.id).collect(), filters: Filters::default() };
        let _ = master.step(now, Event::FrameworkCall { conn: conn(framework)?, call });
    }
    // With only one there is nobody else: it gets all of it again.
    let alone = (frameworks == 1).then_some(Event::FrameworkCall { conn: Conn(0), call: Call::Revive });
    if let Some(revive) = alone.clone() {
        let _ = master.step(now, revive);
    }
    let start = Instant::now();
    let _ = master.step(now, Event::BatchEnd);
    let cycle = start.elapsed().as_secs_f64() * 1e3;
    let offer = master.offer_views().next().context("no offers")?;
    let call = Call::Decline { offers: vec![offer.id], filters: Filters::default() };
    let start = Instant::now();
    let _ = master.step(now, Event::FrameworkCall { conn: conn(&offer.framework)?, call });
    if let Some(revive) = alone {
        let _ = master.step(now, revive);
    }
    let _ = master.step(now, Event::BatchEnd);
    Ok((start.elapsed().as_secs_f64() * 1e3, cycle))
}
