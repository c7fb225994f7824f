//! The limits of one guest inside the executor: its memory account, its numbers of instances, memories, tables and handles.
//!
//! The account ([`Budget`]) sums all linear memories and tables (Wasmtime's own `StoreLimits` bounds each by itself) and the
//! host memory that grows with what the guest does: buffers of its file streams, directory listings. It owns the peak and the
//! fact that the limit was hit, so that the outcome says "memory" and not "unreachable". What one guest costs the host at most
//! whatever it does (handles, copies of one call, standard streams) is bounded by the constants here; it is not charged to
//! the guest but part of the executor's overhead per slot. Does not end guests: that is [`crate::instance`]'s.

use nix::sys::resource::{Resource, getrlimit};
pub(crate) use smalti_engine::{MAX_MEMORIES, MAX_TABLE_ELEMENTS, MAX_TABLES};
use smalti_types::task_state::Reason;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wasmtime::ResourceLimiter;
use wasmtime_wasi::ResourceTableError;

/// Most core instances in one component.
pub(crate) const MAX_INSTANCES: usize = 64;
/// Most host resources (open files, streams, pollables) that one guest may hold: what a Linux process may by default. Each
/// costs the host about a KiB, and possibly a file descriptor of the executor, of which each slot gets the same share.
pub(crate) const MAX_HANDLES: usize = 1024;
/// Less than this is no use to a guest.
const MIN_HANDLES: usize = 32;
/// Handles of the guest's own resource types, which Wasmtime keeps in tables of the host: 32 bytes each.
pub(crate) const MAX_COMPONENT_HANDLES: usize = 8192;
/// Descriptors that the executor needs beside its guests': connection, code, output, directories.
const OWN_DESCRIPTORS: u64 = 256;
/// Descriptors of one slot beside its guest's handles: output files, stdin, preopened directories.
const DESCRIPTORS_PER_SLOT: u64 = 64;
/// Most random bytes of one call: the host allocates them.
pub(crate) const MAX_RANDOM_BYTES: u64 = 1 << 20;
/// Most bytes that the host copies for the guest in one call (paths, lists). Data for files is moved in pieces of
/// [`TRANSFER_BYTES`], so that a guest may read and write more than this in one call.
pub(crate) const HOSTCALL_BYTES: usize = 2 << 20;
/// Most bytes that the host buffers of one read or write of a file.
pub(crate) const TRANSFER_BYTES: u32 = 1 << 20;
/// What one WASI 0.2 stream over a file may buffer: the size of its reads ahead.
pub(crate) const STREAM_BYTES: u64 = 64 << 10;

/// Bytes of one table element.
const ELEMENT_BYTES: u64 = size_of::<usize>() as u64;

/// How many handles each of `slots` guests may hold, so that together they never need more descriptors than this process
/// may have; with what to tell the agent when that is less than it should be.
pub(crate) fn handles_per_guest(slots: u32) -> (usize, Option<String>) {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(OWN_DESCRIPTORS, |(soft, _)| soft);
    let handles = share(limit, slots);
    let warning = (handles < MAX_HANDLES).then(|| {
        format!("a guest may have {handles} open handles, not {MAX_HANDLES}: the limit on open files is {limit} for {slots} slots")
    });
    (handles, warning)
}

/// One guest's share of `limit` descriptors.
fn share(limit: u64, slots: u32) -> usize {
    let each = limit.saturating_sub(OWN_DESCRIPTORS) / u64::from(slots.max(1));
    usize::try_from(each.saturating_sub(DESCRIPTORS_PER_SLOT)).unwrap_or(MAX_HANDLES).clamp(MIN_HANDLES, MAX_HANDLES)
}

#[derive(Debug, Default)]
struct Account {
    used: u64,
    peak: u64,
    hit: bool,
}

/// The memory account of one guest.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    account: Mutex<Account>,
}

impl Budget {
    /// `limit` in bytes.
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, account: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The limit in bytes.
    pub(crate) const fn limit(&self) -> u64 {
        self.limit
    }
    /// Bytes in use now.
    #[cfg(test)]
    pub(crate) fn used(&self) -> u64 {
        self.lock().used
    }
    /// Most bytes in use so far.
    pub(crate) fn peak(&self) -> u64 {
        self.lock().peak
    }
    /// Whether anything was refused because of the limit.
    pub(crate) fn was_hit(&self) -> bool {
        self.lock().hit
    }
    /// Bytes that are left.
    pub(crate) fn left(&self) -> u64 {
        self.limit.saturating_sub(self.lock().used)
    }

    fn take(&self, bytes: u64) -> bool {
        let mut account = self.lock();
        let wanted = account.used.saturating_add(bytes);
        if wanted > self.limit {
            account.hit = true;
            return false;
        }
        account.used = wanted;
        account.peak = account.peak.max(wanted);
        true
    }

    fn give_back(&self, bytes: u64) {
        let mut account = self.lock();
        account.used = account.used.saturating_sub(bytes);
    }

    /// Counts host memory that the guest causes, until the charge is dropped. `None`: it would be beyond the limit.
    pub(crate) fn charge(self: &Arc<Self>, bytes: u64) -> Option<Charge> {
        self.take(bytes).then(|| Charge { budget: self.clone(), bytes })
    }
}

