//! What agents say about their executors, bounded before it is kept: operators see it, nobody decides by it.
//!
//! Owns the bounds only; `peers` keeps the last report of each connection. An agent is trusted with its own accounting, not with the
//! master's memory.

use smalti_proto::v1;
use smalti_types::status::truncate;
use std::collections::HashMap;

/// Executors of one agent; more are left out.
const MAX_EXECUTORS: usize = 512;
/// Layers of one executor, and parts of an overhead.
const MAX_ENTRIES: usize = 32;
/// Longest text in bytes.
const MAX_TEXT: usize = 256;

/// The report with nothing in it beyond its bounds.
pub(crate) fn bounded(mut reports: v1::ExecutorReports) -> v1::ExecutorReports {
    reports.executors.truncate(MAX_EXECUTORS);
    for executor in &mut reports.executors {
        let texts = [
            &mut executor.id,
            &mut executor.framework,
            &mut executor.role,
            &mut executor.kind,
            &mut executor.state,
            &mut executor.allocator,
            &mut executor.memory_reset,
        ];
        texts.into_iter().for_each(|text| truncate(text, MAX_TEXT));
        let layers = std::mem::take(&mut executor.layers).into_iter().filter(|(name, _)| name.len() <= MAX_TEXT);
        executor.layers = layers
            .take(MAX_ENTRIES)
            .map(|(name, mut word)| {
                truncate(&mut word, MAX_TEXT);
                (name, word)
            })
            .collect();
    }
    let parts = reports.overhead_memory.into_iter().filter(|(name, _)| name.len() <= MAX_TEXT);
    reports.overhead_memory = parts.take(MAX_ENTRIES).collect::<HashMap<_, _>>();
    reports.losses.truncate(MAX_ENTRIES);
    for loss in &mut reports.losses {
        truncate(&mut loss.framework, MAX_TEXT);
        truncate(&mut loss.cause, MAX_TEXT);
    }
    reports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_without_bounds_gets_some() {
        let long = "x".repeat(1 << 10);
        let layers: HashMap<String, String> =
            (0..100).map(|n| (n.to_string(), long.clone())).chain([(long.clone(), String::new())]).collect();
        let one = v1::ExecutorReport { id: long.clone(), allocator: long.clone(), layers, pid: 7, ..Default::default() };
        let losses = vec![v1::ExecutorLosses { cause: long.clone(), ..Default::default() }; 100];
        let overhead_memory = HashMap::from([("agent".to_owned(), 5), (long, 6)]);
        let reports = bounded(v1::ExecutorReports { executors: vec![one; 600], overhead_memory, losses });
        assert_eq!((reports.losses.len(), reports.losses[0].cause.len()), (MAX_ENTRIES, MAX_TEXT));
        assert_eq!(reports.executors.len(), MAX_EXECUTORS);
        let first = &reports.executors[0];
        assert_eq!((first.pid, first.id.len(), first.allocator.len(), first.layers.len()), (7, MAX_TEXT, MAX_TEXT, MAX_ENTRIES));
        assert!(first.layers.values().all(|word| word.len() == MAX_TEXT));
        assert_eq!(reports.overhead_memory, HashMap::from([("agent".to_owned(), 5)]));
    }
}
