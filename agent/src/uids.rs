//! A user id of its own for every executor, on the whole host.
//!
//! An id is taken by binding the abstract unix socket `smalti/uid/<n>`: one process at a time can, over all agents of a network
//! namespace, and the name is free again when the last descriptor of that socket is closed. The executor's supervisor and worker
//! hold one each: so the id is free exactly when nothing of the executor lives, also when the agent is gone meanwhile. The socket
//! never listens and nothing can be sent from it. Deliberately absent: making users, and anybody's home or group.

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below lie people, services, and what distributions give to containers.
const LOWEST: u32 = 65_536;
/// Ids from `first` to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UidRange {
    first: u32,
    last: u32,
}

impl Default for UidRange {
    /// 65,536 ids above those that distributions and container engines use.
    fn default() -> Self {
        Self { first: 2_000_000_000, last: 2_000_065_535 }
    }
}

impl fmt::Display for UidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Why a text is not a range of user ids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a range of user ids: write it like {default}, both at least {LOWEST} and below {max}", default = UidRange::default(), max = u32::MAX)]
pub struct UidRangeError(String);

impl FromStr for UidRange {
    type Err = UidRangeError;

    fn from_str(text: &str) -> Result<Self, UidRangeError> {
        let error = || UidRangeError(text.to_owned());
        let (first, last) = text.split_once('-').ok_or_else(error)?;
        let (first, last): (u32, u32) = (first.parse().map_err(|_| error())?, last.parse().map_err(|_| error())?);
        if first < LOWEST || last < first || last == u32::MAX {
            return Err(error());
        }
        Ok(Self { first, last })
    }
}

/// Who executors run as.
#[derive(Debug, Clone)]
pub enum Users {
    /// Each as a user of its own.
    Own(Uids),
    /// All as the agent's own user, and why.
    Shared(String),
}

impl Users {
    /// Finds out whether this process can let others run as users of `range`.
    #[must_use]
    pub fn detect(range: UidRange) -> Self {
        if !nix::unistd::geteuid().is_root() {
            return Self::Shared("the agent is not root: all executors run as its own user".to_owned());
        }
        for map in ["uid_map", "gid_map"] {
            let text = std::fs::read_to_string(format!("/proc/self/{map}")).unwrap_or_default();
            if !covers(&text, range) {
                return Self::Shared(format!(
                    "ids {range} do not exist in the agent's own user namespace (/proc/self/{map}); name others with --executor-uids"
                ));
            }
        }
        Self::Own(Uids::new(range))
    }
}

/// Whether one line of a namespace's map has the whole range.
fn covers(map: &str, range: UidRange) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        matches!(numbers[..], [inside, _, count] if inside <= range.first.into() && u64::from(range.last) < inside + count)
    })
}

/// Gives ids out. Clones share the place in the range, so that an id is not used again soon.
#[derive(Debug, Clone)]
pub struct Uids {
    range: UidRange,
    next: Arc<AtomicU32>,
}

/// An id that is nobody else's while the descriptor, or a copy of it, is open.
#[derive(Debug)]
pub struct Uid {
    /// The id; the group has the same.
    pub number: u32,
    /// To be inherited by all that runs under it.
    pub hold: OwnedFd,
}

/// No id could be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// All are in use.
    #[error("all user ids {0} are in use; name more with --executor-uids")]
    Exhausted(UidRange),
    /// The kernel refuses sockets.
    #[error("holding user id {number}: {source}")]
    Hold {
        /// Which.
        number: u32,
        /// Why not.
        source: nix::errno::Errno,
    },
}

impl Uids {
    /// From a place in the range that differs from process to process.
    #[must_use]
    pub fn new(range: UidRange) -> Self {
        Self { range, next: Arc::new(AtomicU32::new(std::process::id())) }
    }

    /// Takes one that is free.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn take(&self) -> Result<Uid, Error> {
        let count = self.range.last - self.range.first + 1;
        for _ in 0..count {
            let number = self.range.first + self.next.fetch_add(1, Ordering::Relaxed) % count;
            match hold(number) {
                Ok(hold) => return Ok(Uid { number, hold }),
                Err(nix::errno::Errno::EADDRINUSE) => {}
                Err(source) => return Err(Error::Hold { number, source }),
            }
        }
        Err(Error::Exhausted(self.range))
    }
}

fn hold(number: u32) -> nix::Result<OwnedFd> {
    // A stream: unlike a datagram socket it can send nothing to anybody before it is connected.
    let held = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let name = format!("smalti/uid/{number}");
    bind(held.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_free_again_when_the_last_descriptor_is_closed() {
        // One that no agent uses.
        let first = LOWEST + std::process::id() % 100_000;
        let uids = Uids::new(UidRange { first, last: first + 1 });
        let (a, b) = (uids.take().unwrap(), uids.take().unwrap());
        assert_ne!(a.number, b.number);
        assert_eq!(uids.take().unwrap_err(), Error::Exhausted(uids.range));
        let inherited = a.hold.try_clone().unwrap();
        let number = a.number;
        drop(a);
        assert!(uids.take().is_err(), "something of it still lives");
        drop(inherited);
        assert_eq!(uids.take().unwrap().number, number);
    }

    #[test]
    fn ranges_are_read_and_nonsense_is_refused() {
        let range: UidRange = "100000-165535".parse().unwrap();
        assert_eq!(range.to_string(), "100000-165535");
        assert_eq!(UidRange::default().to_string().parse(), Ok(UidRange::default()));
        for bad in ["", "1", "0-70000", "70000-69999", "70000-4294967295", "70000-x", "-1-5"] {
            assert!(bad.parse::<UidRange>().unwrap_err().to_string().contains("2000000000-2000065535"), "{bad}");
        }
    }

    #[test]
    fn a_container_may_not_have_the_range() {
        let range = UidRange { first: 70_000, last: 80_000 };
        assert!(covers("         0          0 4294967295\n", range));
        assert!(!covers("0 100000 65536\n", range));
        assert!(covers("0 1000 1\n1 100000 100000\n", range));
        assert!(!covers("", range));
    }
}
