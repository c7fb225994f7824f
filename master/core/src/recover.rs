//! A new life of the master, from what an earlier one wrote down.
//!
//! Every agent is away since now until it registers and says what runs on it. Every framework has the time that it had: a deadline that
//! was running goes on, a scheduler that was connected has its whole fail-over time. Offers begin with the first agent that is back.

use crate::agents::{Agent, AgentLink};
use crate::ledger::Ledger;
use crate::master::Master;
use crate::stored::{Stored, StoredFramework};
use crate::{Config, Record};
use smalti_types::{AgentInfo, DurationMs, FrameworkId, MasterEpoch, Resources, Time};

impl Master {
    /// A master that goes on where an earlier one stopped. `epoch` must be greater than that of every earlier life.
    #[must_use]
    pub fn recover(config: Config, epoch: MasterEpoch, now: Time, stored: Stored) -> Self {
        let mut master = Self::new(config, epoch, now);
        master.recover_lease_span(now, stored.lease_span.unwrap_or(Config::default().lease_span()), !stored.agents.is_empty());
        let mut removed: Vec<_> = stored.removed.into_iter().map(|(id, at)| (at, id)).collect();
        removed.sort();
        for (_, id) in removed {
            let forgotten = master.removed.remember(id, ());
            master.unsaved.extend(forgotten.map(Record::FrameworkForgotten));
        }
        for (id, framework) in stored.frameworks {
            master.recover_framework(now, id, framework);
        }
        for info in stored.agents.into_values() {
            master.recover_agent(now, info);
        }
        master
    }

    /// Its deadline never grows by a restart, and is written down, so that a master that restarts often does not put it off for ever.
    fn recover_framework(&mut self, now: Time, id: FrameworkId, stored: StoredFramework) {
        let StoredFramework { info, claim, away_until } = stored;
        let full = now.after(info.failover_timeout);
        // The clock may have been set back since: nobody has more than the whole time. And nobody could connect to a master that was
        // not there: everybody has a little.
        let until = away_until.unwrap_or(full).min(full).max(now.after(self.config.reconnect_grace));
        if away_until != Some(until) {
            self.unsaved.push(Record::Framework { id: id.clone(), info: info.clone(), claim, away_until: Some(until) });
        }
        let fx = self.add_framework(now, id, info, false, until);
        if let Some(framework) = self.frameworks.get_mut(fx) {
            framework.claim = claim;
        }
    }

    /// Earlier leases may be longer than those of this life: nobody gives an exclusive task up before they are over, too. And the next life
    /// must wait for the longer ones of both.
    fn recover_lease_span(&mut self, now: Time, earlier: DurationMs, had_agents: bool) {
        if had_agents {
            self.earlier_leases = now.after(earlier);
        }
        if self.lease_span > earlier {
            self.unsaved.push(Record::LeaseSpan(self.lease_span));
        }
        self.lease_span = self.lease_span.max(earlier);
    }

    fn recover_agent(&mut self, now: Time, info: AgentInfo) {
        self.shares.add_total(&info.total);
        let ledger = Ledger::open(info.total.clone(), Resources::default()).expect("nothing is in use");
        let link = AgentLink::Away { since: now, due: now, reported: false };
        let ax = self.agents.insert(info.id.clone(), Agent::new(info, link, ledger, now));
        self.unheard += 1;
        self.set_away(ax, now, false);
    }
}
