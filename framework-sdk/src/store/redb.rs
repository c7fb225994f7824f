//! A store in one redb file, with a journal beside it: a transaction is one write and one fsync there, and the database follows.
//!
//! Owns which of the two has what: numbers up to [`APPLIED`] are in the database, later ones in the journal. Whoever reads gets both. When
//! the store is closed, the database has everything. What cannot be what was written is refused with what to do about it: an empty file is
//! none that this library made, and what is in one is looked through once before anything is believed.

use super::journal::{self, Damage, Journal};
use super::{Rows, Store, StoreError, Writes};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Version of the file's layout; the versions of what lies in it are in the values. 2: with a journal.
const FORMAT: u64 = 2;
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("smalti-store");
const KEY: &str = "format";
/// Number of the last transaction that the database has.
const APPLIED: &str = "applied";
/// Names the journal that belongs to the database as it is; 0: none, for it has everything.
const JOURNAL: &str = "journal";

/// An open file. One process has it at a time.
#[derive(Debug)]
pub struct RedbStore {
    shared: Arc<Shared>,
    state: Mutex<State>,
    /// Gives filled areas to the thread that brings the database up to date; one of them waits at most.
    filled: Option<SyncSender<Area>>,
    applier: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    db: Database,
    path: PathBuf,
    /// Number of the last transaction in the database, or why it could not follow.
    applied: Mutex<Result<u64, String>>,
    moved_on: std::sync::Condvar,
}

#[derive(Debug)]
struct State {
    journal: Journal,
    /// What the present area of the journal holds.
    area: Writes,
    /// Number of the last transaction of the other area.
    other: u64,
}

/// What a filled area holds, up to which number.
type Area = (u64, Writes);

impl RedbStore {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// When it cannot be opened, another process has it, a later build wrote it, it is damaged, or its journal is missing or damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        let failed = |e: redb::Error| StoreError::Open { path: path.clone(), source: Box::new(e) };
        let (db, meta) = open_whole(&path)?;
        if meta.format != FORMAT {
            return Err(StoreError::Format { path, found: meta.format, expected: FORMAT });
        }
        let journal_path = journal_path(&path);
        let io = |source| StoreError::Journal { path: journal_path.clone(), source };
        let mut applied = meta.applied;
        if meta.journal != 0 {
            let frames = journal::read(&journal_path, meta.journal, applied).map_err(io)?;
            let frames = frames.map_err(|damage| StoreError::JournalDamaged { path: journal_path.clone(), what: damage.to_string() })?;
            let mut late = Writes::default();
            for (number, writes) in frames {
                applied = number;
                late.extend(writes);
            }
            apply(&db, &late, applied, None).map_err(failed)?;
        }
        let id = SystemTime::UNIX_EPOCH.elapsed().map_or(1, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX)).max(1);
        let journal = Journal::open(&journal_path, id, applied + 1).map_err(io)?;
        apply(&db, &Writes::default(), applied, Some(id)).map_err(failed)?;
        let shared = Arc::new(Shared { db, path, applied: Mutex::new(Ok(applied)), moved_on: std::sync::Condvar::new() });
        let (filled, areas) = sync_channel(1);
        let applier = std::thread::Builder::new().name("store".into()).spawn({
            let shared = shared.clone();
            move || shared.follow(&areas)
        });
        let state = Mutex::new(State { journal, area: Writes::default(), other: applied });
        Ok(Self { shared, state, filled: Some(filled), applier: Some(applier.map_err(io)?) })
    }

    /// The database itself: for what earlier builds of a framework left in it.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.shared.db
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database has everything afterwards.
    fn settle(&self, state: &mut State, journal: Option<u64>) -> Result<(), StoreError> {
        self.shared.wait_for(state.other)?;
        let last = state.journal.last();
        let area = std::mem::take(&mut state.area);
        if !area.is_empty() || journal.is_some() {
            apply(&self.shared.db, &area, last, journal).map_err(self.shared.failed("write"))?;
        }
        self.shared.has_applied(Ok(last));
        // Nothing in the journal counts any more.
        state.journal.turn();
        state.other = last;
        Ok(())
    }

    /// The other area's turn: its last transactions are in the database when this returns, and this one's will be.
    fn turn(&self, state: &mut State) -> Result<(), StoreError> {
        self.shared.wait_for(state.other)?;
        let area = (state.journal.last(), std::mem::take(&mut state.area));
        state.other = area.0;
        state.journal.turn();
        if let Some(filled) = &self.filled
            && filled.send(area).is_ok()
        {
            return Ok(());
        }
        Err(self.shared.not_followed("the thread that writes it has ended".into()))
    }
}

