//! `smalti-master`: the master alone, for nodes that need nothing else.

use clap::Parser;
use std::process::ExitCode;

/// Offers the resources of a Smalti cluster to its frameworks.
#[derive(Debug, Parser)]
#[command(name = "smalti-master", version)]
struct Arguments {
    #[command(flatten)]
    options: smalti_master::Options,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match serve(arguments.options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("smalti-master: {e:#}");
            ExitCode::from(125)
        }
    }
}

#[tokio::main]
async fn serve(options: smalti_master::Options) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let shutdown = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    smalti_master::run(options, shutdown).await
}
