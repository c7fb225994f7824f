//! How a framework introduces itself.

use crate::store::Store;
use smalti_types::{DurationMs, FrameworkId, FrameworkInfo, Role};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How long a framework's tasks outlive it unless it says otherwise: a day, so that a restart or an upgrade kills nothing.
pub(crate) const DEFAULT_FAILOVER_TIMEOUT: DurationMs = DurationMs(24 * 3_600_000);

/// Where to connect and as whom.
#[derive(Debug, Clone)]
pub struct Options {
    /// The master's `host:port`.
    pub master: String,
    /// Name, principal, role, failover timeout and services.
    pub info: FrameworkInfo,
    /// The id from an earlier life, to take its tasks over; that in the store counts more.
    pub id: Option<FrameworkId>,
    /// Where the library keeps its records, and the handler what it commits with them. Without one, a process that ends
    /// forgets which updates it has taken, and a handler must stand repeats.
    pub store: Option<Arc<dyn Store>>,
    /// Table of the library's records: one for each framework in the same store. Begins with `framework`.
    pub table: String,
    /// Whether to become a new framework although the store has an id: the master has removed the old one.
    pub anew: bool,
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
        Self { master: master.into(), info, id: None, store: None, table: "framework".into(), anew: false, wait_for_master: false }
    }

    /// Keeps its records in `store`: the framework's id, launches, and which updates were taken outlive the process.
    #[must_use]
    pub fn with_store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }
}
