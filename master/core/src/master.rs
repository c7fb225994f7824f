//! The master's whole state, and the one way to change it: [`Master::step`].

use crate::agents::Agent;
use crate::done::Memory;
use crate::event::{Conn, Event, Record};
use crate::frameworks::Framework;
use crate::offers::OfferRecord;
use crate::shares::Shares;
use crate::sharing::Sharing;
use crate::slab::{AgentIx, FrameworkIx, Slab};
use crate::{Config, Effects};
use smalti_types::protocol::Call;
use smalti_types::{AgentId, DurationMs, FrameworkId, MasterEpoch, TaskKey, Time};
use std::collections::{BTreeMap, BTreeSet};

/// The master: all that it knows, and nothing of the world outside.
#[derive(Debug)]
pub struct Master {
    pub(crate) config: Config,
    pub(crate) epoch: MasterEpoch,
    pub(crate) started: Time,
    pub(crate) agents: Slab<AgentId, AgentIx, Agent>,
    pub(crate) agent_conns: BTreeMap<Conn, AgentIx>,
    /// Agents without a connection, by when something about their absence is due.
    pub(crate) away: BTreeSet<(Time, AgentIx)>,
    /// How many agents were recovered and have not registered in this life.
    pub(crate) unheard: usize,
    /// Leases that earlier lives granted are over then: those may have been longer.
    pub(crate) earlier_leases: Time,
    /// What is written down of how long leases last.
    pub(crate) lease_span: DurationMs,
    /// Exclusive tasks whose agent cannot be asked, by when their last lease is over.
    pub(crate) fated: BTreeSet<(Time, TaskKey)>,
    pub(crate) frameworks: Slab<FrameworkId, FrameworkIx, Framework>,
    pub(crate) framework_conns: BTreeMap<Conn, FrameworkIx>,
    /// Frameworks without a connection, by when they are removed.
    pub(crate) framework_away: BTreeSet<(Time, FrameworkIx)>,
    /// Frameworks that are sent more of what waits for them with each tick.
    pub(crate) owed: BTreeSet<FrameworkIx>,
    /// Records that recovery decided, for the first step.
    pub(crate) unsaved: Vec<Record>,
    /// Bytes of all updates that wait for acknowledgements.
    pub(crate) pending_bytes: usize,
    /// Refusals that ended before their time because there were too many.
    pub(crate) forgotten_refusals: u64,
    /// Updates that were left with their agents because too many waited for a framework.
    pub(crate) refused_updates: u64,
    /// Frameworks that were removed: their ids are not given out again.
    pub(crate) removed: Memory<FrameworkId, ()>,
    /// Counts subscriptions.
    pub(crate) subscriptions: u64,
    /// Offers that are out, by number.
    pub(crate) offers: BTreeMap<u64, OfferRecord>,
    pub(crate) offers_made: u64,
    /// Ends of refusals, the earliest first.
    pub(crate) refusal_ends: BTreeSet<(Time, FrameworkIx, AgentIx)>,
    pub(crate) shares: Shares,
    /// Who fetches from whom.
    pub(crate) sharing: Sharing,
    /// Agents to consider in the next allocation.
    pub(crate) dirty: BTreeSet<AgentIx>,
    /// Agents with something free, whether or not anybody wants it.
    pub(crate) offerable: BTreeSet<AgentIx>,
}

impl Master {
    /// A master that knows nobody yet. `epoch` must be greater than that of every earlier life.
    #[must_use]
    pub fn new(config: Config, epoch: MasterEpoch, now: Time) -> Self {
        let removed = Memory::new(config.remembered_frameworks);
        Self {
            earlier_leases: Time(0),
            lease_span: config.lease_span(),
            config,
            epoch,
            started: now,
            agents: Slab::new(),
            agent_conns: BTreeMap::new(),
            away: BTreeSet::new(),
            unheard: 0,
            fated: BTreeSet::new(),
            frameworks: Slab::new(),
            framework_conns: BTreeMap::new(),
            framework_away: BTreeSet::new(),
            owed: BTreeSet::new(),
            unsaved: Vec::new(),
            pending_bytes: 0,
            forgotten_refusals: 0,
            refused_updates: 0,
            removed,
            subscriptions: 0,
            offers: BTreeMap::new(),
            offers_made: 0,
            refusal_ends: BTreeSet::new(),
            shares: Shares::default(),
            sharing: Sharing::default(),
            dirty: BTreeSet::new(),
            offerable: BTreeSet::new(),
        }
    }

