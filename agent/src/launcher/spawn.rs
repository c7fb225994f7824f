//! The launcher process: started, limited, let go, and asked for the supervisor's pid.

use super::process::{Guard, ProcessHandle};
use super::{Error, ExecutorSpec, Options, implausible, io};
use crate::cgroup::ExecutorGroup;
use smalti_executor_protocol::supervision::Launched;
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

/// Longest line that is read from the launcher.
const MAX_LINE_BYTES: u64 = 64 << 10;

/// Starts the supervisor and hands its process to `guard`. Gives the warnings.
pub(super) async fn spawn(
    options: &Options,
    spec: &ExecutorSpec,
    home: &Path,
    group: &ExecutorGroup,
    guard: &mut Guard,
) -> Result<Vec<String>, Error> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(io(&spec.id, "resolving", path));
    let mut command = Command::new(&options.executor_path);
    command.arg("launch").arg("--dir").arg(absolute(home)?);
    command.args(["--recovery-timeout-ms", &options.recovery_timeout.as_millis().to_string()]);
    if !options.namespaces {
        command.arg("--no-namespaces");
    }
    command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
    let mut child = command.spawn().map_err(io(&spec.id, "starting", &options.executor_path))?;
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        group.add_process(pid).map_err(|source| Error::Cgroup { id: spec.id.clone(), source })?;
    }
    let launched = let_go(&mut child, spec, options).await?;
    let warnings = match launched {
        Launched::Failed { error } => return Err(Error::Supervisor { id: spec.id.clone(), message: error }),
        Launched::Started { pid, pid_namespace, warnings } => {
            // The launcher has not waited for the supervisor and lives until its stdin closes: the pid is still the same process.
            let process = ProcessHandle::open(pid, pid_namespace, group.clone()).map_err(io(&spec.id, "opening a pidfd of", home))?;
            if !group.contains(pid) {
                return Err(implausible(&spec.id, &format!("process {pid} is not in its control group")));
            }
            guard.set(process);
            warnings
        }
    };
    drop(child.stdin.take());
    child.wait().await.map_err(io(&spec.id, "waiting for", &options.executor_path))?;
    Ok(warnings)
}

/// Writes the go byte and reads the launcher's line.
async fn let_go(child: &mut Child, spec: &ExecutorSpec, options: &Options) -> Result<Launched, Error> {
    let failed = |what| io(&spec.id, what, &options.executor_path);
    if let Some(stdin) = &mut child.stdin {
        // A launcher that is gone already has perhaps said why: that is the better error.
        let _ = stdin.write_all(b"g").await;
    }
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout.take(MAX_LINE_BYTES)).read_line(&mut line).await.map_err(failed("listening to"))?;
    }
    Launched::parse(&line)
        .map_err(|e| implausible(&spec.id, &format!("its launcher said {:?}: {e}", line.chars().take(200).collect::<String>())))
}
