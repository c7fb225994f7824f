//! The inside of the compiler process: limit itself, read, inspect, compile, write, say what came of it.

use super::inspect::{inspect, one_line, to_binary};
use super::{CompileReply, CompileRequest, Inspection, Refusal};
use nix::sys::resource::{Resource, setrlimit};
use smalti_types::Reason;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// Most bytes of code that one guest may become.
const MAX_OUTPUT: u64 = 2 << 30;
/// Open files: input, output, three standard streams and some for the runtime.
const MAX_FILES: u64 = 64;

/// Entry of the hidden verb `compiler`: takes the request from its arguments, prints one line of JSON on stdout.
///
/// Exit code 0 whenever that line was printed, whatever it says; anything else means the process itself failed.
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
    let reply = match limit(&request).and_then(|()| compile(&request)) {
        Ok(inspection) => CompileReply::Ok(inspection),
        Err(refusal) => CompileReply::Error(refusal),
    };
    let printed = serde_json::to_string(&reply).map_err(std::io::Error::other).and_then(|line| writeln!(std::io::stdout(), "{line}"));
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("compiler: cannot answer: {e}");
            ExitCode::FAILURE
        }
    }
}

/// A guest that makes the compiler explode must not take the node with it.
fn limit(request: &CompileRequest) -> Result<(), Refusal> {
    let limits = [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_AS, request.memory),
        (Resource::RLIMIT_CPU, request.cpu_seconds.max(1)),
        (Resource::RLIMIT_FSIZE, MAX_OUTPUT),
        (Resource::RLIMIT_NOFILE, MAX_FILES),
    ];
    for (resource, most) in limits {
        setrlimit(resource, most, most)
            .map_err(|e| Refusal::new(Reason::LaunchFailed, format!("the compiler process cannot limit itself ({resource:?}): {e}")))?;
    }
    Ok(())
}

fn compile(request: &CompileRequest) -> Result<Inspection, Refusal> {
    let ours = |what: &str, path: &Path, e: &dyn std::fmt::Display| {
        Refusal::new(Reason::LaunchFailed, format!("the compiler process cannot {what} {}: {e}", path.display()))
    };
    let bytes = std::fs::read(&request.input).map_err(|e| ours("read", &request.input, &e))?;
    let wasm = to_binary(&bytes)?;
    let inspection = inspect(&wasm)?;
    let mut config = smalti_engine::base_config(request.fuel);
    config.cranelift_opt_level(wasmtime::OptLevel::Speed);
    let engine = wasmtime::Engine::new(&config)
        .map_err(|e| Refusal::new(Reason::LaunchFailed, format!("the compiler cannot be set up for this machine: {e:#}")))?;
    let code = if inspection.component { engine.precompile_component(&wasm) } else { engine.precompile_module(&wasm) };
    let code = code.map_err(|e| Refusal::invalid(format!("it cannot be compiled: {}", one_line(&format!("{e:#}")))))?;
    write(&request.output, &code).map_err(|e| ours("write", &request.output, &e))?;
    Ok(inspection)
}

/// Partial file, sync, rename: under its final name the code is whole, also after a crash of the machine.
fn write(output: &Path, code: &[u8]) -> std::io::Result<()> {
    let dir = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(code)?;
    file.as_file().sync_data()?;
    file.persist(output)?;
    Ok(())
}
