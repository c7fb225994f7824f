//! What the master knows of one framework; how one subscribes, fails over, suppresses, revives and is removed.

use crate::agents::Agent;
use crate::done::Memory;
use crate::event::{Conn, Message, Record};
use crate::filters::Refusals;
use crate::limits::{MAX_ENTRIES, MAX_FRAMEWORKS, MAX_NAME, MAX_SPAN_MS, MAX_TEXT};
use crate::master::Master;
use crate::slab::FrameworkIx;
use crate::tasks::{Attempt, Task};
use crate::{AgentMessage, Effects, shares::Column};
use smalti_types::protocol::{AgentCommand, Claim, FrameworkEvent, REMOVED_FRAMEWORK, Subscription};
use smalti_types::{FrameworkId, FrameworkInfo, Reason, Role, Sabotage, TaskKey, TaskState, Time};
use std::collections::{BTreeMap, BTreeSet};

/// Whether a framework's scheduler is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameworkLink {
    /// It has a connection.
    Connected(Conn),
    /// It has none; it is removed at that time unless it comes back.
    Away {
        /// End of its fail-over time.
        until: Time,
    },
}

/// One framework.
#[derive(Debug)]
pub(crate) struct Framework {
    pub(crate) id: FrameworkId,
    pub(crate) info: FrameworkInfo,
    pub(crate) link: FrameworkLink,
    /// Which of its schedulers subscribed last: none before it is heard any more.
    pub(crate) claim: Claim,
    /// Wants no offers until it revives.
    pub(crate) suppressed: bool,
    pub(crate) refusals: Refusals,
    /// How often in a row its offers were taken back because it did not answer.
    pub(crate) unanswered: u32,
    /// Attempts that have not ended, or whose end waits for the framework's acknowledgement.
    pub(crate) tasks: BTreeMap<Attempt, Task>,
    /// Bytes of all updates that wait for its acknowledgement.
    pub(crate) pending_bytes: usize,
    /// Since it came back: from this attempt on, updates that wait were not sent yet.
    pub(crate) resend: Option<Attempt>,
    /// A reconciliation of everything that is being answered: from this attempt on, answers are owed.
    pub(crate) recite: Option<Attempt>,
    /// Attempts that ended: their first terminal state and its reason.
    pub(crate) done: Memory<Attempt, (TaskState, Reason)>,
    /// Numbers of the offers it holds.
    pub(crate) offers: BTreeSet<u64>,
    /// Its id was given in this life of the master, so no task of it can be unknown here.
    pub(crate) born_here: bool,
    pub(crate) registered: Time,
    /// Counts subscriptions: of services with the same name, the newest wins.
    pub(crate) subscription: u64,
}

impl Framework {
    pub(crate) fn conn(&self) -> Option<Conn> {
        match self.link {
            FrameworkLink::Connected(conn) => Some(conn),
            FrameworkLink::Away { .. } => None,
        }
    }

    pub(crate) fn wants_offers(&self) -> bool {
        self.conn().is_some() && !self.suppressed
    }

    /// Whether updates of this attempt wait for their turn: the ones before them were not sent yet.
    pub(crate) fn is_held_back(&self, attempt: &Attempt) -> bool {
        self.resend.as_ref().is_some_and(|from| attempt >= from)
    }

    pub(crate) fn key(&self, attempt: &Attempt) -> TaskKey {
        TaskKey { framework: self.id.clone(), task: attempt.0.clone(), attempt: attempt.1 }
    }
}

/// Checks what a framework says about itself.
fn check_info(info: &FrameworkInfo) -> Result<(), String> {
    let too_long = |field: &str, text: &str, most: usize| {
        if text.len() > most { Err(format!("{field} has {} bytes, at most {most} are allowed", text.len())) } else { Ok(()) }
    };
    too_long("info.name", &info.name, MAX_NAME)?;
    too_long("info.principal", &info.principal, MAX_NAME)?;
    if info.failover_timeout.0 > MAX_SPAN_MS {
        return Err(format!("info.failover_timeout of {} ms is above {MAX_SPAN_MS}", info.failover_timeout.0));
    }
    if info.services.len() > MAX_ENTRIES {
        return Err(format!("info.services has {} entries, at most {MAX_ENTRIES} are allowed", info.services.len()));
    }
    info.services.iter().try_for_each(|(name, address)| {
        too_long("info.services: a name", name, MAX_NAME)?;
        too_long("info.services: an address", address, MAX_TEXT)
    })
}

