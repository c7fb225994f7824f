//! An agent arrives, or comes back: its list of tasks is compared with what the master thought it had.
//!
//! The agent's word counts for what runs on it; the master's word counts for what has ended (the first terminal state
//! wins): a task that the agent still has although its end was reported is an orphan, and is killed.

use crate::agents::{Agent, AgentLink};
use crate::event::{AgentMessage, Conn, Message, Record};
use crate::ledger::Ledger;
use crate::limits::{MAX_AGENTS, MAX_CUSTOM, MAX_ENTRIES, MAX_NAME, MAX_TASKS_PER_AGENT, MAX_TEXT};
use crate::master::Master;
use crate::slab::AgentIx;
use crate::tasks::{Task, Verdict};
use crate::{Effects, shares::Column};
use smalti_types::protocol::{AgentCommand, Registration, RunningTask};
use smalti_types::{AgentInfo, Reason, Resources, StatusUpdate, TaskKey, TaskState, Time};
use std::collections::{BTreeMap, BTreeSet};

/// Checks what an agent says about itself and its tasks; gives what its tasks hold together.
fn check(registration: &Registration) -> Result<Resources, String> {
    check_info(&registration.info)?;
    if registration.tasks.len() > MAX_TASKS_PER_AGENT {
        return Err(format!("tasks has {} entries, at most {MAX_TASKS_PER_AGENT} are allowed", registration.tasks.len()));
    }
    let mut keys = BTreeSet::new();
    let mut used = Resources::default();
    for task in &registration.tasks {
        if !keys.insert(&task.key) {
            return Err(format!("tasks lists {} twice", task.key));
        }
        if !task.state.is_terminal() {
            used = used.checked_add(&task.resources).map_err(|e| format!("tasks: {}: {e}", task.key))?;
        }
    }
    if let Some(lack) = registration.info.total.first_lack(&used) {
        return Err(format!("its tasks hold more than agent.total: {lack}; let them end or register with the earlier total"));
    }
    Ok(used)
}

fn check_info(info: &AgentInfo) -> Result<(), String> {
    if info.hostname.len() > MAX_NAME || info.boot_id.len() > MAX_NAME {
        return Err(format!("agent.hostname and agent.boot_id may have at most {MAX_NAME} bytes"));
    }
    if info.total.custom.len() > MAX_CUSTOM {
        return Err(format!("agent.total has {} custom resources, at most {MAX_CUSTOM} are allowed", info.total.custom.len()));
    }
    for (field, map) in [("attributes", &info.attributes.0), ("isolation", &info.isolation)] {
        if map.len() > MAX_ENTRIES || map.iter().any(|(k, v)| k.len() > MAX_NAME || v.len() > MAX_TEXT) {
            return Err(format!("agent.{field} may have at most {MAX_ENTRIES} entries of {MAX_NAME} and {MAX_TEXT} bytes"));
        }
    }
    Ok(())
}

impl Master {
    /// A new connection of an agent, known or not.
    pub(crate) fn agent_registered(&mut self, now: Time, conn: Conn, registration: Registration, out: &mut Effects) {
        let known = self.agents.find(&registration.info.id);
        let full = known.is_none() && self.agents.len() >= MAX_AGENTS;
        let checked = if full { Err(format!("there are {MAX_AGENTS} agents already")) } else { check(&registration).map(|_| ()) };
        if let Err(problem) = checked {
            out.send(Message::ToAgent { conn, message: AgentMessage::Refused(problem.clone()) });
            out.send(Message::Close { conn, reason: problem });
            return;
        }
        let Registration { info, tasks, unacknowledged } = registration;
        let listed: BTreeMap<TaskKey, RunningTask> = tasks.into_iter().map(|t| (t.key.clone(), t)).collect();
        if let Some(ax) = known {
            self.replace_connection(ax, out);
            self.end_missing(now, ax, &info, &listed, &unacknowledged, out);
        }
        // Ten thousand agents that come back after a restart as they were need not be written down again.
        if known.and_then(|ax| self.agents.get(ax)).is_none_or(|agent| agent.info != info) {
            out.persist(Record::Agent(info.clone()));
        }
        let ax = self.admit(now, conn, info, known);
        out.send(Message::ToAgent { conn, message: AgentMessage::Registered { epoch: self.epoch } });
        self.rebuild(now, conn, ax, listed, &unacknowledged, out);
        let told: BTreeSet<TaskKey> = unacknowledged.iter().map(|u| u.key.task.clone()).collect();
        for update in unacknowledged {
            self.adopt_unacknowledged(now, ax, &update);
            self.agent_update(now, conn, ax, update, out);
        }
        for key in &told {
            self.end_stray(now, ax, key, out);
        }
        self.mark_dirty(ax);
    }

