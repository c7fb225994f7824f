//! Who watches which job. A watcher always finds the newest view; those in between are not kept for it.

use crate::views;
use smalti_proto::v1;
use smalti_scheduler_core::{Job, JobId};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::watch;

/// The newest view of a job.
pub(crate) type Watch = watch::Receiver<Arc<v1::JobView>>;

/// Watchers by job. Bounded by the streams that clients have open.
#[derive(Debug, Default)]
pub(crate) struct Watchers(HashMap<JobId, watch::Sender<Arc<v1::JobView>>>);

impl Watchers {
    /// The views of a job from now on; the sender goes away after the last.
    pub(crate) fn watch(&mut self, job: &Job) -> Watch {
        let first = Arc::new(views::watched(job));
        if job.state.outcome.is_some() {
            return watch::channel(first).1;
        }
        let sender = self.0.entry(job.id()).or_insert_with(|| watch::channel(first.clone()).0);
        sender.send_replace(first);
        sender.subscribe()
    }

    /// A job changed.
    pub(crate) fn changed(&mut self, id: JobId, job: Option<&Job>) {
        let Some(sender) = self.0.get(&id) else { return };
        let Some(job) = job.filter(|_| sender.receiver_count() > 0) else {
            self.0.remove(&id);
            return;
        };
        sender.send_replace(Arc::new(views::watched(job)));
        if job.state.outcome.is_some() {
            self.0.remove(&id);
        }
    }
}
