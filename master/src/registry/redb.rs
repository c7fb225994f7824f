//! The registry in one redb file, fsynced with every transaction.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `format`, `epoch`, `lease_span_ms` | numbers |
//! | `agents`, `frameworks`, `removed` | id | a record of `smalti_proto::registry`, which says its own format |

use super::{Registry, RegistryError};
use ::redb::{Database, DatabaseError, Error, ReadableDatabase, ReadableTable, StorageError, TableDefinition, WriteTransaction};
use smalti_master_core::{Record, Stored, StoredFramework};
use smalti_proto::registry::{self as records, RecordError};
use smalti_types::{AgentId, DurationMs, FrameworkId, MasterEpoch};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const AGENTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("agents");
const FRAMEWORKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("frameworks");
const REMOVED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("removed");
/// Which tables there are and what their keys mean.
const FORMAT: u64 = 1;
/// Bytes of the file kept in memory: it is read once, and then only written.
const CACHE: usize = 16 << 20;

/// An open file.
#[derive(Debug)]
pub(crate) struct File {
    path: PathBuf,
    db: Database,
}

impl File {
    /// Opens the file or makes it, and reads all of it once to see that it is whole.
    pub(crate) fn open(path: &Path) -> Result<Self, RegistryError> {
        match std::fs::metadata(path) {
            Ok(meta) if meta.len() == 0 => return Err(RegistryError::Damaged { path: path.to_owned(), cause: "it is empty".to_owned() }),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Self::make(path)?,
            Err(cause) => return Err(RegistryError::Io { doing: "open", path: path.to_owned(), cause }),
        }
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE);
        Self::check(path, || builder.open(path))
    }

    /// Makes a new file under another name and moves it into place, so that a file which is there is never half made.
    fn make(path: &Path) -> Result<(), RegistryError> {
        let fail = |cause| RegistryError::Io { doing: "make", path: path.to_owned(), cause };
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        match std::fs::remove_file(&fresh) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(fail(e)),
            _ => {}
        }
        drop(Self::check(&fresh, || Database::builder().create(&fresh))?);
        std::fs::rename(&fresh, path).map_err(fail)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(fail)
    }

    /// The same over something else than a file.
    #[cfg(test)]
    fn over(backend: impl ::redb::StorageBackend) -> Result<Self, RegistryError> {
        Self::check(Path::new("backend"), || Database::builder().create_with_backend(backend))
    }

    fn check(path: &Path, open: impl FnOnce() -> Result<Database, DatabaseError>) -> Result<Self, RegistryError> {
        let whole = || -> Result<Database, Error> {
            let mut db = open()?;
            if !db.check_integrity()? {
                tracing::warn!(path = %path.display(), "the registry was not closed properly and has been put in order; nothing is lost");
            }
            Ok(db)
        };
        // The library takes it for granted that what it reads is what it wrote, and panics where it is not.
        let opened = catch_unwind(AssertUnwindSafe(whole));
        let damaged = |cause: &str| RegistryError::Damaged { path: path.to_owned(), cause: cause.to_owned() };
        let db = opened.map_err(|_| damaged("its pages make no sense"))?.map_err(|e| wrong(path, "open", e))?;
        let this = Self { path: path.to_owned(), db };
        match this.prepare()? {
            FORMAT => Ok(this),
            found if found > FORMAT => {
                Err(RegistryError::Later { what: "what is".to_owned(), path: path.to_owned(), found, known: FORMAT })
            }
            _ => Err(damaged("it says that it has format 0, which there never was")),
        }
    }

    /// Makes the tables of a new file; gives the format of an old one, untouched.
    fn prepare(&self) -> Result<u64, RegistryError> {
        self.within("prepare", |transaction| {
            let mut meta = transaction.open_table(META)?;
            let found = meta.get("format")?.map(|v| v.value());
            if found.is_none() {
                meta.insert("format", FORMAT)?;
            }
            if found.is_none_or(|found| found == FORMAT) {
                drop((transaction.open_table(AGENTS)?, transaction.open_table(FRAMEWORKS)?, transaction.open_table(REMOVED)?));
            }
            Ok(found.unwrap_or(FORMAT))
        })
    }

    /// One transaction.
    fn within<T>(&self, doing: &'static str, change: impl FnOnce(&WriteTransaction) -> Result<T, Error>) -> Result<T, RegistryError> {
        let run = || -> Result<T, Error> {
            let transaction = self.db.begin_write()?;
            let done = change(&transaction)?;
            transaction.commit()?;
            Ok(done)
        };
        run().map_err(|e| wrong(&self.path, doing, e))
    }

    fn each(
        &self,
        table: TableDefinition<'_, &'static str, &'static [u8]>,
        mut take: impl FnMut(&str, &[u8]) -> Result<(), RecordError>,
    ) -> Result<(), RegistryError> {
        let mut bad = None;
        let mut run = || -> Result<(), Error> {
            for entry in self.db.begin_read()?.open_table(table)?.iter()? {
                let (id, record) = entry?;
                if let Err(problem) = take(id.value(), record.value()) {
                    bad = Some((id.value().to_owned(), problem));
                    break;
                }
            }
            Ok(())
        };
        run().map_err(|e| wrong(&self.path, "read", e))?;
        let path = self.path.clone();
        match bad {
            None => Ok(()),
            Some((id, RecordError::Later { found })) => {
                let (found, known) = (found.into(), records::FORMAT.into());
                Err(RegistryError::Later { what: format!("the record of {id}"), path, found, known })
            }
            Some((id, problem)) => Err(RegistryError::Damaged { path, cause: format!("the record of {id} {problem}") }),
        }
    }
}

