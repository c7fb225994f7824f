//! Offers while they are out: made, given back, taken back. Each is answered or ends once; then its number is unknown.

use crate::filters::Refusal;
use crate::master::Master;
use crate::slab::{AgentIx, FrameworkIx};
use crate::{Effects, shares::Column};
use smalti_types::protocol::FrameworkEvent;
use smalti_types::{DurationMs, Filters, Offer, OfferId, Resources, Sabotage, Time};
use std::collections::{BTreeMap, BTreeSet};

/// One offer that is out.
#[derive(Debug, Clone)]
pub(crate) struct OfferRecord {
    pub(crate) framework: FrameworkIx,
    pub(crate) agent: AgentIx,
    pub(crate) resources: Resources,
    /// When it is taken back.
    pub(crate) expires: Time,
}

/// A refusal for "no time" still lasts until the next tick: a framework that gives everything back at once must not make
/// the master offer it again in an endless loop.
const SHORTEST_REFUSAL: DurationMs = DurationMs(1);
/// How often the refusal for an unanswered offer doubles. A framework that never answers would else hold, time after time, all
/// that is free for most of the time.
const MOST_DOUBLINGS: u32 = 6;

impl Master {
    /// Holds all that is free on an agent for a framework.
    pub(crate) fn make_offer(&mut self, now: Time, fx: FrameworkIx, ax: AgentIx) -> Option<Offer> {
        let number = self.offers_made + 1;
        let agent = self.agents.get_mut(ax)?;
        let framework = self.frameworks.get_mut(fx)?;
        self.offers_made = number;
        let resources = agent.ledger.offer_all();
        agent.offers.insert(number);
        framework.offers.insert(number);
        let offer = Offer {
            id: OfferId { epoch: self.epoch, number },
            framework: framework.id.clone(),
            role: framework.info.role.clone(),
            agent: agent.info.id.clone(),
            hostname: agent.info.hostname.clone(),
            resources: resources.clone(),
            attributes: agent.info.attributes.clone(),
            holdings: agent.holdings.of(&framework.info.role),
        };
        self.shares.add(fx, Column::Offered, &resources);
        let expires = now.after(self.config.offer_timeout);
        self.offers.insert(number, OfferRecord { framework: fx, agent: ax, resources, expires });
        self.offerable.remove(&ax);
        Some(offer)
    }

    /// Ends an offer; what it held is free again.
    pub(crate) fn end_offer(&mut self, number: u64) -> Option<OfferRecord> {
        let offer = self.offers.remove(&number)?;
        self.shares.sub(offer.framework, Column::Offered, &offer.resources);
        if let Some(framework) = self.frameworks.get_mut(offer.framework) {
            framework.offers.remove(&number);
        }
        if let Some(agent) = self.agents.get_mut(offer.agent) {
            agent.offers.remove(&number);
            agent.ledger.take_back(&offer.resources);
        }
        self.mark_dirty(offer.agent);
        Some(offer)
    }

    /// Ends all offers of an agent and tells the frameworks that hold them.
    pub(crate) fn rescind_agent(&mut self, ax: AgentIx, out: &mut Effects) {
        let numbers = self.agents.get(ax).map(|a| a.offers.clone()).unwrap_or_default();
        self.rescind(numbers, out);
    }

    fn rescind(&mut self, numbers: impl IntoIterator<Item = u64>, out: &mut Effects) {
        let mut told: BTreeMap<FrameworkIx, Vec<OfferId>> = BTreeMap::new();
        for number in numbers {
            if let Some(offer) = self.end_offer(number) {
                told.entry(offer.framework).or_default().push(OfferId { epoch: self.epoch, number });
            }
        }
        for (fx, offers) in told {
            self.tell(fx, FrameworkEvent::Rescind(offers), out);
        }
    }

    /// Ends all offers of a framework whose connection is gone: there is nobody to tell.
    pub(crate) fn void_offers_of(&mut self, fx: FrameworkIx) {
        for number in self.frameworks.get(fx).map(|f| f.offers.clone()).unwrap_or_default() {
            self.end_offer(number);
        }
    }

