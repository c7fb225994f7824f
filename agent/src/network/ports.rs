//! Listening sockets of tasks, in this process's network namespace.
//!
//! Owns how they are made: never shared with another program (no `SO_REUSEPORT`), usable again at once after a task has ended
//! (`SO_REUSEADDR`), non-blocking, closed on exec. A socket lives as long as somebody holds its descriptor: after the launch that is
//! the executor alone.

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Binds a port and listens on it.
///
/// # Errors
/// What the kernel said; a port that another program has is `AddrInUse`.
pub(super) fn listen(address: IpAddr, port: u16) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddr::new(address, port))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Whether a port could be listened on now. Listens for that moment: two programs that only bind with `SO_REUSEADDR` do not see
/// each other.
///
/// # Errors
/// As [`listen`].
pub(super) fn probe(address: IpAddr, port: u16) -> io::Result<()> {
    listen(address, port).map(drop)
}
