//! The system calls that an executor may make: an allow-list per kind, as a filter in the kernel.
//!
//! Owns the lists and how they are imposed. A call that is not on the list, or whose arguments are not, traps (`trap` names it and
//! the process ends); in the supervisor it kills at once. What is on the list was found by running every example guest, and is
//! bounded by argument where a call does several things: no memory that is both writable and executable, threads but no
//! processes and no namespaces, three requests of `ioctl`, no change to the handler of SIGSYS.
//!
//! `clone3` is answered with ENOSYS: its flags lie in memory where no filter can see them, and every C library falls back to
//! `clone`, whose flags are an argument. What the number alone decides is decided first (`decide`).

use super::decide::{self, Verdict};
use nix::libc::{self, c_long};
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use smalti_executor_protocol::supervision::ExecutorKind;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// A call, and the argument patterns of which one must match; none: always allowed.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    number: c_long,
    any_of: Vec<Vec<Argument>>,
    /// Not allowed, but answered as by a kernel that does not have it.
    missing: bool,
}

/// One argument: its index, how much of it counts, and what it is compared with.
#[derive(Debug, Clone)]
struct Argument {
    index: u8,
    length: SeccompCmpArgLen,
    compare: SeccompCmpOp,
    value: u64,
}

/// Why a filter is not in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It cannot be written.
    #[error("building the system call filter: {0}")]
    Build(#[from] BackendError),
    /// It is longer than the kernel's jumps reach.
    #[error("building the system call filter: too many calls are on the list")]
    TooMany,
    /// The kernel does not take it.
    #[error("imposing the system call filter: {0}")]
    Impose(#[from] seccompiler::Error),
}

/// Memory, threads, signals to itself, time, chance.
const PROCESS: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_process_madvise,
    libc::SYS_memfd_create,
    libc::SYS_membarrier,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_geteuid,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
/// Open files, and what lies below directories that were passed in. Paths are resolved by the kernel in an empty root.
const FILES: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_fchdir,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_utimensat,
];
/// Waiting, and the one connection to the agent (and the next agent's).
const CONNECTION: &[c_long] = &[
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_accept4,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
];
/// Older spellings that only this architecture has and its C libraries use.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[libc::SYS_poll, libc::SYS_epoll_wait];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];
/// Sockets of kind [`ExecutorKind::Networked`], beside `socket` itself.
const SOCKETS: &[c_long] = &[
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
];
/// All that a supervisor does once it supervises: wait, read its worker's last message, write the record, end.
const SUPERVISOR: &[c_long] = &[
    libc::SYS_wait4,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Flags that make a thread, of which all must be set, and those that make namespaces, of which none may be.
const THREAD: u32 = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u32;
const NEW_NAMESPACES: u32 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP) as u32;
/// Bytes of the kernel's `struct pm_scan_arg`.
const PM_SCAN_ARG_BYTES: usize = 96;
/// `PAGEMAP_SCAN`: which pages of a used memory were written.
pub(crate) const PAGEMAP_SCAN: u32 = rustix::ioctl::opcode::read_write::<[u8; PM_SCAN_ARG_BYTES]>(b'f', 16);
/// `PR_SET_VMA`: the C library gives its own mappings names. `PR_GET_AUXV`: rustix asks for the page size and the vDSO.
const PR_SET_VMA: u64 = 0x5356_4d41;
const PR_GET_AUXV: u64 = 0x4155_5856;

