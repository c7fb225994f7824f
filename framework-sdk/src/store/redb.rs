//! A store in one file, by redb: a transaction is one fsync.

use super::{Rows, Store, StoreError, Writes};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use std::path::{Path, PathBuf};

/// Version of the file's layout; the versions of what lies in it are in the values.
const FORMAT: u64 = 1;
const FORMATS: TableDefinition<'_, &str, u64> = TableDefinition::new("smalti-store");
const KEY: &str = "format";

/// An open file. One process has it at a time.
#[derive(Debug)]
pub struct RedbStore {
    db: Database,
    path: PathBuf,
}

impl RedbStore {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// When it cannot be opened, another process has it, or a later build wrote it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        let failed = |e: redb::Error| StoreError::Open { path: path.clone(), source: Box::new(e) };
        let db = Database::create(&path).map_err(|e| failed(e.into()))?;
        let found = prepare(&db).map_err(failed)?;
        if found == FORMAT { Ok(Self { db, path }) } else { Err(StoreError::Format { path, found, expected: FORMAT }) }
    }

    /// The database itself: for what earlier builds of a framework left in it.
    #[must_use]
    pub const fn database(&self) -> &Database {
        &self.db
    }

    fn failed(&self, doing: &'static str) -> impl Fn(redb::Error) -> StoreError {
        move |source| StoreError::Use { doing, path: self.path.clone(), source: Box::new(source) }
    }
}

fn prepare(db: &Database) -> Result<u64, redb::Error> {
    let transaction = db.begin_write()?;
    let found = {
        let mut formats = transaction.open_table(FORMATS)?;
        let found = formats.get(KEY)?.map(|v| v.value());
        if found.is_none() {
            formats.insert(KEY, FORMAT)?;
        }
        found
    };
    match found {
        Some(_) => transaction.abort()?,
        None => transaction.commit()?,
    }
    Ok(found.unwrap_or(FORMAT))
}

fn read(db: &Database, table: &str) -> Result<Rows, redb::Error> {
    let table = match db.begin_read()?.open_table(TableDefinition::<&[u8], &[u8]>::new(table)) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    let mut all = Vec::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        all.push((key.value().to_vec(), value.value().to_vec()));
    }
    Ok(all)
}

fn commit(db: &Database, writes: &Writes) -> Result<(), redb::Error> {
    let transaction = db.begin_write()?;
    for (name, keys) in writes.tables() {
        let mut table = transaction.open_table(TableDefinition::<&[u8], &[u8]>::new(name))?;
        for (key, value) in keys {
            match value {
                Some(value) => table.insert(key.as_slice(), value.as_slice())?,
                None => table.remove(key.as_slice())?,
            };
        }
    }
    transaction.commit()?;
    Ok(())
}

impl Store for RedbStore {
    fn read(&self, table: &str) -> Result<Rows, StoreError> {
        read(&self.db, table).map_err(self.failed("read"))
    }

    fn commit(&self, writes: &Writes) -> Result<(), StoreError> {
        commit(&self.db, writes).map_err(self.failed("write"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_committed_is_there_after_opening_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let store = RedbStore::open(&path).unwrap();
        let mut writes = Writes::default();
        writes.put("b", "2", "two");
        writes.put("b", "1", "one");
        writes.put("a", "1", "other");
        writes.delete("b", "9");
        store.commit(&writes).unwrap();
        let busy = RedbStore::open(&path).unwrap_err();
        assert!(busy.to_string().contains("cannot open the store"), "{busy}");
        drop(store);
        let store = RedbStore::open(&path).unwrap();
        let pair = |k: &str, v: &str| (k.as_bytes().to_vec(), v.as_bytes().to_vec());
        assert_eq!(store.read("b").unwrap(), [pair("1", "one"), pair("2", "two")]);
        assert_eq!(store.read("none").unwrap(), []);
        let mut writes = Writes::default();
        writes.delete("b", "1");
        store.commit(&writes).unwrap();
        assert_eq!(store.read("b").unwrap(), [pair("2", "two")]);
    }

    #[test]
    fn a_file_of_a_later_build_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let store = RedbStore::open(&path).unwrap();
        let transaction = store.db.begin_write().unwrap();
        transaction.open_table(FORMATS).unwrap().insert(KEY, 9).unwrap();
        transaction.commit().unwrap();
        drop(store);
        let refused = RedbStore::open(&path).unwrap_err();
        assert!(refused.to_string().contains("has format 9, this build reads 1"), "{refused}");
    }
}
