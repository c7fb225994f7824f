//! Which disks are kept for the next task, and how much room all of them take.
//!
//! Owns the bookkeeping only, whatever a disk is: pure. A disk goes from one task to the next of the same framework and size, never to
//! another framework. What is lent and what is kept together never take more than the agent has.

use smalti_types::{Bytes, FrameworkId};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Disks kept without a task, at most.
const MOST_IDLE: usize = 64;
/// And for this long, at most.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Idle<T> {
    framework: FrameworkId,
    size: Bytes,
    since: Instant,
    disk: T,
}

/// The bookkeeping.
#[derive(Debug)]
pub(super) struct Pool<T> {
    /// What all disks together may take.
    limit: u64,
    lent: u64,
    /// Longest idle first.
    idle: VecDeque<Idle<T>>,
}

impl<T> Pool<T> {
    pub(super) const fn new(limit: Bytes) -> Self {
        Self { limit: limit.0, lent: 0, idle: VecDeque::new() }
    }

    /// Lends one of `size`: a kept one, or none and then it is to be made. What must go to make room comes second.
    pub(super) fn lend(&mut self, framework: &FrameworkId, size: Bytes) -> (Option<T>, Vec<T>) {
        self.lent = self.lent.saturating_add(size.0);
        let found = self.idle.iter().rposition(|i| i.size == size && i.framework == *framework);
        let kept = found.and_then(|at| self.idle.remove(at)).map(|i| i.disk);
        let mut gone = Vec::new();
        while self.lent.saturating_add(self.idle_bytes()) > self.limit
            && let Some(oldest) = self.idle.pop_front()
        {
            gone.push(oldest.disk);
        }
        (kept, gone)
    }

    /// One that was lent is no more.
    pub(super) const fn lost(&mut self, size: Bytes) {
        self.lent = self.lent.saturating_sub(size.0);
    }

    /// One that was lent is back and like new. What is not kept comes back.
    pub(super) fn keep(&mut self, framework: FrameworkId, size: Bytes, disk: T, now: Instant) -> Vec<T> {
        self.lost(size);
        self.idle.push_back(Idle { framework, size, since: now, disk });
        let surplus = self.idle.len().saturating_sub(MOST_IDLE);
        self.idle.drain(..surplus).map(|i| i.disk).collect()
    }

    /// What has been idle for too long.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<T> {
        let fresh = self.idle.iter().position(|i| now.saturating_duration_since(i.since) < KEPT_FOR).unwrap_or(self.idle.len());
        self.idle.drain(..fresh).map(|i| i.disk).collect()
    }

    pub(super) fn is_idle_empty(&self) -> bool {
        self.idle.is_empty()
    }

    fn idle_bytes(&self) -> u64 {
        self.idle.iter().map(|i| i.size.0).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framework(name: &str) -> FrameworkId {
        FrameworkId::new(name).unwrap()
    }

    #[test]
    fn a_disk_goes_to_the_next_task_of_the_same_framework_and_size_only() {
        let mut pool = Pool::new(Bytes(100));
        let (a, b, now) = (framework("A"), framework("B"), Instant::now());
        assert_eq!(pool.lend(&a, Bytes(10)), (None, vec![]));
        assert!(pool.keep(a.clone(), Bytes(10), 1, now).is_empty());
        assert_eq!(pool.lend(&b, Bytes(10)), (None, vec![]));
        assert_eq!(pool.lend(&a, Bytes(20)), (None, vec![]));
        assert_eq!(pool.lend(&a, Bytes(10)), (Some(1), vec![]));
        assert!(pool.is_idle_empty());
    }

    #[test]
    fn kept_ones_make_room_for_those_that_are_needed() {
        let mut pool = Pool::new(Bytes(100));
        let (a, now) = (framework("A"), Instant::now());
        for _ in 0..3 {
            assert_eq!(pool.lend(&a, Bytes(30)), (None, vec![]));
        }
        for n in 0..3 {
            pool.keep(a.clone(), Bytes(30), n, now);
        }
        assert_eq!(pool.lend(&a, Bytes(50)), (None, vec![0, 1]));
        pool.lost(Bytes(50));
        assert_eq!(pool.lend(&a, Bytes(30)), (Some(2), vec![]));
    }

    #[test]
    fn nothing_is_kept_for_ever_or_without_bound() {
        let mut pool = Pool::new(Bytes(u64::MAX));
        let (a, now) = (framework("A"), Instant::now());
        let mut gone = Vec::new();
        for n in 0..MOST_IDLE + 3 {
            gone.extend(pool.keep(a.clone(), Bytes(1), n, now));
        }
        assert_eq!(gone, [0, 1, 2]);
        assert!(pool.expire(now + KEPT_FOR / 2).is_empty());
        pool.keep(a, Bytes(1), 99, now + KEPT_FOR / 2);
        assert_eq!(pool.expire(now + KEPT_FOR).len(), MOST_IDLE - 1);
        assert!(!pool.is_idle_empty());
    }
}
