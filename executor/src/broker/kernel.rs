//! The kernel's notifications of system calls (`seccomp_unotify`): taking one, looking at who made it, answering.
//!
//! Owns the `ioctl`s and what is unsafe about them. A notification is about a thread that waits; it may be killed at any moment,
//! and its number be somebody else's then: what was read about it counts only if the notification is still valid afterwards.

use nix::libc;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Room behind each structure for a kernel whose structures are longer than those this program knows.
const SLACK: usize = 16;

/// One call that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    id: u64,
    thread: i32,
    pub(super) number: i64,
    pub(super) arguments: [u64; 6],
}

/// What a call is answered with.
#[derive(Debug)]
pub(super) enum Answer {
    /// It went well.
    Done,
    /// This descriptor, under a new number of the caller's.
    Descriptor(OwnedFd),
    Failed(Errno),
}

/// The kernel's end.
#[derive(Debug)]
pub(super) struct Notifications(OwnedFd);

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[repr(C)]
struct Received {
    notification: libc::seccomp_notif,
    slack: [u64; SLACK],
}

#[repr(C)]
struct Response {
    response: libc::seccomp_notif_resp,
    slack: [u64; SLACK],
}

impl Notifications {
    pub(super) const fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The next one; `None` when its caller was killed in the meantime.
    ///
    /// # Errors
    /// When there will be no more.
    #[expect(unsafe_code, reason = "there is no safe way to take a notification")]
    pub(super) fn receive(&self) -> std::io::Result<Option<Call>> {
        // SAFETY: all of it is integers, of which zero is a value; the kernel asks for zeroes.
        let mut received: Received = unsafe { std::mem::zeroed() };
        // SAFETY: the argument is as long as the kernel's structure, or longer, and lives until the call returns.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut received) };
        if result < 0 {
            let error = std::io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ENOENT | libc::EINTR | libc::EAGAIN) => Ok(None),
                _ => Err(error),
            };
        }
        let n = received.notification;
        let Ok(thread) = i32::try_from(n.pid) else { return Ok(None) };
        Ok(Some(Call { id: n.id, thread, number: n.data.nr.into(), arguments: n.data.args }))
    }

    /// Whether the caller still waits: then what was read of its thread was its own.
    #[expect(unsafe_code, reason = "there is no safe way to ask")]
    fn is_valid(&self, call: &Call) -> Result<(), Errno> {
        // SAFETY: the kernel reads eight bytes that live until the call returns.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const call.id) };
        if result < 0 { Err(Errno::SRCH) } else { Ok(()) }
    }

    /// Copies the caller's memory, once.
    pub(super) fn memory(&self, call: &Call, address: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length];
        let base = usize::try_from(address).map_err(|_| Errno::FAULT)?;
        let thread = nix::unistd::Pid::from_raw(call.thread);
        let read = process_vm_readv(thread, &mut [IoSliceMut::new(&mut bytes)], &[RemoteIoVec { base, len: length }]);
        let read = read.map_err(|e| Errno::from_raw_os_error(e as i32))?;
        self.is_valid(call)?;
        if read == length { Ok(bytes) } else { Err(Errno::FAULT) }
    }

    /// The caller's descriptor, as one of this process.
    pub(super) fn descriptor(&self, call: &Call, number: RawFd) -> Result<OwnedFd, Errno> {
        // Descriptors belong to the process, and only its first thread can be opened.
        let status = std::fs::read_to_string(format!("/proc/{}/status", call.thread)).map_err(|_| Errno::SRCH)?;
        let process =
            status.lines().find_map(|l| l.strip_prefix("Tgid:")?.trim().parse().ok()).and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        let process = pidfd_open(process, PidfdFlags::empty())?;
        let descriptor = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?;
        self.is_valid(call)?;
        Ok(descriptor)
    }

    /// Lets the caller go on. One that is gone needs no answer.
    pub(super) fn answer(&self, call: &Call, answer: Answer) {
        let (value, error) = match answer {
            Answer::Done => (0, 0),
            Answer::Failed(e) => (0, -e.raw_os_error()),
            Answer::Descriptor(fd) => match self.hand_in(call, &fd) {
                Ok(number) => (number.into(), 0),
                Err(e) => (0, -e),
            },
        };
        let response = Response { response: libc::seccomp_notif_resp { id: call.id, val: value, error, flags: 0 }, slack: [0; SLACK] };
        #[expect(unsafe_code, reason = "there is no safe way to answer")]
        // SAFETY: the argument is as long as the kernel's structure, or longer, and lives until the call returns.
        let _ = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const response) };
    }

    /// Gives the caller's process a descriptor; its number there.
    fn hand_in(&self, call: &Call, fd: &OwnedFd) -> Result<i32, i32> {
        let argument = libc::seccomp_notif_addfd {
            id: call.id,
            flags: 0,
            srcfd: fd.as_raw_fd().cast_unsigned(),
            newfd: 0,
            newfd_flags: libc::O_CLOEXEC.cast_unsigned(),
        };
        #[expect(unsafe_code, reason = "there is no safe way to hand a descriptor in")]
        // SAFETY: the kernel reads the argument, which lives until the call returns; the descriptor is open until then.
        let number = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const argument) };
        if number < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EMFILE)) } else { Ok(number) }
    }
}