    /// This life of the master.
    #[must_use]
    pub fn epoch(&self) -> MasterEpoch {
        self.epoch
    }

    /// Takes in one event and decides. Total: whatever comes in, it answers or ignores, and never panics.
    pub fn step(&mut self, now: Time, event: Event) -> Effects {
        let mut effects = Effects::default();
        let out = &mut effects;
        self.unsaved.drain(..).for_each(|record| out.persist(record));
        match event {
            // A connection has one peer: who speaks on it is decided by its first message.
            Event::AgentRegistered { conn, .. } | Event::FrameworkSubscribed { conn, .. } if self.is_taken(conn) => {}
            Event::AgentRegistered { conn, registration } => self.agent_registered(now, conn, registration, out),
            Event::AgentDisconnected { conn } => self.agent_disconnected(now, conn, out),
            Event::AgentUpdates { conn, updates } => self.agent_updates(now, conn, updates, out),
            Event::AgentLease { conn, asked } => self.agent_lease(now, conn, asked, out),
            Event::AgentHolds { conn, news } => self.agent_holds(conn, news, out),
            Event::AgentLocates { conn, ticket, role, key } => self.agent_locates(now, conn, ticket, (role, key), out),
            Event::AgentLocated { conn, ticket, outcome } => self.agent_located(conn, ticket, outcome, out),
            Event::AgentDeregistered { conn, reason } => {
                if let Some(ax) = self.agent_conns.get(&conn).copied() {
                    self.agent_removed(now, ax, &reason, out);
                }
            }
            Event::AgentRemoved { agent, reason } => {
                if let Some(ax) = self.agents.find(&agent) {
                    self.agent_removed(now, ax, &reason, out);
                }
            }
            Event::FrameworkSubscribed { conn, subscription, fresh } => {
                self.framework_subscribed(now, conn, subscription, fresh, out);
            }
            Event::FrameworkDisconnected { conn } => self.framework_disconnected(now, conn, out),
            Event::FrameworkCall { conn, call } => {
                if let Some(fx) = self.framework_conns.get(&conn).copied() {
                    self.call(now, fx, call, out);
                }
            }
            Event::Tick => {
                self.end_leases(now, out);
                self.end_refusals(now);
                self.end_failovers(now, out);
                self.look_for_agents(now, out);
                self.end_fated(now, out);
                self.shorten_lease_span(now, out);
                self.pay_owed(now, out);
                self.end_waits(now, out);
            }
            Event::BatchEnd => self.allocate(now, out),
        }
        effects
    }

    fn is_taken(&self, conn: Conn) -> bool {
        self.agent_conns.contains_key(&conn) || self.framework_conns.contains_key(&conn)
    }

    fn call(&mut self, now: Time, fx: FrameworkIx, call: Call, out: &mut Effects) {
        match call {
            Call::Accept { offers, operations, filters } => self.accept(now, fx, &offers, operations, filters, out),
            Call::Decline { offers, filters } => self.decline(now, fx, &offers, filters),
            Call::Revive => self.revive(fx),
            Call::Suppress => self.suppress(fx),
            Call::Kill { task, attempt, grace } => self.kill(now, fx, task, attempt, grace, out),
            Call::Acknowledge(updates) => self.acknowledge(fx, updates, out),
            Call::Reconcile(tasks) => self.reconcile(now, fx, tasks, out),
            Call::AssignItems { task, attempt, batch, open } => self.assign_items(fx, (task, attempt), batch, open, out),
            Call::ReturnItems { task, attempt, most } => self.return_items(fx, (task, attempt), most, out),
            Call::Teardown => self.remove_framework(now, fx, "it asked for it", out),
        }
    }
}
