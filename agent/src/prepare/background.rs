//! Threads for preparing, apart from those of the event loop and below them: fetching, hashing, unpacking.
//!
//! They are nice to everybody else, and lie in the agent's work group where threads of one process may be in several groups (v1).
//! Owns the runtime. Deliberately absent: what runs on it, and whose turn it is.

use crate::cgroup::Cgroups;
use tokio::runtime::{Builder, Handle, Runtime};

/// The lowest priority that still gets its turns.
const NICE: i32 = 19;
/// Most threads for what blocks: names are looked up there too, one for each transfer under way.
const MOST_BLOCKING: usize = 128;

/// A runtime of its own.
#[derive(Debug)]
pub(crate) struct Background(Option<Runtime>);

impl Background {
    /// Starts `threads` of them.
    pub(crate) fn start(threads: usize, groups: Cgroups) -> std::io::Result<Self> {
        let begin = move || {
            if let Err(e) = rustix::process::setpriority_process(None, NICE) {
                tracing::warn!("threads that prepare tasks cannot be made nice: {e}");
            }
            if let Err(e) = groups.add_own_thread() {
                tracing::warn!("threads that prepare tasks are not in the agent's work group: {e}");
            }
        };
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .max_blocking_threads(MOST_BLOCKING)
            .thread_name("prepare")
            .on_thread_start(begin)
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// For spawning.
    pub(crate) fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |r| r.handle().clone())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // The last owner may be one of its own tasks, which cannot wait for itself.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
