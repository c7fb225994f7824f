//! Attempts whose state is in doubt, and asking the master about them.
//!
//! In doubt is: everything open after a new subscription, a launch without a first status for a while, everything on a
//! lost agent, and what the master calls UNKNOWN or UNREACHABLE. It is asked about again, with back-off, until a state comes.

use crate::attempts::Key;
use crate::client::{Client, Link, Out};
use crate::event::Message;
use smalti_types::protocol::Call;
use smalti_types::{AgentId, DurationMs, Time};
use std::collections::{BTreeSet, VecDeque};

/// A launch without a first status is in doubt after this long.
const FIRST_STATUS_WAIT: DurationMs = DurationMs(10_000);
/// First wait before asking again.
const FIRST_WAIT: DurationMs = DurationMs(1_000);
/// The wait doubles up to this.
const LAST_WAIT: DurationMs = DurationMs(30_000);
/// Attempts in one call.
const CHUNK: usize = 10_000;

/// What is in doubt.
#[derive(Debug, Default)]
pub(crate) struct Doubt {
    keys: BTreeSet<Key>,
    /// Launches by the time at which a status must have come; times ascend.
    expected: VecDeque<(Time, Key)>,
    ask: Time,
    wait: DurationMs,
}

impl Doubt {
    pub(crate) fn insert(&mut self, key: Key) {
        self.keys.insert(key);
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        self.keys.remove(key);
    }

    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.keys.contains(key)
    }

    /// A launch was sent: its first status should come soon.
    pub(crate) fn expect(&mut self, key: Key, now: Time) {
        self.expected.push_back((now.after(FIRST_STATUS_WAIT), key));
    }

    fn overdue(&mut self, now: Time) -> Option<Key> {
        if self.expected.front().is_none_or(|(at, _)| *at > now) {
            return None;
        }
        self.expected.pop_front().map(|(_, key)| key)
    }
}

impl Client {
    pub(crate) fn doubt_agent(&mut self, agent: &AgentId) {
        for (key, attempt) in &self.attempts {
            if attempt.agent.as_ref() == Some(agent) && !attempt.is_ended() {
                self.doubt.insert(key.clone());
            }
        }
    }

    /// After a new subscription: ask about everything that is not ended.
    pub(crate) fn reconcile_all(&mut self, now: Time, out: &mut Out) {
        let open = self.attempts.iter().filter(|(_, a)| !a.is_ended()).map(|(k, _)| k.clone());
        self.doubt.keys = open.collect();
        self.doubt.wait = FIRST_WAIT;
        self.doubt.expected.clear();
        self.ask(now, out);
    }

    pub(crate) fn tick(&mut self, now: Time, out: &mut Out) {
        while let Some(key) = self.doubt.overdue(now) {
            if self.attempts.get(&key).is_some_and(|a| a.state.is_none()) {
                self.doubt.insert(key);
            }
        }
        if self.link != Link::Up {
            return;
        }
        if self.doubt.keys.is_empty() {
            self.doubt.wait = FIRST_WAIT;
        } else if now >= self.doubt.ask {
            self.ask(now, out);
        }
        for key in &self.kills {
            let kill = self.attempts.get_mut(key).and_then(|a| a.kill.as_mut());
            if let Some(kill) = kill
                && kill.is_due(now)
            {
                out.send(Message::ToMaster(Call::Kill { task: key.0.clone(), attempt: key.1, grace: kill.grace }));
            }
        }
        for key in &self.parts {
            let part = self.attempts.get_mut(key).filter(|a| a.state.is_some()).and_then(|a| a.part.as_mut());
            for call in part.map(|p| p.due(key, now)).unwrap_or_default() {
                out.send(Message::ToMaster(call));
            }
        }
    }

    fn ask(&mut self, now: Time, out: &mut Out) {
        self.doubt.ask = now.after(self.doubt.wait);
        self.doubt.wait = DurationMs((self.doubt.wait.0 * 2).clamp(FIRST_WAIT.0, LAST_WAIT.0));
        let tasks: Vec<_> =
            self.doubt.keys.iter().map(|key| (key.0.clone(), key.1, self.attempts.get(key).and_then(|a| a.agent.clone()))).collect();
        for chunk in tasks.chunks(CHUNK) {
            out.send(Message::ToMaster(Call::Reconcile(chunk.to_vec())));
        }
    }
}
