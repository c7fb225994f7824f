//! A bounded memory of what ended: attempts of a framework, and frameworks. It makes "the first terminal state wins" hold
//! after the task itself is forgotten; beyond its bound, the oldest is forgotten.

use std::collections::{BTreeMap, VecDeque};

/// The last `limit` keys with a value each.
#[derive(Debug)]
pub(crate) struct Memory<K, V> {
    values: BTreeMap<K, V>,
    order: VecDeque<K>,
    limit: usize,
}

impl<K: Ord + Clone, V> Memory<K, V> {
    pub(crate) fn new(limit: usize) -> Self {
        Self { values: BTreeMap::new(), order: VecDeque::new(), limit }
    }

    /// Keeps the first value of a key. Gives the key that is forgotten for it.
    pub(crate) fn remember(&mut self, key: K, value: V) -> Option<K> {
        if self.values.contains_key(&key) {
            return None;
        }
        self.order.push_back(key.clone());
        self.values.insert(key, value);
        if self.order.len() <= self.limit {
            return None;
        }
        let oldest = self.order.pop_front();
        oldest.inspect(|oldest| drop(self.values.remove(oldest)))
    }

    /// Another limit from now on; what is beyond it is forgotten.
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        while self.order.len() > limit {
            if let Some(oldest) = self.order.pop_front() {
                self.values.remove(&oldest);
            }
        }
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.values.get(key)
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.values.contains_key(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_stays_and_the_oldest_goes() {
        let mut memory = Memory::new(2);
        memory.remember("a", 1);
        memory.remember("a", 9);
        memory.remember("b", 2);
        assert_eq!(memory.get(&"a"), Some(&1));
        assert_eq!(memory.remember("c", 3), Some("a"));
        memory.set_limit(1);
        assert!(!memory.contains(&"b") && memory.contains(&"c"));
        memory.set_limit(2);
        memory.remember("d", 4);
        assert_eq!((memory.get(&"a"), memory.contains(&"c"), memory.order.len()), (None, true, 2));
    }
}
