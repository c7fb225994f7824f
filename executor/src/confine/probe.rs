//! The test instrument: does one forbidden thing from inside the walls and ends.
//!
//! `smalti-executor work … --probe NAME`, where the name comes from the command line that the agent's launcher writes, and from
//! nowhere else: no message can ask for it, and no agent does outside of its own tests. The worker goes through everything that a
//! real one goes through, says Hello, and when it is told to end, tries `NAME` first, on a thread of its own as a slot is.
//! What the kernel answered is the exit code: 0 if it let it happen, else the error's number. A call that the filter denies has
//! ended the process before that.

use super::root;
use nix::errno::Errno;
use nix::libc::{self, c_long};
use std::ffi::CStr;
use std::os::fd::BorrowedFd;

/// The exit code for a name that is none, beyond all error numbers.
const UNKNOWN: i32 = 250;
/// One EiB.
const HUGE_BYTES: i64 = 1 << 60;
/// What is tried where nothing comes back by itself.
const NOTHING: c_long = 0;

/// Tries one thing; gives the exit code.
pub(crate) fn run(name: &str) -> i32 {
    let attempt = match name {
        "open-passwd" => open(c"/etc/passwd"),
        "open-proc" => open(c"/proc/self/status"),
        "open-dev" => open(c"/dev/null"),
        "open-parent" => open(c"/../../../etc/passwd"),
        "root-not-empty" => return i32::from(!root::is_empty().unwrap_or(false)),
        "write-root" => raw(libc::SYS_openat, [at(), path(c"/x"), long(libc::O_CREAT | libc::O_WRONLY), 0o600, 0]),
        "mkdir-root" => raw(libc::SYS_mkdirat, [at(), path(c"/x"), 0o700, 0, 0]),
        "mount" => raw(libc::SYS_mount, [path(c"none"), path(c"/"), path(c"tmpfs"), 0, 0]),
        "ptrace" => raw(libc::SYS_ptrace, [long(libc::PTRACE_ATTACH.cast_signed()), 1, 0, 0, 0]),
        "kill-init" => raw(libc::SYS_kill, [1, long(libc::SIGKILL), 0, 0, 0]),
        "tgkill-init" => raw(libc::SYS_tgkill, [1, 1, long(libc::SIGKILL), 0, 0]),
        "socket" => raw(libc::SYS_socket, [long(libc::AF_INET), long(libc::SOCK_STREAM), 0, 0, 0]),
        "socket-unix" => raw(libc::SYS_socket, [long(libc::AF_UNIX), long(libc::SOCK_STREAM), 0, 0, 0]),
        "socket-packet" => raw(libc::SYS_socket, [long(libc::AF_PACKET), long(libc::SOCK_RAW), 0, 0, 0]),
        "socket-udp" => raw(libc::SYS_socket, [long(libc::AF_INET), long(libc::SOCK_DGRAM), 0, 0, 0]),
        "setuid" => raw(libc::SYS_setuid, [NOTHING; 5]),
        "unshare-user" => raw(libc::SYS_unshare, [long(libc::CLONE_NEWUSER), 0, 0, 0, 0]),
        "clone-process" => raw(libc::SYS_clone, [long(libc::SIGCHLD), 0, 0, 0, 0]),
        "clone-user" => {
            let flags = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_NEWUSER;
            raw(libc::SYS_clone, [long(flags), 0, 0, 0, 0])
        }
        "clone3" => raw(libc::SYS_clone3, [NOTHING; 5]),
        "keyctl" => raw(libc::SYS_keyctl, [NOTHING; 5]),
        "bpf" => raw(libc::SYS_bpf, [NOTHING; 5]),
        "perf" => raw(libc::SYS_perf_event_open, [NOTHING; 5]),
        "io-uring" => raw(libc::SYS_io_uring_setup, [1, 0, 0, 0, 0]),
        "timer" => raw(libc::SYS_timerfd_create, [long(libc::CLOCK_BOOTTIME), 0, 0, 0, 0]),
        "timer-of-another-clock" => raw(libc::SYS_timerfd_create, [long(libc::CLOCK_REALTIME), 0, 0, 0, 0]),
        "execve" => raw(libc::SYS_execve, [path(c"/bin/sh"), 0, 0, 0, 0]),
        "sigsys-handler" => raw(libc::SYS_rt_sigaction, [long(libc::SIGSYS), 0, 0, 8, 0]),
        "dumpable" => raw(libc::SYS_prctl, [long(libc::PR_SET_DUMPABLE), 1, 0, 0, 0]),
        "tiocsti" => raw(libc::SYS_ioctl, [2, 0x5412, 0, 0, 0]),
        "map-executable" => {
            let (protection, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            raw(libc::SYS_mmap, [0, 4096, long(protection), long(flags), -1])
        }
        "protect-writable-executable" => raw(libc::SYS_mprotect, [0, 0, long(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC), 0, 0]),
        "open-raw-proc-root" => open(c"/proc/1/root/etc/passwd"),
        "truncate-huge" => return truncate_huge(),
        "pagemap-frames" => return pagemap_frames(),
        "abort" => std::process::abort(),
        _ => return UNKNOWN,
    };
    match attempt {
        Ok(_) => 0,
        Err(e) => e as i32,
    }
}

/// Whether `/proc/self/pagemap`, as the engine holds it, shows where in the machine's memory a page of this process lies: 0 if not.
fn pagemap_frames() -> i32 {
    /// Where descriptors are looked for, and how a file of `/proc` is known.
    const DESCRIPTORS: i32 = 1 << 10;
    const PROC: i64 = 0x9fa0;
    const ENTRY_BYTES: usize = size_of::<u64>();
    const FRAME: u64 = (1 << 55) - 1;
    const PRESENT: u64 = 1 << 63;
    let page = std::hint::black_box(vec![1_u8; 1]);
    let at = page.as_ptr().addr() as u64 / rustix::param::page_size() as u64 * ENTRY_BYTES as u64;
    for number in 0..DESCRIPTORS {
        #[expect(unsafe_code, reason = "nothing says under which number the engine holds it")]
        // SAFETY: descriptors that are not open are an error of each call, and nobody closes any while this process ends.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let mut entry = [0; ENTRY_BYTES];
        if rustix::fs::fstatfs(fd).is_ok_and(|s| s.f_type == PROC) && rustix::io::pread(fd, &mut entry, at) == Ok(entry.len()) {
            let entry = u64::from_le_bytes(entry);
            if entry & PRESENT != 0 {
                return if entry & FRAME == 0 { 0 } else { Errno::EPERM as i32 };
            }
        }
    }
    Errno::ENOENT as i32
}

/// A file that is longer than any file system here has room for.
fn truncate_huge() -> i32 {
    let file = nix::sys::memfd::memfd_create(c"huge", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    match file.and_then(|f| nix::unistd::ftruncate(f, HUGE_BYTES)) {
        Ok(()) => 0,
        Err(e) => e as i32,
    }
}

fn open(file: &CStr) -> Result<c_long, Errno> {
    raw(libc::SYS_openat, [at(), path(file), long(libc::O_RDONLY), 0, 0])
}

fn at() -> c_long {
    long(libc::AT_FDCWD)
}

fn long(number: i32) -> c_long {
    c_long::from(number)
}

/// The address of a text that lives as long as the program.
fn path(text: &CStr) -> c_long {
    text.as_ptr().expose_provenance().cast_signed() as c_long
}

/// One system call as it is, past all libraries.
fn raw(call: c_long, arguments: [c_long; 5]) -> Result<c_long, Errno> {
    let [a, b, c, d, e] = arguments;
    #[expect(unsafe_code, reason = "what is tried must reach the kernel unchanged")]
    // SAFETY: every address among the arguments is null or a text of this module, none is written to; nothing that is made is
    // used, and this process ends at once.
    Errno::result(unsafe { libc::syscall(call, a, b, c, d, e, NOTHING) })
}