impl Master {
    /// A scheduler wants to be a framework: a new one, or one that it was before.
    pub(crate) fn framework_subscribed(
        &mut self,
        now: Time,
        conn: Conn,
        subscription: Subscription,
        fresh: FrameworkId,
        out: &mut Effects,
    ) {
        let Subscription { info, id, claim } = subscription;
        let born_here = id.is_none();
        let id = id.unwrap_or(fresh);
        let known = self.frameworks.find(&id);
        let refused = self.may_subscribe(&id, &info, known.is_some()).err().map(FrameworkEvent::Error);
        if let Some(event) = refused.or_else(|| self.is_fenced(known?, claim)) {
            let (FrameworkEvent::Error(reason) | FrameworkEvent::Fenced { message: reason, .. }) = event.clone() else { return };
            out.send(Message::ToFramework { conn, event });
            out.send(Message::Close { conn, reason });
            return;
        }
        let until = now.after(info.failover_timeout);
        let fx = known.unwrap_or_else(|| self.add_framework(now, id.clone(), info.clone(), born_here, until));
        self.fence_out(fx, out);
        self.end_framework_absence(fx);
        self.subscriptions += 1;
        let subscriptions = self.subscriptions;
        let Some(framework) = self.frameworks.get_mut(fx) else { return };
        framework.link = FrameworkLink::Connected(conn);
        framework.claim = claim;
        framework.info = info.clone();
        framework.suppressed = false;
        framework.subscription = subscriptions;
        (framework.resend, framework.recite) = (framework.tasks.keys().next().cloned(), None);
        self.framework_conns.insert(conn, fx);
        self.shares.change_role(fx, &info.role);
        out.persist(Record::Framework { id: id.clone(), info, claim, away_until: None });
        out.send(Message::ToFramework { conn, event: FrameworkEvent::Subscribed { framework: id, epoch: self.epoch } });
        self.send_pending_again(fx, self.config.resend_window, out);
        self.revive(fx);
    }

    fn may_subscribe(&self, id: &FrameworkId, info: &FrameworkInfo, known: bool) -> Result<(), String> {
        check_info(info)?;
        if self.removed.contains(id) {
            return Err(format!("framework {id} {REMOVED_FRAMEWORK}"));
        }
        if !known && self.frameworks.len() >= MAX_FRAMEWORKS {
            return Err(format!("there are {MAX_FRAMEWORKS} frameworks already, no more are allowed"));
        }
        Ok(())
    }

    /// Why a scheduler may not have this framework: another one does, and this is not its successor. It was heard late, or did not know.
    fn is_fenced(&self, fx: FrameworkIx, claim: Claim) -> Option<FrameworkEvent> {
        let framework = self.frameworks.get(fx)?;
        if claim.follows(framework.claim) || Sabotage::MasterIgnoresClaims.is_on() {
            return None;
        }
        let (id, last) = (&framework.id, framework.claim);
        let message = format!(
            "another scheduler has framework {id}: it subscribed as number {}.{}, this one as number {}.{}; to take over, start a scheduler \
             anew",
            last.life, last.turn, claim.life, claim.turn
        );
        Some(FrameworkEvent::Fenced { life: last.life, message })
    }

    /// Adds a framework that is not connected yet, and is removed at `until` if it does not.
    pub(crate) fn add_framework(&mut self, now: Time, id: FrameworkId, info: FrameworkInfo, born_here: bool, until: Time) -> FrameworkIx {
        let role = info.role.clone();
        let framework = Framework {
            id: id.clone(),
            info,
            link: FrameworkLink::Away { until },
            claim: Claim::default(),
            suppressed: false,
            refusals: Refusals::default(),
            unanswered: 0,
            tasks: BTreeMap::new(),
            pending_bytes: 0,
            resend: None,
            recite: None,
            done: Memory::new(self.config.remembered_attempts),
            offers: BTreeSet::new(),
            born_here,
            registered: now,
            subscription: 0,
        };
        let fx = self.frameworks.insert(id, framework);
        self.shares.join(fx, role);
        self.framework_away.insert((until, fx));
        fx
    }

