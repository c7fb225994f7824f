//! Bundles on the client's side: what the user named, what it is, and bringing it to the cluster's store.
//!
//! Deliberately absent: fetching. URIs are the agents' to fetch and the scheduler's to resolve; only files of the client are read here.

pub(crate) mod inspect;
pub(crate) mod kind;
mod resolve;
mod source;
pub(crate) mod store;

pub(crate) use resolve::{not_stored, resolve, resolve_input};
pub(crate) use source::{Source, is_uri};
