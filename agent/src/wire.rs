//! Between the core's words and the executor's messages, both ways.
//!
//! Owns the environment that guests see, and the checks of what executors send that do not need the core's state. Pure.

use crate::prepare::Ready;
use smalti_agent_core::{ArrayReport, Failure, FromExecutor, HeldPart, ItemFailure, ModuleId, Run};
use smalti_executor_protocol::MAX_FDS;
use smalti_executor_protocol::v1::{self, from_executor, to_executor};
use smalti_types::{
    BootTime, DurationMs, ItemRange, ItemSet, Launch, LaunchArray, Reason, Resources, Split, TaskKey, TaskSpec, Time, Usage,
};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A message with its descriptors.
pub(crate) type Outgoing = (to_executor::Message, Vec<Arc<OwnedFd>>);

/// Descriptors that come with a task beside its directories and its standard input: its outputs and its disk.
const OWN_OF_TASK: usize = 3;
/// The same for each slot of an array part, in messages of their own.
const OUTPUTS_OF_SLOT: usize = 3;

/// Why a message cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// More files than one frame can carry.
    #[error("{count} directories and inputs are more than the {most} that one task can have")]
    TooManyFiles {
        /// How many.
        count: usize,
        /// The bound.
        most: usize,
    },
    /// An output file cannot be made.
    #[error("cannot make its output files: {0}")]
    Outputs(#[source] std::io::Error),
    /// A disk cannot be handed to its executor.
    #[error("its disk cannot be used: {0}")]
    Disk(#[source] crate::disk::Error),
    /// A disk cannot be made anew.
    #[error("{0}")]
    NoDisk(String),
    /// What makes the executor's sockets is gone.
    #[error("the task's sockets cannot be granted: {0}")]
    Broker(#[source] smalti_executor_protocol::FrameError),
    /// This process may open no more files.
    #[error("cannot hand a descriptor on: {0}")]
    Descriptor(#[source] std::io::Error),
}

/// Checks what can only be known once everything is prepared.
pub(crate) fn check(ready: &Ready) -> Result<(), Error> {
    let count = ready.dirs.len() + usize::from(ready.split_inputs.is_some()) + usize::from(ready.stdin.is_some());
    let most = MAX_FDS - OWN_OF_TASK;
    if count > most { Err(Error::TooManyFiles { count, most }) } else { Ok(()) }
}

/// The code of a prepared run.
pub(crate) fn load_module(module: ModuleId, ready: &Ready, fuel: bool) -> Result<Outgoing, Error> {
    let message = v1::LoadModule { module: module.0, component: ready.component, name: ready.name.clone(), fuel };
    Ok((to_executor::Message::Load(message), vec![descriptor(&ready.code)?]))
}

/// A single task, with its two output files and its disk.
#[expect(clippy::too_many_arguments, reason = "one message's fields from as many places; a struct would only rename them")]
pub(crate) fn start_task(
    run: Run,
    slot: u32,
    module: ModuleId,
    key: &TaskKey,
    launch: &Launch,
    ready: &Ready,
    (outputs, disk): (Vec<Arc<OwnedFd>>, Option<Arc<OwnedFd>>),
    (environment, lease_until): (Vec<(String, String)>, Option<BootTime>),
    now: Time,
) -> Result<Outgoing, Error> {
    check(ready)?;
    let mut fds: Vec<Arc<OwnedFd>> = outputs.into_iter().chain(disk).collect();
    directories(ready, &mut fds)?;
    if let Some(stdin) = &ready.stdin {
        fds.push(descriptor(&stdin.file)?);
    }
    let mut own = own_environment(key, &launch.spec, &launch.resources);
    if !ready.asks_who_it_is {
        own.retain(|(name, _)| !name.starts_with("SMALTI_"));
    } else if let Some(timeout) = launch.spec.limits.timeout {
        own.push(("SMALTI_DEADLINE_US".into(), now.after(timeout).0.to_string()));
    }
    own.extend(environment);
    let message = v1::StartTask {
        run: run.0,
        slot,
        guest: Some(guest(module, &launch.spec, &launch.resources, own, ready)),
        has_stdin: ready.stdin.is_some(),
        stdin_offset: ready.stdin.as_ref().map_or(0, |s| s.offset),
        stdin_length: ready.stdin.as_ref().map_or(0, |s| s.length),
        lease_until_us: lease_until.map(|until| until.0),
        grace_us: micros(launch.spec.limits.grace),
    };
    Ok((to_executor::Message::Start(message), fds))
}

/// The outputs of an array part's slots and their disks, if it has some (one a slot), which come before it; `open` gives the three files
/// of a segment, one segment per slot.
pub(crate) fn slot_files(
    run: Run,
    slots: &[u32],
    segments: &[u32],
    open: impl Fn(u32) -> std::io::Result<Vec<OwnedFd>>,
    disks: &[Arc<OwnedFd>],
) -> Result<Vec<Outgoing>, Error> {
    let mut messages = Vec::new();
    let each = OUTPUTS_OF_SLOT + usize::from(!disks.is_empty());
    let some = MAX_FDS / each;
    let mut disks = disks.iter();
    for (slots, segments) in slots.chunks(some).zip(segments.chunks(some)) {
        let mut fds = Vec::with_capacity(slots.len() * each);
        for segment in segments {
            fds.extend(open(*segment).map_err(Error::Outputs)?.into_iter().map(Arc::new));
            fds.extend(disks.next().cloned());
        }
        messages.push((
            to_executor::Message::SlotFiles(v1::SlotFiles { run: run.0, slots: slots.to_vec(), disks: each > OUTPUTS_OF_SLOT }),
            fds,
        ));
    }
    Ok(messages)
}

/// An array part.
pub(crate) fn start_array(
    run: Run,
    slots: Vec<u32>,
    module: ModuleId,
    key: &TaskKey,
    launch: &LaunchArray,
    ready: &Ready,
) -> Result<Outgoing, Error> {
    check(ready)?;
    let mut fds = Vec::new();
    directories(ready, &mut fds)?;
    if let Some(directory) = &ready.split_inputs {
        fds.push(descriptor(directory)?);
    }
    let spec = &launch.template.spec;
    let own = own_environment(key, spec, &launch.slot_resources);
    let message = v1::StartArray {
        run: run.0,
        slots,
        guest: Some(guest(module, spec, &launch.slot_resources, own, ready)),
        total_items: launch.template.total_items,
        split_inputs: u32::try_from(launch.template.split_inputs.len()).unwrap_or(u32::MAX),
        refused: String::new(),
        grace_us: micros(spec.limits.grace),
    };
    Ok((to_executor::Message::StartArray(message), fds))
}

/// An array part that cannot start: its executor fails its items with the reason, and gives its slots back when it is told to.
pub(crate) fn refused_array(run: Run, slots: Vec<u32>, why: &Error) -> Outgoing {
    tracing::error!(?run, "an array part cannot start: {why}");
    (to_executor::Message::StartArray(v1::StartArray { run: run.0, slots, refused: why.to_string(), ..Default::default() }), Vec::new())
}

/// Items of a part.
pub(crate) fn lease(run: Run, items: &ItemSet, attempt: u32, splits: Vec<Split>, left: u64, interval_us: u64) -> to_executor::Message {
    to_executor::Message::Lease(v1::Lease {
        run: run.0,
        items: items.ranges().iter().map(|r| v1::ItemRange { first: r.first, end: r.end }).collect(),
        attempt,
        splits: splits.into_iter().map(|s| v1::Split { item: s.item, input: s.input, offset: s.offset, length: s.length }).collect(),
        report_when_left: left,
        report_interval_us: interval_us,
    })
}

pub(crate) const fn micros(span: DurationMs) -> u64 {
    span.0.saturating_mul(1_000)
}

fn directories(ready: &Ready, fds: &mut Vec<Arc<OwnedFd>>) -> Result<(), Error> {
    for directory in &ready.dirs {
        fds.push(descriptor(&directory.dir)?);
    }
    Ok(())
}

fn descriptor(file: &File) -> Result<Arc<OwnedFd>, Error> {
    Ok(Arc::new(file.try_clone().map_err(Error::Descriptor)?.into()))
}

fn guest(module: ModuleId, spec: &TaskSpec, resources: &Resources, own: Vec<(String, String)>, ready: &Ready) -> v1::Guest {
    let mut args = vec![ready.name.clone()];
    args.extend(spec.args.iter().cloned());
    v1::Guest {
        module: module.0,
        args,
        env: environment(&spec.env, own),
        memory_bytes: resources.mem.0,
        timeout_us: spec.limits.timeout.map(micros),
        fuel: spec.limits.fuel,
        output_bytes: spec.limits.output.0,
        files: Vec::new(),
        dirs: ready.dirs.iter().map(|d| v1::GuestDir { guest_path: d.guest_path.clone(), writable: d.writable }).collect(),
        disk: (resources.disk.0 > 0).then(|| v1::Disk { guest_path: spec.disk_path().to_owned(), bytes: resources.disk.0 }),
    }
}

/// What the agent says to every guest.
fn own_environment(key: &TaskKey, spec: &TaskSpec, resources: &Resources) -> Vec<(String, String)> {
    let mut own = vec![
        ("SMALTI_TASK_ID".to_owned(), key.task.to_string()),
        ("SMALTI_ATTEMPT".to_owned(), key.attempt.to_string()),
        // Attempts of a task only grow: a store that has seen a higher number refuses this one.
        ("SMALTI_FENCING_TOKEN".to_owned(), key.attempt.to_string()),
        ("SMALTI_CPUS".to_owned(), resources.cpus.to_string()),
        ("SMALTI_MEM".to_owned(), resources.mem.0.to_string()),
    ];
    if resources.disk.0 > 0 {
        own.push(("SMALTI_DISK".to_owned(), resources.disk.0.to_string()));
        own.push(("SMALTI_SCRATCH".to_owned(), spec.disk_path().to_owned()));
    }
    own.extend(resources.ports.iter().enumerate().map(|(i, port)| (format!("PORT{i}"), port.to_string())));
    own
}

/// The task's own entries in their order, then the agent's. The agent's win; of equal names of the task the last one does.
fn environment(given: &[(String, String)], own: Vec<(String, String)>) -> Vec<String> {
    let mut entries: Vec<(&str, &str)> = Vec::with_capacity(given.len() + own.len());
    let last: std::collections::BTreeMap<&str, usize> = given.iter().enumerate().map(|(i, (name, _))| (name.as_str(), i)).collect();
    for (i, (name, value)) in given.iter().enumerate() {
        if last.get(name.as_str()) == Some(&i) && own.iter().all(|(n, _)| n != name) {
            entries.push((name, value));
        }
    }
    entries.extend(own.iter().map(|(n, v)| (n.as_str(), v.as_str())));
    entries.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// What an executor said; `None` for what has no place here.
pub(crate) fn from_executor(message: from_executor::Message) -> Option<FromExecutor> {
    use from_executor::Message;
    Some(match message {
        // Taken when the connection is made.
        Message::Hello(_) => return None,
        Message::Holds(m) => FromExecutor::Holds {
            modules: m.modules.into_iter().map(ModuleId).collect(),
            tasks: m.tasks.into_iter().map(Run).collect(),
            parts: m.parts.into_iter().map(|p| HeldPart { run: Run(p.run), items: item_set(&p.items), slots: p.slots }).collect(),
        },
        Message::Loaded(m) => FromExecutor::ModuleLoaded { module: ModuleId(m.module), failure: m.failure.map(core_failure) },
        Message::Started(m) => FromExecutor::Started { run: Run(m.run) },
        Message::Outcome(m) => FromExecutor::Outcome {
            run: Run(m.run),
            exit_code: m.exit_code,
            failure: m.failure.map(core_failure),
            usage: usage(m.usage),
            result: m.result.map(|r| r.to_vec()),
        },
        Message::Report(m) => FromExecutor::Report {
            run: Run(m.run),
            report: ArrayReport {
                finished: item_set(&m.finished),
                failed: m
                    .failed
                    .into_iter()
                    .map(|f| ItemFailure { item: f.item, exit_code: f.exit_code, failure: f.failure.map(core_failure) })
                    .collect(),
                returned: item_set(&m.returned),
                results: m.results.into_iter().map(|r| (r.item, r.value.to_vec())).collect(),
                usage: usage(m.usage),
                unstarted: m.unstarted,
                busy: m.busy_slots,
            },
        },
        Message::Progress(m) => {
            FromExecutor::Progress { run: Run(m.run), permille: u16::try_from(m.permille.min(1000)).unwrap_or(1000), text: m.text }
        }
        Message::Usages(m) => FromExecutor::Usage { runs: m.runs.into_iter().map(|r| (Run(r.run), usage(r.usage))).collect() },
        Message::ArrayEnded(m) => FromExecutor::Ended { run: Run(m.run), slots: m.slots },
    })
}

fn item_set(ranges: &[v1::ItemRange]) -> ItemSet {
    ranges.iter().map(|r| ItemRange { first: r.first, end: r.end }).collect()
}

fn usage(usage: Option<v1::Usage>) -> Usage {
    let u = usage.unwrap_or_default();
    Usage {
        cpu_us: u.cpu_us,
        wall_us: u.wall_us,
        peak_memory: u.peak_memory,
        bytes_read: u.bytes_read,
        bytes_written: u.bytes_written,
        fuel: u.fuel,
    }
}

/// An unknown reason is handed on as one that an executor may not give, so that the core says so.
fn core_failure(failure: v1::Failure) -> Failure {
    let reason = Reason::ALL.into_iter().find(|r| r.as_str() == failure.reason).unwrap_or(Reason::None);
    Failure::new(reason, failure.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_own_variables_win_and_the_order_stays() {
        let given = [("B", "1"), ("A", "2"), ("SMALTI_CPUS", "64"), ("B", "3")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        let own = vec![("SMALTI_CPUS".to_owned(), "0.5".to_owned())];
        assert_eq!(environment(&given, own), ["A=2", "B=3", "SMALTI_CPUS=0.5"]);
    }

    #[test]
    fn the_outputs_of_many_slots_come_in_several_frames() {
        let slots: Vec<u32> = (0..128).collect();
        let three = |_| (0..3).map(|_| Ok(File::open("/dev/null")?.into())).collect();
        let disk: Arc<OwnedFd> = Arc::new(File::open("/").unwrap().into());
        for disks in [vec![], vec![disk; 128]] {
            let each = if disks.is_empty() { 3 } else { 4 };
            let mut seen = Vec::new();
            for (message, fds) in slot_files(Run(7), &slots, &slots, three, &disks).unwrap() {
                let to_executor::Message::SlotFiles(files) = message else { panic!("{message:?}") };
                assert!(files.run == 7 && files.disks != disks.is_empty());
                assert!(fds.len() == each * files.slots.len() && fds.len() <= MAX_FDS);
                seen.extend(files.slots);
            }
            assert_eq!(seen, slots);
        }
        let failing = |_| Err(std::io::ErrorKind::StorageFull.into());
        assert!(matches!(slot_files(Run(7), &slots, &slots, failing, &[]), Err(Error::Outputs(_))));
    }

    #[test]
    fn ports_are_named() {
        let key =
            TaskKey { framework: smalti_types::FrameworkId::new("F").unwrap(), task: smalti_types::TaskId::new("t").unwrap(), attempt: 1 };
        let resources = Resources { ports: "31000-31001,31005".parse().unwrap(), ..Resources::default() };
        let spec = TaskSpec::new(smalti_types::BundleRef { digest: smalti_types::Digest::of(b"x"), uri: None });
        let own = own_environment(&key, &spec, &resources);
        assert!(own.iter().all(|(name, _)| name != "SMALTI_DISK"));
        let with_disk = own_environment(&key, &spec, &Resources { disk: smalti_types::Bytes::mib(1), ..resources });
        assert!(with_disk.contains(&("SMALTI_DISK".into(), "1048576".into())));
        assert!(with_disk.contains(&("SMALTI_SCRATCH".into(), "/scratch".into())));
        assert!(own.contains(&("PORT2".into(), "31005".into())) && own.contains(&("SMALTI_ATTEMPT".into(), "1".into())));
    }
}
