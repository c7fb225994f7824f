//! A store in one file, by redb: a transaction is one fsync.
//!
//! What cannot be what was written is refused with what to do about it: an empty file is none that this library made, and what is in one is
//! looked through once before anything is believed.

use super::{Rows, Store, StoreError, Writes};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use std::panic::{AssertUnwindSafe, catch_unwind};
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
    /// When it cannot be opened, another process has it, a later build wrote it, or it is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        let io = |e: std::io::Error| wrong(&path, e.into());
        match std::fs::metadata(&path) {
            Ok(meta) if meta.len() == 0 => return Err(StoreError::Damaged { path, cause: "it is empty".to_owned() }),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => make(&path).map_err(|e| wrong(&path, e))?,
            Err(e) => return Err(io(e)),
        }
        let whole = || -> Result<(Database, u64), redb::Error> {
            let mut db = Database::open(&path)?;
            if !db.check_integrity()? {
                tracing::warn!(path = %path.display(), "the store was not closed properly and has been put in order; nothing is lost");
            }
            let found = prepare(&db)?;
            Ok((db, found))
        };
        // The library takes it for granted that what it reads is what it wrote, and panics where it is not.
        let opened = catch_unwind(AssertUnwindSafe(whole));
        let Ok(opened) = opened else { return Err(StoreError::Damaged { path, cause: "its pages make no sense".to_owned() }) };
        let (db, found) = opened.map_err(|e| wrong(&path, e))?;
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

/// Makes a new file under another name and moves it into place, so that a file which is there is never half made.
fn make(path: &Path) -> Result<(), redb::Error> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    match std::fs::remove_file(&fresh) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    prepare(&Database::create(&fresh)?)?;
    std::fs::rename(&fresh, path)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(std::fs::File::open(dir)?.sync_all()?)
}

/// What the library says when it opens a file, in our words.
fn wrong(path: &Path, error: redb::Error) -> StoreError {
    let path = path.to_owned();
    match error {
        redb::Error::Io(e) if matches!(e.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof) => {
            StoreError::Damaged { path, cause: e.to_string() }
        }
        source @ (redb::Error::Io(_) | redb::Error::DatabaseAlreadyOpen | redb::Error::PreviousIo) => {
            StoreError::Open { path, source: Box::new(source) }
        }
        other => StoreError::Damaged { path, cause: other.to_string() },
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
    fn a_file_that_was_damaged_is_refused_with_instructions_however_often_it_is_tried() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let mut writes = Writes::default();
        (0..500).for_each(|n| writes.put("jobs", format!("k{n}"), format!("value-{n}-of-it")));
        RedbStore::open(&path).unwrap().commit(&writes).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8], what: &str| {
            std::fs::write(&path, bytes).unwrap();
            for _ in 0..2 {
                let opened = RedbStore::open(&path);
                let Err(error @ StoreError::Damaged { .. }) = opened else { panic!("{what}: {opened:?}") };
                let text = error.to_string();
                assert!(text.contains("store.redb") && text.contains("move it away") && !text.contains('\n'), "{text}");
            }
        };
        refused(b"this is not a database at all, whatever its name says", "garbage");
        refused(b"", "empty");
        refused(&whole[..whole.len() / 3], "cut off");
        let mut magic = whole.clone();
        magic[0] ^= 1;
        refused(&magic, "wrong magic");
        // Every occurrence of one value: a page that is in use is among them.
        let mut flipped = whole.clone();
        for at in 0..flipped.len() - 9 {
            if &flipped[at..at + 9] == b"value-250" {
                flipped[at] ^= 1;
            }
        }
        assert_ne!(flipped, whole);
        refused(&flipped, "one letter changed");
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(RedbStore::open(&path).unwrap().read("jobs").unwrap().len(), 500);
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
