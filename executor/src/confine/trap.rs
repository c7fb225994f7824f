//! What happens when the filter denies a call: its number goes to the supervisor or the forge, and the process ends. A SIGSYS that somebody
//! sent is no denied call: it ends the process as it does everywhere, by the signal.
//!
//! Owns the handler of SIGSYS and the one descriptor that it writes to; and that of SIGABRT for a process that would not get it from itself,
//! the first one of a pid namespace. Everything that runs in the handlers is async-signal-safe: one `write`, one `_exit`; or `signal` and `raise`.

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// Exit code of a process whose call was denied: what a shell says of a process that SIGSYS ended.
pub(crate) const EXIT_CODE: i32 = 128 + libc::SIGSYS;
/// Exit code of a first process that has aborted.
pub(crate) const ABORTED: i32 = 128 + libc::SIGABRT;
/// Where `si_code` lies in a `siginfo_t`, behind two numbers, and its value when the signal comes from a filter.
const CODE_OFFSET: usize = 8;
const SYS_SECCOMP: i32 = 1;
/// Where `si_syscall` lies in a `siginfo_t` of SIGSYS on 64-bit machines: behind three numbers, padding and an address.
const SYSCALL_OFFSET: usize = 24;

/// Whoever notes it down; nothing is written before one is set.
static REPORT_TO: AtomicI32 = AtomicI32::new(-1);

/// Installs the handler. `report_to` stays open for the rest of this process's life.
///
/// # Errors
/// What the kernel said.
pub(crate) fn install(report_to: OwnedFd) -> std::io::Result<()> {
    REPORT_TO.store(report_to.into_raw_fd(), Ordering::SeqCst);
    let action = SigAction::new(SigHandler::SigAction(on_denied), SaFlags::SA_ONSTACK | SaFlags::SA_SIGINFO, SigSet::all());
    #[expect(unsafe_code, reason = "a signal handler cannot be installed otherwise")]
    // SAFETY: the handler does nothing that is not async-signal-safe, and no other code of this process handles SIGSYS.
    unsafe { sigaction(Signal::SIGSYS, &action) }?;
    Ok(())
}

/// For the first process of a pid namespace: lets it abort.
///
/// # Errors
/// What the kernel said.
pub(crate) fn end_when_aborted() -> std::io::Result<()> {
    let action = SigAction::new(SigHandler::Handler(on_abort), SaFlags::SA_ONSTACK, SigSet::all());
    #[expect(unsafe_code, reason = "a signal handler cannot be installed otherwise")]
    // SAFETY: the handler does nothing that is not async-signal-safe, and no other code of this process handles SIGABRT.
    unsafe { sigaction(Signal::SIGABRT, &action) }?;
    Ok(())
}

extern "C" fn on_abort(_signal: libc::c_int) {
    #[expect(unsafe_code, reason = "ending the process in a signal handler")]
    // SAFETY: async-signal-safe.
    unsafe {
        libc::_exit(ABORTED)
    }
}

extern "C" fn on_denied(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    #[expect(unsafe_code, reason = "reading what the kernel passed to the handler")]
    // SAFETY: the kernel passes a whole siginfo_t, of which these bytes are a part; all calls are async-signal-safe, and the number
    // is alive on this stack while `write` reads it.
    unsafe {
        if info.cast::<u8>().add(CODE_OFFSET).cast::<i32>().read_unaligned() != SYS_SECCOMP {
            // Where the filter is in force it denies the first of these, and the kernel ends the process by the same signal at once,
            // because this handler is running. Where it is not yet, the signal ends it when this returns.
            libc::signal(libc::SIGSYS, libc::SIG_DFL);
            libc::raise(libc::SIGSYS);
            return;
        }
        let number = info.cast::<u8>().add(SYSCALL_OFFSET).cast::<i32>().read_unaligned();
        let descriptor: RawFd = REPORT_TO.load(Ordering::SeqCst);
        let _ = libc::write(descriptor, (&raw const number).cast(), size_of::<i32>());
        libc::_exit(EXIT_CODE)
    }
}
