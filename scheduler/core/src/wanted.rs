//! What a job reads, by the short names under which agents tell what they hold; and what waiting for an agent that holds it is worth.
//!
//! A job prefers agents that hold its inputs, and lets offers of others pass for a while (delay scheduling, Zaharia et al. 2010). Waiting
//! must not cost more than it saves: it is bounded in time, a smaller gain shortens it, and for a small part of the inputs, or for the
//! bundle alone, nobody waits. Owns these rules. Deliberately absent: who holds what ([`crate::known`]), and what is launched where
//! ([`crate::placing`]).

use crate::job::{Demand, Job, Stage};
use crate::spec::{JobSpec, Work};
use smalti_types::{AgentId, DurationMs, HoldingKey, Input, MAX_HOLDINGS, Stdin, TaskSpec, Time};

/// How long a job waits at most, when nothing else is said: as `spark.locality.wait`.
pub const LOCALITY_WAIT: DurationMs = DurationMs(3_000);
/// Inputs of a job that are looked for: the largest. An agent tells of no more.
const MOST_INPUTS: usize = MAX_HOLDINGS;
/// What holding the bundle is worth beside inputs, in bytes: bundles are small, and come quickly from another agent.
pub(crate) const BUNDLE_WEIGHT: u64 = 1 << 20;
/// An agent that holds fewer bytes than this more than another is not waited for: they are fetched in no time.
const LEAST_GAIN: u64 = 1 << 20;
/// From this many bytes on the whole time is waited, for fewer a part of it in proportion: 3 s is about what fetching them takes from a
/// slow place (10 MiB/s).
const FULL_GAIN: u64 = 32 << 20;

/// Content that a task, or a slot of an array, reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) bundle: HoldingKey,
    /// Names and lengths in bytes of its largest inputs, each once, by name.
    pub(crate) inputs: Vec<(HoldingKey, u64)>,
    /// Bytes of all its inputs, also of those that have no name.
    pub(crate) total: u64,
}

impl Wanted {
    fn of<'a>(spec: &'a TaskSpec, splits: &'a [Input], state: Option<&'a Input>) -> Self {
        let bundle = HoldingKey::of_digest(&spec.bundle.digest);
        let stdin = if let Stdin::Object(input) = &spec.stdin { Some(input) } else { None };
        if spec.inputs.is_empty() && splits.is_empty() && stdin.is_none() && state.is_none() {
            return Self { bundle, inputs: Vec::new(), total: 0 };
        }
        let mut all: Vec<&Input> = spec.inputs.iter().chain(stdin).chain(splits).chain(state).collect();
        let total = all.iter().fold(0, |sum: u64, i| sum.saturating_add(i.length));
        if all.len() > MOST_INPUTS {
            all.select_nth_unstable_by_key(MOST_INPUTS, |i| std::cmp::Reverse(i.length));
            all.truncate(MOST_INPUTS);
        }
        let mut inputs: Vec<_> = all.into_iter().filter_map(|i| Some((HoldingKey::of_input(i)?, i.length))).collect();
        inputs.sort_unstable();
        inputs.dedup_by_key(|(key, _)| *key);
        Self { bundle, inputs, total }
    }

    /// An agent with fewer bytes of the inputs than this is let pass when another has `best`; 0: nobody is.
    pub(crate) fn floor(&self, best: u64) -> u64 {
        let least = LEAST_GAIN.max(self.total.div_ceil(2));
        best.saturating_add(1).saturating_sub(least)
    }
}

/// What the tasks of a job read.
#[derive(Debug, Clone)]
pub(crate) struct AllWanted {
    each: Wanted,
    /// Of the first round, when it has a state: those of later rounds are new, and nobody holds them.
    first: Option<Box<Wanted>>,
    /// Of the reduce. It is small: what it reads beside its inputs are outputs, which lie with whoever made them.
    reduce: Option<Box<Wanted>>,
}

impl AllWanted {
    pub(crate) fn of(spec: &JobSpec) -> Self {
        match &spec.work {
            Work::Single(single) => Self { each: Wanted::of(&single.spec, &[], None), first: None, reduce: None },
            Work::Map(map) => {
                let items = |state| Wanted::of(&map.template.spec, &map.template.split_inputs, state);
                Self {
                    each: items(None),
                    first: map.initial_state.as_ref().map(|state| Box::new(items(Some(state)))),
                    reduce: map.reduce.as_ref().map(|r| Box::new(Wanted::of(&r.spec, &[], None))),
                }
            }
        }
    }
}