/// What an executor's worker may call. `own_pid` is its process id in its own namespace.
pub(crate) fn for_worker(kind: ExecutorKind, own_pid: u32) -> Vec<Call> {
    let mut calls: Vec<Call> = [PROCESS, FILES, CONNECTION, OLDER].concat().into_iter().map(always).collect();
    calls.extend(memory());
    calls.extend([
        Call { missing: true, ..always(libc::SYS_clone3) },
        one_of(libc::SYS_clone, [vec![masked(0, THREAD | NEW_NAMESPACES, THREAD)]]),
        one_of(libc::SYS_prctl, [number(libc::PR_SET_NAME), PR_SET_VMA, PR_GET_AUXV].map(|option| vec![is(0, option)])),
        one_of(libc::SYS_ioctl, [PAGEMAP_SCAN.into(), libc::FIONBIO, libc::FIONREAD].map(|request| vec![is(1, request)])),
        one_of(libc::SYS_fcntl, FCNTL.map(|command| vec![is(1, number(command))])),
        one_of(libc::SYS_rt_sigaction, [vec![is_not(0, number(libc::SIGSYS))]]),
        // Only to end itself.
        one_of(libc::SYS_tgkill, [vec![is(0, own_pid.into()), is(2, number(libc::SIGABRT))]]),
        // The one timer that ends exclusive tasks: on the clock that goes on while the machine sleeps, at points of that clock.
        one_of(libc::SYS_timerfd_create, [vec![is(0, number(libc::CLOCK_BOOTTIME))]]),
        one_of(libc::SYS_timerfd_settime, [vec![is(1, number(libc::TFD_TIMER_ABSTIME))]]),
        // Only to read.
        one_of(libc::SYS_prlimit64, [vec![Argument { index: 2, length: Qword, compare: Eq, value: 0 }]]),
    ]);
    if kind == ExecutorKind::Networked {
        calls.extend(SOCKETS.iter().copied().map(always));
        let stream = |family| vec![is(0, number(family)), masked(1, SOCKET_TYPE, libc::SOCK_STREAM.cast_unsigned())];
        calls.push(one_of(libc::SYS_socket, [stream(libc::AF_INET), stream(libc::AF_INET6)]));
        // No options of IP's own: a source route would lead elsewhere than to the address that was checked.
        let option = |(level, name): (i32, i32)| vec![is(1, number(level)), is(2, number(name))];
        calls.push(one_of(libc::SYS_setsockopt, SOCKET_OPTIONS.map(option)));
    }
    calls
}

/// What a supervisor may call.
pub(crate) fn for_supervisor() -> Vec<Call> {
    let mut calls: Vec<Call> = SUPERVISOR.iter().copied().map(always).collect();
    calls.extend(memory());
    calls
}

/// Commands of `fcntl` that Wasmtime, its WASI and the standard library use.
const FCNTL: [i32; 7] =
    [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC, libc::F_ADD_SEALS, libc::F_GET_SEALS];
/// Options of sockets that wasi-sockets sets.
const SOCKET_OPTIONS: [(i32, i32); 12] = [
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
];
/// The type of a socket without its flags.
const SOCKET_TYPE: u32 = 0xf;

/// Mappings: code is published by making a mapping executable that nobody can write any more.
fn memory() -> [Call; 2] {
    let (write, execute) = (number(libc::PROT_WRITE), number(libc::PROT_EXEC));
    let without = |bit| vec![Argument { index: 2, length: Qword, compare: MaskedEq(bit), value: 0 }];
    [one_of(libc::SYS_mmap, [without(execute)]), one_of(libc::SYS_mprotect, [without(execute), without(write)])]
}

const fn always(number: c_long) -> Call {
    Call { number, any_of: Vec::new(), missing: false }
}

fn one_of<const N: usize>(number: c_long, any_of: [Vec<Argument>; N]) -> Call {
    Call { number, any_of: any_of.into(), missing: false }
}

const fn is(index: u8, value: u64) -> Argument {
    Argument { index, length: Dword, compare: Eq, value }
}

const fn is_not(index: u8, value: u64) -> Argument {
    Argument { index, length: Dword, compare: Ne, value }
}

fn masked(index: u8, mask: u32, value: u32) -> Argument {
    Argument { index, length: Dword, compare: MaskedEq(mask.into()), value: value.into() }
}

/// A constant of the C library, which has them signed.
fn number(constant: i32) -> u64 {
    u64::from(constant.cast_unsigned())
}

/// Makes a list into a program. What is not on it gets `otherwise`.
///
/// # Errors
/// A list that makes no program.
pub(crate) fn program(calls: Vec<Call>, otherwise: SeccompAction) -> Result<BpfProgram, Error> {
    let (mut known, mut rules) = (Vec::new(), BTreeMap::new());
    for call in calls {
        let mut any_of = Vec::new();
        for pattern in call.any_of {
            let conditions = pattern.into_iter().map(|a| SeccompCondition::new(a.index, a.length, a.compare, a.value));
            any_of.push(SeccompRule::new(conditions.collect::<Result<_, _>>()?)?);
        }
        let verdict = if call.missing { Verdict::Missing } else { Verdict::Allowed };
        match u32::try_from(call.number) {
            Ok(number) if any_of.is_empty() => known.push((number, verdict)),
            Ok(number) => {
                known.push((number, Verdict::Open));
                rules.insert(call.number, any_of);
            }
            // No call has such a number.
            Err(_) => return Err(Error::TooMany),
        }
    }
    let denied = Verdict::Denied(otherwise.clone().into());
    let conditional: BpfProgram = SeccompFilter::new(rules, otherwise, SeccompAction::Allow, arch()?)?.try_into()?;
    decide::in_front_of(&conditional, &known, denied).ok_or(Error::TooMany)
}

