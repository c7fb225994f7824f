//! Clocks of the executor. Owns nothing.

use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Processor time of the calling thread. Half a microsecond to ask; zero should the kernel not say.
pub(crate) fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Whole microseconds.
pub(crate) fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

/// `timeout` from now as Unix time in microseconds: what a guest sees as its deadline.
pub(crate) fn deadline_us(timeout: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    micros(now.saturating_add(timeout))
}

/// Wall and processor time of consecutive runs on one thread: the end of one is the beginning of the next, so each clock is
/// asked once per run, and what happens between two runs counts for the second.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    wall: Instant,
    cpu: Duration,
}

impl Stopwatch {
    /// Starts now, on this thread.
    pub(crate) fn start() -> Self {
        Self { wall: Instant::now(), cpu: thread_cpu() }
    }
    /// When the current run began.
    pub(crate) const fn began(&self) -> Instant {
        self.wall
    }
    /// Ends the current run: its (wall, processor) time. The next one begins.
    pub(crate) fn lap(&mut self) -> (Duration, Duration) {
        let next = Self::start();
        let lap = (next.wall.saturating_duration_since(self.wall), next.cpu.saturating_sub(self.cpu));
        *self = next;
        lap
    }
}
