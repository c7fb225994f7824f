//! A single task on its slot: its two messages, its guest.
//!
//! Owns nothing beyond the run. The order is: `Started`, guest, last progress, `Outcome`.

use crate::clock::{SlotClock, Stopwatch, deadline_us};
use crate::failure::Failure;
use crate::instance::{self, Ended, Run, Seat, Template};
use crate::leases::Leases;
use crate::link::Link;
use crate::output::TaskFiles;
use crate::report;
use crate::runs::{Runs, TaskHandle};
use crate::scratch::Scratch;
use crate::slot::{guarded, usage};
use crate::streams::Source;
use crate::ticker::Activity;
use smalti_executor_protocol::v1;
use smalti_executor_protocol::v1::from_executor::Message;
use smalti_types::status::Usage;
use std::sync::Arc;
use tokio::runtime::Runtime;
use wasmtime_wasi::filesystem::WasiFilesystemCtx;

/// A task that waits for its slot.
pub(crate) struct TaskRun {
    pub(crate) handle: Arc<TaskHandle>,
    pub(crate) outputs: TaskFiles,
    pub(crate) scratch: Option<Scratch>,
    pub(crate) template: Template,
    pub(crate) stdin: Option<Source>,
    pub(crate) link: Arc<Link>,
    pub(crate) activity: Arc<Activity>,
    /// Where its end is awaited, if it has a lease.
    pub(crate) leases: Option<Arc<Leases>>,
}

/// Runs the task and says how it ended.
pub(crate) fn run(slot: u32, task: TaskRun, runtime: &Runtime, runs: &Runs, clock: &Arc<SlotClock>) {
    let TaskRun { handle, outputs, scratch, template, stdin, link, activity, leases } = task;
    link.wait_for_room();
    let seat = Seat::new(&template, slot);
    let mut watch = Stopwatch::start(clock);
    let mut usage_of_run = Usage::default();
    let mut ended = if let Some(failure) = instance::forbidden(&handle.control) {
        Ended::failed(failure)
    } else {
        link.say(Message::Started(v1::Started { run: handle.run }));
        activity.begin();
        // Only guests that are told who they are.
        let told = template.env.iter().any(|(name, _)| name.starts_with("SMALTI_"));
        let deadline = template.timeout.filter(|_| told);
        let env = deadline.map(|t| ("SMALTI_DEADLINE_US", deadline_us(t).to_string())).into_iter().collect();
        let mut ended = match directories(scratch.as_ref(), &template) {
            Err(failure) => Ended::failed(failure),
            Ok(directories) => {
                let run = Run { env, stdin, sink: Arc::new(outputs), directories, watch: &watch, seat: &seat };
                guarded(|| runtime.block_on(instance::run(&template, run)))
            }
        };
        if let Some(scratch) = &scratch {
            scratch.judge(&template.view, &mut ended);
        }
        activity.end();
        let (wall, cpu) = watch.lap();
        usage_of_run = usage(&ended, wall, cpu);
        ended
    };
    // Before its end is told: the agent lends the disk to the next task then.
    if let Some(scratch) = scratch {
        scratch.clear(&template.view);
    }
    handle.send_progress(&link);
    if let Some(leases) = leases {
        leases.forget(handle.run);
    }
    link.wait_for_room();
    let speech = link.speak();
    runs.remove(handle.run);
    speech.say(Message::Outcome(v1::Outcome {
        run: handle.run,
        exit_code: ended.exit_code,
        failure: ended.failure.take().map(Into::into),
        usage: Some(report::usage(&usage_of_run)),
        result: ended.result.take().map(Into::into),
    }));
}

/// What a guest of `template` sees, with its disk as new if it has one.
///
/// # Errors
/// When the disk cannot be used.
pub(crate) fn directories(scratch: Option<&Scratch>, template: &Template) -> Result<WasiFilesystemCtx, Failure> {
    scratch.map_or_else(|| Ok(template.view.fixed()), |scratch| scratch.open(&template.view))
}

/// Says that a run never began.
pub(crate) fn refuse(link: &Link, run: u64, failure: Failure) {
    let usage = Some(v1::Usage::default());
    link.say(Message::Outcome(v1::Outcome { run, exit_code: None, failure: Some(failure.into()), usage, result: None }));
}
