//! Bundles on the client's side: what the user named, what it is, and bringing it to the cluster's store.
//!
//! Deliberately absent: fetching for tasks. URIs are the agents' to fetch and the scheduler's to resolve; only to look into one is it fetched
//! here.

pub(crate) mod fetch;
pub(crate) mod inspect;
pub(crate) mod kind;
mod resolve;
mod source;
pub(crate) mod store;

pub(crate) use resolve::{not_stored, resolve, resolve_input};
pub(crate) use source::{Source, is_uri};