impl Shared {
    fn failed(&self, doing: &'static str) -> impl Fn(redb::Error) -> StoreError {
        move |source| StoreError::Use { doing, path: self.path.clone(), source: Box::new(source) }
    }

    fn not_followed(&self, why: String) -> StoreError {
        let source = redb::Error::Io(std::io::Error::other(why));
        StoreError::Use { doing: "write", path: self.path.clone(), source: Box::new(source) }
    }

    fn follow(&self, areas: &Receiver<Area>) {
        while let Ok((number, writes)) = areas.recv() {
            let applied = apply(&self.db, &writes, number, None).map(|()| number).map_err(|e| e.to_string());
            let failed = applied.is_err();
            self.has_applied(applied);
            if failed {
                return;
            }
        }
    }

    fn has_applied(&self, applied: Result<u64, String>) {
        *self.applied.lock().unwrap_or_else(PoisonError::into_inner) = applied;
        self.moved_on.notify_all();
    }

    fn wait_for(&self, number: u64) -> Result<(), StoreError> {
        let applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |applied: &mut Result<u64, String>| applied.as_ref().is_ok_and(|n| *n < number);
        let applied = self.moved_on.wait_while(applied, waits).unwrap_or_else(PoisonError::into_inner);
        applied.as_ref().map(|_| ()).map_err(|why| self.not_followed(why.clone()))
    }
}

impl Store for RedbStore {
    fn read(&self, table: &str) -> Result<Rows, StoreError> {
        self.settle(&mut self.lock(), None)?;
        read(&self.shared.db, table).map_err(self.shared.failed("read"))
    }

    fn commit(&self, writes: &Writes) -> Result<(), StoreError> {
        let io = |source| StoreError::Journal { path: journal_path(&self.shared.path), source };
        let mut state = self.lock();
        let mut written = state.journal.append(writes).map_err(io)?;
        if !written {
            self.turn(&mut state)?;
            written = state.journal.append(writes).map_err(io)?;
        }
        if written {
            state.area.extend(writes.clone());
            return Ok(());
        }
        // Larger than an area: the database takes it at once.
        self.settle(&mut state, None)?;
        apply(&self.shared.db, writes, state.journal.last(), None).map_err(self.shared.failed("write"))
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        let settled = self.settle(&mut self.lock(), Some(0));
        drop(self.filled.take());
        if let Some(applier) = self.applier.take() {
            let _ = applier.join();
        }
        if let Err(e) = settled {
            tracing::error!("the store's journal keeps what the database does not have yet: {e}");
        }
    }
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Other => f.write_str("it is not there, or not the one that was written last"),
            Self::At(at) => write!(f, "at byte {at}, before what was written later"),
        }
    }
}

fn journal_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".journal");
    name.into()
}

/// The database, which is there and whole, or new.
fn open_whole(path: &Path) -> Result<(Database, Meta), StoreError> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() == 0 => return Err(StoreError::Damaged { path: path.to_owned(), cause: "it is empty".to_owned() }),
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => make(path).map_err(|e| wrong(path, e))?,
        Err(e) => return Err(wrong(path, e.into())),
    }
    let whole = || -> Result<(Database, Meta), redb::Error> {
        let mut db = Database::open(path)?;
        if !db.check_integrity()? {
            tracing::warn!(path = %path.display(), "the store was not closed properly and has been put in order; nothing is lost");
        }
        let meta = prepare(&db)?;
        Ok((db, meta))
    };
    // The library takes it for granted that what it reads is what it wrote, and panics where it is not.
    let opened = catch_unwind(AssertUnwindSafe(whole));
    let Ok(opened) = opened else {
        return Err(StoreError::Damaged { path: path.to_owned(), cause: "its pages make no sense".to_owned() });
    };
    opened.map_err(|e| wrong(path, e))
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

/// What a file says about itself.
#[derive(Debug, Clone, Copy)]
struct Meta {
    format: u64,
    applied: u64,
    journal: u64,
}

