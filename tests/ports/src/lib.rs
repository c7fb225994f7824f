//! Ports for tests that must know one before anybody listens on it, or that need one on which nobody will.
//!
//! A port that the kernel chose and that was given back is anybody's: the next connection of another test may get it. So these lie
//! below the range that the kernel chooses from, and every test of the machine that takes its ports here holds a lock on each. Owns
//! that range and the locks. Deliberately absent: protection against programs that listen on a port of that range without asking.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};

/// Below 31,000, where agents offer ports by default, and 32,768, where the kernel begins to choose.
const RANGE: Range<u16> = 25_000..31_000;

/// Neighbouring ports of this machine that nobody listened on when they were taken, and that nobody else gets from [`take`] while this
/// value lives.
#[derive(Debug)]
pub struct Ports {
    first: u16,
    /// One per port. A name of the abstract namespace: gone with its process, however that ends, and no file.
    locks: Vec<UnixDatagram>,
}

/// Takes one port.
///
/// # Panics
/// As [`take`].
#[must_use]
pub fn take_one() -> Ports {
    take(1)
}

/// Takes `count` ports.
///
/// # Panics
/// When there are no such ports, or none can be locked.
#[must_use]
pub fn take(count: u16) -> Ports {
    let places = RANGE.end - RANGE.start - count;
    // Each process begins elsewhere, so that few meet.
    let begin = u16::try_from(std::process::id().wrapping_mul(37) % u32::from(places)).unwrap_or(0);
    (0..places)
        .map(|n| RANGE.start + (begin + n) % places)
        .find_map(|first| try_take(first, count))
        .unwrap_or_else(|| panic!("{count} neighbouring ports of {RANGE:?} that nobody uses"))
}

fn try_take(first: u16, count: u16) -> Option<Ports> {
    let locks: io::Result<Vec<UnixDatagram>> = (first..first + count).map(lock).collect();
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let ports = Ports { first, locks: locks.ok()? };
    (first..first + count).all(is_free).then_some(ports)
}

fn lock(port: u16) -> io::Result<UnixDatagram> {
    UnixDatagram::bind_addr(&UnixAddr::from_abstract_name(format!("smalti-test-port-{port}"))?)
}

impl Ports {
    /// The first of them.
    #[must_use]
    pub const fn first(&self) -> u16 {
        self.first
    }

    /// Where a program of this machine listens on the first of them.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.first))
    }

    /// All of them, as an agent's `--ports` takes them.
    #[must_use]
    pub fn range(&self) -> String {
        let last = usize::from(self.first) + self.locks.len() - 1;
        format!("{}-{last}", self.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_what_another_one_has() {
        let (a, b) = (take(4), take(3));
        assert!(a.first() + 4 <= b.first() || b.first() + 3 <= a.first(), "{} and {}", a.range(), b.range());
        for held in a.first()..a.first() + 4 {
            assert!(try_take(held, 1).is_none(), "port {held} is locked");
        }
        let first = a.first();
        drop(a);
        assert_eq!(try_take(first, 4).expect("free again").range(), format!("{first}-{}", first + 3));
    }

    #[test]
    fn what_somebody_listens_on_is_not_given_and_keeps_no_lock() {
        let port = take_one();
        let listener = TcpListener::bind(port.address()).expect("free");
        let first = port.first();
        drop(port);
        assert!(try_take(first, 1).is_none());
        lock(first).expect("no lock stays");
        drop(listener);
        assert_eq!(try_take(first, 1).expect("free").address().port(), first);
    }

    #[test]
    fn the_kernel_does_not_choose_them() {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("Linux");
        let from: u16 = text.split_whitespace().next().and_then(|n| n.parse().ok()).expect("two numbers");
        assert!(RANGE.end <= from, "the kernel chooses from {from}: tests that listen would meet");
    }
}
