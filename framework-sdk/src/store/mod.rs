//! Where a framework keeps what it must not forget: the library's own records and, in the same transaction, its handler's.
//!
//! Owns the shape: tables of keys and values, and transactions that are durable when they return. What the library keeps
//! is `smalti-framework-sdk-core`'s affair, what a handler keeps is its own.

mod journal;
mod memory;
mod redb;

pub use memory::MemoryStore;
pub use redb::RedbStore;

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What one transaction writes: the last word on each key counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Writes {
    tables: BTreeMap<String, BTreeMap<Vec<u8>, Option<Vec<u8>>>>,
}

impl Writes {
    /// Gives a key a value.
    pub fn put(&mut self, table: &str, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.set(table, key.into(), Some(value.into()));
    }

    /// Removes a key; it need not be there.
    pub fn delete(&mut self, table: &str, key: impl Into<Vec<u8>>) {
        self.set(table, key.into(), None);
    }

    /// A value, or none.
    pub(crate) fn set(&mut self, table: &str, key: Vec<u8>, value: Option<Vec<u8>>) {
        match self.tables.get_mut(table) {
            Some(keys) => keys.insert(key, value),
            None => self.tables.entry(table.to_owned()).or_default().insert(key, value),
        };
    }

    /// Adds what comes later.
    pub fn extend(&mut self, later: Self) {
        for (table, keys) in later.tables {
            self.tables.entry(table).or_default().extend(keys);
        }
    }

    /// Whether nothing is written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tables.values().all(BTreeMap::is_empty)
    }

    /// By table, then by key; `None` removes the key.
    pub fn tables(&self) -> impl Iterator<Item = (&str, &BTreeMap<Vec<u8>, Option<Vec<u8>>>)> {
        self.tables.iter().map(|(table, keys)| (table.as_str(), keys))
    }
}

/// The rows of a table, in the order of their keys.
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// Keys and values in tables, kept from one life of a process to the next.
pub trait Store: std::fmt::Debug + Send + Sync {
    /// All of a table in the order of its keys; nothing when there is no such table.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, table: &str) -> Result<Rows, StoreError>;

    /// All of `writes` or nothing, durable when it returns.
    ///
    /// # Errors
    /// When it is not known to be durable. The process must then stop: what cannot be kept must not be told.
    fn commit(&self, writes: &Writes) -> Result<(), StoreError>;
}

/// What went wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or made.
    #[error("cannot open the store {}: {source}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// What the store says.
        source: Box<::redb::Error>,
    },
    /// Another build wrote it.
    #[error("the store {} has format {found}, this build reads {expected}: use the build that wrote it, or a later one", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// The version of what is in it.
        found: u64,
        /// The version that this build reads.
        expected: u64,
    },
    /// It cannot be what was written.
    #[error(
        "the store {} is damaged: {cause}; bring back a copy of it, or move it away and start again: that is then another framework, and \
         the tasks of this one are killed when its fail-over time is over",
        path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A table cannot be read or written.
    #[error("cannot {doing} the store {}: {source}; is the disk full or failing?", path.display())]
    Use {
        /// `read` or `write`.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the store says.
        source: Box<::redb::Error>,
    },
    /// The file beside it, where transactions are durable first.
    #[error("cannot use the store's journal {}: {source}; is the disk full or failing?", path.display())]
    Journal {
        /// Which file.
        path: PathBuf,
        /// What the disk says.
        source: std::io::Error,
    },
    /// What was committed last cannot be read.
    #[error(
        "the store's journal {} is damaged: {what}. Transactions that it had would be lost in silence: restore it together with the store, \
         or move both away and begin anew",
        path.display()
    )]
    JournalDamaged {
        /// Which file.
        path: PathBuf,
        /// In which way.
        what: String,
    },
    /// A value is not what was written.
    #[error(
        "a record in table `{table}` of the store cannot be read: {reason}; start the build that wrote it, or bring back a copy of the store"
    )]
    Record {
        /// In which table.
        table: String,
        /// What is wrong with it.
        reason: String,
    },
}
