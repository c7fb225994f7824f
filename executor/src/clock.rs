//! Clocks of the executor. Owns nothing.

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, gettid};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Processor time of the calling thread. Half a microsecond to ask; zero should the kernel not say.
pub(crate) fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// The clock that goes on while the machine sleeps, in microseconds since it booted: what leases are measured by. Should the kernel not
/// say, it is the end of time: no lease lasts that long.
pub(crate) fn boot_us() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(u64::MAX, |now| micros(now.into()))
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

/// The clock of a thread's processor time that other threads of the process can read, too: the kernel's encoding of thread
/// ids as clocks (what `pthread_getcpuclockid` returns).
fn clock_of(tid: Pid) -> ClockId {
    const THREAD_AND_SCHEDULER: i32 = 6;
    ClockId::from_raw((!tid.as_raw() << 3) | THREAD_AND_SCHEDULER)
}

fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

/// Processor time of a slot: its thread, and the threads that do its guest's file operations.
#[derive(Debug)]
pub(crate) struct SlotClock {
    own: ClockId,
    /// Whether there ever was another thread: most guests never cause one.
    helped: AtomicBool,
    helpers: Mutex<Helpers>,
}

#[derive(Debug, Default)]
struct Helpers {
    live: Vec<(Pid, ClockId)>,
    /// Of those that ended.
    ended: Duration,
}

impl SlotClock {
    /// Of the calling thread.
    pub(crate) fn of_this_thread() -> Self {
        Self { own: clock_of(gettid()), helped: AtomicBool::new(false), helpers: Mutex::default() }
    }
    /// The calling thread works for this slot from now on.
    pub(crate) fn helper_begins(&self) {
        let tid = gettid();
        self.helpers().live.push((tid, clock_of(tid)));
        self.helped.store(true, Ordering::Release);
    }
    /// The calling thread is about to end.
    pub(crate) fn helper_ends(&self) {
        let mut helpers = self.helpers();
        let tid = gettid();
        helpers.live.retain(|(id, _)| *id != tid);
        helpers.ended += thread_cpu();
    }
    fn helpers(&self) -> MutexGuard<'_, Helpers> {
        self.helpers.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// All threads together. Any thread may ask.
    pub(crate) fn cpu(&self) -> Duration {
        self.with_helpers(read(self.own))
    }
    /// The same for the slot's own thread, which need not be looked for.
    fn cpu_here(&self) -> Duration {
        self.with_helpers(thread_cpu())
    }
    fn with_helpers(&self, own: Duration) -> Duration {
        if !self.helped.load(Ordering::Acquire) {
            return own;
        }
        let helpers = self.helpers();
        own + helpers.ended + helpers.live.iter().map(|(_, clock)| read(*clock)).sum::<Duration>()
    }
}

/// Wall and processor time of consecutive runs in one slot: the end of one is the beginning of the next, so each clock is
/// asked once per run, and what happens between two runs counts for the second. It belongs to the slot's thread.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    clock: Arc<SlotClock>,
    wall: Instant,
    cpu: Duration,
}

impl Stopwatch {
    /// Starts now.
    pub(crate) fn start(clock: &Arc<SlotClock>) -> Self {
        Self { clock: clock.clone(), wall: Instant::now(), cpu: clock.cpu_here() }
    }
    /// When the current run began.
    pub(crate) const fn began(&self) -> Instant {
        self.wall
    }
    /// The slot's processor time when the current run began.
    pub(crate) const fn cpu_before(&self) -> Duration {
        self.cpu
    }
    /// The slot's clock.
    pub(crate) const fn clock(&self) -> &Arc<SlotClock> {
        &self.clock
    }
    /// Ends the current run: its (wall, processor) time. The next one begins.
    pub(crate) fn lap(&mut self) -> (Duration, Duration) {
        let (wall, cpu) = (Instant::now(), self.clock.cpu_here());
        let lap = (wall.saturating_duration_since(self.wall), cpu.saturating_sub(self.cpu));
        (self.wall, self.cpu) = (wall, cpu);
        lap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spin(atleast: Duration) {
        let before = thread_cpu();
        while thread_cpu() < before + atleast {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn the_time_of_helpers_counts_while_they_live_and_after() {
        let clock = Arc::new(SlotClock::of_this_thread());
        let mut watch = Stopwatch::start(&clock);
        let work = Duration::from_millis(20);
        std::thread::scope(|scope| {
            let helper = scope.spawn(|| {
                clock.helper_begins();
                spin(work);
                assert!(clock.cpu() >= work, "a living helper counts");
                clock.helper_ends();
            });
            helper.join().expect("no panic");
        });
        assert!(watch.lap().1 >= work, "and one that ended");
        assert!(watch.lap().1 < work, "once");
    }
}
