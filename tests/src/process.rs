//! A child process with its output collected, stopped politely and then not.

use crate::patience::patience;
use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Longest wait for a ready line. Only failures wait this long.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Between SIGTERM and SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// A long-running process of the cluster.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    lines: mpsc::Receiver<String>,
    stderr: PathBuf,
}

/// A command that ran to its end.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; 128 + n when signal n ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Process {
    /// Starts `command`; its stderr goes to `<dir>/<name>.log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(name: &str, mut command: Command, dir: &Path) -> Result<Self> {
        command.stdin(Stdio::null());
        Self::start(name, command, dir)
    }

    /// Starts a role of the cluster. A Ctrl-C in the terminal does not reach it, so that whoever started it can end its jobs
    /// first; it ends by itself when its starter is gone, whatever became of that one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_role(name: &str, mut command: Command, dir: &Path) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        command.arg("--stop-when-stdin-closes").stdin(Stdio::piped()).process_group(0);
        Self::start(name, command, dir)
    }

    fn start(name: &str, mut command: Command, dir: &Path) -> Result<Self> {
        let stderr = dir.join(format!("{name}.log"));
        let log = std::fs::File::create(&stderr).with_context(|| format!("creating {}", stderr.display()))?;
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().with_context(|| format!("starting {name} ({command:?})"))?;
        let stdout = child.stdout.take().ok_or_else(|| anyhow!("{name} has no stdout"))?;
        let (tx, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tx.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { name: name.into(), child, lines, stderr })
    }

    /// Waits for a line on stdout that begins with `prefix`; returns the rest of it.
    ///
    /// # Errors
    /// When the process ends or the time is over first; the message has its log.
    pub fn wait_for_line(&mut self, prefix: &str) -> Result<String> {
        let until = Instant::now() + patience(READY_TIMEOUT);
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(prefix) {
                        return Ok(rest.trim().to_owned());
                    }
                }
                Err(e) => bail!("{} did not print `{prefix}`: {e}; it said:\n{}", self.name, self.log()),
            }
        }
    }

    /// What it has written to stderr so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).context("pid")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end within `timeout`, times [`patience`].
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + patience(timeout);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > until {
                bail!("{} did not end within {timeout:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM, then SIGKILL if that does not help.
    pub fn stop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let _ = self.signal(Signal::SIGTERM);
        if self.wait(STOP_TIMEOUT).is_err() {
            eprintln!("{} did not stop on SIGTERM; killing it. It said:\n{}", self.name, self.log());
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Finished {
    /// Runs `command` to its end, with `stdin` as its input, at most `timeout` times
    /// [`patience`].
    ///
    /// # Errors
    /// When it cannot be started or does not end in time.
    pub fn of(mut command: Command, stdin: &[u8], timeout: Duration) -> Result<Self> {
        use std::io::Write;
        let mut child = command
            .stdin(if stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        if let Some(mut pipe) = child.stdin.take() {
            let bytes = stdin.to_vec();
            std::thread::spawn(move || pipe.write_all(&bytes));
        }
        fn collect(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                if let Some(mut stream) = stream {
                    let _ = stream.read_to_end(&mut bytes);
                }
                String::from_utf8_lossy(&bytes).into_owned()
            })
        }
        let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
        let until = Instant::now() + patience(timeout);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > until {
                let _ = child.kill();
                let _ = child.wait();
                bail!("{command:?} did not end within {timeout:?}; stderr: {}", err.join().unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        use std::os::unix::process::ExitStatusExt;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Ok(Self { code, stdout: out.join().unwrap_or_default(), stderr: err.join().unwrap_or_default() })
    }
}
