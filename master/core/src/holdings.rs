//! What each agent holds in its caches, as it tells, and what the master makes of it: offers that say so, and who fetches from whom
//! (`sharing`).

use crate::Effects;
use crate::event::{AgentMessage, Conn, Message};
use crate::master::Master;
use crate::sharing::{Content, Grant};
use crate::slab::AgentIx;
use smalti_types::{HoldingKey, HoldingsNews, LocateOutcome, MAX_HOLDINGS, PeerAddress, Role, Time};
use std::collections::{BTreeMap, BTreeSet};

/// What one agent holds.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    by_role: BTreeMap<Role, BTreeSet<HoldingKey>>,
    count: usize,
    /// Under which other agents can fetch from it.
    pub(crate) address: Option<PeerAddress>,
}

impl Holdings {
    /// What it holds for a role, in order.
    pub(crate) fn of(&self, role: &Role) -> Vec<HoldingKey> {
        self.by_role.get(role).map(|keys| keys.iter().copied().collect()).unwrap_or_default()
    }

    /// By role.
    pub(crate) fn by_role(&self) -> &BTreeMap<Role, BTreeSet<HoldingKey>> {
        &self.by_role
    }

    fn has(&self, (role, key): &Content) -> bool {
        self.by_role.get(role).is_some_and(|keys| keys.contains(key))
    }

    /// Whether it is new. Beyond the bound nothing is: an agent that tells of more is not believed more.
    fn add(&mut self, role: &Role, key: HoldingKey) -> bool {
        if self.count >= MAX_HOLDINGS {
            return false;
        }
        let is_new = self.by_role.entry(role.clone()).or_default().insert(key);
        self.count += usize::from(is_new);
        is_new
    }

    fn remove(&mut self, role: &Role, key: HoldingKey) {
        let Some(keys) = self.by_role.get_mut(role) else { return };
        self.count -= usize::from(keys.remove(&key));
        if keys.is_empty() {
            self.by_role.remove(role);
        }
    }
}

impl Master {
    /// An agent tells what has changed in its caches.
    pub(crate) fn agent_holds(&mut self, conn: Conn, news: HoldingsNews, out: &mut Effects) {
        let Some(ax) = self.agent_conns.get(&conn).copied() else { return };
        if news.all {
            self.forget_holdings(ax, out);
        }
        let Some(agent) = self.agents.get_mut(ax) else { return };
        agent.holdings.address = news.address;
        let mut grants = Vec::new();
        for (role, change) in news.changes {
            // First what goes: what comes needs its room.
            for key in change.removed {
                agent.holdings.remove(&role, key);
                grants.extend(self.sharing.not_held(ax, &(role.clone(), key)));
            }
            for key in change.added {
                if agent.holdings.add(&role, key) && news.address.is_some() {
                    grants.extend(self.sharing.held(ax, &(role.clone(), key)));
                }
            }
        }
        self.tell_where(grants, out);
    }

    /// The connection of an agent ended, or it tells everything anew: it holds nothing that is known, and nobody can fetch from it.
    pub(crate) fn forget_holdings(&mut self, ax: AgentIx, out: &mut Effects) {
        let Some(agent) = self.agents.get_mut(ax) else { return };
        let earlier = std::mem::take(&mut agent.holdings);
        let mut grants = Vec::new();
        for (role, keys) in earlier.by_role {
            for key in keys {
                grants.extend(self.sharing.not_held(ax, &(role.clone(), key)));
            }
        }
        self.tell_where(grants, out);
    }

    /// The agent cannot be reached: it fetches for nobody.
    pub(crate) fn agent_shares_no_more(&mut self, ax: AgentIx, out: &mut Effects) {
        self.forget_holdings(ax, out);
        let grants = self.sharing.leave(ax);
        self.tell_where(grants, out);
    }

    /// An agent asks where to fetch from.
    pub(crate) fn agent_locates(&mut self, now: Time, conn: Conn, ticket: u64, content: Content, out: &mut Effects) {
        let Some(ax) = self.agent_conns.get(&conn).copied() else { return };
        let shares = self.agents.get(ax).is_some_and(|a| a.holdings.address.is_some());
        let holders = || {
            let reachable = self.agents.iter().filter(|(_, _, a)| a.conn().is_some() && a.holdings.address.is_some());
            reachable.filter(|(_, _, a)| a.holdings.has(&content)).map(|(_, ix, _)| ix).collect()
        };
        let grants = self.sharing.locate(now, (ax, ticket), &content, shares, holders);
        self.tell_where(grants, out);
    }

    /// An agent does not fetch any more.
    pub(crate) fn agent_located(&mut self, conn: Conn, ticket: u64, outcome: LocateOutcome, out: &mut Effects) {
        let Some(ax) = self.agent_conns.get(&conn).copied() else { return };
        let grants = self.sharing.ended((ax, ticket), outcome);
        self.tell_where(grants, out);
    }

    /// Those who have waited for too long go themselves.
    pub(crate) fn end_waits(&mut self, now: Time, out: &mut Effects) {
        let grants = self.sharing.tick(now);
        self.tell_where(grants, out);
    }

    fn tell_where(&self, grants: Vec<Grant>, out: &mut Effects) {
        for Grant { to: (ax, ticket), from } in grants {
            let Some(conn) = self.agents.get(ax).and_then(crate::agents::Agent::conn) else { continue };
            let from = from.and_then(|ix| self.agents.get(ix)).and_then(|a| a.holdings.address);
            out.send(Message::ToAgent { conn, message: AgentMessage::Located { ticket, from } });
        }
    }
}