    /// A second connection under one id replaces the first.
    fn replace_connection(&mut self, ax: AgentIx, out: &mut Effects) {
        self.rescind_agent(ax, out);
        self.agent_shares_no_more(ax, out);
        let Some(conn) = self.agents.get(ax).and_then(Agent::conn) else { return };
        self.agent_conns.remove(&conn);
        out.send(Message::Close { conn, reason: "the agent registered again on another connection".to_owned() });
    }

    /// Ends what the master thought was on this agent and is not there any more.
    fn end_missing(
        &mut self,
        now: Time,
        ax: AgentIx,
        info: &AgentInfo,
        listed: &BTreeMap<TaskKey, RunningTask>,
        unacknowledged: &[StatusUpdate],
        out: &mut Effects,
    ) {
        let Some(agent) = self.agents.get(ax) else { return };
        let (rebooted, restarted) = (agent.info.boot_id != info.boot_id, agent.info.incarnation != info.incarnation);
        let ended: BTreeSet<&TaskKey> = unacknowledged.iter().filter(|u| u.state.is_terminal()).map(|u| &u.key.task).collect();
        let strays = if restarted && !rebooted { self.lease_end(agent) } else { Time::default() };
        let earlier_boot = rebooted && !agent.heard;
        let keys = agent.tasks.clone();
        if let Some(agent) = self.agents.get_mut(ax) {
            agent.strays_until = agent.strays_until.max(strays);
            agent.rebooted |= earlier_boot;
        }
        for key in keys {
            if listed.get(&key).is_some_and(|t| !t.state.is_terminal()) || ended.contains(&key) {
                continue;
            }
            let heard = self.task(&key).is_some_and(|t| t.heard);
            let verdict: Verdict = if rebooted {
                (TaskState::Gone, Reason::AgentRestarted, format!("the machine of agent {} restarted", info.id))
            } else if restarted || heard {
                (TaskState::Lost, Reason::AgentRestarted, format!("agent {} came back without this task", info.id))
            } else {
                (TaskState::Dropped, Reason::AgentDisconnected, format!("the launch never reached agent {}", info.id))
            };
            if restarted && !rebooted {
                self.end_or_await_lease(now, ax, &key, verdict, out); // Its executors may have outlived what it knew of them.
            } else {
                self.end_task(now, &key, verdict, out);
            }
        }
    }

    /// Puts the agent into the books, with nothing on it yet.
    fn admit(&mut self, now: Time, conn: Conn, info: AgentInfo, known: Option<AgentIx>) -> AgentIx {
        let link = AgentLink::Connected(conn);
        if let Some(ax) = known {
            self.end_absence(ax);
        }
        self.shares.add_total(&info.total);
        let ledger = Ledger::open(info.total.clone(), Resources::default()).expect("nothing is in use");
        let ax = if let Some(ax) = known {
            self.detach_tasks(ax);
            if let Some(agent) = self.agents.get_mut(ax) {
                self.shares.sub_total(agent.ledger.total());
                (agent.info, agent.link, agent.ledger, agent.registered) = (info, link, ledger, now);
                self.unheard -= usize::from(!agent.heard);
                agent.heard = true;
            }
            ax
        } else {
            self.agents.insert(info.id.clone(), Agent::new(info, link, ledger, now))
        };
        self.agent_conns.insert(conn, ax);
        ax
    }

    /// Takes everything that the agent's tasks hold out of the books; [`Self::rebuild`] puts in what they hold now.
    fn detach_tasks(&mut self, ax: AgentIx) {
        let Some(agent) = self.agents.get_mut(ax) else { return };
        agent.orphans.clear();
        for key in std::mem::take(&mut agent.tasks) {
            let Some(fx) = self.frameworks.find(&key.framework) else { continue };
            let Some(task) = self.task_mut(&key) else { continue };
            let held = std::mem::take(&mut task.held);
            self.shares.sub(fx, Column::Used, &held);
        }
    }

