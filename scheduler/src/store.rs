//! The scheduler's memory on disk: one redb file.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `format`, `next_number` | numbers |
//! | `specs` | job id | specification as JSON, written once |
//! | `states` | job id | state as JSON, written with every change |
//! | `frameworks` | role | framework id, to take tasks over after a restart |
//!
//! One transaction per batch of the event loop. Knows nothing of what jobs mean.

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use smalti_scheduler_core::{JobId, JobSpec, JobState, Record, Scheduler};
use smalti_types::{FrameworkId, Role};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const SPECS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("specs");
const STATES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("states");
const FRAMEWORKS: TableDefinition<'_, &str, &str> = TableDefinition::new("frameworks");
/// Version of what is in the tables.
const FORMAT: u64 = 1;
/// Name of the file in the data directory.
const FILE: &str = "scheduler.redb";

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("cannot use the data directory {}: {source}; name one that this user may write with --data-dir", dir.display())]
    Directory { dir: PathBuf, source: std::io::Error },
    #[error("cannot open {}: {source}", path.display())]
    Open { path: PathBuf, source: Box<redb::Error> },
    #[error("{} has format {found}, this build reads {FORMAT}", path.display())]
    Format { path: PathBuf, found: u64 },
    #[error("{doing} in the scheduler's store: {source}")]
    Redb { doing: &'static str, source: Box<redb::Error> },
    #[error("job {job} in the scheduler's store cannot be {doing}: {source}")]
    Json { job: String, doing: &'static str, source: serde_json::Error },
    #[error("the scheduler's store names an impossible id: {0}")]
    Id(#[from] smalti_types::id::IdError),
}

/// The open store.
pub(crate) struct Store {
    db: Database,
}

/// What a store had in it.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub(crate) next_number: u64,
    pub(crate) jobs: Vec<(JobSpec, JobState)>,
    pub(crate) frameworks: BTreeMap<Role, FrameworkId>,
}

fn failed<E: Into<redb::Error>>(doing: &'static str) -> impl Fn(E) -> StoreError {
    move |e| StoreError::Redb { doing, source: Box::new(e.into()) }
}

impl Store {
    /// Opens or makes the store in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|source| StoreError::Directory { dir: dir.to_owned(), source })?;
        let path = dir.join(FILE);
        let db = Database::create(&path).map_err(|e| match e {
            redb::DatabaseError::Storage(redb::StorageError::Io(source)) => StoreError::Directory { dir: dir.to_owned(), source },
            e => StoreError::Open { path: path.clone(), source: Box::new(e.into()) },
        })?;
        let store = Self { db };
        match store.prepare()? {
            FORMAT => Ok(store),
            found => Err(StoreError::Format { path, found }),
        }
    }

    fn prepare(&self) -> Result<u64, StoreError> {
        let doing = "preparing the tables";
        let transaction = self.db.begin_write().map_err(failed(doing))?;
        let format = {
            let mut meta = transaction.open_table(META).map_err(failed(doing))?;
            let found = meta.get("format").map_err(failed(doing))?.map(|v| v.value());
            if found.is_none() {
                meta.insert("format", FORMAT).map_err(failed(doing))?;
            }
            transaction.open_table(SPECS).map_err(failed(doing))?;
            transaction.open_table(STATES).map_err(failed(doing))?;
            transaction.open_table(FRAMEWORKS).map_err(failed(doing))?;
            found.unwrap_or(FORMAT)
        };
        transaction.commit().map_err(failed(doing))?;
        Ok(format)
    }

    /// Everything.
    pub(crate) fn load(&self) -> Result<Stored, StoreError> {
        let doing = "reading";
        let transaction = self.db.begin_read().map_err(failed(doing))?;
        let mut stored = Stored::default();
        let meta = transaction.open_table(META).map_err(failed(doing))?;
        stored.next_number = meta.get("next_number").map_err(failed(doing))?.map_or(1, |v| v.value());
        let states = transaction.open_table(STATES).map_err(failed(doing))?;
        for entry in transaction.open_table(SPECS).map_err(failed(doing))?.iter().map_err(failed(doing))? {
            let (id, spec) = entry.map_err(failed(doing))?;
            let json = |source| StoreError::Json { job: id.value().to_owned(), doing: "read", source };
            // Specification and state are written in one transaction: one without the other cannot be.
            let Some(state) = states.get(id.value()).map_err(failed(doing))? else { continue };
            stored.jobs.push((serde_json::from_slice(spec.value()).map_err(json)?, serde_json::from_slice(state.value()).map_err(json)?));
        }
        for entry in transaction.open_table(FRAMEWORKS).map_err(failed(doing))?.iter().map_err(failed(doing))? {
            let (role, id) = entry.map_err(failed(doing))?;
            stored.frameworks.insert(Role::new(role.value())?, FrameworkId::new(id.value())?);
        }
        Ok(stored)
    }

    /// One transaction for a batch of records; what they name is read from `scheduler`.
    pub(crate) fn write(&self, scheduler: &Scheduler, records: &[Record]) -> Result<(), StoreError> {
        let doing = "writing";
        let transaction = self.db.begin_write().map_err(failed(doing))?;
        {
            let mut specs = transaction.open_table(SPECS).map_err(failed(doing))?;
            let mut states = transaction.open_table(STATES).map_err(failed(doing))?;
            let mut sorted = records.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            for record in sorted {
                match record {
                    Record::Submitted(id) => {
                        if let Some((spec, _)) = scheduler.record(id) {
                            specs.insert(id.to_string().as_str(), json(id, spec)?.as_slice()).map_err(failed(doing))?;
                        }
                    }
                    Record::Changed(id) | Record::Noted(id) => {
                        if let Some((_, state)) = scheduler.record(id) {
                            states.insert(id.to_string().as_str(), json(id, state)?.as_slice()).map_err(failed(doing))?;
                        }
                    }
                    Record::Forgotten(id) => {
                        specs.remove(id.to_string().as_str()).map_err(failed(doing))?;
                        states.remove(id.to_string().as_str()).map_err(failed(doing))?;
                    }
                }
            }
            if records.iter().any(|r| matches!(r, Record::Submitted(_))) {
                let mut meta = transaction.open_table(META).map_err(failed(doing))?;
                meta.insert("next_number", scheduler.next_number()).map_err(failed(doing))?;
            }
        }
        transaction.commit().map_err(failed(doing))
    }

    /// Under which id a role's framework is known to the master.
    pub(crate) fn put_framework(&self, role: &Role, framework: &FrameworkId) -> Result<(), StoreError> {
        let doing = "writing a framework's id";
        let transaction = self.db.begin_write().map_err(failed(doing))?;
        {
            let mut frameworks = transaction.open_table(FRAMEWORKS).map_err(failed(doing))?;
            frameworks.insert(role.as_str(), framework.as_str()).map_err(failed(doing))?;
        }
        transaction.commit().map_err(failed(doing))
    }
}

fn json(id: JobId, value: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|source| StoreError::Json { job: id.to_string(), doing: "written", source })
}
