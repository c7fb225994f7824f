//! Why the library could not do what was asked.

use crate::store::StoreError;
use smalti_proto::client::ConnectError;
use std::path::PathBuf;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection to the master.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection to the master broke, or it refused the stream.
    #[error("lost the master at {master}: {reason}")]
    Lost {
        /// Which master.
        master: String,
        /// How it ended.
        reason: String,
    },
    /// The master is there and does not want this framework.
    #[error("the master at {master} refused the subscription: {reason}")]
    Refused {
        /// Which master.
        master: String,
        /// What it said.
        reason: String,
    },
    /// The subscription ended; the last event said why.
    #[error("the subscription has ended")]
    Closed,
    /// A transaction that must not be: nothing of it happened, and its updates come again.
    #[error("the transaction was refused: {0}")]
    Transaction(String),
    /// What must be kept could not be. The framework's connection ends.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A bundle could not be read.
    #[error("cannot read bundle {}: {source}", path.display())]
    ReadBundle {
        /// Which file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The master did not take a bundle.
    #[error("cannot push bundle {name}: {reason}")]
    PushBundle {
        /// Its name.
        name: String,
        /// What the master said.
        reason: String,
    },
}
