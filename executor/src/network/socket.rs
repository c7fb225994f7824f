//! One socket of a preview 1 guest: accept, receive, send, shut down, blocking for the guest and never for the thread.
//!
//! Owns the descriptor. The kernel's socket is always non-blocking. What the guest set is only what it sees: a call of a
//! blocking guest waits on the slot's I/O driver, so dropping its future cancels it; a call of a non-blocking one goes to the
//! kernel and nowhere else, because a guest that polls in a loop never lets the driver run.

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags};
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Preview 1's numbers for what can go wrong here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Errno {
    Acces = 2,
    Again = 6,
    Badf = 8,
    Connaborted = 13,
    Connreset = 15,
    Fault = 21,
    Inval = 28,
    Io = 29,
    Mfile = 33,
    Nobufs = 42,
    Nomem = 48,
    Notconn = 53,
    Notdir = 54,
    Notsock = 57,
    Notsup = 58,
    Pipe = 64,
    Spipe = 70,
    Timedout = 73,
}

impl From<rustix::io::Errno> for Errno {
    fn from(e: rustix::io::Errno) -> Self {
        use rustix::io::Errno as E;
        match e {
            E::AGAIN => Self::Again,
            E::ACCESS | E::PERM => Self::Acces,
            E::CONNABORTED => Self::Connaborted,
            E::CONNRESET => Self::Connreset,
            E::INVAL => Self::Inval,
            E::MFILE | E::NFILE => Self::Mfile,
            E::NOBUFS => Self::Nobufs,
            E::NOMEM => Self::Nomem,
            E::NOTCONN => Self::Notconn,
            E::PIPE => Self::Pipe,
            E::TIMEDOUT => Self::Timedout,
            _ => Self::Io,
        }
    }
}

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Listener,
    Stream,
}

/// A socket in a guest's table.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(super) kind: Kind,
    /// What the guest set.
    pub(super) nonblocking: bool,
    fd: AsyncFd<OwnedFd>,
}

impl Socket {
    /// `fd` is non-blocking. Must be called within the slot's runtime.
    #[expect(unsafe_code, reason = "registering a descriptor is a promise about its life")]
    pub(super) fn new(kind: Kind, nonblocking: bool, fd: OwnedFd) -> std::io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        // SAFETY: an `OwnedFd` is an open descriptor that names the same file description until it is dropped, and the
        // `AsyncFd` owns it; nothing here takes it out.
        let fd = unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(std::io::Error::from)?;
        Ok(Self { kind, nonblocking, fd })
    }

    /// Repeats `call` until it does not want to wait; a non-blocking guest is told to come again.
    async fn attempt<T>(&self, interest: Interest, mut call: impl FnMut(&OwnedFd) -> rustix::io::Result<T>) -> Result<T, Errno> {
        loop {
            match call(self.fd.get_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) if !self.nonblocking => {
                    let mut ready = self.fd.ready(interest).await.map_err(|_| Errno::Io)?;
                    // What the driver knows may be older than the call above: believed only if a call agrees.
                    match call(self.fd.get_ref()) {
                        Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                        Err(rustix::io::Errno::INTR) => {}
                        other => return other.map_err(Into::into),
                    }
                }
                other => return other.map_err(Into::into),
            }
        }
    }

    /// The next connection.
    pub(super) async fn accept(&self, nonblocking: bool) -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = self.attempt(Interest::READABLE, |fd| rustix::net::accept_with(fd, flags)).await?;
        Self::new(Kind::Stream, nonblocking, fd).map_err(|_| Errno::Nomem)
    }

    /// Bytes that came, at most `most`; none at the end of the stream. `peek` leaves them there.
    pub(super) async fn receive(&self, most: usize, peek: bool) -> Result<Vec<u8>, Errno> {
        if most == 0 {
            return Ok(Vec::new());
        }
        let mut buffer = vec![0; most];
        let flags = if peek { RecvFlags::PEEK } else { RecvFlags::empty() };
        let (length, _) = self.attempt(Interest::READABLE, |fd| rustix::net::recv(fd, &mut buffer[..], flags)).await?;
        buffer.truncate(length);
        Ok(buffer)
    }

    /// Sends the beginning of `data`; the number of bytes that were taken.
    pub(super) async fn send(&self, data: &[u8]) -> Result<usize, Errno> {
        self.attempt(Interest::WRITABLE, |fd| rustix::net::send(fd, data, SendFlags::NOSIGNAL)).await
    }

    pub(super) fn shut_down(&self, how: Shutdown) -> Result<(), Errno> {
        rustix::net::shutdown(self.fd.get_ref(), how).map_err(Into::into)
    }

    /// What the kernel says of it now.
    pub(super) fn readiness(&self) -> PollFlags {
        let mut one = [PollFd::new(self.fd.get_ref(), PollFlags::IN | PollFlags::OUT)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::event::poll(&mut one, Some(&now)) {
            Ok(_) => one[0].revents(),
            Err(_) => PollFlags::empty(),
        }
    }

    /// Ready once `wanted` (or an error, or the end) is there, by the kernel's own word.
    pub(super) fn poll_ready(&self, cx: &mut std::task::Context<'_>, writable: bool) -> std::task::Poll<()> {
        use std::task::Poll;
        loop {
            let ready = if writable { self.fd.poll_write_ready(cx) } else { self.fd.poll_read_ready(cx) };
            match ready {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(mut guard)) => {
                    if is_ready(self.readiness(), writable) {
                        return Poll::Ready(());
                    }
                    guard.clear_ready();
                }
            }
        }
    }
}

/// Whether a read (or write) would not wait. An error is something to read, too.
pub(super) fn is_ready(flags: PollFlags, writable: bool) -> bool {
    flags.intersects(PollFlags::HUP | PollFlags::ERR | if writable { PollFlags::OUT } else { PollFlags::IN })
}
