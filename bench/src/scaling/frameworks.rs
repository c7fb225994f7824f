//! Allocation in the master's core, with more and more frameworks.

use super::{Effort, float, median};
use crate::allocation;
use crate::growth::Series;
use anyhow::Result;

const AGENTS: u64 = 10_000;

pub(super) fn measure(effort: &Effort) -> Result<Vec<Series>> {
    let (mut changes, mut cycles) = (Vec::new(), Vec::new());
    for &frameworks in effort.frameworks {
        let (mut change, mut cycle) = (Vec::new(), Vec::new());
        for _ in 0..effort.repetitions {
            let (one, all) = allocation::once(AGENTS, frameworks)?;
            change.push(one);
            cycle.push(all);
        }
        changes.push((float(frameworks), median(change)));
        cycles.push((float(frameworks), median(cycle)));
    }
    Ok(vec![
        Series::new("alloc_change_ms_by_frameworks", "frameworks", "ms", changes),
        Series::new("alloc_cycle_ms_by_frameworks", "frameworks", "ms", cycles),
    ])
}
