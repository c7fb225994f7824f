//! The inside of the compiler process: wait for the go, open both files, put up the walls, read, inspect, compile, write, say
//! what came of it.

use super::inspect::{inspect, one_line, to_binary};
use super::{CompileReply, CompileRequest, Inspection, Refusal, walls};
use nix::sys::resource::{Resource, setrlimit};
use smalti_types::Reason;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

/// Most bytes of code that one guest may become.
const MAX_OUTPUT: u64 = 2 << 30;
/// Open files: input, output, three standard streams and some for the runtime.
const MAX_FILES: u64 = 64;

/// Address space beside its own memory: reservations that are never touched, the program itself.
const ADDRESS_SPACE_BESIDE: u64 = 3 << 30;
/// Between the signal that says so and the end, in seconds, when a process has used its processor time.
const CPU_GRACE: u64 = 5;

/// Entry of the hidden verb `compiler`: takes the request from its arguments, prints two lines of JSON on stdout: its walls, and
/// what came of the request.
///
/// Exit code 0 whenever those were printed, whatever it says; anything else means the process itself failed.
#[must_use]
pub fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.peek().is_some_and(|a| a == "compiler") {
        args.next();
    }
    run(args)
}

pub(crate) fn run(args: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let request = match CompileRequest::from_args(args) {
        Ok(request) => request,
        Err(why) => {
            eprintln!("compiler: {why}; this verb is for the agent");
            return ExitCode::from(2);
        }
    };
    // The agent has put this process into its groups when it writes a byte. It closes the pipe when it changed its mind.
    if !matches!(std::io::stdin().read(&mut [0]), Ok(1)) {
        return ExitCode::FAILURE;
    }
    let answered = match prepare(&request) {
        Ok(mut work) => {
            let walls = walls::enter(request.uid);
            say(&walls).and_then(|()| say(&reply(compile(&mut work))))
        }
        Err(refusal) => say(&CompileReply::Error(refusal)),
    };
    match answered {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("compiler: cannot answer: {e}");
            ExitCode::FAILURE
        }
    }
}

fn reply(result: Result<Inspection, Refusal>) -> CompileReply {
    match result {
        Ok(inspection) => CompileReply::Ok(inspection),
        Err(refusal) => CompileReply::Error(refusal),
    }
}

fn say(what: &impl serde::Serialize) -> std::io::Result<()> {
    let line = serde_json::to_string(what).map_err(std::io::Error::other)?;
    writeln!(std::io::stdout(), "{line}")
}

/// All that needs a path, a privilege or a look at this machine.
struct Work {
    input: File,
    output: File,
    engine: wasmtime::Engine,
}

fn prepare(request: &CompileRequest) -> Result<Work, Refusal> {
    let ours = |what: &str, path: &Path| {
        let path = path.display().to_string();
        let what = what.to_owned();
        move |e: std::io::Error| Refusal::new(Reason::LaunchFailed, format!("the compiler process cannot {what} {path}: {e}"))
    };
    limit(request)?;
    let input = File::open(&request.input).map_err(ours("open", &request.input))?;
    let output = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&request.output);
    let output = output.map_err(ours("make", &request.output))?;
    let mut config = smalti_engine::base_config(request.fuel);
    config.cranelift_opt_level(wasmtime::OptLevel::Speed);
    let engine = wasmtime::Engine::new(&config)
        .map_err(|e| Refusal::new(Reason::LaunchFailed, format!("the compiler cannot be set up for this machine: {e:#}")))?;
    Ok(Work { input, output, engine })
}

/// A guest that makes the compiler explode must not take the node with it.
fn limit(request: &CompileRequest) -> Result<(), Refusal> {
    let limits = [
        (Resource::RLIMIT_CORE, 0, 0),
        // What is its own. The group's limit lies above: a process that is held at that one by the kernel would spend its time
        // reading its own program from disk again and again.
        (Resource::RLIMIT_DATA, request.memory, 0),
        (Resource::RLIMIT_AS, request.memory.saturating_add(ADDRESS_SPACE_BESIDE), 0),
        // At the soft limit comes the signal that says why, at the hard one the end.
        (Resource::RLIMIT_CPU, request.cpu_seconds.max(1), CPU_GRACE),
        (Resource::RLIMIT_FSIZE, MAX_OUTPUT, 0),
        (Resource::RLIMIT_NOFILE, MAX_FILES, 0),
        (Resource::RLIMIT_MEMLOCK, 0, 0),
    ];
    for (resource, most, grace) in limits {
        setrlimit(resource, most, most + grace)
            .map_err(|e| Refusal::new(Reason::LaunchFailed, format!("the compiler process cannot limit itself ({resource:?}): {e}")))?;
    }
    Ok(())
}

fn compile(work: &mut Work) -> Result<Inspection, Refusal> {
    let ours = |what: &str, e: std::io::Error| Refusal::new(Reason::LaunchFailed, format!("the compiler process cannot {what}: {e}"));
    let mut bytes = Vec::new();
    work.input.read_to_end(&mut bytes).map_err(|e| ours("read its input", e))?;
    let wasm = to_binary(&bytes)?;
    let inspection = inspect(&wasm)?;
    let code = if inspection.component { work.engine.precompile_component(&wasm) } else { work.engine.precompile_module(&wasm) };
    let code = code.map_err(|e| Refusal::invalid(format!("it cannot be compiled: {}", one_line(&format!("{e:#}")))))?;
    work.output.write_all(&code).map_err(|e| ours("write the code", e))?;
    Ok(inspection)
}
