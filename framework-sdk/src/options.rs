//! How a framework introduces itself.

use smalti_types::{DurationMs, FrameworkId, FrameworkInfo, Role};
use std::collections::BTreeMap;

/// How long a framework's tasks outlive it unless it says otherwise: a day, so that a restart or an upgrade kills nothing.
pub(crate) const DEFAULT_FAILOVER_TIMEOUT: DurationMs = DurationMs(24 * 3_600_000);

/// Where to connect and as whom.
#[derive(Debug, Clone)]
pub struct Options {
    /// The master's `host:port`.
    pub master: String,
    /// Name, principal, role, failover timeout and services.
    pub info: FrameworkInfo,
    /// The id from an earlier life, to take its tasks over.
    pub id: Option<FrameworkId>,
    /// Whether [`crate::Framework::connect`] waits for a master that is not there yet, instead of failing at once.
    pub wait_for_master: bool,
}

impl Options {
    /// A framework called `name` in the default role, acting for the user who runs it; fails when there is no master.
    #[must_use]
    pub fn new(master: impl Into<String>, name: impl Into<String>) -> Self {
        let info = FrameworkInfo {
            name: name.into(),
            principal: std::env::var("USER").unwrap_or_else(|_| "unknown".into()),
            role: Role::default(),
            failover_timeout: DEFAULT_FAILOVER_TIMEOUT,
            services: BTreeMap::new(),
        };
        Self { master: master.into(), info, id: None, wait_for_master: false }
    }
}
