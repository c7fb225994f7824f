//! Figures that the agent's heartbeat carries: written by the event loop, read by the connection.
//!
//! Owns their names. Deliberately absent: what they count.

use crate::prepare::{Kind, Stock};
use smalti_agent_core::Counters;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    frames_sent: AtomicU64,
    frames_received: AtomicU64,
    items_finished: AtomicU64,
    executor_ignored: AtomicU64,
    executors_lost: AtomicU64,
    /// 1 while the disk is too full for more tasks.
    disk_full: AtomicU64,
    /// By [`Kind`]: bytes, budget and number of what is cached.
    caches: [[AtomicU64; 3]; 3],
}

impl Figures {
    /// By name, as the master shows them.
    pub(crate) fn counters(&self) -> HashMap<String, u64> {
        [
            ("executor_frames_sent", &self.frames_sent),
            ("executor_frames_received", &self.frames_received),
            ("items_finished", &self.items_finished),
            ("executor_statements_ignored", &self.executor_ignored),
            ("executors_lost", &self.executors_lost),
            ("disk_full", &self.disk_full),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.load(Ordering::Relaxed)))
        .chain(Kind::ALL.into_iter().flat_map(|kind| {
            let figures = ["bytes", "budget", "entries"].into_iter().zip(&self.caches[kind as usize]);
            figures.map(move |(what, value)| (format!("cache_{}_{what}", kind.name()), value.load(Ordering::Relaxed)))
        }))
        .collect()
    }

    /// What is cached.
    pub(crate) fn count_caches(&self, stock: &[Stock]) {
        for stock in stock {
            let figures = [stock.bytes.0, stock.budget.0, stock.entries as u64];
            self.caches[stock.kind as usize].iter().zip(figures).for_each(|(at, n)| at.store(n, Ordering::Relaxed));
        }
    }

    /// Frames sent to and received from executors, what the core has counted, and whether the disk has room.
    pub(crate) fn count(&self, (sent, received): (u64, u64), counters: Counters, room: bool) {
        self.frames_sent.store(sent, Ordering::Relaxed);
        self.frames_received.store(received, Ordering::Relaxed);
        self.items_finished.store(counters.items_finished, Ordering::Relaxed);
        self.executors_lost.store(counters.executors_lost, Ordering::Relaxed);
        self.disk_full.store(u64::from(!room), Ordering::Relaxed);
        self.executor_ignored.store(counters.executor_ignored, Ordering::Relaxed);
    }
}
