//! Launches that were seen before: an agent starts each (framework, task, attempt) once.
//!
//! Owns a bounded memory of keys, per framework. Forgetting is safe only because the master sends a launch once per connection and
//! forgets accepted offers at once; the bound is far above what can be in flight.

use smalti_types::{FrameworkId, TaskId, TaskKey};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Frameworks remembered; the one that launched least recently goes first.
const MOST_FRAMEWORKS: usize = 1_000;

/// Keys of one framework, oldest first, and the same as a set.
#[derive(Debug, Default)]
struct Keys {
    order: VecDeque<(TaskId, u32)>,
    set: BTreeSet<(TaskId, u32)>,
    last_used: u64,
}

/// Bounded memory of launches.
#[derive(Debug)]
pub(crate) struct Seen {
    frameworks: BTreeMap<FrameworkId, Keys>,
    per_framework: usize,
    clock: u64,
}

impl Seen {
    pub(crate) fn new(per_framework: usize) -> Self {
        Self { frameworks: BTreeMap::new(), per_framework: per_framework.max(1), clock: 0 }
    }

    /// What is remembered, by framework, oldest first.
    pub(crate) fn frameworks(&self) -> impl Iterator<Item = (&FrameworkId, impl ExactSizeIterator<Item = &(TaskId, u32)>)> {
        self.frameworks.iter().map(|(framework, keys)| (framework, keys.order.iter()))
    }

    /// Remembers `key`; false when it was there already.
    pub(crate) fn insert(&mut self, key: &TaskKey) -> bool {
        self.clock += 1;
        if !self.frameworks.contains_key(&key.framework) && self.frameworks.len() >= MOST_FRAMEWORKS {
            let oldest = self.frameworks.iter().min_by_key(|(_, k)| k.last_used).map(|(f, _)| f.clone());
            if let Some(framework) = oldest {
                self.frameworks.remove(&framework);
            }
        }
        let keys = self.frameworks.entry(key.framework.clone()).or_default();
        keys.last_used = self.clock;
        if !keys.set.insert((key.task.clone(), key.attempt)) {
            return false;
        }
        keys.order.push_back((key.task.clone(), key.attempt));
        if keys.order.len() > self.per_framework
            && let Some(old) = keys.order.pop_front()
        {
            keys.set.remove(&old);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(framework: usize, task: usize) -> TaskKey {
        TaskKey {
            framework: FrameworkId::new(format!("F{framework}")).unwrap(),
            task: TaskId::new(format!("t{task}")).unwrap(),
            attempt: 0,
        }
    }

    #[test]
    fn a_repeat_is_known_and_the_memory_is_bounded() {
        let mut seen = Seen::new(10);
        assert!(seen.insert(&key(0, 0)));
        assert!(!seen.insert(&key(0, 0)));
        for task in 1..=10 {
            assert!(seen.insert(&key(0, task)));
        }
        assert!(seen.insert(&key(0, 0)), "the oldest was forgotten");
        for framework in 0..2 * MOST_FRAMEWORKS {
            seen.insert(&key(framework, 0));
        }
        assert_eq!(seen.frameworks.len(), MOST_FRAMEWORKS);
    }
}
