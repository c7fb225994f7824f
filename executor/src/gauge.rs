//! What the guests of a run use at this moment, readable from any thread.
//!
//! Owns the list of those that run now: one for a task, one per slot for an array part. What has ended is in the reports.

use crate::clock::{SlotClock, Stopwatch, micros};
use crate::limits::Budget;
use crate::streams::Meters;
use smalti_types::status::Usage;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One running guest.
#[derive(Debug)]
struct Guest {
    meters: Arc<Meters>,
    budget: Arc<Budget>,
    clock: Arc<SlotClock>,
    began: Instant,
    cpu_before: Duration,
}

/// Where the guest of one slot is. On cache lines of its own: its slot writes there twice for each guest.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Cell(Mutex<Option<Guest>>);

impl Cell {
    fn lock(&self) -> MutexGuard<'_, Option<Guest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guest runs until the answer is dropped.
    pub(crate) fn begin(self: &Arc<Self>, meters: &Arc<Meters>, budget: &Arc<Budget>, watch: &Stopwatch) -> Running {
        let (clock, began, cpu_before) = (watch.clock().clone(), watch.began(), watch.cpu_before());
        *self.lock() = Some(Guest { meters: meters.clone(), budget: budget.clone(), clock, began, cpu_before });
        Running(self.clone())
    }
}

/// The guests of one run.
#[derive(Debug, Default)]
pub(crate) struct Gauge(Mutex<BTreeMap<u32, Arc<Cell>>>);

impl Gauge {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Cell>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cell of a slot.
    pub(crate) fn cell(&self, slot: u32) -> Arc<Cell> {
        self.lock().entry(slot).or_default().clone()
    }

    /// The sum over all guests that run now; `None`: none does. Fuel is known at the end only.
    #[cfg_attr(not(test), expect(dead_code, reason = "read by the live usage of tasks, which is built on this"))]
    pub(crate) fn read(&self) -> Option<Usage> {
        let mut sum: Option<Usage> = None;
        for cell in self.lock().values() {
            if let Some(guest) = &*cell.lock() {
                sum.get_or_insert_default().add(&Usage {
                    cpu_us: micros(guest.clock.cpu().saturating_sub(guest.cpu_before)),
                    wall_us: micros(guest.began.elapsed()),
                    peak_memory: guest.budget.peak(),
                    bytes_read: guest.meters.read(),
                    bytes_written: guest.meters.written(),
                    fuel: None,
                });
            }
        }
        sum
    }
}

/// Empties the cell.
#[derive(Debug)]
pub(crate) struct Running(Arc<Cell>);

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_guests_are_summed_and_leave() {
        let gauge = Arc::new(Gauge::default());
        assert!(gauge.read().is_none());
        let watch = Stopwatch::start(&Arc::new(SlotClock::of_this_thread()));
        let guest = || (Arc::new(Meters::new(0)), Arc::new(Budget::new(100)));
        let ((m1, b1), (m2, b2)) = (guest(), guest());
        let first = gauge.cell(0).begin(&m1, &b1, &watch);
        let second = gauge.cell(1).begin(&m2, &b2, &watch);
        m1.add_read(3);
        m2.add_read(4);
        let _charge = b2.charge(50);
        let usage = gauge.read().expect("they run");
        assert_eq!((usage.bytes_read, usage.peak_memory, usage.fuel), (7, 50, None));
        drop(first);
        assert_eq!(gauge.read().expect("one runs").bytes_read, 4);
        drop(second);
        assert!(gauge.read().is_none());
    }
}
