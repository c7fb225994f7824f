//! An agent's checkpoint: its records on its machine's disk, batch by batch. A process crash keeps every batch that was written as a
//! whole; what a machine crash leaves does not matter, for then nothing runs any more.

use smalti_agent_core::Record;

/// What one agent has kept.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    boot: Option<u64>,
    records: Vec<Record>,
}

impl Checkpoint {
    /// What an earlier life kept, and whether the machine has not been booted since.
    pub(crate) fn open(&self, boot: u64) -> (Vec<Record>, bool) {
        (self.records.clone(), self.boot == Some(boot))
    }

    /// Starts anew with these.
    pub(crate) fn snapshot(&mut self, boot: u64, records: Vec<Record>) {
        self.boot = Some(boot);
        self.records = records;
    }

    /// One batch.
    pub(crate) fn append(&mut self, records: Vec<Record>) {
        self.records.extend(records);
    }

    /// Whether a snapshot would be shorter.
    pub(crate) fn wants_snapshot(&self) -> bool {
        self.records.len() > 2_000
    }
}
