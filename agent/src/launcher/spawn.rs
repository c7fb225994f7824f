//! The launcher process: started, limited, let go, and asked for the supervisor's pid.

use super::forge::{Forge, Launching};
use super::process::{Guard, ProcessHandle, end_of};
use super::{Error, ExecutorSpec, Options, implausible, io, max_threads};
use crate::cgroup::ExecutorGroup;
use crate::uids::{Uid, Users};
use smalti_executor_protocol::supervision::{ExecutorKind, Launched};
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe::Receiver;

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

/// A process in its groups that waits for the go byte.
#[derive(Debug)]
pub(super) struct Begun {
    user: Result<Uid, String>,
    /// Its stdin.
    control: UnixStream,
    /// What it says.
    said: OwnedFd,
    launching: Launching,
}

/// Starts the launcher, or the executor itself. Blocks for less than a millisecond.
pub(super) fn begin((options, forge): (&Options, &Forge), spec: &ExecutorSpec, home: &Path, group: &ExecutorGroup) -> Result<Begun, Error> {
    let user = match &options.users {
        Users::Own(uids) => Ok(uids.take().map_err(|source| Error::User { id: spec.id.clone(), source })?),
        Users::Shared(why) => Err(why.clone()),
    };
    let (control, theirs) = UnixStream::pair().map_err(io(&spec.id, "making a socket for", home))?;
    let (said, saying) = std::io::pipe().map_err(io(&spec.id, "making a pipe for", home))?;
    let arguments = arguments(options, spec, home, user.as_ref().ok(), group)?;
    let launching = forge.launch(&arguments, [theirs.into(), saying.into()], group);
    let launching = launching.map_err(io(&spec.id, "starting", &options.executor_path))?;
    Ok(Begun { user, control, said: said.into(), launching })
}

/// Lets it go, and hands the executor's process to `guard`.
pub(super) async fn let_go(
    begun: Begun,
    options: &Options,
    spec: &ExecutorSpec,
    home: &Path,
    group: &ExecutorGroup,
    guard: &mut Guard,
) -> Result<Spawned, Error> {
    let Begun { user, control, said, launching } = begun;
    let launched = say_go(said, &control, user.as_ref().ok(), spec, options).await?;
    let warnings = match launched {
        Launched::Started { warnings, .. } if let Some(pid) = launching.alone => {
            guard.set(ProcessHandle::alone(pid, launching.pidfd.clone(), group.clone()));
            launching.keep();
            return Ok(Spawned { uid: user.map(|u| u.number), warnings, control: None });
        }
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
    let ended = ended(launching).map_err(io(&spec.id, "waiting for the launcher of", home))?;
    if spec.kind == ExecutorKind::Networked {
        // It ends with its supervisor; until then it stays.
        tokio::spawn(ended);
        return Ok(Spawned { uid, warnings, control: Some(control) });
    }
    drop(control);
    ended.await;
    Ok(Spawned { uid, warnings, control: None })
}

/// Resolves when a launcher has ended, which it does when its stdin closes.
fn ended(launching: Launching) -> std::io::Result<impl Future<Output = ()>> {
    let pidfd = end_of(launching.pidfd.clone())?;
    Ok(async move {
        let _ = pidfd.readable().await;
        drop(launching);
    })
}

fn arguments(
    options: &Options,
    spec: &ExecutorSpec,
    home: &Path,
    user: Option<&Uid>,
    group: &ExecutorGroup,
) -> Result<Vec<OsString>, Error> {
    let home = std::path::absolute(home).map_err(io(&spec.id, "resolving", home))?;
    let mut all: Vec<OsString> = vec!["launch".into(), "--dir".into(), home.into()];
    all.extend(["--kind".into(), spec.kind.as_str().into()]);
    all.extend(["--recovery-timeout-ms".into(), options.recovery_timeout.as_millis().to_string().into()]);
    if let Some(user) = user {
        all.extend(["--uid".into(), user.number.to_string().into()]);
        all.extend(["--max-threads".into(), max_threads(spec.slots).to_string().into()]);
    }
    if let Some(bytes) = options.max_file_bytes {
        all.extend(["--max-file-bytes".into(), bytes.to_string().into()]);
    }
    if !options.namespaces {
        all.push("--no-namespaces".into());
    }
    all.push("--".into());
    if group.swap_is_off() {
        all.push("--swap-off".into());
    }
    if let Some(probe) = &options.probe {
        all.extend(["--probe".into(), probe.into()]);
    }
    Ok(all)
}

/// Sends the go byte, with what stands for the uid, and reads the launcher's line.
async fn say_go(
    said: OwnedFd,
    control: &UnixStream,
    user: Option<&Uid>,
    spec: &ExecutorSpec,
    options: &Options,
) -> Result<Launched, Error> {
    let failed = |what| io(&spec.id, what, &options.executor_path);
    let fds: Vec<_> = user.iter().map(|u| u.hold.as_fd()).collect();
    // One byte into an empty socket does not block. A launcher that is gone already has perhaps said why: that is the better error.
    let _ = smalti_executor_protocol::blocking::transmit(control, b"g", &fds);
    let mut line = String::new();
    let said = Receiver::from_owned_fd(said).map_err(failed("listening to"))?;
    BufReader::new(said.take(MAX_LINE_BYTES)).read_line(&mut line).await.map_err(failed("listening to"))?;
    Launched::parse(&line)
        .map_err(|e| implausible(&spec.id, &format!("its launcher said {:?}: {e}", line.chars().take(200).collect::<String>())))
}
