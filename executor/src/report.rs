//! What happened in an array part since its last report. Pure: no locks, no clock, no I/O.
//!
//! Owns the accumulation and its size. When a report is due is decided in [`crate::array`].

use crate::failure::Failure;
use smalti_executor_protocol::v1;
use smalti_types::items::ItemSet;
use smalti_types::status::Usage;
use smalti_types::task_state::Reason;
use std::collections::BTreeMap;

/// A report is sent at the latest when it names this many finished items: should their output turn out not to be written,
/// each of them becomes a failure of its own, and the frame must still hold them.
const MAX_FINISHED: u64 = 20_000;
/// A report is sent at the latest when failures and results reach this many bytes.
const MAX_BYTES: usize = 1 << 20;
/// Bytes that a failed item takes beside its message.
const FAILED_BYTES: usize = 64;

/// One item's outcome.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) item: u64,
    pub(crate) attempt: u32,
    pub(crate) exit_code: Option<i32>,
    pub(crate) failure: Option<Failure>,
    pub(crate) usage: Usage,
    pub(crate) result: Option<Vec<u8>>,
}

/// Outcomes that were not reported yet.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// By attempt: nearly always one entry.
    finished: BTreeMap<u32, ItemSet>,
    finished_len: u64,
    failed: Vec<v1::FailedItem>,
    returned: ItemSet,
    results: Vec<v1::ItemResult>,
    usage: Usage,
    bytes: usize,
}

impl Pending {
    /// Whether there is nothing to say.
    pub(crate) fn is_empty(&self) -> bool {
        self.finished.is_empty() && self.failed.is_empty() && self.returned.is_empty()
    }
    /// Whether it should be sent for its size.
    pub(crate) const fn is_large(&self) -> bool {
        self.bytes >= MAX_BYTES || self.finished_len >= MAX_FINISHED
    }

    /// Every item that it says something about.
    pub(crate) fn items(&self) -> ItemSet {
        let mut items = self.returned.clone();
        self.finished.values().for_each(|finished| items.extend(finished));
        self.failed.iter().for_each(|failed| items.insert(failed.item));
        items
    }

    /// Adds an outcome.
    pub(crate) fn add(&mut self, done: Done) {
        self.usage.add(&done.usage);
        match done.failure {
            None => {
                self.finished.entry(done.attempt).or_default().insert(done.item);
                self.finished_len += 1;
            }
            Some(failure) => {
                self.bytes += FAILED_BYTES + failure.message.len();
                self.failed.push(failed_item(done.item, done.attempt, done.exit_code, failure));
            }
        }
        if let Some(value) = done.result {
            self.bytes += value.len();
            self.results.push(v1::ItemResult { item: done.item, value: value.into() });
        }
    }

    /// Adds items that go back without having been started.
    pub(crate) fn give_back(&mut self, items: &ItemSet) {
        self.returned.extend(items);
    }

    /// Finished items whose output or record could not be written did not finish: somebody else must run them again.
    pub(crate) fn spoil(&mut self, why: &str) {
        let failure = Failure::new(Reason::LaunchFailed, format!("the output could not be kept: {why}"));
        for (attempt, items) in std::mem::take(&mut self.finished) {
            for item in items.iter() {
                self.failed.push(failed_item(item, attempt, None, failure.clone()));
            }
        }
        self.finished_len = 0;
        self.results.clear();
    }

    /// The message.
    pub(crate) fn into_message(self, run: u64, unstarted: u64, busy_slots: u32) -> v1::ArrayReport {
        let finished: ItemSet = self.finished.values().flat_map(|items| items.ranges().iter().copied()).collect();
        v1::ArrayReport {
            run,
            finished: ranges(&finished),
            failed: self.failed,
            returned: ranges(&self.returned),
            results: self.results,
            usage: Some(usage(&self.usage)),
            unstarted,
            busy_slots,
        }
    }
}

/// A failure as it is sent.
pub(crate) fn failed_item(item: u64, attempt: u32, exit_code: Option<i32>, failure: Failure) -> v1::FailedItem {
    v1::FailedItem { item, attempt, exit_code, failure: Some(failure.into()) }
}

/// Items as they are sent.
pub(crate) fn ranges(items: &ItemSet) -> Vec<v1::ItemRange> {
    items.ranges().iter().map(|r| v1::ItemRange { first: r.first, end: r.end }).collect()
}

/// Usage as it is sent.
pub(crate) const fn usage(u: &Usage) -> v1::Usage {
    v1::Usage {
        cpu_us: u.cpu_us,
        wall_us: u.wall_us,
        peak_memory: u.peak_memory,
        bytes_read: u.bytes_read,
        bytes_written: u.bytes_written,
        fuel: u.fuel,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(item: u64, failure: Option<Failure>) -> Done {
        let usage = Usage { cpu_us: 1, wall_us: 2, peak_memory: item, ..Usage::default() };
        Done { item, attempt: 0, exit_code: Some(0), failure, usage, result: None }
    }

    #[test]
    fn alike_outcomes_become_ranges_and_usage_is_summed() {
        let mut p = Pending::default();
        assert!(p.is_empty());
        for item in (0..1000).filter(|i| *i != 500) {
            p.add(done(item, None));
        }
        p.add(done(500, Some(Failure::new(Reason::Trap, "unreachable"))));
        p.give_back(&ItemSet::range(2000, 2010));
        let message = p.into_message(9, 3, 2);
        assert_eq!((message.run, message.unstarted, message.busy_slots), (9, 3, 2));
        assert_eq!(message.finished.len(), 2);
        assert_eq!(message.failed[0].failure.as_ref().map(|f| f.reason.as_str()), Some("TRAP"));
        assert_eq!(message.returned.len(), 1);
        let usage = message.usage.expect("usage");
        assert_eq!((usage.cpu_us, usage.wall_us, usage.peak_memory), (1000, 2000, 999));
    }

    #[test]
    fn what_could_not_be_kept_failed_under_its_own_attempt() {
        let mut p = Pending::default();
        p.add(done(1, None));
        p.add(Done { attempt: 2, ..done(2, None) });
        p.spoil("no space left on device");
        let message = p.into_message(1, 0, 0);
        assert!(message.finished.is_empty());
        assert_eq!(message.failed.iter().map(|f| (f.item, f.attempt)).collect::<Vec<_>>(), [(1, 0), (2, 2)]);
    }

    #[test]
    fn results_make_it_large() {
        let mut p = Pending::default();
        for item in 0..64 {
            assert!(!p.is_large());
            p.add(Done { result: Some(vec![0; 16 * 1024]), ..done(item, None) });
        }
        assert!(p.is_large());
    }
}
