//! The agent's side of compiling: starts a compiler process in control groups of its own, with a time limit, and reads what it says.
//!
//! Dropping the future of [`Compiler::compile`] kills the process. Never trusts the process more than the guest that it read:
//! its lines are bounded, and what it says about itself is only believed when its exit status agrees.

use super::walls::Walls;
use super::{CompileReply, CompileRequest, Inspection, Refusal, processor_time};
use crate::cgroup::{Cgroups, ExecutorGroup};
use smalti_types::{Bytes, ExecutorId, Reason};
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Most bytes of the process's answer.
const MAX_REPLY: u64 = 1 << 20;
/// Most bytes of its diagnostics.
const MAX_DIAGNOSTICS: u64 = 16 << 10;
/// `SIGKILL`, `SIGSEGV` and `SIGXCPU`, which say who ended the process.
const SIGKILL: i32 = 9;
const SIGSEGV: i32 = 11;
const SIGXCPU: i32 = 24;
/// Most threads of one process: itself, [`COMPILE_THREADS`] and what a runtime may start.
const MAX_THREADS: u32 = 32;
/// Threads that compile functions.
const COMPILE_THREADS: usize = 4;
/// How long groups of an ended process are tried to be removed.
const REMOVE_WITHIN: Duration = Duration::from_secs(5);
/// Memory of its group beside its own: the program, and the files that it reads and writes.
const MEMORY_BESIDE: u64 = 256 << 20;
/// On a machine without time a compilation may take this many times its processor time, and the second number of seconds more.
const WALL_TIME: (u32, Duration) = (20, Duration::from_secs(60));

/// How compiler processes run.
#[derive(Debug, Clone)]
pub struct CompilerOptions {
    /// Program and first arguments.
    pub command: Vec<OsString>,
    /// Wall time of one compilation, for a machine that has no time for it. What a guest may take is in processor time and
    /// depends on its size: [`processor_time`].
    pub timeout: Duration,
    /// Memory of one process.
    pub memory: Bytes,
    /// Where each process gets groups of its own: see [`Cgroups::beside`].
    pub cgroups: Cgroups,
    /// The user that it becomes, if this one is root.
    pub uid: Option<u32>,
}

/// Starts compiler processes.
#[derive(Debug)]
pub struct Compiler {
    options: CompilerOptions,
    next: AtomicU64,
    /// What was last said of the walls, to say it again only when it changes.
    said: Mutex<Option<String>>,
}

/// How a process ended, and what it said.
struct Ended {
    status: ExitStatus,
    reply: String,
    diagnostics: String,
    out_of_memory: bool,
}

/// The groups of one process, removed with what is in them when this is dropped.
struct Group(Option<ExecutorGroup>);