fn arch() -> Result<TargetArch, BackendError> {
    std::env::consts::ARCH.try_into()
}

/// The pid of a worker in its own namespace: the supervisor's first child.
const USUAL_PID: u32 = 2;

/// Programs that were made before this process was copied: for a worker of kind [`ExecutorKind::Pooled`] with the usual pid, and for
/// its supervisor.
static PREPARED: OnceLock<(BpfProgram, BpfProgram)> = OnceLock::new();

/// Makes the programs that most copies of this process will want. Without them each makes its own.
pub(crate) fn prepare() {
    let worker = program(for_worker(ExecutorKind::Pooled, USUAL_PID), SeccompAction::Trap);
    if let (Ok(worker), Ok(supervisor)) = (worker, program(for_supervisor(), SeccompAction::KillProcess)) {
        let _ = PREPARED.set((worker, supervisor));
    }
}

/// Puts the worker's filter in force for the calling thread and all that it starts. Needs `no_new_privs`, and sets it.
///
/// # Errors
/// When it cannot be built or imposed; then the worker must not run anything.
pub(crate) fn impose_on_worker(kind: ExecutorKind) -> Result<(), Error> {
    let own_pid = std::process::id();
    let made = match PREPARED.get() {
        Some((worker, _)) if (kind, own_pid) == (ExecutorKind::Pooled, USUAL_PID) => Cow::Borrowed(worker),
        _ => Cow::Owned(program(for_worker(kind, own_pid), SeccompAction::Trap)?),
    };
    Ok(seccompiler::apply_filter(&made)?)
}

/// Puts the supervisor's filter in force.
///
/// # Errors
/// When it cannot be built or imposed.
pub(crate) fn impose_on_supervisor() -> Result<(), Error> {
    if let Some((_, supervisor)) = PREPARED.get() {
        return Ok(seccompiler::apply_filter(supervisor)?);
    }
    Ok(seccompiler::apply_filter(&program(for_supervisor(), SeccompAction::KillProcess)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [ExecutorKind; 3] = [ExecutorKind::Shared, ExecutorKind::Pooled, ExecutorKind::Networked];

    fn has(calls: &[Call], number: c_long) -> bool {
        calls.iter().any(|c| c.number == number)
    }

    #[test]
    fn every_list_is_a_program_that_fits_and_names_each_call_once() {
        for kind in KINDS {
            let calls = for_worker(kind, 2);
            let mut numbers: Vec<_> = calls.iter().map(|c| c.number).collect();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), calls.len(), "a call is listed twice: the later rule would replace the earlier");
            assert!(program(calls, SeccompAction::Trap).unwrap().len() < 4096);
        }
        assert!(program(for_supervisor(), SeccompAction::KillProcess).unwrap().len() < 4096);
    }

    #[test]
    fn what_nobody_needs_is_on_no_list() {
        let dangerous = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_capset,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_seccomp,
            libc::SYS_mknodat,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_open_by_handle_at,
            libc::SYS_name_to_handle_at,
            libc::SYS_pidfd_getfd,
            libc::SYS_pidfd_open,
            libc::SYS_fsopen,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_shmget,
            libc::SYS_msgget,
            libc::SYS_semget,
            libc::SYS_socketpair,
        ];
        for kind in KINDS {
            let calls = for_worker(kind, 2);
            for number in dangerous {
                assert!(!has(&calls, number), "{number} is allowed in {kind:?}");
            }
            let networked = kind == ExecutorKind::Networked;
            for number in [libc::SYS_socket, libc::SYS_bind, libc::SYS_listen, libc::SYS_connect] {
                assert_eq!(has(&calls, number), networked, "{number} in {kind:?}");
            }
        }
        assert!(!has(&for_supervisor(), libc::SYS_openat));
    }

    #[test]
    fn the_number_of_pagemap_scan_is_the_kernels() {
        assert_eq!(PAGEMAP_SCAN, 0xc060_6610);
    }
}
