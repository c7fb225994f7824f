//! What must be true between any two steps, checked over the whole state: for tests and the simulation.

use crate::agents::Agent;
use crate::frameworks::Framework;
use crate::master::Master;
use crate::slab::{AgentIx, FrameworkIx};
use crate::sum::Sum;
use smalti_types::Resources;

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
        ensure(agent.conn().is_none() == self.away.contains(&ax), || "its absence is not noted".into())?;
        ensure(agent.is_offerable() == self.offerable.contains(&ax), || "it is wrong in the set of free agents".into())
    }

    fn check_framework(&self, fx: FrameworkIx, framework: &Framework) -> Checked {
        let (mut used, mut offered) = (Sum::default(), Sum::default());
        for (attempt, task) in &framework.tasks {
            used.add(&task.held);
            let key = framework.key(attempt);
            let ended = task.state.is_terminal();
            ensure(!ended || task.held.is_empty(), || format!("{key} has ended and holds {}", task.held))?;
            ensure(!ended || task.pending.is_some(), || format!("{key} has ended and nobody waits for an acknowledgement"))?;
            ensure(task.acknowledged <= task.seq, || format!("{key}: acknowledged beyond what there is"))?;
            ensure(!framework.done.contains(attempt), || format!("{key} is remembered as ended while it exists"))?;
            let agent = self.agents.find(&task.agent).and_then(|ax| self.agents.get(ax));
            let there = agent.is_some_and(|a| a.tasks.contains(&key));
            ensure(ended || there || task.held.is_empty(), || format!("{key} holds resources of an agent that does not know it"))?;
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
        ensure(framework.conn().is_none() == self.framework_away.contains(&fx), || "its absence is not noted".into())?;
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
