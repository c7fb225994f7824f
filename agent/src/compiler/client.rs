//! The agent's side of compiling: starts compiler processes, a few at a time, each with a time limit, and reads what they say.
//!
//! Dropping the future of [`Compiler::compile`] kills the process. Never trusts the process more than the guest that it read:
//! its line is bounded, and what it says about itself is only believed when its exit status agrees.

use super::{CompileReply, CompileRequest, Inspection, Refusal};
use smalti_types::{Bytes, Reason};
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::Semaphore;

/// Most bytes of the process's answer.
const MAX_REPLY: u64 = 1 << 20;
/// Most bytes of its diagnostics.
const MAX_DIAGNOSTICS: u64 = 16 << 10;
/// `SIGKILL` and `SIGXCPU`, which say who ended the process.
const SIGKILL: i32 = 9;
const SIGXCPU: i32 = 24;

/// How compiler processes run.
#[derive(Debug, Clone)]
pub struct CompilerOptions {
    /// Program and first arguments.
    pub command: Vec<OsString>,
    /// Wall time of one compilation.
    pub timeout: Duration,
    /// Address space of one process.
    pub memory: Bytes,
    /// Processes at a time.
    pub parallel: usize,
}

/// Starts compiler processes.
#[derive(Debug)]
pub struct Compiler {
    options: CompilerOptions,
    permits: Semaphore,
}

/// A finished compilation.
#[derive(Debug)]
pub struct Compiled {
    /// What the guest is.
    pub inspection: Inspection,
    /// The code, below the directory that was given.
    pub code: PathBuf,
}

impl Compiler {
    /// Nothing is started yet.
    #[must_use]
    pub fn new(options: CompilerOptions) -> Self {
        let permits = Semaphore::new(options.parallel.max(1));
        Self { options, permits }
    }

    /// Compiles the guest at `input` into a file in the directory `work`, which must not be used by anybody else.
    ///
    /// # Errors
    /// [`Refusal`] with `LAUNCH_FAILED` when the process could not do its work, else with what is wrong with the guest.
    pub async fn compile(&self, input: &Path, work: &Path, fuel: bool) -> Result<Compiled, Refusal> {
        let _permit = self.permits.acquire().await;
        let code = work.join("code");
        let request = CompileRequest {
            input: input.to_owned(),
            output: code.clone(),
            fuel,
            memory: self.options.memory.0,
            // All threads together; the wall time limit comes first unless the process outlives the agent.
            cpu_seconds: self.options.timeout.as_secs().saturating_mul(8).max(10),
        };
        let (status, reply, diagnostics) = self.run(&request).await?;
        let line = reply.lines().rev().find(|l| l.starts_with('{')).unwrap_or_default();
        match serde_json::from_str(line) {
            Ok(CompileReply::Ok(inspection)) if status.success() => Ok(Compiled { inspection, code }),
            Ok(CompileReply::Error(refusal)) => Err(refusal),
            _ => Err(self.ended(status, &diagnostics)),
        }
    }

    async fn run(&self, request: &CompileRequest) -> Result<(ExitStatus, String, String), Refusal> {
        let ours = |what: &str, e: std::io::Error| Refusal::new(Reason::LaunchFailed, format!("cannot {what} the compiler process: {e}"));
        let Some((program, first)) = self.options.command.split_first() else {
            return Err(Refusal::new(Reason::LaunchFailed, "no compile command is set"));
        };
        let mut child = Command::new(program)
            .args(first)
            .args(request.to_args())
            // Nothing in the agent's environment (credentials among it) concerns a process that reads hostile bytes.
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| ours(&format!("start {} as", program.to_string_lossy()), e))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let all = async { tokio::join!(read(stdout, MAX_REPLY), read(stderr, MAX_DIAGNOSTICS), child.wait()) };
        let Ok((reply, diagnostics, status)) = tokio::time::timeout(self.options.timeout, all).await else {
            let _ = child.kill().await;
            return Err(Refusal::invalid(format!("compiling it takes longer than {} s", self.options.timeout.as_secs_f32())));
        };
        Ok((status.map_err(|e| ours("wait for", e))?, reply, diagnostics))
    }

    /// What to say about a process that ended without an answer.
    fn ended(&self, status: ExitStatus, diagnostics: &str) -> Refusal {
        let said = diagnostics.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default();
        let said: String = said.chars().take(300).collect();
        match status.signal() {
            Some(SIGXCPU) => Refusal::invalid("compiling it takes too much processor time"),
            Some(SIGKILL) => Refusal::new(Reason::LaunchFailed, "the compiler process was killed from outside (out of memory?)"),
            // An allocation that fails under the address space limit aborts.
            Some(_) if diagnostics.contains("memory allocation") => {
                Refusal::invalid(format!("compiling it takes more than {} of memory", self.options.memory))
            }
            _ => Refusal::invalid(format!("the compiler gave up on it ({status}): {said}")),
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
