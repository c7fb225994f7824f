//! From the agent's `StartTask` and `StartArray` to a run in its slots.
//!
//! Owns the checks: what is refused here never ran. The descriptors of a message are, in order: files, directories, then
//! stdin or the split inputs.

use crate::array::{ArrayRun, Part};
use crate::control::Control;
use crate::directories::preopen;
use crate::failure::Failure;
use crate::host::Progress;
use crate::inputs::SplitInputs;
use crate::instance::Template;
use crate::link::Link;
use crate::modules::Loaded;
use crate::output::{OutputError, SlotOutput, open_directory};
use crate::queue::Split;
use crate::runs::{Entry, MAX_RUNS, TaskHandle};
use crate::slot::Job;
use crate::slots::Slots;
use crate::streams::Source;
use crate::task::TaskRun;
use smalti_executor_protocol::v1;
use smalti_types::task_state::Reason;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the executor says to each guest or item itself; the agent's own values of the same names give way.
const OWN_ITEM_VARIABLES: [&str; 4] = ["SMALTI_ITEM", "SMALTI_ITEMS", "SMALTI_ATTEMPT", "SMALTI_DEADLINE_US"];
const OWN_TASK_VARIABLES: [&str; 1] = ["SMALTI_DEADLINE_US"];

/// The loaded modules.
type Modules = BTreeMap<u32, Arc<Loaded>>;

fn refused(message: impl Into<String>) -> Failure {
    Failure::new(Reason::LaunchFailed, message)
}

impl From<OutputError> for Failure {
    fn from(e: OutputError) -> Self {
        refused(e.to_string())
    }
}

/// Puts a task into its slot's queue.
///
/// # Errors
/// Why it cannot run.
pub(crate) fn task(
    slots: &Slots,
    link: &Arc<Link>,
    base: &Arc<OwnedFd>,
    modules: &Modules,
    start: v1::StartTask,
    mut fds: Vec<OwnedFd>,
) -> Result<(), Failure> {
    let jobs = slots.jobs(start.slot).ok_or_else(|| refused(format!("there is no slot {}", start.slot)))?;
    let guest = start.guest.ok_or_else(|| refused("the message describes no guest"))?;
    let rest = take_rest(&guest, &mut fds, usize::from(start.has_stdin))?;
    let handle = Arc::new(TaskHandle::new(start.run));
    let shared = Shared { control: handle.control.clone(), progress: handle.progress.clone() };
    let template = template(slots, base, modules, guest, fds, &OWN_TASK_VARIABLES, shared)?;
    let file = rest.into_iter().next().map(|fd| Arc::new(File::from(fd)));
    let stdin = file.map(|file| Source { file, offset: start.stdin_offset, length: start.stdin_length });
    insert(slots, start.run, Entry::Task(handle.clone()))?;
    let task = TaskRun {
        handle,
        base: base.clone(),
        directory: start.directory,
        template,
        stdin,
        link: link.clone(),
        activity: slots.activity.clone(),
    };
    jobs.push(Job::Task(Box::new(task))).map_err(|_| {
        slots.runs.remove(start.run);
        refused(format!("too many tasks wait for slot {}", start.slot))
    })
}

/// Gives an array part to its slots.
///
/// # Errors
/// Why it cannot run.
pub(crate) fn array(
    slots: &Slots,
    link: &Arc<Link>,
    base: &Arc<OwnedFd>,
    modules: &Modules,
    start: v1::StartArray,
    mut fds: Vec<OwnedFd>,
) -> Result<(), Failure> {
    if start.slots.is_empty() {
        return Err(refused("an array part needs a slot"));
    }
    if let Some(missing) = start.slots.iter().find(|s| slots.jobs(**s).is_none()) {
        return Err(refused(format!("there is no slot {missing}")));
    }
    let guest = start.guest.ok_or_else(|| refused("the message describes no guest"))?;
    let inputs = take_rest(&guest, &mut fds, usize::from(start.split_inputs > 0))?;
    let shared = Shared { control: Arc::default(), progress: Arc::default() };
    let template = template(slots, base, modules, guest, fds, &OWN_ITEM_VARIABLES, shared)?;
    let directory = open_directory(base, &start.directory)?;
    let mut outputs = BTreeMap::new();
    for slot in &start.slots {
        let output = SlotOutput::create(&directory, *slot)?;
        outputs.insert(*slot, Arc::new(output));
    }
    let part = Part {
        run: start.run,
        template,
        total_items: start.total_items,
        inputs: inputs.into_iter().next().map(|dir| SplitInputs::new(dir, start.split_inputs)),
        outputs,
        link: link.clone(),
        activity: slots.activity.clone(),
    };
    let array = Arc::new(ArrayRun::new(part, Instant::now()));
    insert(slots, start.run, Entry::Array(array.clone()))?;
    for slot in array.part.outputs.keys() {
        let pushed = slots.jobs(*slot).map(|jobs| jobs.push(Job::Array(array.clone())));
        if !matches!(pushed, Some(Ok(()))) {
            // The slots that have it already find it killed.
            array.kill(Instant::now(), Duration::ZERO);
            slots.runs.remove(start.run);
            return Err(refused(format!("too many tasks wait for slot {slot}")));
        }
    }
    Ok(())
}

/// Splits of a lease.
pub(crate) fn splits(splits: &[v1::Split]) -> Vec<Split> {
    splits.iter().map(|s| Split { item: s.item, input: s.input, offset: s.offset, length: s.length }).collect()
}

fn insert(slots: &Slots, run: u64, entry: Entry) -> Result<(), Failure> {
    if slots.runs.insert(run, entry) {
        return Ok(());
    }
    Err(refused(format!("run {run} exists already, or there are {MAX_RUNS}")))
}

/// Cuts the descriptors behind files and directories off.
fn take_rest(guest: &v1::Guest, fds: &mut Vec<OwnedFd>, rest: usize) -> Result<Vec<OwnedFd>, Failure> {
    let own = guest.files.len() + guest.dirs.len();
    if fds.len() != own + rest {
        return Err(refused(format!("{} descriptors came, {} were announced", fds.len(), own + rest)));
    }
    Ok(fds.split_off(own))
}

/// What runs of one template share.
struct Shared {
    control: Arc<Control>,
    progress: Arc<Progress>,
}

fn template(
    slots: &Slots,
    base: &OwnedFd,
    modules: &Modules,
    guest: v1::Guest,
    fds: Vec<OwnedFd>,
    own_variables: &[&str],
    shared: Shared,
) -> Result<Template, Failure> {
    let module = modules.get(&guest.module).ok_or_else(|| refused(format!("module {} is not loaded", guest.module)))?;
    if guest.fuel.is_some() && !module.fuel {
        return Err(refused(format!("{} was not compiled to count fuel", module.name)));
    }
    if !guest.files.is_empty() {
        // WASI preopens directories; the agent puts a file into one.
        return Err(refused("files are passed in directories"));
    }
    let env = guest.env.iter().map(|v| v.split_once('=').unwrap_or((v, "")));
    let env = env.filter(|(name, _)| !own_variables.contains(name)).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    let wanted = if guest.memory_bytes == 0 { u64::MAX } else { guest.memory_bytes };
    Ok(Template {
        module: module.clone(),
        args: guest.args,
        env,
        memory_bytes: wanted.min(slots.max_memory),
        timeout: guest.timeout_us.map(Duration::from_micros),
        fuel: guest.fuel,
        output_bytes: guest.output_bytes,
        directories: preopen(base, &guest.dirs, fds)?,
        control: shared.control,
        progress: shared.progress,
    })
}