/// How long an offer's like is let pass.
pub(crate) fn patience(longest: DurationMs, gain: u64) -> DurationMs {
    let ms = u128::from(longest.0) * u128::from(gain.min(FULL_GAIN)) / u128::from(FULL_GAIN);
    DurationMs(u64::try_from(ms).unwrap_or(longest.0))
}

/// What patience is for: this attempt of a task, or this round of an array. It is not renewed before the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    stage: Stage,
    round: u32,
    attempt: u32,
}

/// A job's patience: while it lasts, offers of agents that hold less than another are let pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patience {
    pub(crate) of: Turn,
    /// When an offer was let pass for the first time.
    pub since: Time,
    /// When it ends.
    pub until: Time,
    /// Who holds most of the inputs.
    pub agent: AgentId,
    /// How many bytes that is.
    pub bytes: u64,
    /// Its end was noticed.
    pub(crate) over: bool,
}

impl Patience {
    /// A clock that steps back does not make it longer.
    pub(crate) fn lasts(&self, now: Time) -> bool {
        !self.over && self.since <= now && now < self.until
    }
}

impl Job {
    /// What its next task or slot reads.
    pub(crate) fn wanted(&self) -> &Wanted {
        match (self.state.stage, &self.wanted) {
            (Stage::Reduce | Stage::Storing, AllWanted { reduce: Some(reduce), .. }) => reduce,
            (_, AllWanted { first: Some(first), .. }) if self.state.round == 0 => first,
            (_, AllWanted { each, .. }) => each,
        }
    }

    pub(crate) fn turn(&self) -> Turn {
        let attempt = if self.state.stage == Stage::Map { 0 } else { self.state.run.as_ref().map_or(0, crate::run::TaskRun::attempt) };
        Turn { stage: self.state.stage, round: self.state.round, attempt }
    }

    /// Whether it could let an offer pass now.
    pub(crate) fn is_patient(&self, now: Time) -> bool {
        !self.wanted().inputs.is_empty() && self.patience.as_ref().is_none_or(|p| p.of != self.turn() || p.lasts(now))
    }

    /// Whom it waits for, if it lets offers of others pass at present.
    #[must_use]
    pub fn waits_for(&self, now: Time) -> Option<&Patience> {
        self.patience.as_deref().filter(|p| p.of == self.turn() && p.lasts(now) && self.demand(now) != Demand::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_types::{BundleRef, Digest};

    fn input(name: u64, length: u64) -> Input {
        let digest = Some(Digest::of(&name.to_le_bytes()));
        Input { guest_path: None, uri: None, digest, length, etag: None, packing: None }
    }

    fn spec() -> TaskSpec {
        TaskSpec::new(BundleRef { digest: Digest::of(b"guest"), uri: None })
    }

    #[test]
    fn all_kinds_of_inputs_count_once_and_the_largest_are_looked_for() {
        let unpinned = Input { digest: None, uri: Some("http://h/x".into()), ..input(0, 5) };
        let spec = TaskSpec { inputs: vec![input(1, 10), unpinned], stdin: Stdin::Object(input(2, 20)), ..spec() };
        let wanted = Wanted::of(&spec, &[input(3, 30), input(1, 10)], None);
        let lengths = |w: &Wanted| w.inputs.iter().map(|(_, length)| *length).collect::<std::collections::BTreeSet<_>>();
        assert_eq!((lengths(&wanted), wanted.total), ([10, 20, 30].into(), 75));
        let many: Vec<Input> = (0..2_000).map(|n| input(n, n)).collect();
        let wanted = Wanted::of(&spec, &many, Some(&input(0, 0)));
        assert_eq!((wanted.inputs.len(), lengths(&wanted).first().copied()), (MOST_INPUTS, Some(2_000 - MOST_INPUTS as u64)));
        assert!(wanted.inputs.is_sorted());
    }

    #[test]
    fn only_much_more_is_worth_waiting_for_and_less_is_waited_for_less() {
        let of = |mib: u64| Wanted::of(&spec(), &[input(1, mib << 20)], None);
        assert_eq!(of(0).floor(0), 0);
        assert_eq!(of(64).floor((64 << 20) - 1), (32 << 20), "half of it is as good as nearly all");
        assert_eq!(of(64).floor((32 << 20) - 1), 0, "less than half of it is worth nothing");
        assert_eq!(Wanted::of(&spec(), &[input(1, 1_000)], None).floor(1_000), 0, "small");
        let waits = |mib: u64| patience(LOCALITY_WAIT, mib << 20).0;
        assert_eq!([waits(0), waits(1), waits(16), waits(32), waits(1 << 40)], [0, 93, 1_500, 3_000, 3_000]);
        assert_eq!(patience(DurationMs(u64::MAX), u64::MAX), DurationMs(u64::MAX));
    }
}
