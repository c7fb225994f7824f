//! One object as a job's input: ranges of it, in the name of the job's role.

use super::ResolveError;
use bytes::Bytes;
use smalti_fetch::{Location, Sources};
use smalti_types::Role;
use std::ops::Range;
use std::sync::Arc;

/// Where it is, and who asks.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub(crate) sources: Arc<Sources>,
    pub(crate) role: Role,
    pub(crate) location: Location,
}

impl Object {
    /// Some bytes of it.
    pub(crate) async fn range(&self, range: Range<u64>) -> Result<Bytes, ResolveError> {
        Ok(self.sources.range(&self.role, &self.location, range).await?)
    }

    pub(crate) fn failed(&self, cause: impl Into<String>) -> ResolveError {
        ResolveError::Read { uri: self.location.to_string(), cause: cause.into() }
    }
}

/// What tests read: every file of this machine.
#[cfg(test)]
pub(crate) fn everything() -> Arc<Sources> {
    let mut setup = smalti_fetch::Setup::new("127.0.0.1:1");
    setup.file_roots = vec!["/".into()];
    Arc::new(Sources::new(setup).unwrap())
}
