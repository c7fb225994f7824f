//! Who fetches content from where, so that a thousand agents that need the same bytes ask their origin for them once or twice.
//!
//! The first agent that asks is sent to the origin; the others wait until it has the content, and then fetch from it and from each other,
//! each from the holder that the fewest fetch from, [`PER_HOLDER`] at a time: the number of holders grows by that factor with each round.
//! Each failure at the origin doubles how many may try there, so that an origin that answers nobody holds up nobody for long. Nobody waits
//! longer than [`PATIENCE`].
//!
//! Owns who waits and who fetches. What an agent says it has is a hint: who fetches from it checks the bytes, and comes back if they are wrong.
//! Roles do not mix: an agent may give content only to those whose right to it, it has seen itself.

use crate::slab::AgentIx;
use smalti_types::{DurationMs, HoldingKey, LocateOutcome, Role, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Agents that fetch from one holder at a time.
pub const PER_HOLDER: u32 = 4;
/// How long somebody waits for others.
pub const PATIENCE: DurationMs = DurationMs(600_000);
/// Questions of one agent at a time; who has more is sent to the origin.
pub const MAX_LOCATES: usize = 1_024;
/// So often the number of those who may try at the origin doubles.
const MOST_DOUBLINGS: u32 = 12;

/// What is asked for, and in which role.
pub(crate) type Content = (Role, HoldingKey);
/// Who asks: an agent, and its number for it.
pub(crate) type Asker = (AgentIx, u64);

/// Somebody goes on: to another agent, or to the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) to: Asker,
    pub(crate) from: Option<AgentIx>,
}

/// Where somebody fetches from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// With a place: others wait for it.
    Seat,
    /// Nobody waits for it.
    Origin,
    Peer(AgentIx),
}

/// Content that somebody fetches or waits for.
#[derive(Debug, Default)]
struct Wanted {
    /// Who can be fetched from, and how many do.
    holders: BTreeMap<AgentIx, u32>,
    fetching: BTreeMap<Asker, Source>,
    waiting: VecDeque<(Asker, Time)>,
    /// Who has a place at the origin.
    seats: u32,
    failures: u32,
}

impl Wanted {
    fn grant(&mut self, to: Asker, source: Source) -> Grant {
        self.fetching.insert(to, source);
        let from = match source {
            Source::Peer(holder) => {
                *self.holders.entry(holder).or_default() += 1;
                Some(holder)
            }
            Source::Seat => {
                self.seats += 1;
                None
            }
            Source::Origin => None,
        };
        Grant { to, from }
    }

    /// Where the next one could go now.
    fn next_source(&self, agent: AgentIx, shares: bool) -> Option<Source> {
        let mut others = self.holders.iter().filter(|(holder, _)| **holder != agent).peekable();
        if others.peek().is_some() {
            let (holder, load) = others.min_by_key(|(_, load)| **load)?;
            return (*load < PER_HOLDER).then_some(Source::Peer(*holder));
        }
        // Nobody could fetch from it afterwards: others need not wait for it.
        if !shares {
            return (self.seats == 0 || self.failures > 0).then_some(Source::Origin);
        }
        (self.seats < 1 << self.failures.min(MOST_DOUBLINGS)).then_some(Source::Seat)
    }

    /// It does not fetch any more.
    fn remove(&mut self, asker: Asker) -> Option<Source> {
        let source = self.fetching.remove(&asker)?;
        match source {
            Source::Peer(holder) => {
                if let Some(load) = self.holders.get_mut(&holder) {
                    *load = load.saturating_sub(1);
                }
            }
            Source::Seat => self.seats -= 1,
            Source::Origin => {}
        }
        Some(source)
    }

    fn add_holder(&mut self, agent: AgentIx) {
        let load = self.fetching.values().filter(|s| **s == Source::Peer(agent)).count();
        self.holders.entry(agent).or_insert(u32::try_from(load).unwrap_or(u32::MAX));
    }
}

/// A question that has not ended.
#[derive(Debug)]
struct Ticket {
    content: Content,
    /// Whether others can fetch from the asker.
    shares: bool,
}

/// All content that is being fetched.
#[derive(Debug, Default)]
pub(crate) struct Sharing {
    wanted: BTreeMap<Content, Wanted>,
    tickets: BTreeMap<Asker, Ticket>,
}

