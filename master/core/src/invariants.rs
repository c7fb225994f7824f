//! What must be true between any two steps, checked over the whole state: for tests and the simulation.

use crate::agents::{Agent, AgentLink};
use crate::frameworks::{Framework, FrameworkLink};
use crate::master::Master;
use crate::slab::{AgentIx, FrameworkIx};
use crate::sum::Sum;
use smalti_types::{Resources, StatusUpdate, TaskState};

type Checked = Result<(), String>;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(what()) }
}

impl Master {
    /// Walks all agents, frameworks, tasks and offers.
    ///
    /// # Errors
    /// The first invariant that does not hold, in words.
    pub fn check_invariants(&self) -> Result<(), String> {
        let mut total = Sum::default();
        for (_, ax, agent) in self.agents.iter() {
            total.add(agent.ledger.total());
            self.check_agent(ax, agent).map_err(|e| format!("agent {}: {e}", agent.info.id))?;
        }
        ensure(&total == self.shares.total(), || "the cluster's total is not the sum of its agents".into())?;
        for (_, fx, framework) in self.frameworks.iter() {
            self.check_framework(fx, framework).map_err(|e| format!("framework {}: {e}", framework.id))?;
        }
        for (number, offer) in &self.offers {
            let agent = self.agents.get(offer.agent).is_some_and(|a| a.offers.contains(number));
            let framework = self.frameworks.get(offer.framework).is_some_and(|f| f.offers.contains(number));
            ensure(agent && framework, || format!("offer {number} is not in the books of both sides"))?;
            ensure(!offer.resources.is_empty(), || format!("offer {number} is empty"))?;
        }
        let away = self.agents.iter().filter(|(_, _, a)| a.conn().is_none()).count();
        ensure(away == self.away.len(), || format!("{away} agents are away, {} are noted", self.away.len()))?;
        let away = self.frameworks.iter().filter(|(_, _, f)| f.conn().is_none()).count();
        ensure(away == self.framework_away.len(), || format!("{away} frameworks are away, {} are noted", self.framework_away.len()))?;
        let pending: usize = self.frameworks.iter().map(|(_, _, f)| f.pending_bytes).sum();
        ensure(pending == self.pending_bytes, || format!("updates of {pending} bytes wait in all, not {}", self.pending_bytes))?;
        let unheard = self.agents.iter().filter(|(_, _, a)| !a.heard).count();
        ensure(unheard == self.unheard, || format!("{unheard} agents were not heard of, not {}", self.unheard))?;
        for (at, key) in &self.fated {
            let fate = self.task(key).and_then(|t| t.fate.as_ref()).map(|(at, _)| at);
            ensure(fate == Some(at), || format!("{key} has no such fate"))?;
        }
        self.sharing.check()?;
        self.check_connections()?;
        self.check_refusals()
    }

    fn check_agent(&self, ax: AgentIx, agent: &Agent) -> Checked {
        let ledger = &agent.ledger;
        ensure(ledger.is_balanced(), || format!("used + offered + free is not total: {ledger:?}"))?;
        let mut used = Resources::default();
        for key in &agent.tasks {
            let task = self.task(key).ok_or(format!("{key} is not a task of its framework"))?;
            ensure(task.agent == agent.info.id, || format!("{key} is bound to {}", task.agent))?;
            ensure(!task.state.is_terminal(), || format!("{key} has ended and is still here"))?;
            used = used.checked_add(&task.held).map_err(|e| e.to_string())?;
        }
        for held in agent.orphans.values() {
            used = used.checked_add(held).map_err(|e| e.to_string())?;
        }
        ensure(used == *ledger.used(), || format!("tasks hold {used}, the books say {}", ledger.used()))?;
        let mut offered = Resources::default();
        for number in &agent.offers {
            let offer = self.offers.get(number).ok_or(format!("offer {number} does not exist"))?;
            ensure(offer.agent == ax, || format!("offer {number} is of another agent"))?;
            offered = offered.checked_add(&offer.resources).map_err(|e| e.to_string())?;
        }
        ensure(offered == *ledger.offered(), || format!("offers hold {offered}, the books say {}", ledger.offered()))?;
        ensure(agent.conn().is_some() || agent.offers.is_empty(), || "it is away and offered".into())?;
        if let AgentLink::Away { due, .. } = agent.link {
            ensure(self.away.contains(&(due, ax)), || "its absence is not noted".into())?;
        }
        ensure(agent.is_offerable() == self.offerable.contains(&ax), || "it is wrong in the set of free agents".into())
    }