fn prepare(db: &Database) -> Result<Meta, redb::Error> {
    let transaction = db.begin_write()?;
    let (meta, is_new) = {
        let mut table = transaction.open_table(META)?;
        let get = |key, or| table.get(key).map(|v| v.map_or(or, |v| v.value()));
        let found = get(KEY, 0)?;
        let meta = Meta { format: found.max(FORMAT), applied: get(APPLIED, 0)?, journal: get(JOURNAL, 0)? };
        if found < FORMAT {
            table.insert(KEY, FORMAT)?;
        }
        (meta, found < FORMAT)
    };
    if is_new {
        transaction.commit()?
    } else {
        transaction.abort()?
    }
    Ok(meta)
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

/// All transactions up to this number, durable when it returns; and which journal counts from then on.
fn apply(db: &Database, writes: &Writes, number: u64, journal: Option<u64>) -> Result<(), redb::Error> {
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
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(APPLIED, number)?;
        if let Some(id) = journal {
            meta.insert(JOURNAL, id)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(k: &str, v: &str) -> (Vec<u8>, Vec<u8>) {
        (k.as_bytes().to_vec(), v.as_bytes().to_vec())
    }

    fn put(store: &RedbStore, key: &str, value: &str) {
        let mut writes = Writes::default();
        writes.put("b", key, value);
        store.commit(&writes).unwrap();
    }

    /// As a crash leaves it: the files as they are now.
    fn copy_of(path: &Path, name: &str) -> PathBuf {
        let to = path.with_file_name(name);
        std::fs::copy(path, &to).unwrap();
        std::fs::copy(journal_path(path), journal_path(&to)).unwrap();
        to
    }

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
        assert_eq!(store.read("b").unwrap(), [pair("1", "one"), pair("2", "two")]);
        assert_eq!(store.read("none").unwrap(), []);
        let mut writes = Writes::default();
        writes.delete("b", "1");
        store.commit(&writes).unwrap();
        assert_eq!(store.read("b").unwrap(), [pair("2", "two")]);
    }

    #[test]
    fn a_crash_at_any_time_loses_nothing_that_was_committed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let store = RedbStore::open(&path).unwrap();
        // A dozen turns of the areas, and what is larger than one.
        let value = "v".repeat(10_000);
        let mut last = 0;
        for n in 0..3_000 {
            put(&store, &format!("{:03}", n % 500), &format!("{n} {value}"));
            last = n;
            if n % 977 == 0 || n == 1_500 {
                // A copy of a database that is being written would be none of any moment.
                store.shared.wait_for(store.lock().other).unwrap();
                let copy = RedbStore::open(copy_of(&path, "copy.redb")).unwrap();
                let rows = copy.read("b").unwrap();
                assert_eq!(rows.len(), usize::min(n + 1, 500) + usize::from(n > 1_500), "{n}");
                let (_, newest) = rows.iter().find(|(k, _)| k == format!("{:03}", n % 500).as_bytes()).unwrap();
                assert!(newest.starts_with(format!("{n} ").as_bytes()));
            }
            if n == 1_500 {
                put(&store, "large", &"l".repeat(5 << 20));
            }
        }
        let rows = store.read("b").unwrap();
        assert_eq!(rows.len(), 501);
        assert!(rows.iter().any(|(k, v)| k == format!("{:03}", last % 500).as_bytes() && v.starts_with(format!("{last} ").as_bytes())));
    }

    #[test]
    fn after_a_close_the_database_alone_is_enough_and_before_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let store = RedbStore::open(&path).unwrap();
        put(&store, "k", "v");
        let copy = copy_of(&path, "copy.redb");
        drop(store);
        std::fs::remove_file(journal_path(&path)).unwrap();
        assert_eq!(RedbStore::open(&path).unwrap().read("b").unwrap(), [pair("k", "v")]);

        let journal = std::fs::read(journal_path(&copy)).unwrap();
        std::fs::remove_file(journal_path(&copy)).unwrap();
        let refused = RedbStore::open(&copy).unwrap_err().to_string();
        assert!(refused.contains("copy.redb.journal") && refused.contains("not there"), "{refused}");
        std::fs::write(journal_path(&copy), &journal).unwrap();
        assert_eq!(RedbStore::open(&copy).unwrap().read("b").unwrap(), [pair("k", "v")]);
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
    fn a_file_of_the_build_before_is_read_and_one_of_a_later_build_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let format = |n| {
            let db = Database::create(&path).unwrap();
            let transaction = db.begin_write().unwrap();
            transaction.open_table(META).unwrap().insert(KEY, n).unwrap();
            transaction.open_table(TableDefinition::<&[u8], &[u8]>::new("b")).unwrap().insert(b"k".as_slice(), b"v".as_slice()).unwrap();
            transaction.commit().unwrap();
        };
        format(1);
        assert_eq!(RedbStore::open(&path).unwrap().read("b").unwrap(), [pair("k", "v")]);
        format(9);
        let refused = RedbStore::open(&path).unwrap_err();
        assert!(refused.to_string().contains("has format 9, this build reads 2"), "{refused}");
    }
}