impl Sharing {
    fn of_agent(&self, agent: AgentIx) -> impl Iterator<Item = &Asker> {
        self.tickets.range((agent, 0)..=(agent, u64::MAX)).map(|(asker, _)| asker)
    }

    /// Somebody asks. `shares`: others can fetch from it afterwards. `holders`: who has it, if it is not known yet.
    pub(crate) fn locate(
        &mut self,
        now: Time,
        asker: Asker,
        content: &Content,
        shares: bool,
        holders: impl FnOnce() -> BTreeSet<AgentIx>,
    ) -> Vec<Grant> {
        if self.tickets.contains_key(&asker) {
            return Vec::new(); // Numbers are used once.
        }
        if self.of_agent(asker.0).count() >= MAX_LOCATES {
            return vec![Grant { to: asker, from: None }];
        }
        self.tickets.insert(asker, Ticket { content: content.clone(), shares });
        let wanted = self.wanted.entry(content.clone()).or_insert_with(|| {
            let mut wanted = Wanted::default();
            wanted.holders.extend(holders().into_iter().map(|holder| (holder, 0)));
            wanted
        });
        wanted.waiting.push_back((asker, now));
        self.serve(content)
    }

    /// Somebody has it, gives up, or could not fetch it from where it was sent.
    pub(crate) fn ended(&mut self, asker: Asker, outcome: LocateOutcome) -> Vec<Grant> {
        let Some(Ticket { content, shares }) = self.tickets.remove(&asker) else { return Vec::new() };
        let Some(wanted) = self.wanted.get_mut(&content) else { return Vec::new() };
        match (wanted.remove(asker), outcome) {
            (None, _) => wanted.waiting.retain(|(waiting, _)| *waiting != asker),
            (Some(Source::Peer(holder)), LocateOutcome::Failed) => drop(wanted.holders.remove(&holder)),
            (Some(Source::Seat | Source::Origin), LocateOutcome::Failed) => wanted.failures += 1,
            (Some(_), LocateOutcome::Held) if shares => wanted.add_holder(asker.0),
            (Some(_), LocateOutcome::Held | LocateOutcome::GivenUp) => {}
        }
        self.serve(&content)
    }

    /// An agent has content.
    pub(crate) fn held(&mut self, agent: AgentIx, content: &Content) -> Vec<Grant> {
        let Some(wanted) = self.wanted.get_mut(content) else { return Vec::new() };
        wanted.add_holder(agent);
        self.serve(content)
    }

    /// An agent does not have it any more.
    pub(crate) fn not_held(&mut self, agent: AgentIx, content: &Content) -> Vec<Grant> {
        let Some(wanted) = self.wanted.get_mut(content) else { return Vec::new() };
        wanted.holders.remove(&agent);
        self.serve(content)
    }

    /// An agent is gone.
    pub(crate) fn leave(&mut self, agent: AgentIx) -> Vec<Grant> {
        let theirs: Vec<Asker> = self.of_agent(agent).copied().collect();
        theirs.into_iter().flat_map(|asker| self.ended(asker, LocateOutcome::GivenUp)).collect()
    }

    /// Those who have waited for too long go to the origin.
    pub(crate) fn tick(&mut self, now: Time) -> Vec<Grant> {
        let mut grants = Vec::new();
        for wanted in self.wanted.values_mut() {
            while let Some((asker, _)) = wanted.waiting.pop_front_if(|(_, since)| since.after(PATIENCE) <= now) {
                grants.push(wanted.grant(asker, Source::Origin));
            }
        }
        grants
    }

    /// Lets those go on who can. The first who cannot holds up the others: they want the same.
    fn serve(&mut self, content: &Content) -> Vec<Grant> {
        let mut grants = Vec::new();
        let Some(wanted) = self.wanted.get_mut(content) else { return grants };
        while let Some((asker, _)) = wanted.waiting.front().copied() {
            let shares = self.tickets.get(&asker).is_some_and(|t| t.shares);
            let Some(source) = wanted.next_source(asker.0, shares) else { break };
            wanted.waiting.pop_front();
            grants.push(wanted.grant(asker, source));
        }
        if wanted.waiting.is_empty() && wanted.fetching.is_empty() {
            self.wanted.remove(content);
        }
        grants
    }

