//! Dense indexes for things that have long names: agents and frameworks. Owns the values; an index is used again after its
//! value was removed, so whoever keeps indexes must drop them together with the value.

use std::borrow::Borrow;
use std::collections::BTreeMap;

/// An index into a [`Slab`].
pub(crate) trait Index: Copy + Ord {
    /// The index of a position.
    fn at(position: u32) -> Self;
    /// Its position.
    fn position(self) -> usize;
}

macro_rules! index {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) struct $name(u32);
        impl $crate::slab::Index for $name {
            fn at(position: u32) -> Self {
                Self(position)
            }
            fn position(self) -> usize {
                self.0 as usize
            }
        }
    };
}

index! {
    /// An agent.
    AgentIx
}
index! {
    /// A framework.
    FrameworkIx
}

/// Values under a name and under a dense index.
#[derive(Debug)]
pub(crate) struct Slab<K, I, V> {
    names: BTreeMap<K, I>,
    values: Vec<Option<V>>,
    vacant: Vec<u32>,
}

impl<K: Ord + Clone, I: Index, V> Slab<K, I, V> {
    pub(crate) fn new() -> Self {
        Self { names: BTreeMap::new(), values: Vec::new(), vacant: Vec::new() }
    }

    /// Adds a value under a name that is not there yet.
    pub(crate) fn insert(&mut self, name: K, value: V) -> I {
        let position = self.vacant.pop().unwrap_or_else(|| {
            self.values.push(None);
            u32::try_from(self.values.len() - 1).expect("registrations are limited far below 2^32")
        });
        let ix = I::at(position);
        self.values[ix.position()] = Some(value);
        let before = self.names.insert(name, ix);
        debug_assert!(before.is_none(), "a name is inserted once");
        ix
    }

    pub(crate) fn remove(&mut self, name: &K) -> Option<V> {
        let ix = self.names.remove(name)?;
        self.vacant.push(u32::try_from(ix.position()).unwrap_or(u32::MAX));
        self.values[ix.position()].take()
    }

    pub(crate) fn find<Q: Ord + ?Sized>(&self, name: &Q) -> Option<I>
    where
        K: Borrow<Q>,
    {
        self.names.get(name).copied()
    }

    pub(crate) fn get(&self, ix: I) -> Option<&V> {
        self.values.get(ix.position())?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, ix: I) -> Option<&mut V> {
        self.values.get_mut(ix.position())?.as_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// In the order of names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, I, &V)> {
        self.names.iter().filter_map(|(name, ix)| Some((name, *ix, self.get(*ix)?)))
    }

    /// Every index, in the order of names.
    pub(crate) fn indexes(&self) -> Vec<I> {
        self.names.values().copied().collect()
    }
}
