//! Which system calls a compiler needs: memory, threads of its own, its two files. Everything else fails with `EPERM`.
//!
//! Failing and not killing: libraries ask for things that they do without (a file that tells the number of processors).

use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule};
use std::collections::BTreeMap;

/// What is allowed with any arguments. Open descriptors are the input, the output and the two streams to the agent.
const ALLOWED: &[i64] = &[
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_close,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    // Answered with ENOSYS by the filter before.
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// From here on, for this thread and those that it starts.
pub(super) fn restrict() -> Result<(), String> {
    for program in [no_clone3(), program()] {
        let program = program.map_err(|e| format!("the filter cannot be made: {e}"))?;
        seccompiler::apply_filter(&program).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Its flags lie in memory, where no filter can see them. The C library then uses the old call.
fn no_clone3() -> Result<BpfProgram, seccompiler::Error> {
    let missing = SeccompAction::Errno(u32::try_from(libc::ENOSYS).unwrap_or_default());
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, missing, std::env::consts::ARCH.try_into()?)?.try_into()?)
}

fn program() -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let is = |argument, value: u64| SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value);
    let has = |argument, mask: u64| SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), mask);
    let rule = |conditions| SeccompRule::new(conditions);
    // Threads only: a process would outlive its limits on files and be in nobody's hands.
    let thread = u64::try_from(libc::CLONE_THREAD).unwrap_or_default();
    rules.insert(libc::SYS_clone, vec![rule(vec![has(0, thread)?])?]);
    // To end itself when memory runs out.
    rules.insert(libc::SYS_tgkill, vec![rule(vec![is(0, u64::from(std::process::id()))?])?]);
    rules.insert(libc::SYS_prctl, vec![rule(vec![is(0, u64::try_from(libc::PR_SET_NAME).unwrap_or_default())?])?]);
    // Reading limits (for the size of stacks), not setting them: the third argument is the new limit.
    rules.insert(libc::SYS_prlimit64, vec![rule(vec![is(0, 0)?, is(2, 0)?])?]);
    let arch = std::env::consts::ARCH.try_into()?;
    let denied = SeccompAction::Errno(u32::try_from(libc::EPERM).unwrap_or_default());
    Ok(SeccompFilter::new(rules, denied, SeccompAction::Allow, arch)?.try_into()?)
}