    /// Puts the agent's tasks into the books as it lists them.
    fn rebuild(
        &mut self,
        now: Time,
        conn: Conn,
        ax: AgentIx,
        listed: BTreeMap<TaskKey, RunningTask>,
        unacknowledged: &[StatusUpdate],
        out: &mut Effects,
    ) {
        let told: BTreeSet<&TaskKey> = unacknowledged.iter().map(|u| &u.key.task).collect();
        for (key, running) in listed {
            if running.state.is_terminal() {
                continue; // Holds nothing; its end comes with the unacknowledged updates.
            }
            let Some(agent) = self.agents.get_mut(ax) else { return };
            agent.ledger.take(&running.resources);
            let id = agent.info.id.clone();
            let bound_here = self.task(&key).map(|t| t.agent == id && !t.state.is_terminal());
            if self.is_over(&key) || bound_here == Some(false) {
                self.make_orphan(conn, ax, key, running.resources, out);
                continue;
            }
            let fx = self.frameworks.find(&key.framework).or_else(|| self.add_unknown_framework(now, key.framework.clone()));
            let Some(fx) = fx else {
                self.make_orphan(conn, ax, key, running.resources, out);
                continue;
            };
            self.shares.add(fx, Column::Used, &running.resources);
            self.bind(now, conn, ax, &key, running, told.contains(&key), out);
        }
    }

    /// A task whose end was reported still runs: kill it, and account for it until it ended.
    fn make_orphan(&mut self, conn: Conn, ax: AgentIx, key: TaskKey, held: Resources, out: &mut Effects) {
        let kill = AgentCommand::Kill { task: key.clone(), grace: None };
        out.send(Message::ToAgent { conn, message: AgentMessage::Command(kill) });
        if let Some(agent) = self.agents.get_mut(ax) {
            agent.orphans.insert(key, held);
        }
    }

    /// A task that the agent has and that has not ended.
    #[expect(clippy::too_many_arguments, reason = "one row of the comparison: both sides of it, and where the answers go")]
    fn bind(&mut self, now: Time, conn: Conn, ax: AgentIx, key: &TaskKey, running: RunningTask, told: bool, out: &mut Effects) {
        let Some(agent) = self.agents.get_mut(ax) else { return };
        agent.tasks.insert(key.clone());
        let id = agent.info.id.clone();
        let RunningTask { state, resources, slot_resources, exclusive, .. } = running;
        self.clear_fate(key);
        let slots = slot_resources.as_ref().map_or(0, |slot| resources.times(slot, u32::MAX));
        let Some(fx) = self.frameworks.find(&key.framework) else { return };
        let Some(framework) = self.frameworks.get_mut(fx) else { return };
        let attempt = (key.task.clone(), key.attempt);
        // An earlier life of the master may have told the framework that it ended: only the framework can say.
        let is_news = !framework.tasks.contains_key(&attempt);
        let fresh = || Task::staging(id.clone(), Resources::default(), None, 0);
        let task = framework.tasks.entry(attempt).or_insert_with(fresh);
        let was_unreachable = task.state == TaskState::Unreachable;
        task.heard = true;
        task.exclusive |= exclusive;
        (task.held, task.slot, task.slots) = (resources, slot_resources, slots);
        if was_unreachable || task.state.may_become(state) {
            task.state = state;
        }
        if let Some(grace) = task.kill {
            let kill = AgentCommand::Kill { task: key.clone(), grace };
            out.send(Message::ToAgent { conn, message: AgentMessage::Command(kill) });
        }
        if (was_unreachable || is_news) && !told {
            let verdict = (state, Reason::Reconciliation, format!("agent {id} is back"));
            self.report(now, key, Some(&id), verdict, out);
        }
    }

    /// A task of which the agent sent the end, but under a number that it had used before: nothing else will end it.
    fn end_stray(&mut self, now: Time, ax: AgentIx, key: &TaskKey, out: &mut Effects) {
        let Some(agent) = self.agents.get(ax).filter(|agent| !agent.tasks.contains(key)) else { return };
        let id = &agent.info.id;
        if self.task(key).is_some_and(|t| t.agent == *id && !t.state.is_terminal() && t.fate.is_none()) {
            let why = format!("agent {id} came back without this task, and with an end of it that cannot be its own");
            self.end_task(now, key, (TaskState::Lost, Reason::AgentRestarted, why), out);
        }
    }

    /// An update of a task that this life of the master has not seen and that is not known to have ended: its framework has
    /// not had it, so it must not be dropped.
    fn adopt_unacknowledged(&mut self, now: Time, ax: AgentIx, update: &StatusUpdate) {
        let key = &update.key.task;
        if self.task(key).is_some() || self.is_over(key) || self.agents.get(ax).is_none_or(|a| a.orphans.contains_key(key)) {
            return;
        }
        let Some(id) = self.agents.get(ax).map(|a| a.info.id.clone()) else { return };
        let fx = self.frameworks.find(&key.framework).or_else(|| self.add_unknown_framework(now, key.framework.clone()));
        if let Some(framework) = fx.and_then(|fx| self.frameworks.get_mut(fx)) {
            let task = Task::staging(id, Resources::default(), None, 0);
            framework.tasks.insert((key.task.clone(), key.attempt), task);
        }
    }
}
