//! `smalti-agent`: the agent alone, for nodes that need nothing else.

use clap::Parser;
use std::ffi::OsStr;
use std::process::ExitCode;

/// Runs tasks of a Smalti cluster on this machine.
#[derive(Debug, Parser)]
#[command(name = "smalti-agent", version)]
struct Arguments {
    #[command(flatten)]
    options: smalti_agent::Options,
}

fn main() -> ExitCode {
    // The agent re-executes its own program to compile, away from everything else.
    if std::env::args_os().nth(1).as_deref() == Some(OsStr::new("compiler")) {
        return smalti_agent::compiler::main();
    }
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match serve(arguments.options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("smalti-agent: {e:#}");
            ExitCode::from(125)
        }
    }
}

#[tokio::main]
async fn serve(options: smalti_agent::Options) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let shutdown = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    smalti_agent::run(options, shutdown).await
}
