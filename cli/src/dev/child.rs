//! One role as a child process: started, heard, stopped.
//!
//! A child has a process group of its own, so that the terminal's Ctrl-C reaches only us, and watches its stdin, so that it
//! ends when we do, however that happens.

use super::plan::Role;
use crate::failure::{Failure, Result, io_text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{self, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// What begins the one line on stdout that says that a role is ready.
const READY: &str = "ready: ";
/// How long a role may take to become ready.
const START: Duration = Duration::from_secs(60);
/// How long the rest of a dead role's stderr is waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a role may take to end by itself.
const END: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Child {
    name: String,
    process: process::Child,
    /// Open as long as we live. Taken out of `process`, which would close it before waiting.
    _stdin: Option<process::ChildStdin>,
    /// What follows `ready: <role> `.
    ready: Option<oneshot::Receiver<String>>,
    /// Its last error, without the word itself: said once, by us.
    last_words: Arc<Mutex<String>>,
    /// Ends with its stderr.
    heard: Option<JoinHandle<()>>,
}

impl Child {
    /// Starts a role with this very binary. `log` is its $RUST_LOG.
    pub(crate) fn start(role: &Role, log: &str) -> Result<Self> {
        let failed = |e: &std::io::Error| Failure::new(format!("starting the {}: {}", role.name, io_text(e)));
        let binary = std::env::current_exe().map_err(|e| failed(&e))?;
        let mut process = Command::new(binary)
            .args(&role.args)
            .env("RUST_LOG", log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(&e))?;
        let (said, ready) = oneshot::channel();
        let last_words = Arc::new(Mutex::new(String::new()));
        if let Some(stdout) = process.stdout.take() {
            tokio::spawn(listen(stdout, role.name.clone(), Some(said), None));
        }
        let heard = process.stderr.take().map(|stderr| tokio::spawn(listen(stderr, role.name.clone(), None, Some(last_words.clone()))));
        let stdin = process.stdin.take();
        Ok(Self { name: role.name.clone(), process, _stdin: stdin, ready: Some(ready), last_words, heard })
    }

    /// Waits for the ready line: gives the address or id in it.
    pub(crate) async fn ready(&mut self) -> Result<String> {
        let Some(ready) = self.ready.take() else { return Err(Failure::new(format!("the {} was ready before", self.name))) };
        tokio::select! {
            said = ready => match said {
                Ok(said) => Ok(said),
                // Its stdout is closed: it is ending.
                Err(_) => Err(self.failed_to_start().await),
            },
            () = tokio::time::sleep(START) => Err(Failure::new(format!("the {} is not ready after {} s", self.name, START.as_secs()))),
        }
    }

    async fn failed_to_start(&mut self) -> Failure {
        let how = self.end().await;
        Failure::new(format!("the {} did not start: {how}", self.name))
    }

    /// Waits for its end and says how it came. Safe to cancel.
    pub(crate) async fn ended(&mut self) -> String {
        let how = self.end().await;
        format!("the {} ended: {how}", self.name)
    }

    async fn end(&mut self) -> String {
        let status = self.process.wait().await;
        let how = status.map_or_else(|e| io_text(&e), describe);
        // It has ended: what it said last is there, or comes at once.
        if let Some(heard) = self.heard.take() {
            let _ = tokio::time::timeout(LAST_WORDS, heard).await;
        }
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if words.is_empty() { how } else { format!("{words} ({how})") }
    }

    /// SIGTERM, and SIGKILL when that does not help in time.
    pub(crate) async fn stop(&mut self) {
        // No pid: it has ended and been waited for, and the number may be somebody else's by now.
        let Some(pid) = self.process.id().and_then(|id| i32::try_from(id).ok()) else { return };
        // It may end at this very moment.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        if tokio::time::timeout(END, self.process.wait()).await.is_err() {
            crate::terminal::note(&format!("the {} does not end; killing it", self.name));
            if let Err(error) = self.process.kill().await {
                crate::terminal::note(&format!("killing the {}: {}", self.name, io_text(&error)));
            }
        }
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "nobody knows how".into(),
    }
}

/// Passes lines on with the name before them; the ready line goes to whom it may concern.
async fn listen(
    stream: impl AsyncRead + Unpin,
    name: String,
    mut ready: Option<oneshot::Sender<String>>,
    last: Option<Arc<Mutex<String>>>,
) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(said) = ready_text(&line)
            && let Some(ready) = ready.take()
        {
            // Nobody waits any more when the start was given up.
            let _ = ready.send(said.to_owned());
            continue;
        }
        if let Some(last) = &last
            && let Some(error) = line.strip_prefix("error: ")
        {
            error.clone_into(&mut last.lock().unwrap_or_else(PoisonError::into_inner));
            continue;
        }
        use std::io::Write;
        // Nobody reads our stderr: the cluster goes on.
        let _ = writeln!(std::io::stderr().lock(), "{name:>9} | {line}");
    }
}

/// What follows `ready: <role> `.
fn ready_text(line: &str) -> Option<&str> {
    line.strip_prefix(READY)?.split_once(' ').map(|(_, said)| said.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_tells_an_address_or_an_id() {
        assert_eq!(ready_text("ready: master 127.0.0.1:5050"), Some("127.0.0.1:5050"));
        assert_eq!(ready_text("ready: agent A1 "), Some("A1"));
        assert_eq!(ready_text("already: x y"), None);
        assert_eq!(ready_text("ready: master"), None);
    }
}
