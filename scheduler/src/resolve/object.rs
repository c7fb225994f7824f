//! One object as a job's input: ranges of it, in the name of the job's role.

use super::ResolveError;
use bytes::Bytes;
use smalti_fetch::{Location, Part, SourceError, Sources};
use smalti_types::Role;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Where it is, and who asks.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub(crate) sources: Arc<Sources>,
    pub(crate) role: Role,
    pub(crate) location: Location,
    /// The one version that will do.
    pub(crate) version: Option<String>,
}

/// How often a part is asked for, and the pause after the first failure, which doubles.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Most that a server's own wish is heeded: somebody waits for the job's id.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Object {
    /// Some bytes of it.
    pub(crate) async fn range(&self, range: Range<u64>) -> Result<Bytes, ResolveError> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..TRIES {
            let part = Part { range: range.clone(), version: self.version.as_deref() };
            match self.sources.range(&self.role, &self.location, part).await {
                Err(SourceError::Transient { wait, .. }) => {
                    tokio::time::sleep(wait.map_or(pause, |wait| wait.min(LONGEST_PAUSE))).await;
                    pause *= 2;
                }
                other => return Ok(other?),
            }
        }
        Ok(self.sources.range(&self.role, &self.location, Part { range, version: self.version.as_deref() }).await?)
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