impl Drop for Group {
    fn drop(&mut self) {
        let Some(group) = self.0.take() else { return };
        let _ = group.kill();
        let remove = move || {
            if let Err(e) = group.remove(REMOVE_WITHIN) {
                tracing::warn!("removing the groups of a compiler process: {e}");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

impl Compiler {
    /// Nothing is started yet.
    #[must_use]
    pub fn new(options: CompilerOptions) -> Self {
        Self { options, next: AtomicU64::new(1), said: Mutex::default() }
    }

    /// Compiles the guest at `input` into the file `output`, which nobody else must use, and says what the guest is. Beside the result: the
    /// processor time that it took in microseconds, where that is known.
    ///
    /// # Errors
    /// [`Refusal`] with `LAUNCH_FAILED` when the process could not do its work, else with what is wrong with the guest.
    pub async fn compile(&self, input: &Path, output: &Path, fuel: bool) -> (Result<Inspection, Refusal>, Option<u64>) {
        let mut used = None;
        let result = self.try_compile(input, output, fuel, &mut used).await;
        (result, used)
    }

    async fn try_compile(&self, input: &Path, output: &Path, fuel: bool, used: &mut Option<u64>) -> Result<Inspection, Refusal> {
        let size = std::fs::metadata(input).map(|m| m.len()).unwrap_or_default();
        let limit = processor_time(size);
        let request = CompileRequest {
            input: input.to_owned(),
            output: output.to_owned(),
            fuel,
            memory: self.options.memory.0,
            cpu_seconds: limit.as_secs(),
            uid: self.options.uid,
        };
        let ended = self.run(&request, used).await?;
        self.say_walls(&ended.reply);
        let line = ended.reply.lines().rev().find(|l| l.starts_with('{')).unwrap_or_default();
        match serde_json::from_str(line) {
            Ok(CompileReply::Ok(inspection)) if ended.status.success() => Ok(inspection),
            Ok(CompileReply::Error(refusal)) => Err(refusal),
            _ => Err(self.ended(&ended, limit)),
        }
    }

    async fn run(&self, request: &CompileRequest, used: &mut Option<u64>) -> Result<Ended, Refusal> {
        let ours =
            |what: &str, e: &dyn std::fmt::Display| Refusal::new(Reason::LaunchFailed, format!("cannot {what} the compiler process: {e}"));
        let Some((program, first)) = self.options.command.split_first() else {
            return Err(Refusal::new(Reason::LaunchFailed, "no compile command is set"));
        };
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get).min(COMPILE_THREADS);
        let mut child = Command::new(program)
            .args(first)
            .args(request.to_args())
            // Nothing in the agent's environment (credentials among it) concerns a process that reads hostile bytes.
            .env_clear()
            .env("RAYON_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| ours(&format!("start {} as", program.to_string_lossy()), &e))?;
        // After the child, so that it is dropped first: the groups can be removed only then.
        let group = self.group(child.id()).map_err(|e| ours("limit", &e))?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that is gone already has perhaps said why: that is the better error.
            let _ = stdin.write_all(b"g").await;
        }
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let all = async { tokio::join!(read(stdout, MAX_REPLY), read(stderr, MAX_DIAGNOSTICS), child.wait()) };
        let within = self.options.timeout.min(Duration::from_secs(request.cpu_seconds) * WALL_TIME.0 + WALL_TIME.1);
        let result = tokio::time::timeout(within, all).await;
        let counted = group.0.as_ref();
        *used = counted.and_then(|g| g.cpu_usage_us().ok()).flatten();
        let out_of_memory = counted.is_some_and(|g| g.oom_kills().is_ok_and(|n| n > 0));
        let Ok((reply, diagnostics, status)) = result else {
            let _ = child.kill().await;
            let message = format!("compiling it takes longer than {} s on this machine now", within.as_secs_f32());
            return Err(Refusal::new(Reason::LaunchFailed, message));
        };
        Ok(Ended { status: status.map_err(|e| ours("wait for", &e))?, reply, diagnostics, out_of_memory })
    }

    /// Groups for one process with the process in them, before it has read anything.
    fn group(&self, pid: Option<u32>) -> Result<Group, crate::cgroup::Error> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let (Some(pid), Ok(id)) = (pid.and_then(|p| i32::try_from(p).ok()), ExecutorId::new(format!("compiler-{n}"))) else {
            return Ok(Group(None));
        };
        let group = Group(Some(self.options.cgroups.executor(&id)?));
        if let Some(group) = &group.0 {
            group.set_memory(Bytes(self.options.memory.0.saturating_add(MEMORY_BESIDE)))?;
            group.set_max_threads(MAX_THREADS)?;
            group.add_process(pid)?;
        }
        Ok(group)
    }

    /// What is not enforced is said aloud, once.
    fn say_walls(&self, reply: &str) {
        let walls = reply.lines().find_map(|line| serde_json::from_str::<Walls>(line).ok());
        let Some(summary) = walls.map(|w| w.summary()) else { return };
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.as_ref() != Some(&summary) {
            if summary.contains("off:") {
                tracing::warn!("walls around the compiler: {summary}");
            } else {
                tracing::info!("walls around the compiler: {summary}");
            }
            *said = Some(summary);
        }
    }

    /// What to say about a process that ended without an answer.
    fn ended(&self, ended: &Ended, limit: Duration) -> Refusal {
        let said = ended.diagnostics.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default();
        let said: String = said.chars().take(300).collect();
        let memory = || Refusal::invalid(format!("compiling it takes more than {} of memory", self.options.memory));
        match ended.status.signal() {
            Some(SIGXCPU) => {
                Refusal::invalid(format!("compiling it takes more than {} s of processor time, the most for its size", limit.as_secs()))
            }
            Some(SIGKILL) if ended.out_of_memory => memory(),
            Some(SIGKILL) => Refusal::new(Reason::LaunchFailed, "the compiler process was killed from outside"),
            // An allocation that fails under the address space limit aborts.
            _ if ended.diagnostics.contains("memory allocation") => memory(),
            Some(SIGSEGV) => Refusal::invalid(format!("compiling it takes more stack than the compiler has: {said}")),
            _ => Refusal::invalid(format!("the compiler gave up on it ({}): {said}", ended.status)),
        }
    }
}

/// Reads at most `most` bytes, then drains the rest so that the process is not stopped by a full pipe.
async fn read(from: Option<impl AsyncRead + Unpin>, most: u64) -> String {
    let Some(mut from) = from else { return String::new() };
    let mut bytes = Vec::new();
    let _ = (&mut from).take(most).read_to_end(&mut bytes).await;
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&bytes).into_owned()
}