    /// A framework of which only tasks are known, brought back by an agent: it waits for its scheduler.
    /// `None` when there are too many already.
    pub(crate) fn add_unknown_framework(&mut self, now: Time, id: FrameworkId) -> Option<FrameworkIx> {
        if self.frameworks.len() >= MAX_FRAMEWORKS {
            return None;
        }
        let info = FrameworkInfo {
            name: String::new(),
            principal: String::new(),
            role: Role::default(),
            failover_timeout: self.config.orphan_timeout,
            services: BTreeMap::new(),
        };
        Some(self.add_framework(now, id, info, false, now.after(self.config.orphan_timeout)))
    }

    /// Ends an earlier connection under the same id: one scheduler at a time.
    fn fence_out(&mut self, fx: FrameworkIx, out: &mut Effects) {
        let Some(conn) = self.frameworks.get(fx).and_then(Framework::conn) else { return };
        let reason = "another scheduler took over: it subscribed with this framework's id".to_owned();
        self.tell(fx, FrameworkEvent::Error(reason.clone()), out);
        out.send(Message::Close { conn, reason });
        if !Sabotage::MasterHearsFenced.is_on() {
            self.framework_conns.remove(&conn);
        }
        self.void_offers_of(fx);
    }

    /// Its scheduler is back, or it is removed: it is not away any more.
    fn end_framework_absence(&mut self, fx: FrameworkIx) {
        if let Some(FrameworkLink::Away { until }) = self.frameworks.get(fx).map(|f| f.link) {
            self.framework_away.remove(&(until, fx));
        }
    }

    /// Updates that wait for an acknowledgement, at once and not only when the agents send them again. A window of them: the rest
    /// follows as the framework acknowledges, so that a million of them do not flood a scheduler that has just come back.
    pub(crate) fn send_pending_again(&mut self, fx: FrameworkIx, most: usize, out: &mut Effects) {
        let Some(framework) = self.frameworks.get_mut(fx) else { return };
        let (Some(from), Some(conn)) = (framework.resend.take(), framework.conn()) else { return };
        let mut left = most;
        for (attempt, task) in framework.tasks.range(from..) {
            if left == 0 {
                framework.resend = Some(attempt.clone());
                break;
            }
            if task.pending.is_empty() {
                continue;
            }
            left = left.saturating_sub(task.pending.len());
            if Sabotage::MasterLosesOnFailover.is_on() {
                let agent = self.agents.find(&task.agent).and_then(|ax| self.agents.get(ax)).and_then(Agent::conn);
                let key = TaskKey { framework: framework.id.clone(), task: attempt.0.clone(), attempt: attempt.1 };
                agent
                    .into_iter()
                    .for_each(|conn| Self::acknowledge_myself(conn, smalti_types::UpdateKey { task: key.clone(), seq: task.seq }, out));
                continue;
            }
            let updates = task.pending.iter().map(|u| (Some(task.agent.clone()), u.clone())).collect();
            out.send(Message::ToFramework { conn, event: FrameworkEvent::Updates(updates) });
        }
        self.note_owed(fx);
    }

    /// Keeps the set of frameworks to which something is owed with each tick.
    pub(crate) fn note_owed(&mut self, fx: FrameworkIx) {
        if self.frameworks.get(fx).is_some_and(|f| f.conn().is_some() && (f.resend.is_some() || f.recite.is_some())) {
            self.owed.insert(fx);
        } else {
            self.owed.remove(&fx);
        }
    }

    /// Goes on with what is owed to frameworks: acknowledgements may be lost, so a few updates go out even without them.
    pub(crate) fn pay_owed(&mut self, now: Time, out: &mut Effects) {
        for fx in self.owed.iter().copied().collect::<Vec<_>>() {
            self.send_pending_again(fx, self.config.resend_window.div_ceil(100), out);
            self.recite(now, fx, out);
        }
    }

