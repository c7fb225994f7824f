//! The scheduler's memory on disk: one redb file, which it shares with the framework library.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `format` | number |
//! | `jobs/meta` | `next_number` | number |
//! | `jobs/specs` | job id | specification as JSON, written once |
//! | `jobs/states` | job id | state as JSON, written with every change |
//! | `framework/ROLE` | the library's | the library's: id, launches, which updates were taken |
//!
//! Owns names and formats of what the scheduler keeps. Writes nothing itself but the format: jobs are written by the library's
//! transactions, together with the updates that changed them. Knows nothing of what jobs mean.

use redb::{ReadableDatabase, ReadableTable, TableDefinition, TableError};
use smalti_framework_sdk::store::{RedbStore, Store as _, StoreError as FileError, Writes};
use smalti_scheduler_core::{JobId, JobSpec, JobState, Record, Scheduler};
use smalti_types::{FrameworkId, Role};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const NUMBERS: &str = "jobs/meta";
const NEXT_NUMBER: &str = "next_number";
const SPECS: &str = "jobs/specs";
const STATES: &str = "jobs/states";
/// Tables of format 1. Framework ids stay there: the library takes them as its first.
const OLD_SPECS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("specs");
const OLD_STATES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("states");
const OLD_FRAMEWORKS: TableDefinition<'_, &str, &str> = TableDefinition::new("frameworks");
/// Version of what is in the tables.
const FORMAT: u64 = 2;
/// Name of the file in the data directory.
const FILE: &str = "scheduler.redb";

/// What somebody can do about a store that says what cannot be.
const ADVICE: &str = "bring back a copy of the file, or move it away and start again: its jobs are then forgotten, and what runs of them is \
     killed when the fail-over time is over";

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("cannot use the data directory {}: {source}; name one that this user may write with --data-dir", dir.display())]
    Directory { dir: PathBuf, source: std::io::Error },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} has format {found}, this build reads {FORMAT} and before: use the build that wrote it, or a later one", path.display())]
    Format { path: PathBuf, found: u64 },
    #[error("{doing} in the scheduler's store: {source}")]
    Redb { doing: &'static str, source: Box<redb::Error> },
    #[error("job {job} in the scheduler's store cannot be {doing}: {source}; {ADVICE}")]
    Json { job: String, doing: &'static str, source: serde_json::Error },
    #[error("job {0} in the scheduler's store has no state; {ADVICE}")]
    NoState(String),
    #[error("the number of the next job in the scheduler's store cannot be read; {ADVICE}")]
    Number,
    #[error("the scheduler's store names an impossible id: {0}; {ADVICE}")]
    Id(#[from] smalti_types::id::IdError),
}

/// The open store.
pub(crate) struct Store {
    file: Arc<RedbStore>,
}

/// What a store had in it.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub(crate) next_number: u64,
    pub(crate) jobs: Vec<(JobSpec, JobState)>,
    /// Ids from before the library kept them.
    pub(crate) frameworks: BTreeMap<Role, FrameworkId>,
}

fn failed<E: Into<redb::Error>>(doing: &'static str) -> impl Fn(E) -> StoreError {
    move |e| StoreError::Redb { doing, source: Box::new(e.into()) }
}

/// Table of the library's records for the framework of a role.
pub(crate) fn framework_table(role: &Role) -> String {
    format!("framework/{role}")
}

impl Store {
    /// Opens or makes the store in `dir`; one of an earlier build is brought up to date.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let directory = |source| StoreError::Directory { dir: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(directory)?;
        let path = dir.join(FILE);
        let file = RedbStore::open(&path).map_err(|e| match e {
            FileError::Open { source, .. } if matches!(*source, redb::Error::Io(_)) => match *source {
                redb::Error::Io(source) => directory(source),
                source => FileError::Open { path: path.clone(), source: Box::new(source) }.into(),
            },
            e => e.into(),
        })?;
        match bring_up_to_date(&file)? {
            FORMAT => Ok(Self { file: Arc::new(file) }),
            found => Err(StoreError::Format { path, found }),
        }
    }

    /// For the library.
    pub(crate) fn shared(&self) -> Arc<RedbStore> {
        self.file.clone()
    }

    /// Waits until nobody else uses it, or `most` has gone by: a process that ends leaves nothing half done by then anyway.
    pub(crate) async fn released(self, most: Duration) {
        let alone = async {
            while Arc::strong_count(&self.file) > 1 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(most, alone).await.is_err() {
            tracing::warn!("a framework did not end in time; what it had not said is said by the next life");
        }
    }

    /// Everything.
    pub(crate) fn load(&self) -> Result<Stored, StoreError> {
        let mut stored = Stored { next_number: 1, ..Stored::default() };
        for (_, value) in self.file.read(NUMBERS)? {
            stored.next_number = value.try_into().map(u64::from_le_bytes).map_err(|_| StoreError::Number)?;
        }
        let mut states: BTreeMap<_, _> = self.file.read(STATES)?.into_iter().collect();
        for (id, spec) in self.file.read(SPECS)? {
            let json = |source| StoreError::Json { job: String::from_utf8_lossy(&id).into_owned(), doing: "read", source };
            // Specification and state are written in one transaction: one without the other cannot be, and no job is dropped silently.
            let state = states.remove(&id).ok_or_else(|| StoreError::NoState(String::from_utf8_lossy(&id).into_owned()))?;
            stored.jobs.push((serde_json::from_slice(&spec).map_err(json)?, serde_json::from_slice(&state).map_err(json)?));
        }
        let transaction = self.file.database().begin_read().map_err(failed("reading"))?;
        match transaction.open_table(OLD_FRAMEWORKS) {
            Err(TableError::TableDoesNotExist(_)) => {}
            Err(e) => return Err(failed("reading")(e)),
            Ok(frameworks) => {
                for entry in frameworks.iter().map_err(failed("reading"))? {
                    let (role, id) = entry.map_err(failed("reading"))?;
                    stored.frameworks.insert(Role::new(role.value())?, FrameworkId::new(id.value())?);
                }
            }
        }
        Ok(stored)
    }
}

/// Makes the tables of an earlier build those of this one, in one transaction. Returns the format.
fn bring_up_to_date(file: &RedbStore) -> Result<u64, StoreError> {
    let doing = "preparing the tables";
    let transaction = file.database().begin_write().map_err(failed(doing))?;
    let found = {
        let mut meta = transaction.open_table(META).map_err(failed(doing))?;
        let found = meta.get("format").map_err(failed(doing))?.map(|v| v.value());
        if found.is_none_or(|found| found < FORMAT) {
            meta.insert("format", FORMAT).map_err(failed(doing))?;
        }
        if found == Some(1) {
            let number = meta.remove(NEXT_NUMBER).map_err(failed(doing))?.map_or(1, |v| v.value());
            let mut numbers = transaction.open_table(table(NUMBERS)).map_err(failed(doing))?;
            numbers.insert(NEXT_NUMBER.as_bytes(), number.to_le_bytes().as_slice()).map_err(failed(doing))?;
            move_rows(&transaction, OLD_SPECS, SPECS).map_err(failed(doing))?;
            move_rows(&transaction, OLD_STATES, STATES).map_err(failed(doing))?;
        }
        found
    };
    if found == Some(FORMAT) {
        transaction.abort().map_err(failed(doing))?;
    } else {
        transaction.commit().map_err(failed(doing))?;
    }
    Ok(found.unwrap_or(FORMAT).max(FORMAT))
}

fn table(name: &str) -> TableDefinition<'_, &'static [u8], &'static [u8]> {
    TableDefinition::new(name)
}

