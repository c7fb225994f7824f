//! The memory limit of one guest: the sum of all its linear memories and tables, which Wasmtime's own `StoreLimits`
//! (a limit per memory) does not bound.
//!
//! Owns the arithmetic, the peak, and the fact that the limit was hit, so that the outcome says "memory" and not
//! "unreachable". Does not bound what the host allocates on the guest's behalf: see the constants here and
//! [`crate::instance`], which sets them.

pub(crate) use smalti_engine::{MAX_MEMORIES, MAX_TABLE_ELEMENTS, MAX_TABLES};
use wasmtime::ResourceLimiter;

/// Most core instances in one component.
pub(crate) const MAX_INSTANCES: usize = 64;
/// Most host resources (open files, streams, pollables) that one guest may hold.
pub(crate) const MAX_RESOURCES: usize = 4096;
/// Most random bytes of one call: the host allocates them.
pub(crate) const MAX_RANDOM_BYTES: u64 = 1 << 20;
/// Most bytes that the host copies for the guest in one call: Wasmtime's own default, less for guests with less memory.
pub(crate) const MAX_HOSTCALL_BYTES: usize = 128 << 20;
/// Host copies are allowed up to this size whatever the guest's memory limit is.
pub(crate) const MIN_HOSTCALL_BYTES: usize = 1 << 20;

/// Bytes of one table element.
const ELEMENT_BYTES: u64 = size_of::<usize>() as u64;

/// Counts and limits the memories and tables of one store.
#[derive(Debug)]
pub(crate) struct Limiter {
    limit: u64,
    used: u64,
    peak: u64,
    /// What the last permitted growth added: taken back if the system then refuses it.
    last: u64,
    hit: bool,
}

impl Limiter {
    /// `limit` in bytes, over all memories and tables together.
    pub(crate) const fn new(limit: u64) -> Self {
        Self { limit, used: 0, peak: 0, last: 0, hit: false }
    }
    /// Highest sum so far, in bytes.
    pub(crate) const fn peak(&self) -> u64 {
        self.peak
    }
    /// Whether a growth was refused because of the limit.
    pub(crate) const fn was_hit(&self) -> bool {
        self.hit
    }
    /// The limit in bytes.
    pub(crate) const fn limit(&self) -> u64 {
        self.limit
    }

    fn grow(&mut self, by: u64) -> bool {
        let wanted = self.used.saturating_add(by);
        if wanted > self.limit {
            self.hit = true;
            return false;
        }
        self.used = wanted;
        self.peak = self.peak.max(wanted);
        self.last = by;
        true
    }

    fn take_back(&mut self) {
        self.used = self.used.saturating_sub(self.last);
        self.last = 0;
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
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
        if maximum.is_some_and(|max| desired > max) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_and_tables_are_summed() {
        let mut l = Limiter::new(200_000);
        assert!(l.memory_growing(0, 65_536, None).is_ok_and(|ok| ok));
        assert!(l.memory_growing(0, 65_536, None).is_ok_and(|ok| ok));
        assert!(l.table_growing(0, 1_000, None).is_ok_and(|ok| ok));
        assert_eq!(l.peak(), 2 * 65_536 + 8_000);
        assert!(!l.was_hit());
        assert!(l.memory_growing(65_536, 131_072, None).is_ok_and(|ok| !ok));
        assert!(l.was_hit());
        assert_eq!(l.peak(), 2 * 65_536 + 8_000);
    }

    #[test]
    fn a_growth_that_fails_later_is_not_counted_and_a_memorys_own_maximum_is_not_our_limit() {
        let mut l = Limiter::new(1 << 20);
        assert!(l.memory_growing(0, 65_536, None).is_ok_and(|ok| ok));
        assert!(l.memory_grow_failed(wasmtime::Error::msg("no memory")).is_ok());
        assert!(l.memory_growing(0, 2 << 20, Some(1 << 20)).is_ok_and(|ok| !ok));
        assert!(!l.was_hit());
        assert!(l.memory_growing(0, 1 << 20, None).is_ok_and(|ok| ok));
    }
}
