//! The worker's part: it tells its supervisor, if it has one, when the root may go, waits until it is gone, and closes its own walls.
//!
//! Owns the line to the supervisor: one packet up when the engines are built, one packet down with the walls that the supervisor
//! could not close, and perhaps, much later, one from the handler of a denied call. A worker without a supervisor is in an empty root already,
//! and its line is for the last of these, to the forge. Called once, while this process has one thread and before it says Hello.

use super::{filter, identity, rules, trap};
use crate::network::notify;
use anyhow::Context;
use nix::unistd::{read, write};
use smalti_executor_protocol::supervision::ExecutorKind;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

/// What the worker says when it needs neither `/proc` nor any other path any more.
pub(crate) const READY: &[u8] = b"ready";
/// Longest answer of the supervisor.
pub(crate) const MAX_ANSWER_BYTES: usize = 16 << 10;

/// What is to be closed.
#[derive(Debug)]
pub(crate) struct Walls {
    line: OwnedFd,
    kind: ExecutorKind,
    /// Nobody is at the other end who closes walls.
    alone: bool,
}

/// How it went.
#[derive(Debug, Default)]
pub(crate) struct Closed {
    /// Layers that the kernel shows nowhere: name to `on …` or `off: why`.
    pub(crate) layers: BTreeMap<String, String>,
    /// Walls that stayed open, as `layer: why`.
    pub(crate) warnings: Vec<String>,
    /// Of kind [`ExecutorKind::Networked`]: where the kernel asks about its sockets; for the broker outside.
    pub(crate) notifications: Option<OwnedFd>,
}

impl Walls {
    /// `line` is the worker's end of it; `alone`: of a worker without a supervisor.
    pub(crate) const fn new(line: OwnedFd, kind: ExecutorKind, alone: bool) -> Self {
        Self { line, kind, alone }
    }

    /// Closes them. `reset` is how the engine resets used memories, checked again behind the walls.
    ///
    /// # Errors
    /// When the filter is not in force, or the supervisor is gone: this process must not run a guest then.
    pub(crate) fn close(self, reset: &str) -> anyhow::Result<Closed> {
        // As the engine's own: opened by a process whose exec left it without any capability, so that the kernel shows no numbers of
        // page frames in it, whoever reads (`pagemap-frames` of the probe).
        let pagemap = File::open("/proc/self/pagemap");
        let mut warnings = if self.alone { Vec::new() } else { self.let_supervisor_close()? };
        identity::drop_capabilities(&mut warnings);
        identity::close_to_others(&mut warnings);
        ignore_file_size_signal();
        if self.alone {
            trap::end_when_aborted()?;
        }
        trap::install(self.line)?;
        let mut layers = BTreeMap::from([("landlock".to_owned(), rules::for_worker(self.kind == ExecutorKind::Networked).state())]);
        let notifications = match self.kind {
            ExecutorKind::Networked => Some(notify::impose().context("the kernel cannot ask about this executor's sockets")?),
            ExecutorKind::Shared | ExecutorKind::Pooled => None,
        };
        filter::impose_on_worker(self.kind)?;
        let reset = memory_reset(reset, pagemap.as_ref().ok());
        layers.insert("memory_reset".to_owned(), reset);
        Ok(Closed { layers, warnings, notifications })
    }

    /// Waits until the root is empty. Gives the walls that the supervisor could not close.
    fn let_supervisor_close(&self) -> anyhow::Result<Vec<String>> {
        write(&self.line, READY)?;
        let mut answer = vec![0; MAX_ANSWER_BYTES];
        let length = read(&self.line, &mut answer)?;
        anyhow::ensure!(length > 0, "the supervisor ended while it emptied the root");
        let text = String::from_utf8_lossy(&answer[..length]).into_owned();
        Ok(text.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect())
    }
}

/// A file that would grow beyond the limit is an error of the write, not the end of the process.
fn ignore_file_size_signal() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    #[expect(unsafe_code, reason = "the disposition of a signal cannot be changed otherwise")]
    // SAFETY: a signal that is ignored runs no code.
    let _ = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
}

/// Whether the fast reset of used memories still works: without it the engine falls back in silence, so it is tried here.
fn memory_reset(reset: &str, pagemap: Option<&File>) -> String {
    if reset != "pagemap_scan" {
        return format!("on: {reset}");
    }
    match pagemap.map(scan) {
        Some(Ok(1)) => "on: pagemap_scan".to_owned(),
        Some(Ok(regions)) => format!("on: plain, the kernel finds {regions} written regions where there is one"),
        Some(Err(e)) => format!("on: plain, PAGEMAP_SCAN does not work behind the walls: {e}"),
        None => "on: plain, /proc/self/pagemap cannot be opened".to_owned(),
    }
}

/// The kernel's argument of `PAGEMAP_SCAN`.
#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// A page that was written since it is watched, and one that is in memory: bits of the kernel's categories.
const WRITTEN: u64 = 1 << 1;
const PRESENT: u64 = 1 << 3;

/// Asks the kernel for the written pages in one that was just written: one region.
fn scan(pagemap: &File) -> std::io::Result<i32> {
    let page = rustix::param::page_size();
    let bytes = std::hint::black_box(vec![1_u8; 2 * page]);
    let start = bytes.as_ptr().addr().next_multiple_of(page) as u64;
    let mut region = [0_u64; 3];
    let mut arg = PmScanArg {
        size: size_of::<PmScanArg>() as u64,
        start,
        end: start + page as u64,
        vec: region.as_mut_ptr().expose_provenance() as u64,
        vec_len: 1,
        category_mask: WRITTEN | PRESENT,
        return_mask: WRITTEN,
        ..PmScanArg::default()
    };
    #[expect(unsafe_code, reason = "the only way to ask the kernel this question")]
    // SAFETY: the argument is as long as it says, and the one region that may be written is alive until the call returns.
    let found = unsafe { nix::libc::ioctl(pagemap.as_raw_fd(), filter::PAGEMAP_SCAN.into(), &raw mut arg) };
    nix::errno::Errno::result(found).map_err(Into::into)
}
