//! Memory of an executor: its limit, what it uses, and whether the kernel killed for it.

use super::Error;
use super::files::{self, controller};
use cgroups_rs::memory::MemController;
use smalti_types::Bytes;
use std::path::Path;

/// The limit file on v1.
pub(super) const V1_LIMIT: &str = "memory.limit_in_bytes";
/// A limit is never set closer than this to what is in use: lowering it further would kill at once.
pub const MARGIN: Bytes = Bytes::mib(16);
/// The kernel counts in pages, at most this large.
const PAGE: u64 = 64 << 10;

/// Sets the limit, swap included, and gives what is in force: more than `wanted` when more is in use.
pub(super) fn set_limit(dir: &Path, v2: bool, wanted: Bytes) -> Result<Bytes, Error> {
    let limit = wanted.0.max(least(dir, v2, wanted)?).min(i64::MAX as u64 - PAGE);
    let signed = i64::try_from(limit).unwrap_or(i64::MAX);
    let control = MemController::new(dir.to_owned(), v2);
    let set = || control.set_limit(signed).map_err(controller("setting the memory limit", dir));
    if v2 {
        set()?;
        no_swap_v2(dir)?;
    } else if !dir.join("memory.memsw.limit_in_bytes").exists() {
        set()?;
    } else {
        // Memory plus swap may never be below memory: raise it first, lower it last.
        let swap = || control.set_memswap_limit(signed).map_err(controller("setting the memory and swap limit", dir));
        if files::read_number(&dir.join(V1_LIMIT))? < limit { swap().and_then(|()| set())? } else { set().and_then(|()| swap())? }
    }
    let path = dir.join(if v2 { "memory.max" } else { V1_LIMIT });
    let got = files::read_number(&path)?;
    if got.abs_diff(limit) > PAGE {
        return Err(Error::NotInForce { path, wanted: limit.to_string(), got: got.to_string() });
    }
    Ok(Bytes(got))
}

/// No swap for executors: a page that was swapped out and came back escapes the reset of pooled memories.
fn no_swap_v2(dir: &Path) -> Result<(), Error> {
    let path = dir.join("memory.swap.max");
    if path.exists() { files::write(&path, "0") } else { Ok(()) }
}

/// Whether swap is bounded for this group, or the host has none that it could use.
pub(super) fn swap_is_off(dir: &Path, v2: bool) -> bool {
    let bounded = dir.join(if v2 { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" }).exists();
    bounded || std::fs::read_to_string("/proc/swaps").is_ok_and(|t| t.lines().count() <= 1)
}

/// What is in use, in bytes.
pub(super) fn usage(dir: &Path, v2: bool) -> Result<Bytes, Error> {
    files::read_number(&dir.join(if v2 { "memory.current" } else { "memory.usage_in_bytes" })).map(Bytes)
}

/// The most that was ever in use; `None` on kernels that do not say.
pub(super) fn peak(dir: &Path, v2: bool) -> Result<Option<Bytes>, Error> {
    let path = dir.join(if v2 { "memory.peak" } else { "memory.max_usage_in_bytes" });
    let Some(text) = files::read_if_there(&path)? else { return Ok(None) };
    text.trim().parse().map(|n| Some(Bytes(n))).map_err(|_| files::unreadable(&path, &text))
}

/// Begins anew to count the most that was in use, on v1.
pub(super) fn forget_peak(dir: &Path) -> Result<(), Error> {
    files::write(&dir.join("memory.max_usage_in_bytes"), "0")
}

/// How many processes the kernel killed because the group was at its limit.
pub(super) fn oom_kills(dir: &Path, v2: bool) -> Result<u64, Error> {
    let text = files::read(&dir.join(if v2 { "memory.events" } else { "memory.oom_control" }))?;
    Ok(files::field(&text, "oom_kill").unwrap_or_default())
}

/// What a limit may not be below: what is in use less the file pages that the kernel drops first, and the margin. How much those are
/// takes the kernel long to say, and is only asked where it matters.
fn least(dir: &Path, v2: bool, wanted: Bytes) -> Result<u64, Error> {
    let used = usage(dir, v2)?.0.saturating_add(MARGIN.0);
    if used <= wanted.0 {
        return Ok(used);
    }
    let droppable = files::read(&dir.join("memory.stat"))?;
    let key = if v2 { "inactive_file" } else { "total_inactive_file" };
    Ok(used.saturating_sub(files::field(&droppable, key).unwrap_or_default()))
}