/// What the library says, in our words.
fn wrong(path: &Path, doing: &'static str, error: Error) -> RegistryError {
    let path = path.to_owned();
    match error {
        Error::DatabaseAlreadyOpen => RegistryError::InUse(path),
        Error::Io(cause) if cause.kind() == std::io::ErrorKind::InvalidData || cause.kind() == std::io::ErrorKind::UnexpectedEof => {
            RegistryError::Damaged { path, cause: cause.to_string() }
        }
        Error::Io(cause) => RegistryError::Io { doing, path, cause },
        Error::PreviousIo => RegistryError::Io { doing, path, cause: std::io::Error::other(StorageError::PreviousIo) },
        other => RegistryError::Damaged { path, cause: other.to_string() },
    }
}

impl Registry for File {
    fn load(&mut self) -> Result<Stored, RegistryError> {
        let lease_span = self.within("read", |transaction| Ok(transaction.open_table(META)?.get("lease_span_ms")?.map(|v| v.value())))?;
        let mut stored = Stored { lease_span: lease_span.map(DurationMs), ..Stored::default() };
        let name = |problem: smalti_types::id::IdError| RecordError::Garbage(problem.to_string());
        self.each(AGENTS, |id, bytes| {
            let (id, info) = (AgentId::new(id).map_err(name)?, records::read_agent(bytes)?);
            if info.id != id {
                return Err(RecordError::Garbage(format!("it is that of agent {}", info.id)));
            }
            stored.agents.insert(id, info);
            Ok(())
        })?;
        self.each(FRAMEWORKS, |id, bytes| {
            let (info, claim, away_until) = records::read_framework(bytes)?;
            stored.frameworks.insert(FrameworkId::new(id).map_err(name)?, StoredFramework { info, claim, away_until });
            Ok(())
        })?;
        self.each(REMOVED, |id, bytes| {
            stored.removed.insert(FrameworkId::new(id).map_err(name)?, records::read_removed(bytes)?);
            Ok(())
        })?;
        Ok(stored)
    }

    fn next_epoch(&mut self, floor: MasterEpoch) -> Result<MasterEpoch, RegistryError> {
        self.within("write to", |transaction| {
            let mut meta = transaction.open_table(META)?;
            let last = meta.get("epoch")?.map_or(0, |v| v.value());
            let epoch = floor.0.max(last.saturating_add(1));
            meta.insert("epoch", epoch)?;
            Ok(MasterEpoch(epoch))
        })
    }

    fn write(&mut self, batch: Vec<Record>) -> Result<(), RegistryError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.within("write to", |transaction| {
            let mut agents = transaction.open_table(AGENTS)?;
            let mut frameworks = transaction.open_table(FRAMEWORKS)?;
            let mut removed = transaction.open_table(REMOVED)?;
            for record in batch {
                match record {
                    Record::Agent(info) => {
                        let id = info.id.clone();
                        agents.insert(id.as_str(), records::write_agent(info).as_slice())?;
                    }
                    Record::AgentRemoved(id) => drop(agents.remove(id.as_str())?),
                    Record::Framework { id, info, claim, away_until } => {
                        removed.remove(id.as_str())?;
                        frameworks.insert(id.as_str(), records::write_framework(info, claim, away_until).as_slice())?;
                    }
                    Record::FrameworkRemoved { id, at } => {
                        frameworks.remove(id.as_str())?;
                        removed.insert(id.as_str(), records::write_removed(at).as_slice())?;
                    }
                    Record::FrameworkForgotten(id) => drop(removed.remove(id.as_str())?),
                    Record::LeaseSpan(span) => drop(transaction.open_table(META)?.insert("lease_span_ms", span.0)?),
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
