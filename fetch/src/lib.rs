//! Where bytes come from: HTTP, S3, OCI registries, files and the cluster's own store, opened as one kind of stream, and who may fetch what.
//!
//! Owns the words for places ([`Location`], [`Pin`]), the operator's policy ([`Policy`]), the clients ([`Sources`]) and the one loop that
//! takes an object through broken connections ([`Transfer`]). Agents fetch with it, the scheduler resolves with it, and the command line
//! looks into what it is named. Decisions (what to ask a server for, what to make of its answer, whether to try again and when, who may go
//! where) are pure functions in modules of their own. Deliberately absent: files that are kept, budgets, tenants' turns: the agent's.
#![warn(missing_docs)]

mod clients;
mod deposit;
mod error;
mod file;
mod guard;
mod gunzip;
mod hosts;
mod http;
mod location;
pub mod lookup;
mod oci;
mod options;
mod piece;
mod pin;
pub mod policy;
pub mod range;
mod rate;
pub mod retry;
mod s3;
mod source;
mod store;
mod transfer;

pub use deposit::{Deposit, DepositError, Upload};
pub use error::SourceError;
pub use file::tag as file_version;
pub use guard::protected;
pub use location::{Location, OciReference, clean_name, shown};
pub use options::{FetchOptions, Setup, SetupError};
pub use piece::{Got, PieceTransfer};
pub use pin::{Pin, PinError};
pub use policy::Policy;
pub use rate::Rate;
pub use s3::{from_store, object_version};
pub use source::{Ask, Opened, Part, Sources};
pub use transfer::{Facts, Failed, Hashing, Sink, Transfer, Wanted};