    fn check_framework(&self, fx: FrameworkIx, framework: &Framework) -> Checked {
        let (mut used, mut offered, mut pending) = (Sum::default(), Sum::default(), 0);
        for (attempt, task) in &framework.tasks {
            used.add(&task.held);
            let key = framework.key(attempt);
            let ended = task.state.is_terminal();
            ensure(!ended || task.held.is_empty(), || format!("{key} has ended and holds {}", task.held))?;
            ensure(!ended || !task.pending.is_empty(), || format!("{key} has ended and nobody waits for an acknowledgement"))?;
            ensure(task.acknowledged <= task.seq, || format!("{key}: acknowledged beyond what there is"))?;
            ensure(!framework.done.contains(attempt), || format!("{key} is remembered as ended while it exists"))?;
            let agent = self.agents.find(&task.agent).and_then(|ax| self.agents.get(ax));
            let there = agent.is_some_and(|a| a.tasks.contains(&key));
            ensure(ended || there || task.held.is_empty(), || format!("{key} holds resources of an agent that does not know it"))?;
            let fated = task.fate.as_ref().map(|(at, _)| (*at, key.clone()));
            ensure(fated.as_ref().is_none_or(|f| self.fated.contains(f)), || format!("{key}: its fate is not noted"))?;
            ensure(ended || there || fated.is_some(), || format!("{key} is on no agent and will never end"))?;
            ensure(!ended || fated.is_none(), || format!("{key} has ended and still waits for its lease"))?;
            let numbers: Vec<u64> = task.pending.iter().map(|u| u.key.seq).collect();
            let sorted = numbers.iter().zip(numbers.iter().skip(1)).all(|(a, b)| a < b);
            let within = numbers.first().is_none_or(|n| *n > task.acknowledged) && numbers.last().is_none_or(|n| *n == task.seq);
            ensure(sorted && within, || {
                format!("{key}: updates {numbers:?} wait, {} is acknowledged, {} the last", task.acknowledged, task.seq)
            })?;
            ensure(!task.exclusive || task.state != TaskState::Unreachable, || format!("{key} is exclusive and UNREACHABLE"))?;
            pending += task.pending.iter().map(StatusUpdate::weight).sum::<usize>();
        }
        for number in &framework.offers {
            let offer = self.offers.get(number).ok_or(format!("offer {number} does not exist"))?;
            ensure(offer.framework == fx, || format!("offer {number} is another framework's"))?;
            offered.add(&offer.resources);
        }
        let holding = self.shares.of(fx).ok_or("it has no share")?;
        ensure(holding.used == used, || "its share counts other tasks than it has".into())?;
        ensure(holding.offered == offered, || "its share counts other offers than it has".into())?;
        ensure(self.shares.is_eager(fx) == framework.wants_offers(), || "it is wrong in the order of shares".into())?;
        ensure(pending == framework.pending_bytes, || format!("updates of {pending} bytes wait, not {}", framework.pending_bytes))?;
        if let FrameworkLink::Away { until } = framework.link {
            ensure(self.framework_away.contains(&(until, fx)), || "its absence is not noted".into())?;
        }
        ensure(framework.conn().is_some() || framework.offers.is_empty(), || "it is away and holds offers".into())
    }

    fn check_connections(&self) -> Checked {
        for (conn, ax) in &self.agent_conns {
            let there = self.agents.get(*ax).and_then(Agent::conn) == Some(*conn);
            ensure(there, || format!("{conn} is of an agent that has another one"))?;
        }
        for (conn, fx) in &self.framework_conns {
            let there = self.frameworks.get(*fx).and_then(Framework::conn) == Some(*conn);
            ensure(there, || format!("{conn} is of a framework that has another one"))?;
        }
        Ok(())
    }

    fn check_refusals(&self) -> Checked {
        let kept: usize = self.frameworks.iter().map(|(_, _, f)| f.refusals.iter().count()).sum();
        ensure(kept == self.refusal_ends.len(), || "refusals and their ends differ in number".into())?;
        for (until, fx, ax) in &self.refusal_ends {
            let refusal = self.frameworks.get(*fx).and_then(|f| f.refusals.get(*ax));
            ensure(refusal.is_some_and(|r| r.until == *until), || "the end of a refusal is not that of the refusal".into())?;
        }
        Ok(())
    }
}
