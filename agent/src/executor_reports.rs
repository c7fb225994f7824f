//! What the master is told about the executors: who they are, what they hold, and which walls the kernel has around them.
//!
//! Owns the pace (about once a second, only what is new) and what was said last. An executor's own words are cut to short, plain
//! text. Deliberately absent: finding the facts out (the launcher's), and deciding anything.

use crate::launcher::Running;
use smalti_agent_core::{ExecutorState, ExecutorView, Loss};
use smalti_proto::v1;
use smalti_types::{DurationMs, FrameworkId, Time};
use std::collections::{BTreeMap, HashMap};

/// No two reports are closer together than this.
const PACE: DurationMs = DurationMs(1_000);
/// Longest word of an executor about itself, in characters.
const MAX_WORD: usize = 32;
/// Layers of one executor, and the longest word about one, in characters.
const MAX_LAYERS: usize = 32;
const MAX_LAYER: usize = 200;

/// What does not change in the life of an executor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pid: i32,
    uid: Option<u32>,
    allocator: String,
    memory_reset: String,
    layers: BTreeMap<String, String>,
}

impl Facts {
    /// Of an executor that has said hello.
    pub(crate) fn of(running: &Running) -> Self {
        let pid = running.worker;
        // One that has a user of its own was looked at already.
        let as_others = || uid(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?);
        let layers = running.isolation.iter().take(MAX_LAYERS);
        Self {
            pid,
            uid: running.uid.or_else(as_others),
            allocator: plain(&running.hello.allocator, MAX_WORD),
            memory_reset: plain(&running.hello.reset, MAX_WORD),
            layers: layers.map(|(name, word)| (plain(name, MAX_WORD), plain(word, MAX_LAYER))).collect(),
        }
    }
}

/// The effective user id in the text of `/proc/PID/status`.
fn uid(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?.parse().ok()
}

/// Text of others without control characters, cut.
fn plain(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

/// One executor as it is reported; without facts while it starts.
fn report(view: ExecutorView, facts: Option<&Facts>) -> v1::ExecutorReport {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let facts = facts.cloned().unwrap_or_default();
    v1::ExecutorReport {
        id: view.id.to_string(),
        framework: view.framework.as_ref().map(ToString::to_string).unwrap_or_default(),
        role: String::new(),
        kind: view.kind.name().to_owned(),
        state: match view.state {
            ExecutorState::Starting => "starting",
            ExecutorState::Recovering => "recovering",
            ExecutorState::Up => "up",
            ExecutorState::Stopping => "stopping",
        }
        .to_owned(),
        pid: facts.pid,
        uid: facts.uid,
        slots: count(view.slots),
        busy_slots: count(view.busy),
        memory_limit: view.memory_limit.0,
        allocator: facts.allocator,
        memory_reset: facts.memory_reset,
        layers: facts.layers.into_iter().collect(),
    }
}

/// Executors that a framework has lost one after the other.
fn lost(framework: &FrameworkId, loss: &Loss) -> v1::ExecutorLosses {
    let cause = plain(&loss.cause, MAX_LAYER);
    v1::ExecutorLosses { framework: framework.to_string(), count: loss.count, cause, not_before_us: loss.not_before.0 }
}

/// Says what is new, now and then.
#[derive(Debug, Default)]
pub(crate) struct Reporter {
    overhead_memory: HashMap<String, u64>,
    /// Whether there is a master that has taken the registration.
    open: bool,
    said: Option<v1::ExecutorReports>,
    not_before: Time,
}

impl Reporter {
    /// `overhead_memory`: what the agent's overhead consists of, in bytes.
    pub(crate) fn new(overhead_memory: BTreeMap<String, u64>) -> Self {
        Self { overhead_memory: overhead_memory.into_iter().collect(), ..Self::default() }
    }

    /// The connection is gone, or is a new one whose first message must be the registration.
    pub(crate) fn close(&mut self) {
        (self.open, self.said, self.not_before) = (false, None, Time(0));
    }

    /// The master has taken the registration: it knows nothing of executors yet.
    pub(crate) fn open(&mut self) {
        self.open = true;
    }

    /// The report that is to be sent now, if any.
    pub(crate) fn due<'a>(
        &mut self,
        now: Time,
        executors: impl Iterator<Item = (ExecutorView, Option<&'a Facts>)>,
        losses: impl Iterator<Item = (&'a FrameworkId, &'a Loss)>,
    ) -> Option<v1::ExecutorReports> {
        if !self.open || now < self.not_before {
            return None;
        }
        self.not_before = now.after(PACE);
        let executors = executors.map(|(view, facts)| report(view, facts)).collect();
        let losses = losses.map(|(framework, loss)| lost(framework, loss)).collect();
        let fresh = v1::ExecutorReports { executors, overhead_memory: self.overhead_memory.clone(), losses };
        (self.said.as_ref() != Some(&fresh)).then(|| self.said.insert(fresh).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_types::{Bytes, ExecutorId};

    fn view(busy: usize) -> ExecutorView {
        ExecutorView {
            id: ExecutorId::new("E1").unwrap(),
            kind: smalti_agent_core::ExecutorKind::Shared,
            framework: Some(FrameworkId::new("F").unwrap()),
            state: ExecutorState::Up,
            slots: 4,
            busy,
            memory_limit: Bytes::mib(256),
        }
    }

    #[test]
    fn what_is_new_is_said_once_a_second_and_to_everyone_who_is_new() {
        let mut reporter = Reporter::new(BTreeMap::from([("agent".to_owned(), 128)]));
        let due = |reporter: &mut Reporter, ms: u64, busy: usize| {
            let sent = reporter.due(Time(ms * 1_000), [(view(busy), None)].into_iter(), std::iter::empty());
            sent.map(|r| (r.executors[0].busy_slots, r.overhead_memory["agent"]))
        };
        assert_eq!(due(&mut reporter, 0, 0), None, "before the registration");
        reporter.open();
        assert_eq!(due(&mut reporter, 0, 0), Some((0, 128)));
        assert_eq!(due(&mut reporter, 500, 1), None, "too early");
        assert_eq!(due(&mut reporter, 1_000, 1), Some((1, 128)));
        assert_eq!(due(&mut reporter, 60_000, 1), None, "nothing is new");
        reporter.close();
        reporter.open();
        assert_eq!(due(&mut reporter, 60_001, 1), Some((1, 128)));
    }

    #[test]
    fn the_words_of_an_executor_are_cut() {
        assert_eq!(plain("poo\u{1b}[2Jling\n", 64), "poo[2Jling");
        assert_eq!(plain(&"x".repeat(1 << 20), MAX_WORD).len(), MAX_WORD);
        assert_eq!(uid("Name:\tx\nUid:\t7\t2000000001\t7\t7\n"), Some(2_000_000_001));
        assert_eq!(uid("Uid: x"), None);
        assert!(uid(&std::fs::read_to_string("/proc/self/status").unwrap()).is_some());
    }
}
