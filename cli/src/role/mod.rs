//! What master, scheduler and agent have in common as processes: configuration file, log, and how they are told to stop.
//!
//! Deliberately absent: what they do, which is in crates of their own.

pub(crate) mod config;

use crate::failure::{Exit, Failure, Result, SUCCESS, io_text};
use clap::Args;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// What is logged unless $RUST_LOG says otherwise.
const DEFAULT_LOG: &str = "info";

#[derive(Debug, Args)]
pub(crate) struct RoleOptions {
    /// TOML file with the same names as the flags; flags and environment win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Show what is in force and where each value comes from, and leave
    #[arg(long)]
    print_config: bool,
    /// Stop when stdin closes: a parent that dies, however, takes us along
    #[arg(long, hide = true)]
    stop_when_stdin_closes: bool,
}

impl RoleOptions {
    /// Runs a role until a signal (or the end of stdin, where asked for) tells it to stop.
    pub(crate) async fn run<F, R>(self, role: &'static str, body: F) -> Result<Exit>
    where
        F: AsyncFnOnce(Shutdown) -> std::result::Result<(), R>,
        R: std::fmt::Display,
    {
        init_log();
        let shutdown = Shutdown::new(self.stop_when_stdin_closes)?;
        match body(shutdown).await {
            Ok(()) => Ok(SUCCESS),
            // With its chain of causes, as `anyhow` prints it.
            Err(error) => {
                let text = format!("{error:#}");
                let named = text.starts_with(&format!("{role}: "));
                Err(Failure::new(if named { text } else { format!("{role}: {text}") }))
            }
        }
    }
}

/// Diagnostics go to stderr; colours only on a terminal.
fn init_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| DEFAULT_LOG.into());
    // A role that has set up its own log is left alone.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

/// Resolves once, when the process shall stop.
pub(crate) struct Shutdown {
    int: tokio::signal::unix::Signal,
    term: tokio::signal::unix::Signal,
    stdin: Option<oneshot::Receiver<()>>,
}

impl Shutdown {
    fn new(watch_stdin: bool) -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|e| Failure::new(format!("waiting for signals: {}", io_text(&e))));
        Ok(Self { int: listen(SignalKind::interrupt())?, term: listen(SignalKind::terminate())?, stdin: watch_stdin.then(stdin_closes) })
    }

    /// Waits for the first of them.
    pub(crate) async fn wait(mut self) {
        let stdin = async {
            match self.stdin {
                // A watcher that cannot be asked is as good as a closed stdin.
                Some(closed) => drop(closed.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
            () = stdin => {}
        }
    }
}

/// Reads stdin to its end on a thread of its own: the only way to learn of a parent's SIGKILL without unsafe code.
fn stdin_closes() -> oneshot::Receiver<()> {
    let (closed, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        let mut stdin = std::io::stdin().lock();
        while !matches!(stdin.read(&mut buffer), Ok(0) | Err(_)) {}
        // The role may be over already.
        let _ = closed.send(());
    });
    receiver
}
