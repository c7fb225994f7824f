//! A machine: its clocks, its disk, and which boot it is in.

use crate::clock::Clock;
use crate::disk::Disk;
use crate::rng::Rng;
use smalti_types::Time;

/// One machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) clock: Clock,
    pub(crate) disk: Disk,
    /// Counts boots.
    pub(crate) boot: u64,
}

impl Machine {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        Self { clock: Clock::new(rng), disk: Disk::default(), boot: 1 }
    }

    /// The power fails, and it boots again.
    pub(crate) fn power_fails(&mut self, now: Time, rng: &mut Rng) {
        self.disk.power_fails(rng);
        self.clock.booted = now;
        self.boot += 1;
    }
}
