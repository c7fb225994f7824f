//! A slot: one thread that runs one guest at a time, with its own small runtime, so that all it does (blocking file
//! operations included) happens on threads that it started and that share its cgroup.
//!
//! Owns the thread and its queue of jobs. A panic in the executor's code ends the guest, not the slot.

use crate::array::ArrayRun;
use crate::clock::{SlotClock, Stopwatch, deadline_us, micros};
use crate::failure::Failure;
use crate::instance::{self, Ended, Run, Seat};
use crate::output::SlotOutput;
use crate::queue::Item;
use crate::report::Done;
use crate::runs::Runs;
use crate::scratch::Scratch;
use crate::task::{self, TaskRun};
use nix::unistd::gettid;
use smalti_executor_protocol::ledger::Record;
use smalti_types::status::Usage;
use smalti_types::task_state::Reason;
use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;

/// Threads for blocking file operations of the one guest that runs: one works, one may still be stuck in an operation of a
/// guest that was killed.
const BLOCKING_THREADS: usize = 2;
/// They end after this long without work.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Most jobs that wait for one slot; the agent knows what is free and queues hardly anything.
const MAX_JOBS: usize = 4096;

/// What a slot is given.
pub(crate) enum Job {
    Task(Box<TaskRun>),
    Array(Arc<ArrayRun>),
    Quit,
}

/// The jobs of one slot.
#[derive(Default)]
pub(crate) struct Jobs {
    queue: Mutex<VecDeque<Job>>,
    wake: Condvar,
}

impl Jobs {
    /// Adds a job. Gives it back when too many wait.
    ///
    /// # Errors
    /// The job.
    pub(crate) fn push(&self, job: Job) -> Result<(), Job> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() >= MAX_JOBS && !matches!(job, Job::Quit) {
            return Err(job);
        }
        queue.push_back(job);
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    fn pop(&self) -> Job {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(job) = queue.pop_front() {
                return job;
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The slot's thread. Says its thread id first. Only guests with a `network` need an I/O driver: the others' filter has no call for it.
///
/// # Errors
/// When the runtime cannot be built.
pub(crate) fn run(slot: u32, network: bool, jobs: &Jobs, runs: &Runs, started: &SyncSender<(u32, i32)>) -> std::io::Result<()> {
    let clock = Arc::new(SlotClock::of_this_thread());
    let (begins, ends) = (clock.clone(), clock.clone());
    let mut builder = tokio::runtime::Builder::new_current_thread();
    if network {
        builder.enable_io();
    }
    let runtime = builder
        .enable_time()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .thread_name(format!("slot-{slot}-io"))
        .on_thread_start(move || begins.helper_begins())
        .on_thread_stop(move || ends.helper_ends())
        .build()?;
    let _ = started.send((slot, gettid().as_raw()));
    loop {
        match jobs.pop() {
            Job::Quit => break,
            Job::Task(task) => task::run(slot, *task, &runtime, runs, &clock),
            Job::Array(array) => {
                run_items(slot, &array, &runtime, &clock);
                if array.is_over() {
                    runs.remove(array.part.run);
                }
            }
        }
    }
    // A blocking operation that hangs must not keep the process.
    runtime.shutdown_background();
    Ok(())
}

/// Runs items until the slot leaves the part.
fn run_items(slot: u32, array: &ArrayRun, runtime: &Runtime, clock: &Arc<SlotClock>) {
    let Some(output) = array.part.outputs.get(&slot) else { return };
    let scratch = array.part.disks.get(&slot).map(|s| &**s);
    let seat = Seat::new(&array.part.template, slot);
    let mut watch = Stopwatch::start(clock);
    let mut done = None;
    while let Some((item, waited)) = array.next(slot, done.take(), watch.began()) {
        if waited {
            watch = Stopwatch::start(clock);
        }
        output.begin(watch.began());
        let mut ended = run_item(array, &item, (output, &seat), scratch, &watch, runtime);
        if let Some(scratch) = scratch {
            scratch.judge(&array.part.template.view, &mut ended);
            scratch.clear(&array.part.template.view);
        }
        let (wall, cpu) = watch.lap();
        let record = Record {
            item: item.item,
            attempt: item.attempt,
            exit_code: ended.exit_code,
            failed: ended.failure.is_some(),
            cpu_us: micros(cpu),
            wall_us: micros(wall),
            peak_memory: ended.peak_memory,
            ..Record::default()
        };
        if let Err(e) = output.end(record) {
            ended.failure = Some(Failure::new(Reason::LaunchFailed, format!("the output could not be kept: {e}")));
        }
        let usage = usage(&ended, wall, cpu);
        let Ended { exit_code, failure, result, .. } = ended;
        done = Some(Done { item: item.item, attempt: item.attempt, exit_code, failure, usage, result });
    }
}

/// What a run has used.
pub(crate) fn usage(ended: &Ended, wall: Duration, cpu: Duration) -> Usage {
    Usage {
        cpu_us: micros(cpu),
        wall_us: micros(wall),
        peak_memory: ended.peak_memory,
        bytes_read: ended.bytes_read,
        bytes_written: ended.bytes_written,
        fuel: ended.fuel,
    }
}

fn run_item(
    array: &ArrayRun,
    item: &Item,
    (output, seat): (&Arc<SlotOutput>, &Seat),
    scratch: Option<&Scratch>,
    watch: &Stopwatch,
    runtime: &Runtime,
) -> Ended {
    let stdin = match array.source(item) {
        Ok(source) => source,
        Err(why) => return Ended::failed(Failure::new(Reason::InputFailed, why)),
    };
    let template = &array.part.template;
    let mut env = vec![
        ("SMALTI_ITEM", item.item.to_string()),
        ("SMALTI_ITEMS", array.part.total_items.to_string()),
        ("SMALTI_ATTEMPT", item.attempt.to_string()),
        ("SMALTI_FENCING_TOKEN", item.attempt.to_string()),
    ];
    if let Some(timeout) = template.timeout {
        env.push(("SMALTI_DEADLINE_US", deadline_us(timeout).to_string()));
    }
    let directories = match task::directories(scratch, template) {
        Ok(directories) => directories,
        Err(failure) => return Ended::failed(failure),
    };
    let run = Run { env, stdin, sink: output.clone(), directories, watch, seat };
    guarded(|| runtime.block_on(instance::run(template, run)))
}

/// A panic of ours (or of a host function) becomes an outcome.
pub(crate) fn guarded(run: impl FnOnce() -> Ended) -> Ended {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let why = panic_text(&*panic);
        eprintln!("smalti-executor: a slot panicked: {why}");
        Ended::failed(Failure::new(Reason::LaunchFailed, format!("the executor failed while it ran this: {why}")))
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_outcome() {
        let ended = guarded(|| panic!("a broken invariant"));
        let failure = ended.failure.expect("a failure");
        assert_eq!(failure.reason, Reason::LaunchFailed);
        assert!(failure.message.contains("a broken invariant"));
    }
}
