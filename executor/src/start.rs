//! From the agent's `StartTask` and `StartArray` to a run in its slots.
//!
//! Owns the checks: what is refused here never ran. The descriptors of a message are, in order: a task's outputs, files,
//! directories, then stdin or the split inputs; the outputs of an array's slots came before it.

use crate::array::{ArrayRun, Part};
use crate::clock::boot_us;
use crate::directories::View;
use crate::failure::Failure;
use crate::gauge::Gauge;
use crate::inputs::SplitInputs;
use crate::instance::Template;
use crate::link::Link;
use crate::modules::Loaded;
use crate::network::Grants;
use crate::output::{SlotOutput, TaskFiles};
use crate::runs::{Entry, MAX_RUNS, TaskHandle};
use crate::scratch::Scratch;
use crate::slot::Job;
use crate::slots::{MAX_SLOTS, Slots};
use crate::state::Common;
use crate::streams::Source;
use crate::task::TaskRun;
use smalti_executor_protocol::v1;
use smalti_types::task_state::Reason;
use smalti_types::{Packing, Split};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the executor says to each guest or item itself; the agent's own values of the same names give way.
const OWN_ITEM_VARIABLES: [&str; 5] = ["SMALTI_ITEM", "SMALTI_ITEMS", "SMALTI_ATTEMPT", "SMALTI_FENCING_TOKEN", "SMALTI_DEADLINE_US"];
const OWN_TASK_VARIABLES: [&str; 1] = ["SMALTI_DEADLINE_US"];

/// The loaded modules.
type Modules = BTreeMap<u32, Arc<Loaded>>;

fn refused(message: impl Into<String>) -> Failure {
    Failure::new(Reason::LaunchFailed, message)
}

/// Descriptors of a task's outputs.
const TASK_OUTPUTS: usize = 2;
/// Descriptors of the outputs of an array's slot.
const SLOT_OUTPUTS: usize = 3;

/// The outputs of slots whose array part has not started yet.
#[derive(Debug, Default)]
pub(crate) struct Announced {
    run: u64,
    outputs: BTreeMap<u32, Arc<SlotOutput>>,
    disks: BTreeMap<u32, Arc<Scratch>>,
}

impl Announced {
    /// Takes in what one message brought. What was announced for another run and never started is forgotten.
    ///
    /// # Errors
    /// When the descriptors are not those that the message counts.
    pub(crate) fn add(&mut self, message: &v1::SlotFiles, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        if fds.len() != message.slots.len() * (SLOT_OUTPUTS + usize::from(message.disks)) {
            return Err(refused(format!("{} descriptors came for the outputs of {} slots", fds.len(), message.slots.len())));
        }
        if self.run != message.run {
            *self = Self { run: message.run, ..Self::default() };
        }
        if self.outputs.len() + message.slots.len() > MAX_SLOTS as usize {
            return Err(refused(format!("outputs of more than {MAX_SLOTS} slots came")));
        }
        let mut fds = fds.into_iter();
        for slot in &message.slots {
            if let (Some(out), Some(err), Some(ledger)) = (fds.next(), fds.next(), fds.next()) {
                let output = SlotOutput::new(out.into(), err.into(), ledger.into());
                self.outputs.insert(*slot, Arc::new(output.map_err(|e| refused(format!("an output file has no length: {e}")))?));
            }
            if message.disks
                && let Some(root) = fds.next()
            {
                self.disks.insert(*slot, Arc::new(Scratch::new(root)?));
            }
        }
        Ok(())
    }

    /// Outputs and disks of a part that starts now. They are forgotten here, whatever becomes of it.
    fn take(&mut self, run: u64, slots: &[u32], disk: bool) -> Result<Self, Failure> {
        let taken = std::mem::take(self);
        let Self { run: announced, outputs, disks } = &taken;
        if disks.len() != if disk { outputs.len() } else { 0 } {
            return Err(refused("the disks that came are not those of its slots"));
        }
        if *announced != run || outputs.len() != slots.len() || !slots.iter().all(|s| outputs.contains_key(s)) {
            return Err(refused("the outputs that came are not those of its slots"));
        }
        Ok(taken)
    }
}

