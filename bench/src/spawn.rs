//! What a process with namespaces and control groups of its own costs when it does nothing: the floor of class `process`.

use anyhow::{Context, Result, bail};
use nix::sched::CloneFlags;
use nix::sys::wait::{WaitStatus, waitpid};
use std::ffi::CString;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// What the executors of class `process` have, too.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWUSER
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWNET);
/// Threads that start processes at once; the best counts.
const THREADS: [usize; 3] = [1, 2, 4];

/// Processes per second, on as many threads as are best.
///
/// # Errors
/// When this user may not make namespaces or groups.
pub(crate) fn confined_per_s(n: usize) -> Result<f64> {
    let parents = parents()?;
    let mut best: f64 = 0.0;
    for threads in THREADS {
        let (left, start) = (AtomicUsize::new(n), Instant::now());
        std::thread::scope(|scope| {
            let run = |thread: usize| {
                let mut stack = vec![0; 64 << 10];
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                    one(&parents, thread, &mut stack)?;
                }
                Ok::<_, anyhow::Error>(())
            };
            let all: Vec<_> = (0..threads).map(|t| scope.spawn(move || run(t))).collect();
            all.into_iter().try_for_each(|t| t.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
        })?;
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = n as f64 / start.elapsed().as_secs_f64();
        best = best.max(rate);
    }
    Ok(best)
}

/// Makes the groups, starts `/bin/true` in them and in namespaces, waits for it, removes the groups.
fn one(parents: &[PathBuf], thread: usize, stack: &mut [u8]) -> Result<()> {
    let name = format!("smalti-bench-{}-{thread}", std::process::id());
    let groups: Vec<PathBuf> = parents.iter().map(|p| p.join(&name)).collect();
    for group in &groups {
        std::fs::create_dir(group).with_context(|| format!("making the group {}", group.display()))?;
    }
    let (wait, mut go) = std::io::pipe().context("making a pipe")?;
    let program = CString::new("/bin/true").context("a path")?;
    let (argv, env) = ([program.as_ptr(), std::ptr::null()], [std::ptr::null()]);
    let (fd, other) = (wait.as_raw_fd(), go.as_raw_fd());
    let child = Box::new(|| {
        let mut byte = 0_u8;
        #[expect(
            unsafe_code,
            reason = "what a child of a process with threads may do: close, read, execve, on memory that was made before"
        )]
        // SAFETY: these are system calls, and async-signal-safe; the child has a copy of the memory that the pointers point to.
        unsafe {
            nix::libc::close(other);
            nix::libc::read(fd, (&raw mut byte).cast(), 1);
            nix::libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr());
        }
        127
    });
    #[expect(unsafe_code, reason = "there is no safe clone with namespaces")]
    // SAFETY: without CLONE_VM the child has its own copy of everything, the stack included, and does only what is allowed there.
    let pid = unsafe { nix::sched::clone(child, stack, NAMESPACES, Some(nix::libc::SIGCHLD)) }.context("clone with namespaces")?;
    for group in &groups {
        std::fs::write(group.join("cgroup.procs"), pid.to_string()).with_context(|| format!("entering {}", group.display()))?;
    }
    go.write_all(b"x").context("telling the child to go on")?;
    let ended = waitpid(pid, None).context("waiting for the child")?;
    for group in &groups {
        std::fs::remove_dir(group).with_context(|| format!("removing the group {}", group.display()))?;
    }
    match ended {
        WaitStatus::Exited(_, 0) => Ok(()),
        other => bail!("/bin/true in namespaces ended with {other:?}"),
    }
}

/// Where groups can be made: this process's own, of cpu, memory and pids, or on v2 the one.
fn parents() -> Result<Vec<PathBuf>> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("reading mounts")?;
    let own = std::fs::read_to_string("/proc/self/cgroup").context("reading this process's groups")?;
    let mut parents = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(at), Some(kind), Some(options)) = (words.nth(1), words.next(), words.next()) else { continue };
        let controllers: Vec<&str> = match kind {
            "cgroup2" => vec![""],
            "cgroup" => options.split(',').filter(|o| ["cpu", "memory", "pids"].contains(o)).collect(),
            _ => continue,
        };
        let Some(controller) = controllers.first() else { continue };
        let mine = own.lines().find_map(|l| {
            let (_, rest) = l.split_once(':')?;
            let (names, path) = rest.split_once(':')?;
            names.split(',').any(|n| n == *controller).then_some(path)
        });
        let parent = Path::new(at).join(mine.unwrap_or("/").trim_start_matches('/'));
        // v2 does not count where nothing is on.
        if kind == "cgroup" || std::fs::read_to_string(parent.join("cgroup.controllers")).is_ok_and(|c| c.contains("memory")) {
            parents.push(parent);
        }
    }
    anyhow::ensure!(!parents.is_empty(), "no control groups are mounted");
    Ok(parents)
}
