//! A job from the client's side: described, submitted, followed to its end.
//!
//! Owns nothing that lasts: the job lives in the batch scheduler, whatever becomes of this process.

pub(crate) mod collect;
pub(crate) mod follow;
mod inputs;
mod interrupts;
mod link;
pub(crate) mod options;
pub(crate) mod outcome;
pub(crate) mod output;
mod retries;
pub(crate) mod sink;
mod stdin;
pub(crate) mod submit;

pub(crate) use link::{Link, ReconnectOptions};
