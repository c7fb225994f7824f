//! The descriptor numbers of a preview 1 guest that has sockets.
//!
//! Owns the mapping: a guest's number is a socket of ours, or a descriptor of Wasmtime's own table under another number. 0 to 2
//! are stdin, stdout and stderr; then come the listeners in the order of the ports (3 is the first, as systemd and Wasmtime's
//! `--listenfd` had it); then the preopened directories. New ones get the lowest free number.

use super::socket::{Errno, Kind, Socket};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;

/// stdin, stdout, stderr.
const STDIO: u32 = 3;
/// Most descriptors of one guest.
const MAX_DESCRIPTORS: usize = 4096;

/// What a number stands for.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    /// This number in Wasmtime's table.
    Inner(u32),
    Socket(Arc<Socket>),
}

/// The numbers of one guest.
#[derive(Debug, Default)]
pub(crate) struct Table {
    entries: BTreeMap<u32, Entry>,
}

impl Table {
    /// With listeners, which are non-blocking, and so many preopened directories. Must be called within the slot's runtime.
    ///
    /// # Errors
    /// When the runtime does not take a listener.
    pub(crate) fn new(listeners: Vec<TcpListener>, directories: u32) -> std::io::Result<Self> {
        let mut entries: BTreeMap<u32, Entry> = (0..STDIO).map(|n| (n, Entry::Inner(n))).collect();
        let mut next = STDIO;
        for listener in listeners {
            entries.insert(next, Entry::Socket(Arc::new(Socket::new(Kind::Listener, false, listener.into())?)));
            next += 1;
        }
        for directory in 0..directories {
            entries.insert(next + directory, Entry::Inner(STDIO + directory));
        }
        Ok(Self { entries })
    }

    pub(super) fn get(&self, number: i32) -> Result<&Entry, Errno> {
        self.entries.get(&number.cast_unsigned()).ok_or(Errno::Badf)
    }

    /// The socket under a number.
    pub(super) fn socket(&self, number: i32) -> Result<Arc<Socket>, Errno> {
        match self.get(number)? {
            Entry::Socket(socket) => Ok(socket.clone()),
            Entry::Inner(_) => Err(Errno::Notsock),
        }
    }

    /// Gives a new descriptor the lowest free number.
    ///
    /// # Errors
    /// When there are too many; the entry is gone then.
    pub(super) fn insert(&mut self, entry: Entry) -> Result<u32, Errno> {
        if self.entries.len() >= MAX_DESCRIPTORS {
            return Err(Errno::Mfile);
        }
        let mut free = 0;
        for number in self.entries.keys() {
            if *number != free {
                break;
            }
            free += 1;
        }
        self.entries.insert(free, entry);
        Ok(free)
    }

    pub(super) fn has_room(&self) -> bool {
        self.entries.len() < MAX_DESCRIPTORS
    }

    /// Forgets a number; what it stood for.
    pub(super) fn remove(&mut self, number: i32) -> Result<Entry, Errno> {
        self.entries.remove(&number.cast_unsigned()).ok_or(Errno::Badf)
    }

    /// Puts an entry under a number that [`Table::remove`] made free.
    pub(super) fn put(&mut self, number: i32, entry: Entry) {
        self.entries.insert(number.cast_unsigned(), entry);
    }

    /// Changes what a guest set on its socket. A socket that a call uses at the moment cannot be reached: there is one call at a time.
    pub(super) fn set_nonblocking(&mut self, number: i32, nonblocking: bool) -> Result<(), Errno> {
        match self.entries.get_mut(&number.cast_unsigned()).ok_or(Errno::Badf)? {
            Entry::Socket(socket) => {
                Arc::get_mut(socket).ok_or(Errno::Inval)?.nonblocking = nonblocking;
                Ok(())
            }
            Entry::Inner(_) => Err(Errno::Notsock),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_runtime<T>(f: impl FnOnce() -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        runtime.block_on(async { f() })
    }

    #[test]
    fn listeners_come_first_and_numbers_are_used_again() {
        let listener = || {
            let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
            listener.set_nonblocking(true).expect("set");
            listener
        };
        in_runtime(|| {
            let mut table = Table::new(vec![listener(), listener()], 2).expect("a table");
            assert!(table.socket(3).is_ok() && table.socket(4).is_ok());
            assert!(matches!(table.get(2), Ok(Entry::Inner(2))));
            assert!(matches!((table.get(5), table.get(6)), (Ok(Entry::Inner(3)), Ok(Entry::Inner(4)))));
            assert_eq!(table.socket(1).err(), Some(Errno::Notsock));
            assert_eq!(table.get(7).err(), Some(Errno::Badf));
            assert_eq!(table.get(-1).err(), Some(Errno::Badf));
            table.remove(4).expect("there");
            assert_eq!(table.insert(Entry::Inner(9)), Ok(4));
            assert_eq!(table.insert(Entry::Inner(10)), Ok(7));
            assert_eq!(table.set_nonblocking(3, true), Ok(()));
            assert!(table.socket(3).expect("a socket").nonblocking);
            while table.has_room() {
                table.insert(Entry::Inner(99)).expect("room");
            }
            assert_eq!(table.insert(Entry::Inner(99)), Err(Errno::Mfile));
        });
    }
}
