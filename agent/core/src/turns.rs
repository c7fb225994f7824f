//! Whose turn it is among frameworks that want more of something than there is.
//!
//! Owns the count of turns. Who has had fewest is next; who was away has saved nothing up. Deliberately absent: what is handed out.

use smalti_types::FrameworkId;
use std::collections::BTreeMap;

/// Turns of frameworks, as numbers that grow. The lowest is next.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// The next turn of those who had one lately: later than `now`.
    next: BTreeMap<FrameworkId, u64>,
    /// The last turn that was taken.
    now: u64,
}

impl Turns {
    /// The turn that a framework has next.
    pub(crate) fn of(&self, framework: &FrameworkId) -> u64 {
        self.next.get(framework).copied().unwrap_or(self.now)
    }

    /// The turn of somebody who has had none.
    pub(crate) const fn of_nobody(&self) -> u64 {
        self.now
    }

    /// A framework takes its turn.
    pub(crate) fn take(&mut self, framework: &FrameworkId) {
        self.now = self.of(framework).max(self.now);
        let now = self.now;
        self.next.insert(framework.clone(), now + 1);
        self.next.retain(|_, turn| *turn > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framework(n: u32) -> FrameworkId {
        FrameworkId::new(format!("F{n}")).unwrap()
    }

    /// How often each of those who always want something gets it.
    fn rounds(turns: &mut Turns, wanting: &[u32], rounds: usize) -> BTreeMap<u32, usize> {
        let mut got = BTreeMap::new();
        for _ in 0..rounds {
            let next = *wanting.iter().min_by_key(|f| turns.of(&framework(**f))).unwrap();
            turns.take(&framework(next));
            *got.entry(next).or_default() += 1;
        }
        got
    }

    #[test]
    fn all_get_the_same_and_who_was_away_saved_nothing_up() {
        let mut turns = Turns::default();
        assert_eq!(rounds(&mut turns, &[1], 1_000), BTreeMap::from([(1, 1_000)]));
        assert_eq!(rounds(&mut turns, &[1, 2, 3], 300), BTreeMap::from([(1, 100), (2, 100), (3, 100)]));
        assert_eq!(rounds(&mut turns, &[1, 3], 500), BTreeMap::from([(1, 250), (3, 250)]));
        let got = rounds(&mut turns, &[1, 2], 100);
        assert!((50..=51).contains(&got[&2]), "{got:?}");
        assert!(turns.next.len() <= 2, "who is as late as all others is forgotten");
    }
}
