//! A store that lives as long as the process: for tests, and for frameworks that keep nothing.

use super::{Rows, Store, StoreError, Writes};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

type Table = BTreeMap<Vec<u8>, Vec<u8>>;

/// Tables in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    tables: Mutex<BTreeMap<String, Table>>,
}

impl Store for MemoryStore {
    fn read(&self, table: &str) -> Result<Rows, StoreError> {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(tables.get(table).into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    fn commit(&self, writes: &Writes) -> Result<(), StoreError> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        for (table, keys) in writes.tables() {
            let table = tables.entry(table.to_owned()).or_default();
            for (key, value) in keys {
                match value {
                    Some(value) => table.insert(key.clone(), value.clone()),
                    None => table.remove(key),
                };
            }
        }
        Ok(())
    }
}
