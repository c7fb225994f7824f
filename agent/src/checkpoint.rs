//! The checkpoint log as the event loop uses it: opened with the core that it describes, written once per batch, snapshot when it is long.
//!
//! Owns what happens when the disk is full: new work is refused while there is still room for what runs, and a batch that cannot be written
//! at all is tried until it can. Nothing has left the process then, so nothing is lost. Deliberately absent: what records mean and how they
//! are written (`smalti-agent-checkpoint`).

use crate::{detect, launcher};
use anyhow::Context;
use smalti_agent_checkpoint::{Error, Files, Log, Opened};
use smalti_agent_core::{Agent, Parameters, Record};
use std::path::Path;
use std::time::Duration;

/// Directory below that of the agent's data.
const DIRECTORY: &str = "checkpoint";
/// Kept free for what attempts may still have to say: this much in any case, …
const ROOM: u64 = 1 << 20;
/// … and this much for each.
const ROOM_PER_ATTEMPT: u64 = 2 << 10;
/// Between two tries to write to a full disk.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// The log.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    log: Log<Files>,
    has_room: bool,
}

impl Checkpoint {
    /// Opens the log below `data_dir` and restores the core from it.
    ///
    /// # Errors
    /// When the log cannot be used; the words say what to do.
    pub(crate) fn open(data_dir: &Path, executors_dir: &Path, parameters: Parameters) -> anyhow::Result<(Self, Agent)> {
        let directory = data_dir.join(DIRECTORY);
        let files = Files::open(&directory).with_context(|| format!("opening the checkpoint in {}", directory.display()))?;
        let boot = detect::boot_id();
        let Opened { mut log, records, same_boot, cut } = Log::open(files, &boot)?;
        // The boot is noted before the first executor starts. What is taken for ended may run.
        if let Some(executor) = (!same_boot && !records.is_empty()).then(|| launcher::one_of_boot(executors_dir, &boot)).flatten() {
            anyhow::bail!(
                "the checkpoint in {} is damaged: it says that the machine was started since, and executor {executor} was started later than \
                 that: check the disk, then move that directory away and start the agent again. It then ends the executors that it finds, and \
                 its tasks are reported as lost",
                directory.display()
            );
        }
        if let Some(cut) = cut {
            tracing::warn!("{cut}");
        }
        if !same_boot && !records.is_empty() {
            tracing::warn!("the machine was started again: what ran on this agent before is gone");
        }
        let core = Agent::restore(parameters, records, same_boot);
        // The machine's boot is noted with it, and what was torn is left behind.
        log.snapshot(core.checkpoint())?;
        Ok((Self { log, has_room: true }, core))
    }

    /// Makes a batch durable. `core` is what the records lead to.
    ///
    /// # Errors
    /// When the disk fails in another way than by being full.
    pub(crate) fn write(&mut self, records: Vec<Record>, core: &Agent) -> Result<(), Error> {
        // By value: what an update has is moved to where it is encoded from, not copied.
        let full = match self.log.append(records) {
            Err(e) if e.is_full() => e,
            result => return result,
        };
        tracing::error!("{full}: nothing is done until there is room again, and nothing is lost");
        loop {
            // All of it at once may be shorter.
            match self.log.snapshot(core.checkpoint()) {
                Err(e) if e.is_full() => std::thread::sleep(TRY_AGAIN),
                Err(e) => return Err(e),
                Ok(()) => break,
            }
        }
        tracing::warn!("the checkpoint log can be written again");
        Ok(())
    }

    /// Takes a snapshot when one is due. One that fails for lack of room is tried again with the next batch.
    ///
    /// # Errors
    /// As [`Checkpoint::write`].
    pub(crate) fn keep_short(&mut self, core: &Agent) -> Result<(), Error> {
        if !self.log.wants_snapshot() {
            return Ok(());
        }
        match self.log.snapshot(core.checkpoint()) {
            Err(e) if e.is_full() => Ok(()),
            result => result,
        }
    }

    /// Whether there is room for more work, if that has changed.
    ///
    /// # Errors
    /// As [`Checkpoint::write`].
    pub(crate) fn room_changed(&mut self, attempts: usize) -> Result<Option<bool>, Error> {
        let has_room = self.log.has_room(ROOM + ROOM_PER_ATTEMPT * attempts as u64)?;
        let changed = has_room != self.has_room;
        self.has_room = has_room;
        if changed && has_room {
            tracing::warn!("there is room in the checkpoint log again: tasks are taken");
        } else if changed {
            tracing::error!("no room in the checkpoint log: the file system is full, and no more tasks are taken until it is not");
        }
        Ok(changed.then_some(has_room))
    }
}