/// Host memory that counts as the guest's as long as this lives.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Charge {
    /// Whether it counts nothing.
    pub(crate) const fn is_free(&self) -> bool {
        self.bytes == 0
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// Asks the account before a memory or table of one store grows.
#[derive(Debug)]
pub(crate) struct Limiter {
    pub(crate) budget: Arc<Budget>,
    /// What the last permitted growth added: taken back if the system then refuses it.
    last: u64,
}

impl Limiter {
    /// `limit` in bytes, over all memories and tables together.
    pub(crate) fn new(limit: u64) -> Self {
        Self { budget: Arc::new(Budget::new(limit)), last: 0 }
    }

    fn grow(&mut self, by: u64) -> bool {
        let ok = self.budget.take(by);
        self.last = if ok { by } else { 0 };
        ok
    }

    fn take_back(&mut self) {
        self.budget.give_back(std::mem::take(&mut self.last));
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.last = 0;
        // Beyond its own maximum the growth fails anyway, and that is not our limit.
        if maximum.is_some_and(|max| desired > max) {
            return Ok(false);
        }
        Ok(self.grow(desired.saturating_sub(current) as u64))
    }
    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.take_back();
        Ok(())
    }
    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.last = 0;
        // The same bound with every allocator: the pool's tables are not larger.
        if desired > MAX_TABLE_ELEMENTS || maximum.is_some_and(|max| desired > max) {
            return Ok(false);
        }
        Ok(self.grow((desired.saturating_sub(current) as u64).saturating_mul(ELEMENT_BYTES)))
    }
    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.take_back();
        Ok(())
    }
    fn instances(&self) -> usize {
        MAX_INSTANCES
    }
    fn tables(&self) -> usize {
        MAX_TABLES
    }
    fn memories(&self) -> usize {
        MAX_MEMORIES
    }
}

/// Which limit an error of Wasmtime's speaks of, if any. It has a type for one of them only; the others are known by their
/// words, which belong to the one release that is linked (tests run into each).
pub(crate) fn limit_in(error: &wasmtime::Error) -> Option<Reason> {
    for cause in error.chain() {
        if matches!(cause.downcast_ref(), Some(ResourceTableError::Full)) {
            return Some(Reason::HandleLimit);
        }
        let text = cause.to_string();
        if text.contains("store handle limit exceeded") {
            return Some(Reason::HandleLimit);
        }
        let instances = ["count too high at", "the per-instance limit of", "which exceeds the configured maximum"];
        if instances.iter().any(|words| text.contains(words)) || text.contains("exceeds the configured maximum of") {
            return Some(Reason::InstanceLimit);
        }
        let memory = ["has a minimum byte size of", "has a minimum element size of", "exceeds memory limits", "exceeds table limits"];
        if memory.iter().any(|words| text.contains(words)) {
            return Some(Reason::MemoryLimit);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_and_tables_are_summed() {
        let mut l = Limiter::new(200_000);
        assert!(l.memory_growing(0, 65_536, None).is_ok_and(|ok| ok));
        assert!(l.memory_growing(0, 65_536, None).is_ok_and(|ok| ok));
        assert!(l.table_growing(0, 1_000, None).is_ok_and(|ok| ok));
        assert_eq!(l.budget.peak(), 2 * 65_536 + 8_000);
        assert!(!l.budget.was_hit());
        assert!(l.memory_growing(65_536, 131_072, None).is_ok_and(|ok| !ok));
        assert!(l.budget.was_hit());
        assert_eq!(l.budget.peak(), 2 * 65_536 + 8_000);
    }

    #[test]
    fn a_growth_that_fails_later_is_not_counted_and_a_memorys_own_maximum_is_not_our_limit() {
        let mut l = Limiter::new(1 << 20);
        assert!(l.memory_growing(0, 65_536, None).is_ok_and(|ok| ok));
        assert!(l.memory_grow_failed(wasmtime::Error::msg("no memory")).is_ok());
        assert!(l.memory_growing(0, 2 << 20, Some(1 << 20)).is_ok_and(|ok| !ok));
        assert!(!l.budget.was_hit());
        assert!(l.memory_growing(0, 1 << 20, None).is_ok_and(|ok| ok));
        // A refusal that was never counted is not taken back either.
        assert!(l.memory_growing(1 << 20, 2 << 20, Some(1 << 20)).is_ok_and(|ok| !ok));
        assert!(l.memory_grow_failed(wasmtime::Error::msg("beyond its maximum")).is_ok());
        assert_eq!(l.budget.used(), 1 << 20);
    }

    #[test]
    fn host_memory_counts_beside_the_guests_own_until_it_is_let_go() {
        let mut l = Limiter::new(100_000);
        assert!(l.memory_growing(0, 65_536, None).is_ok_and(|ok| ok));
        let charge = l.budget.charge(30_000).expect("there is room");
        assert!(l.budget.charge(5_000).is_none() && l.budget.was_hit());
        assert_eq!((l.budget.used(), l.budget.left()), (95_536, 4_464));
        drop(charge);
        assert_eq!((l.budget.used(), l.budget.peak()), (65_536, 95_536));
    }

    #[test]
    fn a_table_is_never_larger_than_the_pools() {
        let mut l = Limiter::new(u64::MAX);
        assert!(l.table_growing(0, MAX_TABLE_ELEMENTS, None).is_ok_and(|ok| ok));
        assert!(l.table_growing(0, MAX_TABLE_ELEMENTS + 1, None).is_ok_and(|ok| !ok));
        assert!(!l.budget.was_hit());
    }

    #[test]
    fn guests_share_the_descriptors_and_never_get_more_than_there_are() {
        assert_eq!(share(OWN_DESCRIPTORS + 4 * (DESCRIPTORS_PER_SLOT + MAX_HANDLES as u64), 4), MAX_HANDLES);
        assert_eq!(share(u64::MAX, 1), MAX_HANDLES);
        assert_eq!(share(0, 1000), MIN_HANDLES);
        let scarce = share(4096, 16);
        assert!(OWN_DESCRIPTORS + 16 * (scarce as u64 + DESCRIPTORS_PER_SLOT) <= 4096 && scarce > 100, "{scarce}");
    }
}
