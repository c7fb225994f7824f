//! The four calls, done on the executor's behalf.
//!
//! Owns what each may be asked for. Whatever the executor's descriptor names at the moment is what is bound or connected, to the
//! checked copy of the address, and only if it is a TCP socket: it can name nothing else that this process could do harm with.

use super::kernel::{Answer, Call, Notifications};
use super::rules::{MAX_ADDRESS, Rules, parse};
use nix::libc;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// Most connections that wait to be accepted.
const MAX_BACKLOG: i32 = 4096;
/// A socket's type without its flags.
const TYPE_MASK: i32 = 0xf;

/// Does what a call asks for, or not, and says so.
pub(super) fn answer(notifications: &Notifications, call: &Call, rules: &Rules) {
    let result = match call.number {
        libc::SYS_socket => socket(call, rules).map(Answer::Descriptor),
        libc::SYS_bind => bind(notifications, call, rules).map(|()| Answer::Done),
        libc::SYS_listen => listen(notifications, call, rules).map(|()| Answer::Done),
        libc::SYS_connect => connect(notifications, call, rules).map(|()| Answer::Done),
        _ => Err(Errno::NOSYS),
    };
    notifications.answer(call, result.unwrap_or_else(Answer::Failed));
}

/// An argument that is an `int`: the upper half of the register does not count.
fn int(call: &Call, index: usize) -> i32 {
    #[expect(clippy::cast_possible_truncation, reason = "the kernel does the same")]
    let low = call.arguments[index] as u32;
    low.cast_signed()
}

fn socket(call: &Call, rules: &Rules) -> Result<OwnedFd, Errno> {
    let (family, kind, protocol) = (int(call, 0), int(call, 1), int(call, 2));
    let family = match family {
        libc::AF_INET => AddressFamily::INET,
        libc::AF_INET6 => AddressFamily::INET6,
        _ => return Err(Errno::AFNOSUPPORT),
    };
    let flags = kind & !TYPE_MASK;
    let tcp = kind & TYPE_MASK == libc::SOCK_STREAM && matches!(protocol, 0 | libc::IPPROTO_TCP);
    // A socket that waits would make this process wait.
    let waits = flags & libc::SOCK_NONBLOCK == 0;
    if !tcp || waits || flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 || !rules.any() {
        return Err(Errno::ACCESS);
    }
    rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, Some(ipproto::TCP))
}

fn bind(notifications: &Notifications, call: &Call, rules: &Rules) -> Result<(), Errno> {
    let address = rules.bind(address(notifications, call)?)?;
    rustix::net::bind(&tcp(notifications, call)?, &address)
}

fn listen(notifications: &Notifications, call: &Call, rules: &Rules) -> Result<(), Errno> {
    let socket = tcp(notifications, call)?;
    let local = SocketAddr::try_from(rustix::net::getsockname(&socket)?).map_err(|_| Errno::INVAL)?;
    rules.listen(local)?;
    rustix::net::listen(&socket, int(call, 1).clamp(0, MAX_BACKLOG))
}

fn connect(notifications: &Notifications, call: &Call, rules: &Rules) -> Result<(), Errno> {
    let address = rules.connect(address(notifications, call)?)?;
    let socket = tcp(notifications, call)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    rustix::net::connect(&socket, &address)
}

/// The second and third argument: an address in the caller's memory, copied.
fn address(notifications: &Notifications, call: &Call) -> Result<SocketAddr, Errno> {
    let length = usize::try_from(int(call, 2)).ok().filter(|l| *l <= MAX_ADDRESS).ok_or(Errno::INVAL)?;
    parse(&notifications.memory(call, call.arguments[1], length)?)
}

/// The first argument: a TCP socket of the caller.
fn tcp(notifications: &Notifications, call: &Call) -> Result<OwnedFd, Errno> {
    let socket = notifications.descriptor(call, int(call, 0))?;
    let family = sockopt::socket_domain(&socket)?;
    let stream = sockopt::socket_type(&socket)? == SocketType::STREAM;
    let tcp = sockopt::socket_protocol(&socket)? == Some(ipproto::TCP);
    if stream && tcp && matches!(family, AddressFamily::INET | AddressFamily::INET6) { Ok(socket) } else { Err(Errno::ACCESS) }
}
