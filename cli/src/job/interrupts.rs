//! Ctrl-C, counted: the first stops the job, the second leaves.

use crate::failure::{Failure, Result, io_text};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// From its making on, SIGINT and SIGTERM are counted instead of ending the process.
#[derive(Debug)]
pub(crate) struct Interrupts {
    int: Signal,
    term: Signal,
    count: u32,
}

impl Interrupts {
    pub(crate) fn new() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|e| Failure::new(format!("waiting for signals: {}", io_text(&e))));
        Ok(Self { int: listen(SignalKind::interrupt())?, term: listen(SignalKind::terminate())?, count: 0 })
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Waits for the next one and says which it is, from 1. Safe to cancel.
    pub(crate) async fn next(&mut self) -> u32 {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
        self.count += 1;
        self.count
    }
}
