//! A machine: its clocks, its disk, and which boot it is in.

use crate::clock::Clock;
use crate::disk::Disk;
use crate::rng::Rng;
use smalti_types::Time;
use std::cell::RefCell;
use std::rc::Rc;

/// One machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) clock: Clock,
    pub(crate) disk: Rc<RefCell<Disk>>,
    /// Counts boots.
    pub(crate) boot: u64,
    /// Until when its disk is full.
    pub(crate) full_until: Time,
}

impl Machine {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        Self { clock: Clock::new(rng), disk: Rc::default(), boot: 1, full_until: Time(0) }
    }

    /// The power fails, and it boots again.
    pub(crate) fn power_fails(&mut self, now: Time, rng: &mut Rng) {
        self.disk.borrow_mut().power_fails(rng);
        self.clock.booted = now;
        self.boot += 1;
    }
}
