//! A whole cluster as child processes of this one: what to start, where it lives, how it ends.

pub(crate) mod child;
pub(crate) mod plan;
pub(crate) mod scratch;
pub(crate) mod sweep;
