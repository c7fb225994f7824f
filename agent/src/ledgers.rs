//! What executors that have ended wrote about items and could not say any more.
//!
//! Owns the reading of ledgers after an executor's end. A whole record counts as the item's outcome; an executor can write about its own
//! items only. Reads no further back than such records go. Deliberately absent: outputs (`outputs`).

use crate::sandbox::Sandboxes;
use smalti_agent_core::{ArrayReport, Failure, ItemFailure, LeasedItems, Run};
use smalti_executor_protocol::ledger::{RECORD_LEN, Record};
use smalti_types::{Reason, Usage};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Records that are read at a time, from the end of a ledger.
const AT_ONCE: u64 = 1_024;
/// Records of one ledger that are looked at: more than can be leased at once.
const MOST_RECORDS: u64 = 16 * AT_ONCE;

/// What the ledgers say of these items, as reports.
pub(crate) fn read(sandboxes: &Sandboxes, leased: &[LeasedItems]) -> Vec<(Run, ArrayReport)> {
    leased
        .iter()
        .map(|part| (part.run, read_part(sandboxes, part)))
        .filter(|(_, r)| !r.finished.is_empty() || !r.failed.is_empty())
        .collect()
}

fn read_part(sandboxes: &Sandboxes, part: &LeasedItems) -> ArrayReport {
    let mut report = ArrayReport::default();
    let mut seen = BTreeSet::new();
    for segment in &part.segments {
        // A slot that has not written yet may have none.
        let Ok(file) = sandboxes.open(&part.key, &format!("slot-{segment}.ledger"), false) else { continue };
        let mut end = file.metadata().map_or(0, |m| m.len()) / RECORD_LEN as u64;
        let oldest = end.saturating_sub(MOST_RECORDS);
        while end > oldest {
            let first = end.saturating_sub(AT_ONCE).max(oldest);
            let records = match read_records(&file, first, end) {
                Ok(records) => records,
                Err(e) => {
                    tracing::warn!(key = %part.key, segment, "its ledger cannot be read: {e}");
                    break;
                }
            };
            let leased = |r: &&Record| part.items.iter().any(|(attempt, items)| *attempt == r.attempt && items.contains(r.item));
            let mut any = false;
            for record in records.iter().filter(leased) {
                any = true;
                if seen.insert(record.item) {
                    take(&mut report, record);
                }
            }
            // What lies before was reported, all of it.
            if !any {
                break;
            }
            end = first;
        }
    }
    report
}

fn read_records(file: &File, first: u64, end: u64) -> std::io::Result<Vec<Record>> {
    let mut bytes = vec![0; usize::try_from(end - first).unwrap_or(0) * RECORD_LEN];
    file.read_exact_at(&mut bytes, first * RECORD_LEN as u64)?;
    Ok(bytes.as_chunks::<RECORD_LEN>().0.iter().filter_map(Record::decode).collect())
}

fn take(report: &mut ArrayReport, record: &Record) {
    report.usage.add(&Usage {
        cpu_us: record.cpu_us,
        wall_us: record.wall_us,
        peak_memory: record.peak_memory,
        bytes_read: 0,
        bytes_written: record.out_length.saturating_add(record.err_length),
        fuel: None,
    });
    if !record.failed {
        report.finished.insert(record.item);
        return;
    }
    let words = "it failed, and its executor ended before it could say why";
    let failure = record.exit_code.is_none().then(|| Failure::new(Reason::Trap, words));
    report.failed.push(ItemFailure { item: record.item, exit_code: record.exit_code, failure });
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_types::{Bytes, FrameworkId, ItemSet, TaskId, TaskKey};
    use std::collections::BTreeMap;
    use std::io::Write;

    #[test]
    fn whole_records_of_leased_items_count_once() {
        let dir = tempfile::tempdir().unwrap();
        let (sandboxes, _collector) = Sandboxes::start(dir.path(), Bytes::gib(1), &BTreeMap::new()).unwrap();
        let key = TaskKey { framework: FrameworkId::new("F").unwrap(), task: TaskId::new("t").unwrap(), attempt: 0 };
        let path = sandboxes.make(&key, crate::sandbox::Kind::Array, false).unwrap();
        let mut file = std::fs::File::create(path.join("slot-3.ledger")).unwrap();
        let record = |item, attempt, failed, exit_code| Record { item, attempt, failed, exit_code, wall_us: 5, ..Record::default() };
        for r in [record(1, 2, false, Some(0)), record(2, 1, false, Some(0)), record(3, 2, true, Some(7)), record(4, 2, true, None)] {
            file.write_all(&r.encode()).unwrap();
        }
        file.write_all(&record(1, 2, false, Some(0)).encode()).unwrap();
        file.write_all(&record(5, 2, false, Some(0)).encode()[..50]).unwrap();
        let leased = LeasedItems { run: Run(9), key, items: vec![(2, ItemSet::range(0, 6))], segments: vec![2, 3] };
        let reports = read(&sandboxes, &[leased]);
        let [(Run(9), report)] = &reports[..] else { panic!("{reports:?}") };
        assert_eq!((&report.finished, report.usage.wall_us), (&ItemSet::range(1, 2), 15));
        assert_eq!(report.failed.iter().map(|f| (f.item, f.exit_code)).collect::<Vec<_>>(), [(3, Some(7)), (4, None)]);
    }
}