fn move_rows(transaction: &redb::WriteTransaction, old: TableDefinition<'_, &str, &[u8]>, new: &str) -> Result<(), redb::Error> {
    {
        let (old, mut new) = (transaction.open_table(old)?, transaction.open_table(table(new))?);
        for entry in old.iter()? {
            let (id, value) = entry?;
            new.insert(id.value().as_bytes(), value.value())?;
        }
    }
    transaction.delete_table(old)?;
    Ok(())
}

/// What a batch of records writes; what they name is read from `scheduler`.
pub(crate) fn writes(scheduler: &Scheduler, records: &[Record]) -> Result<Writes, StoreError> {
    let mut writes = Writes::default();
    let mut sorted = records.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    for record in sorted {
        let (Record::Submitted(id) | Record::Changed(id) | Record::Noted(id) | Record::Forgotten(id)) = record;
        let key = id.to_string();
        match (record, scheduler.record(id)) {
            (Record::Submitted(_), Some((spec, _))) => {
                writes.put(SPECS, key, json(id, spec)?);
                writes.put(NUMBERS, NEXT_NUMBER, scheduler.next_number().to_le_bytes());
            }
            (Record::Changed(_) | Record::Noted(_), Some((_, state))) => writes.put(STATES, key, json(id, state)?),
            (Record::Forgotten(_), _) => {
                writes.delete(SPECS, key.clone());
                writes.delete(STATES, key);
            }
            (_, None) => {}
        }
    }
    Ok(writes)
}

