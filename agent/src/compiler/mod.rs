//! The compiler process: Wasm bytes in, machine code for this machine out, in a process of its own with hard limits.
//!
//! Cranelift is by far the largest piece of code that reads hostile bytes, so it never runs inside the agent. The agent
//! re-executes its own binary ([`main`] is that verb's entry), puts it into control groups of its own and says go
//! ([`Compiler`]); the process opens its two files, shuts itself in (`walls`), and only then reads. Back come a file and two
//! lines of JSON. Deliberately absent: fetching, caching, digests, whose turn it is.

mod client;
mod inspect;
mod limits;
mod process;
mod syscalls;
#[cfg(test)]
pub(crate) mod tests;
mod walls;

pub use client::{Compiler, CompilerOptions};
pub use inspect::{Inspection, inspect};
pub use limits::{MAX_PROCESSOR_TIME, processor_time};
pub use process::main;

use serde::{Deserialize, Serialize};
use smalti_types::Reason;
use std::path::PathBuf;

/// What the agent asks of one compiler process; travels as its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CompileRequest {
    /// The guest: a core module, a component, or either as text.
    pub(crate) input: PathBuf,
    /// Where the code goes; must not be there.
    pub(crate) output: PathBuf,
    /// Whether the code counts fuel.
    pub(crate) fuel: bool,
    /// Most memory of its own in bytes.
    pub(crate) memory: u64,
    /// Most processor time in seconds.
    pub(crate) cpu_seconds: u64,
    /// The user that the process becomes, if the agent is root.
    pub(crate) uid: Option<u32>,
}

/// The one line that a compiler process prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CompileReply {
    /// The code is in the output file.
    Ok(Inspection),
    /// The guest cannot run.
    Error(Refusal),
}

/// Why a guest cannot run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Refusal {
    /// `INVALID_BUNDLE`, `MISSING_IMPORT`, `NO_ENTRY_POINT`, or `LAUNCH_FAILED` when it is this agent's fault.
    pub reason: Reason,
    /// What is wrong, without the guest's name.
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Reason::InvalidBundle, message)
    }
}

impl CompileRequest {
    pub(crate) fn to_args(&self) -> Vec<std::ffi::OsString> {
        let mut args = vec!["--input".into(), self.input.clone().into(), "--output".into(), self.output.clone().into()];
        args.extend(["--memory".into(), self.memory.to_string().into(), "--cpu-seconds".into(), self.cpu_seconds.to_string().into()]);
        if let Some(uid) = self.uid {
            args.extend(["--uid".into(), uid.to_string().into()]);
        }
        if self.fuel {
            args.push("--fuel".into());
        }
        args
    }

    /// Reads what [`CompileRequest::to_args`] wrote.
    pub(crate) fn from_args(args: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Self, String> {
        let mut args = args.into_iter();
        let (mut input, mut output, mut fuel, mut memory, mut cpu_seconds, mut uid) = (None, None, false, 4_u64 << 30, 60, None);
        while let Some(arg) = args.next() {
            let name = arg.to_string_lossy().into_owned();
            if name == "--fuel" {
                fuel = true;
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
            let number = || value.to_str().and_then(|v| v.parse::<u64>().ok()).ok_or_else(|| format!("{name} needs a number"));
            match name.as_str() {
                "--input" => input = Some(PathBuf::from(value)),
                "--output" => output = Some(PathBuf::from(value)),
                "--memory" => memory = number()?,
                "--cpu-seconds" => cpu_seconds = number()?,
                "--uid" => uid = Some(u32::try_from(number()?).map_err(|e| format!("{name}: {e}"))?),
                _ => return Err(format!("unknown argument {name}")),
            }
        }
        let input = input.ok_or("--input is missing")?;
        let output = output.ok_or("--output is missing")?;
        Ok(Self { input, output, fuel, memory, cpu_seconds, uid })
    }
}