    /// What must be true between any two steps.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut known = 0;
        for ((role, key), wanted) in &self.wanted {
            let seats = wanted.fetching.values().filter(|s| **s == Source::Seat).count();
            if seats != wanted.seats as usize {
                return Err(format!("{seats} have a place at the origin of {role}/{key:?}, not {}", wanted.seats));
            }
            if let Some((holder, load)) = wanted.holders.iter().find(|(_, load)| **load > PER_HOLDER) {
                return Err(format!("{load} fetch {key:?} from {holder:?}"));
            }
            if !wanted.waiting.is_empty() && wanted.fetching.is_empty() {
                return Err(format!("all wait for {role}/{key:?} and nobody fetches it"));
            }
            known += wanted.waiting.len() + wanted.fetching.len();
        }
        if known == self.tickets.len() { Ok(()) } else { Err(format!("{known} wait or fetch, {} have asked", self.tickets.len())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::Index;
    use proptest::prelude::*;

    fn content() -> Content {
        (Role::default(), HoldingKey(1))
    }

    fn agent(n: u32) -> AgentIx {
        AgentIx::at(n)
    }

    fn ask(sharing: &mut Sharing, n: u32) -> Vec<Grant> {
        sharing.locate(Time(0), (agent(n), 1), &content(), true, BTreeSet::new)
    }

    fn to_origin(grants: &[Grant]) -> usize {
        grants.iter().filter(|g| g.from.is_none()).count()
    }

    #[test]
    fn one_goes_to_the_origin_and_the_others_fetch_from_each_other() {
        let mut sharing = Sharing::default();
        let mut under_way: VecDeque<Grant> = (0..1_000).flat_map(|n| ask(&mut sharing, n)).collect();
        let (mut at_origin, mut served, mut rounds) = (0, 0, 0);
        while !under_way.is_empty() {
            rounds += 1;
            for grant in std::mem::take(&mut under_way) {
                at_origin += usize::from(grant.from.is_none());
                served += 1;
                under_way.extend(sharing.ended(grant.to, LocateOutcome::Held));
                sharing.check().unwrap();
            }
        }
        assert_eq!((at_origin, served), (1, 1_000));
        assert!(rounds <= 8, "{rounds}");
        assert!(sharing.wanted.is_empty());
    }

    #[test]
    fn who_has_it_already_is_asked_first() {
        let mut sharing = Sharing::default();
        let grants = sharing.locate(Time(0), (agent(1), 1), &content(), true, || BTreeSet::from([agent(7)]));
        assert_eq!(grants, [Grant { to: (agent(1), 1), from: Some(agent(7)) }]);
        let failed = sharing.ended((agent(1), 1), LocateOutcome::Failed);
        assert_eq!(failed, []);
        // The same agent asks again: another holder, or the origin.
        let again = sharing.locate(Time(0), (agent(1), 2), &content(), true, BTreeSet::new);
        assert_eq!(to_origin(&again), 1);
    }

    #[test]
    fn a_holder_that_gives_wrong_bytes_is_not_asked_again_while_others_want_them() {
        let mut sharing = Sharing::default();
        let liar = || BTreeSet::from([agent(9)]);
        sharing.locate(Time(0), (agent(1), 1), &content(), true, liar);
        sharing.locate(Time(0), (agent(2), 1), &content(), true, liar);
        assert_eq!(sharing.ended((agent(1), 1), LocateOutcome::Failed), []);
        assert_eq!(to_origin(&ask(&mut sharing, 3)), 1);
        assert_eq!(sharing.ended((agent(2), 1), LocateOutcome::Failed), []);
        sharing.check().unwrap();
    }

    #[test]
    fn an_origin_that_fails_holds_up_nobody_for_long() {
        let mut sharing = Sharing::default();
        let mut under_way: Vec<Grant> = (0..1_000).flat_map(|n| ask(&mut sharing, n)).collect();
        let mut rounds = 0;
        while !under_way.is_empty() {
            rounds += 1;
            under_way = under_way.into_iter().flat_map(|g| sharing.ended(g.to, LocateOutcome::Failed)).collect();
        }
        assert!(rounds <= 12, "{rounds}");
        assert!(sharing.tickets.is_empty());
    }

    #[test]
    fn who_goes_away_holds_up_nobody() {
        let mut sharing = Sharing::default();
        assert_eq!(to_origin(&ask(&mut sharing, 1)), 1);
        assert_eq!(ask(&mut sharing, 2), []);
        assert_eq!(sharing.leave(agent(1)), [Grant { to: (agent(2), 1), from: None }]);
        assert_eq!(ask(&mut sharing, 3), []);
        assert_eq!(sharing.tick(PATIENCE_END), [Grant { to: (agent(3), 1), from: None }], "patience has an end");
        sharing.check().unwrap();
    }

    const PATIENCE_END: Time = Time(PATIENCE.0 * 1_000);

    #[test]
    fn nobody_waits_for_an_agent_that_others_cannot_reach() {
        let mut sharing = Sharing::default();
        let alone = |sharing: &mut Sharing, n| sharing.locate(Time(0), (agent(n), 1), &content(), false, BTreeSet::new);
        assert_eq!(to_origin(&alone(&mut sharing, 1)), 1);
        assert_eq!(to_origin(&alone(&mut sharing, 2)), 1);
        assert_eq!(to_origin(&ask(&mut sharing, 3)), 1);
        assert_eq!(alone(&mut sharing, 4), [], "but it waits for those who can be");
        assert_eq!(sharing.ended((agent(3), 1), LocateOutcome::Held), [Grant { to: (agent(4), 1), from: Some(agent(3)) }]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Ask(u32, u64, bool),
        End(usize, LocateOutcome),
        Leave(u32),
        Held(u32),
        NotHeld(u32),
        Wait,
    }

    fn step() -> impl Strategy<Value = Step> {
        let outcome = prop_oneof![Just(LocateOutcome::Held), Just(LocateOutcome::Failed), Just(LocateOutcome::GivenUp)];
        prop_oneof![
            4 => (0..6u32, 0..2u64, any::<bool>()).prop_map(|(a, k, s)| Step::Ask(a, k, s)),
            6 => (any::<usize>(), outcome).prop_map(|(n, o)| Step::End(n, o)),
            1 => (0..6u32).prop_map(Step::Leave),
            1 => (0..6u32).prop_map(Step::Held),
            1 => (0..6u32).prop_map(Step::NotHeld),
            1 => Just(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn everybody_is_served_once(steps in proptest::collection::vec(step(), 0..200)) {
            let mut sharing = Sharing::default();
            let (mut now, mut next, mut going) = (Time(0), 0, BTreeSet::new());
            let key = |k| (Role::default(), HoldingKey(k));
            let take = |going: &mut BTreeSet<Asker>, grants: Vec<Grant>| {
                for grant in grants {
                    assert!(going.insert(grant.to), "{grant:?} twice");
                    assert_ne!(grant.from, Some(grant.to.0), "from itself");
                }
            };
            for step in steps {
                let grants = match step {
                    Step::Ask(a, k, shares) => {
                        next += 1;
                        sharing.locate(now, (agent(a), next), &key(k), shares, BTreeSet::new)
                    }
                    Step::End(n, outcome) => {
                        let Some(asker) = going.iter().nth(n % going.len().max(1)).copied() else { continue };
                        going.remove(&asker);
                        sharing.ended(asker, outcome)
                    }
                    Step::Leave(a) => {
                        going.retain(|asker| asker.0 != agent(a));
                        let grants = sharing.leave(agent(a));
                        let mut all: Vec<Grant> = sharing.not_held(agent(a), &key(0));
                        all.extend(sharing.not_held(agent(a), &key(1)));
                        all.extend(grants.into_iter().filter(|g| g.to.0 != agent(a)));
                        all
                    }
                    Step::Held(a) => sharing.held(agent(a), &key(0)),
                    Step::NotHeld(a) => sharing.not_held(agent(a), &key(0)),
                    Step::Wait => {
                        now = now.after(DurationMs(PATIENCE.0 / 2));
                        sharing.tick(now)
                    }
                };
                take(&mut going, grants);
                prop_assert_eq!(sharing.check(), Ok(()));
            }
            while let Some(asker) = going.pop_first() {
                take(&mut going, sharing.ended(asker, LocateOutcome::Held));
            }
            prop_assert!(sharing.tickets.is_empty() && sharing.wanted.is_empty());
        }
    }
}