fn json(id: JobId, value: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|source| StoreError::Json { job: id.to_string(), doing: "written", source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_scheduler_core::{Event, Policy, SingleSpec, Work};
    use smalti_types::{BundleRef, Bytes, Digest, MilliCpus, Resources, TaskSpec, Time};

    fn scheduler() -> (Scheduler, JobId) {
        let id = JobId::new(1, 0);
        let spec = TaskSpec::new(BundleRef { digest: Digest::of(b"x"), uri: None });
        let single = SingleSpec { spec, resources: Resources::new(MilliCpus(100), Bytes::mib(1)), ports: 0 };
        let spec = JobSpec {
            id,
            request: "r".into(),
            name: "n".into(),
            role: Role::default(),
            policy: Policy::default(),
            work: Work::Single(Box::new(single)),
            output_store: None,
        };
        let mut scheduler = Scheduler::new();
        let _ = scheduler.step(Time(1), Event::Submit(Arc::new(spec)));
        (scheduler, id)
    }

    #[test]
    fn what_an_earlier_build_kept_is_taken_over_and_what_a_later_one_kept_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (scheduler, id) = scheduler();
        let (spec, state) = scheduler.record(id).unwrap();
        let db = redb::Database::create(dir.path().join(FILE)).unwrap();
        let transaction = db.begin_write().unwrap();
        {
            let key = id.to_string();
            let mut meta = transaction.open_table(META).unwrap();
            meta.insert("format", 1).unwrap();
            meta.insert(NEXT_NUMBER, 7).unwrap();
            transaction.open_table(OLD_SPECS).unwrap().insert(key.as_str(), serde_json::to_vec(spec).unwrap().as_slice()).unwrap();
            transaction.open_table(OLD_STATES).unwrap().insert(key.as_str(), serde_json::to_vec(state).unwrap().as_slice()).unwrap();
            transaction.open_table(OLD_FRAMEWORKS).unwrap().insert("default", "F1-1").unwrap();
        }
        transaction.commit().unwrap();
        drop(db);
        for _ in 0..2 {
            let stored = Store::open(dir.path()).unwrap().load().unwrap();
            assert_eq!((stored.next_number, stored.jobs.len()), (7, 1));
            assert_eq!(stored.jobs[0], (spec.clone(), state.clone()));
            assert_eq!(stored.frameworks[&Role::default()].as_str(), "F1-1");
        }
        let db = redb::Database::open(dir.path().join(FILE)).unwrap();
        let transaction = db.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("format", 3).unwrap();
        transaction.commit().unwrap();
        drop(db);
        let refused = Store::open(dir.path()).err().unwrap().to_string();
        assert!(refused.contains("has format 3, this build reads 2"), "{refused}");
    }

    #[test]
    fn a_store_of_the_build_before_numbers_is_read() {
        use std::io::Read;
        let dir = tempfile::tempdir().unwrap();
        let packed: &[u8] = include_bytes!("../../tests/fixtures/formats-1/scheduler.redb.gz");
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
        std::fs::write(dir.path().join(FILE), bytes).unwrap();
        let stored = Store::open(dir.path()).unwrap().load().unwrap();
        assert_eq!((stored.next_number, stored.jobs.len()), (7, 6));
        let exclusive = |spec: &JobSpec| matches!(&spec.work, Work::Single(single) if single.spec.exclusive);
        let of_process = |spec: &JobSpec| match &spec.work {
            Work::Single(single) => single.spec.isolation == smalti_types::Isolation::Process,
            Work::Map(map) => map.template.spec.isolation == smalti_types::Isolation::Process,
        };
        let counts = [exclusive, of_process].map(|is| stored.jobs.iter().filter(|(spec, _)| is(spec)).count());
        assert_eq!(counts, [2, 3]);
        assert!(stored.jobs.iter().all(|(_, state)| state.outcome.is_none() && state.framework.is_some()));
        let written: Vec<_> = stored.jobs.iter().map(|(s, t)| (serde_json::to_vec(s).unwrap(), serde_json::to_vec(t).unwrap())).collect();
        let read = written.iter().map(|(s, t)| (serde_json::from_slice(s).unwrap(), serde_json::from_slice(t).unwrap()));
        assert_eq!(read.collect::<Vec<(JobSpec, JobState)>>(), stored.jobs, "nothing of it is lost by writing it again");
    }

    #[test]
    fn a_store_that_lost_a_part_of_a_job_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (scheduler, id) = scheduler();
        store.file.commit(&writes(&scheduler, &[Record::Submitted(id), Record::Changed(id)]).unwrap()).unwrap();
        let mut damage = Writes::default();
        damage.delete(STATES, id.to_string());
        store.file.commit(&damage).unwrap();
        let refused = store.load().unwrap_err().to_string();
        assert!(refused.contains(&format!("job {id}")) && refused.contains("has no state; bring back a copy"), "{refused}");
        damage.put(STATES, id.to_string(), "{");
        store.file.commit(&damage).unwrap();
        assert!(store.load().unwrap_err().to_string().contains("bring back a copy"));
        drop(store);
        std::fs::write(dir.path().join(FILE), "").unwrap();
        let refused = Store::open(dir.path()).err().unwrap().to_string();
        assert!(refused.contains("is damaged: it is empty") && refused.contains("move it away"), "{refused}");
    }

    #[test]
    fn records_become_rows_and_go_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (scheduler, id) = scheduler();
        let records = [Record::Submitted(id), Record::Changed(id), Record::Noted(id)];
        store.file.commit(&writes(&scheduler, &records).unwrap()).unwrap();
        let stored = store.load().unwrap();
        assert_eq!((stored.next_number, stored.jobs.len()), (2, 1));
        store.file.commit(&writes(&scheduler, &[Record::Forgotten(id)]).unwrap()).unwrap();
        let stored = store.load().unwrap();
        assert_eq!((stored.next_number, stored.jobs.len()), (2, 0));
    }
}