    /// The connection ended. Tasks live on for the fail-over time, offers do not.
    pub(crate) fn framework_disconnected(&mut self, now: Time, conn: Conn, out: &mut Effects) {
        let Some(fx) = self.framework_conns.remove(&conn) else { return };
        self.void_offers_of(fx);
        let Some(framework) = self.frameworks.get_mut(fx) else { return };
        let until = now.after(framework.info.failover_timeout);
        framework.link = FrameworkLink::Away { until };
        let (id, info, claim) = (framework.id.clone(), framework.info.clone(), framework.claim);
        out.persist(Record::Framework { id, info, claim, away_until: Some(until) });
        self.framework_away.insert((until, fx));
        self.owed.remove(&fx);
        self.shares.set_eager(fx, false);
    }

    /// Removes frameworks whose fail-over time is over.
    pub(crate) fn end_failovers(&mut self, now: Time, out: &mut Effects) {
        while let Some((until, fx)) = self.framework_away.first().copied().filter(|(until, _)| *until <= now) {
            self.remove_framework(now, fx, "its fail-over time is over", out);
            self.framework_away.remove(&(until, fx));
        }
    }

    /// Forgets what this framework refused; everything that is free is considered again.
    pub(crate) fn revive(&mut self, fx: FrameworkIx) {
        self.forget_refusals_by(fx);
        let Some(framework) = self.frameworks.get_mut(fx) else { return };
        framework.suppressed = false;
        let eager = framework.wants_offers();
        self.shares.set_eager(fx, eager);
        self.dirty.extend(&self.offerable);
    }

    /// No more offers until the framework revives. What it holds it keeps.
    pub(crate) fn suppress(&mut self, fx: FrameworkIx) {
        if let Some(framework) = self.frameworks.get_mut(fx) {
            framework.suppressed = true;
        }
        self.shares.set_eager(fx, false);
    }

    /// Removes a framework for good. Its tasks are killed; what they hold stays in the books until the agents say that
    /// they ended.
    pub(crate) fn remove_framework(&mut self, now: Time, fx: FrameworkIx, why: &str, out: &mut Effects) {
        self.void_offers_of(fx);
        self.forget_refusals_by(fx);
        let Some(framework) = self.frameworks.get(fx) else { return };
        let id = framework.id.clone();
        if let Some(conn) = framework.conn() {
            self.framework_conns.remove(&conn);
            out.send(Message::Close { conn, reason: format!("framework {id} was removed: {why}") });
        }
        self.end_framework_absence(fx);
        self.owed.remove(&fx);
        let Some(framework) = self.frameworks.remove(&id) else { return };
        self.pending_bytes -= framework.pending_bytes;
        for (attempt, task) in &framework.tasks {
            let key = framework.key(attempt);
            if let Some((at, _)) = &task.fate {
                self.fated.remove(&(*at, key.clone()));
            }
            self.shares.sub(fx, Column::Used, &task.held);
            let Some(agent) = self.agents.find(&task.agent).and_then(|ax| self.agents.get_mut(ax)) else { continue };
            if agent.tasks.remove(&key) {
                agent.orphans.insert(key.clone(), task.held.clone());
            }
            if task.state.is_terminal() {
                Self::acknowledge_for_removed(agent, &key, task, out);
            } else if let Some(conn) = agent.conn() {
                let kill = AgentCommand::Kill { task: key, grace: None };
                out.send(Message::ToAgent { conn, message: AgentMessage::Command(kill) });
            }
        }
        self.shares.leave(fx);
        out.persist(Record::FrameworkRemoved { id: id.clone(), at: now });
        if let Some(forgotten) = self.removed.remember(id, ()) {
            out.persist(Record::FrameworkForgotten(forgotten));
        }
    }

    /// Nobody will acknowledge the end of this task any more: the master does.
    fn acknowledge_for_removed(agent: &Agent, key: &TaskKey, task: &Task, out: &mut Effects) {
        if let Some(conn) = agent.conn() {
            Self::acknowledge_myself(conn, smalti_types::UpdateKey { task: key.clone(), seq: task.seq }, out);
        }
    }
}
