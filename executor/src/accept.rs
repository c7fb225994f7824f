//! What a worker inherits from its supervisor, and how it gets its next agent.
//!
//! Owns nothing but the inherited descriptors. Deliberately absent: what is said on the connection.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// The listening socket and the line to the supervisor, as `smalti-executor work --listen-fd N --supervisor-fd M` names them.
/// Both are closed on exec from here on. Call it once, first thing.
///
/// # Errors
/// When a number is no open descriptor above 2, or both are the same.
pub(crate) fn inherited(listen_fd: RawFd, supervisor_fd: RawFd) -> io::Result<(UnixListener, OwnedFd)> {
    if listen_fd == supervisor_fd {
        return Err(io::Error::other(format!("--listen-fd and --supervisor-fd are both {listen_fd}")));
    }
    let (listener, supervisor) = (take(listen_fd)?, take(supervisor_fd)?);
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    Ok((listener, supervisor))
}

/// Asks the kernel to end this process with its supervisor: without a pid namespace nothing else would.
///
/// # Errors
/// What the kernel said.
pub(crate) fn end_with_parent() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).map_err(Into::into)
}

fn take(number: RawFd) -> io::Result<OwnedFd> {
    #[expect(unsafe_code, reason = "a number is looked at that may be no descriptor")]
    // SAFETY: the call takes any number, and answers with an error where nothing is open.
    let open = nix::errno::Errno::result(unsafe { nix::libc::fcntl(number, nix::libc::F_GETFD) });
    if number <= 2 || open.is_err() {
        return Err(io::Error::other(format!("descriptor {number} was not inherited")));
    }
    #[expect(unsafe_code, reason = "a descriptor that this process was started with has no owner yet")]
    // SAFETY: it is open, it is none of the standard ones, and the caller names it once.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Waits for an agent to connect; `None` when none came in `within`. Only the executor's own user and root are let in.
///
/// # Errors
/// What the kernel said about the listening socket.
pub(crate) fn accept(listener: &UnixListener, within: Duration) -> io::Result<Option<UnixStream>> {
    let deadline = Instant::now().checked_add(within);
    loop {
        let left = deadline.map_or(Duration::MAX, |d| d.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Ok(None);
        }
        // Rounded up, so that a wait never ends just before its deadline.
        let timeout = PollTimeout::try_from(left.saturating_add(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        match listener.accept() {
            Ok((stream, _)) if is_trusted(&stream) => {
                stream.set_nonblocking(false)?;
                return Ok(Some(stream));
            }
            Ok(_) => eprintln!("smalti-executor: refused a connection of another user"),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
            Err(e) => return Err(e),
        }
    }
}

/// A user of the outside that has no number in this user namespace: root, if the agent is root. Other users have none either;
/// they are kept away by the socket's directory, which only the agent's user may enter.
const UNMAPPED_UID: u32 = 65_534;

fn is_trusted(stream: &UnixStream) -> bool {
    let trusted = [0, UNMAPPED_UID, nix::unistd::geteuid().as_raw()];
    // Not rustix's: the agent's pid does not exist in this namespace and comes as 0, which its type cannot hold.
    nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials).is_ok_and(|peer| trusted.contains(&peer.uid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_after_another_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        for _ in 0..2 {
            let client = UnixStream::connect(&path).unwrap();
            assert!(accept(&listener, Duration::from_secs(3600)).unwrap().is_some());
            drop(client);
        }
        assert!(accept(&listener, Duration::from_millis(1)).unwrap().is_none());
    }

    #[test]
    fn what_was_not_inherited_is_refused() {
        assert!(inherited(1, 3).is_err());
        assert!(inherited(900, 901).is_err());
        assert!(inherited(5, 5).is_err());
    }
}
