//! The launcher process: started, limited, let go, and asked for the supervisor's pid.

use super::process::{Guard, ProcessHandle};
use super::{Error, ExecutorSpec, Options, implausible, io, max_threads};
use crate::cgroup::ExecutorGroup;
use crate::uids::{Uid, Users};
use smalti_executor_protocol::blocking;
use smalti_executor_protocol::supervision::{ExecutorKind, Launched};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

/// Longest line that is read from the launcher.
const MAX_LINE_BYTES: u64 = 64 << 10;

/// What came of it.
#[derive(Debug)]
pub(super) struct Spawned {
    /// The executor's own uid; else why it has none.
    pub(super) uid: Result<u32, String>,
    /// What the launcher and the supervisor warn of.
    pub(super) warnings: Vec<String>,
    /// The launcher's stdin, where the launcher stays.
    pub(super) control: Option<UnixStream>,
}

/// Starts the supervisor and hands its process to `guard`.
pub(super) async fn spawn(
    options: &Options,
    spec: &ExecutorSpec,
    home: &Path,
    group: &ExecutorGroup,
    guard: &mut Guard,
) -> Result<Spawned, Error> {
    let user = match &options.users {
        Users::Own(uids) => Ok(uids.take().map_err(|source| Error::User { id: spec.id.clone(), source })?),
        Users::Shared(why) => Err(why.clone()),
    };
    let (control, theirs) = UnixStream::pair().map_err(io(&spec.id, "making a socket for", home))?;
    let mut command = command(options, spec, home, user.as_ref().ok(), group)?;
    command.env_clear().stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
    let mut child = command.spawn().map_err(io(&spec.id, "starting", &options.executor_path))?;
    // It holds the launcher's end of the socket.
    drop(command);
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        group.add_process(pid).map_err(|source| Error::Cgroup { id: spec.id.clone(), source })?;
    }
    let launched = let_go(&mut child, &control, user.as_ref().ok(), spec, options).await?;
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
    let uid = user.map(|u| u.number);
    if spec.kind == ExecutorKind::Networked {
        // It ends with its supervisor; until then it stays.
        tokio::spawn(async move { child.wait().await });
        return Ok(Spawned { uid, warnings, control: Some(control) });
    }
    drop(control);
    child.wait().await.map_err(io(&spec.id, "waiting for", &options.executor_path))?;
    Ok(Spawned { uid, warnings, control: None })
}

fn command(options: &Options, spec: &ExecutorSpec, home: &Path, user: Option<&Uid>, group: &ExecutorGroup) -> Result<Command, Error> {
    let home = std::path::absolute(home).map_err(io(&spec.id, "resolving", home))?;
    let mut command = Command::new(&options.executor_path);
    command.arg("launch").arg("--dir").arg(home).args(["--kind", spec.kind.as_str()]);
    command.args(["--recovery-timeout-ms", &options.recovery_timeout.as_millis().to_string()]);
    if let Some(user) = user {
        command.args(["--uid", &user.number.to_string(), "--max-threads", &max_threads(spec.slots).to_string()]);
    }
    if !options.namespaces {
        command.arg("--no-namespaces");
    }
    command.arg("--");
    if group.swap_is_off() {
        command.arg("--swap-off");
    }
    if let Some(probe) = &options.probe {
        command.args(["--probe", probe]);
    }
    Ok(command)
}

/// Sends the go byte, with what stands for the uid, and reads the launcher's line.
async fn let_go(
    child: &mut Child,
    control: &UnixStream,
    user: Option<&Uid>,
    spec: &ExecutorSpec,
    options: &Options,
) -> Result<Launched, Error> {
    let failed = |what| io(&spec.id, what, &options.executor_path);
    let fds: Vec<_> = user.iter().map(|u| u.hold.as_fd()).collect();
    // One byte into an empty socket does not block. A launcher that is gone already has perhaps said why: that is the better error.
    let _ = blocking::transmit(control, b"g", &fds);
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout.take(MAX_LINE_BYTES)).read_line(&mut line).await.map_err(failed("listening to"))?;
    }
    Launched::parse(&line)
        .map_err(|e| implausible(&spec.id, &format!("its launcher said {:?}: {e}", line.chars().take(200).collect::<String>())))
}