    /// Takes back offers that were not answered in time, and lets others have their turn.
    pub(crate) fn end_leases(&mut self, now: Time, out: &mut Effects) {
        // Numbers rise with time and every lease has the same length, so the oldest come first.
        let late: Vec<u64> = self.offers.iter().take_while(|(_, o)| o.expires <= now).map(|(number, _)| *number).collect();
        let mut silent = BTreeSet::new();
        for number in &late {
            if let Some(OfferRecord { framework, agent, resources, .. }) = self.offers.get(number).cloned() {
                let times = self.frameworks.get(framework).map_or(0, |f| f.unanswered);
                let span = DurationMs(self.config.unanswered_refuse.0.saturating_mul(1 << times.min(MOST_DOUBLINGS)));
                self.refuse_for(now, framework, agent, resources, span);
                silent.insert(framework);
            }
        }
        for fx in silent {
            if let Some(framework) = self.frameworks.get_mut(fx) {
                framework.unanswered = framework.unanswered.saturating_add(1);
            }
        }
        self.rescind(late, out);
    }

    /// A framework that answers is offered things without delay again.
    pub(crate) fn has_answered(&mut self, fx: FrameworkIx) {
        if let Some(framework) = self.frameworks.get_mut(fx) {
            framework.unanswered = 0;
        }
    }

    /// A framework gives offers back. Numbers that are not its own, or void by now, are ignored: an offer may have been
    /// taken back while the answer was on its way.
    pub(crate) fn decline(&mut self, now: Time, fx: FrameworkIx, offers: &[OfferId], filters: Filters) {
        for id in offers {
            let own = id.epoch == self.epoch && self.offers.get(&id.number).is_some_and(|o| o.framework == fx);
            if !own {
                continue;
            }
            self.has_answered(fx);
            if let Some(offer) = self.end_offer(id.number) {
                self.refuse_for(now, fx, offer.agent, offer.resources, filters.refuse);
            }
        }
    }

    /// Notes that this framework does not want `what` of this agent for a while.
    pub(crate) fn refuse_for(&mut self, now: Time, fx: FrameworkIx, ax: AgentIx, what: Resources, span: DurationMs) {
        let until = now.after(span.max(SHORTEST_REFUSAL));
        let Some(framework) = self.frameworks.get_mut(fx) else { return };
        if let Some(earlier) = framework.refusals.add(ax, Refusal { until, what }) {
            self.refusal_ends.remove(&(earlier, fx, ax));
        }
        self.refusal_ends.insert((until, fx, ax));
        while self.refusal_ends.len() > self.config.remembered_refusals {
            self.forgotten_refusals += 1;
            self.end_first_refusal();
        }
    }

    fn end_first_refusal(&mut self) {
        let Some((_, fx, ax)) = self.refusal_ends.pop_first() else { return };
        if let Some(framework) = self.frameworks.get_mut(fx) {
            framework.refusals.remove(ax);
        }
        self.mark_dirty(ax);
    }

    /// Refusals whose time is over: their agents are considered again.
    pub(crate) fn end_refusals(&mut self, now: Time) {
        while self.refusal_ends.first().is_some_and(|(until, _, _)| *until <= now) && !Sabotage::MasterKeepsRefusals.is_on() {
            self.end_first_refusal();
        }
    }

    /// An agent is removed: its index may be used again, so nothing may be refused under it.
    pub(crate) fn forget_refusals_of(&mut self, ax: AgentIx) {
        for fx in self.frameworks.indexes() {
            if let Some(until) = self.frameworks.get_mut(fx).and_then(|f| f.refusals.remove(ax)) {
                self.refusal_ends.remove(&(until, fx, ax));
            }
        }
    }

    /// A framework revives or is removed.
    pub(crate) fn forget_refusals_by(&mut self, fx: FrameworkIx) {
        let Some(framework) = self.frameworks.get_mut(fx) else { return };
        for (ax, until) in framework.refusals.clear() {
            self.refusal_ends.remove(&(until, fx, ax));
        }
    }
}