/// Puts a task into its slot's queue.
///
/// # Errors
/// Why it cannot run.
pub(crate) fn task(
    slots: &Slots,
    link: &Arc<Link>,
    modules: &Modules,
    start: v1::StartTask,
    network: Option<Arc<Grants>>,
    mut fds: Vec<OwnedFd>,
) -> Result<(), Failure> {
    if start.lease_until_us.is_some_and(|until| boot_us() >= until) {
        return Err(Failure::new(Reason::LeaseExpired, "its lease had run out before it was started"));
    }
    let jobs = slots.jobs(start.slot).ok_or_else(|| refused(format!("there is no slot {}", start.slot)))?;
    let guest = start.guest.ok_or_else(|| refused("the message describes no guest"))?;
    let outputs = take_outputs(&mut fds)?;
    let scratch = take_disk(&guest, &mut fds)?;
    let rest = take_rest(&guest, &mut fds, usize::from(start.has_stdin))?;
    let handle = Arc::new(TaskHandle::new(start.run, start.lease_until_us));
    let common = Common { control: handle.control.clone(), progress: handle.progress.clone(), network };
    let template = template(slots, modules, guest, fds, &OWN_TASK_VARIABLES, (common, handle.gauge.clone()))?;
    let file = rest.into_iter().next().map(|fd| Arc::new(File::from(fd)));
    let stdin = file.map(|file| Source { file, offset: start.stdin_offset, length: start.stdin_length, packing: Packing::Plain });
    insert(slots, start.run, Entry::Task(handle.clone()))?;
    let leases = start.lease_until_us.map(|_| slots.leases.clone());
    if let Some(Err(e)) = leases.as_ref().map(|leases| leases.hold(start.run, &handle.control)) {
        slots.runs.remove(start.run);
        return Err(refused(format!("there is no timer for its lease: {e}")));
    }
    let task = TaskRun { handle, outputs, scratch, template, stdin, link: link.clone(), activity: slots.activity.clone(), leases };
    jobs.push(Job::Task(Box::new(task))).map_err(|_| {
        slots.runs.remove(start.run);
        slots.leases.forget(start.run);
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
    modules: &Modules,
    announced: &mut Announced,
    start: v1::StartArray,
    network: Option<Arc<Grants>>,
    mut fds: Vec<OwnedFd>,
) -> Result<(), Failure> {
    let announced = announced.take(start.run, &start.slots, start.guest.as_ref().is_some_and(|g| g.disk.is_some()));
    if !start.refused.is_empty() {
        return Err(refused(start.refused));
    }
    let Announced { outputs, disks, .. } = announced?;
    if start.slots.is_empty() {
        return Err(refused("an array part needs a slot"));
    }
    if let Some(missing) = start.slots.iter().find(|s| slots.jobs(**s).is_none()) {
        return Err(refused(format!("there is no slot {missing}")));
    }
    let guest = start.guest.ok_or_else(|| refused("the message describes no guest"))?;
    let inputs = take_rest(&guest, &mut fds, usize::from(start.split_inputs > 0))?;
    let common = Common { network, ..Common::default() };
    let template = template(slots, modules, guest, fds, &OWN_ITEM_VARIABLES, (common, Arc::default()))?;
    let part = Part {
        run: start.run,
        template,
        total_items: start.total_items,
        inputs: inputs.into_iter().next().map(|dir| SplitInputs::new(dir, start.split_inputs)),
        outputs,
        disks,
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

/// Cuts a task's two outputs off, which come first.
fn take_outputs(fds: &mut Vec<OwnedFd>) -> Result<TaskFiles, Failure> {
    if fds.len() < TASK_OUTPUTS {
        return Err(refused(format!("{} descriptors came, and the outputs alone are {TASK_OUTPUTS}", fds.len())));
    }
    let rest = fds.split_off(TASK_OUTPUTS);
    let mut outputs = std::mem::replace(fds, rest).into_iter().map(File::from);
    match (outputs.next(), outputs.next()) {
        (Some(out), Some(err)) => Ok(TaskFiles::new(out, err)),
        _ => Err(refused("the outputs are missing")),
    }
}

/// Cuts the root of the task's disk off, which comes next.
fn take_disk(guest: &v1::Guest, fds: &mut Vec<OwnedFd>) -> Result<Option<Scratch>, Failure> {
    if guest.disk.is_none() {
        return Ok(None);
    }
    if fds.is_empty() {
        return Err(refused("its disk did not come"));
    }
    Scratch::new(fds.remove(0)).map(Some)
}

/// Cuts the descriptors behind files and directories off.
fn take_rest(guest: &v1::Guest, fds: &mut Vec<OwnedFd>, rest: usize) -> Result<Vec<OwnedFd>, Failure> {
    let own = guest.files.len() + guest.dirs.len();
    if fds.len() != own + rest {
        return Err(refused(format!("{} descriptors came, {} were announced", fds.len(), own + rest)));
    }
    Ok(fds.split_off(own))
}

fn template(
    slots: &Slots,
    modules: &Modules,
    guest: v1::Guest,
    fds: Vec<OwnedFd>,
    own_variables: &[&str],
    (common, gauge): (Common, Arc<Gauge>),
) -> Result<Template, Failure> {
    let module = modules.get(&guest.module).ok_or_else(|| refused(format!("module {} is not loaded", guest.module)))?;
    if guest.fuel.is_some() && !module.request.fuel {
        return Err(refused(format!("{} was not compiled to count fuel", module.request.name)));
    }
    if !guest.files.is_empty() {
        // WASI preopens directories; the agent puts a file into one.
        return Err(refused("files are passed in directories"));
    }
    let env = guest.env.iter().map(|v| v.split_once('=').unwrap_or((v, "")));
    let env = env.filter(|(name, _)| !own_variables.contains(name)).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    let wanted = if guest.memory_bytes == 0 { u64::MAX } else { guest.memory_bytes };
    // Whose disk and ports somebody else gets as soon as its end is told.
    let lends = guest.disk.is_some() || common.network.is_some();
    Ok(Template {
        module: module.clone(),
        only: slots.loader.engines.for_one() && !lends,
        args: guest.args,
        env,
        memory_bytes: wanted.min(slots.max_memory),
        handles: slots.handles,
        timeout: guest.timeout_us.map(Duration::from_micros),
        fuel: guest.fuel,
        output_bytes: guest.output_bytes,
        view: View::new(guest.dirs, guest.disk, fds)?,
        common,
        gauge,
    })
}
