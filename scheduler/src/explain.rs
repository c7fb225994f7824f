//! Why a job is where it is, in words and as JSON: what it waits for, and agent by agent what keeps it from there.

use crate::cluster::Cluster;
use serde_json::{Value, json};
use smalti_proto::v1::AgentStatus;
use smalti_scheduler_core::{Again, Constraint, Job, JobView, Patience, Request, Stage};
use smalti_types::{Attributes, Bytes, Resources, Time};
use std::fmt::Write as _;

/// Agents named one by one in an answer; the rest is counted.
const MOST_AGENTS: usize = 50;

/// What of a job the explanation needs, taken from the event loop.
#[derive(Debug)]
pub(crate) struct Facts {
    view: JobView,
    waits: bool,
    needs: Needs,
    tasks: Vec<String>,
    patience: Option<Patience>,
}

/// What the next task or slot needs.
#[derive(Debug, Clone)]
pub(crate) struct Needs {
    pub(crate) resources: Resources,
    pub(crate) ports: u32,
    pub(crate) constraints: Vec<Constraint>,
}

impl Needs {
    pub(crate) fn of(request: &Request<'_>) -> Self {
        Self { resources: request.resources.clone(), ports: request.ports, constraints: request.constraints.to_vec() }
    }

    fn request(&self) -> Request<'_> {
        Request { resources: &self.resources, ports: self.ports, constraints: &self.constraints, avoided: &[] }
    }

    /// Why this agent can never take it; `None` when it could if it were empty.
    pub(crate) fn never(&self, agent: &AgentStatus) -> Option<String> {
        let info = agent.info.as_ref()?;
        self.request().why_not(&resources(info.total.clone()), &attributes(info))
    }
}

/// What agents have of the job, a line each.
fn places(job: &Job, now: Time) -> Vec<String> {
    let run = job.state.run.iter().filter(|r| r.is_placed()).map(|r| {
        let agent = r.agent.as_ref().map(ToString::to_string).unwrap_or_default();
        let progress =
            r.progress.as_ref().map_or_else(String::new, |(permille, text)| format!(": {}.{} %, {text}", permille / 10, permille % 10));
        format!("{} (attempt {}) is {} on agent {agent}{progress}", r.task, r.attempt(), r.state)
    });
    let again = job.again().map(|again| in_words(&again, now));
    let parts = job.state.pool.iter().flat_map(|p| p.parts()).filter(|(_, p)| p.is_live()).map(|(_, p)| {
        format!(
            "agent {}: {}, {} slots, {} items handed out, {} finished{}",
            p.agent,
            p.state,
            p.slots,
            p.outstanding.len(),
            p.finished.len(),
            // How far it is with what it fetches.
            if p.message.is_empty() { String::new() } else { format!(", {}", p.message) }
        )
    });
    let avoided = if job.state.outcome.is_none() { job.avoids() } else { Vec::new() };
    let delivery = job.spec.output_store.iter().filter(|_| job.state.outcome.is_none()).map(|store| {
        let (there, store) = (&job.state.delivery, smalti_fetch::shown(store));
        let trouble = there.trouble.as_ref().map_or_else(String::new, |why| format!("; {why}; it is tried again"));
        format!("outputs go to {store}: those of {} items are there{trouble}", there.stored.len())
    });
    let patience = job.waits_for(now).map(|patience| waiting(patience, now));
    run.chain(again).chain(patience).chain(parts).chain(delivery).chain(avoided).take(MOST_AGENTS).collect()
}

/// What failed last, and when it is tried again.
fn in_words(again: &Again, now: Time) -> String {
    let Again { failure, items, next, not_before, infrastructure } = again;
    let what = match items {
        0 => format!("attempt {}", failure.attempt),
        1 => format!("attempt {} of an item", failure.attempt),
        n => format!("attempt {} of {n} items", failure.attempt),
    };
    let place = failure.agent.as_ref().map_or_else(String::new, |agent| format!(" on agent {agent}"));
    let blame = if *infrastructure { ", for the infrastructure's sake: it does not count against --retries" } else { "" };
    let then = match not_before {
        None => format!("attempt {next} has begun"),
        Some(at) if *at > now => format!("attempt {next} begins in {} ms at the earliest", at.micros_since(now).div_ceil(1_000)),
        Some(_) if *items > 0 => format!("attempt {next} begins as soon as there is room"),
        Some(_) => format!("attempt {next} waits for an offer"),
    };
    format!("{what} ended {}{place} ({}: {}){blame}; {then}", failure.state, failure.reason, failure.message)
}

/// Whom the job waits for although others have room.
fn waiting(patience: &Patience, now: Time) -> String {
    let tenths = patience.until.micros_since(now).div_ceil(100_000);
    format!(
        "waits up to {}.{} s more for room on agent {}, which holds {} of its input; then it goes elsewhere",
        tenths / 10,
        tenths % 10,
        patience.agent,
        Bytes(patience.bytes)
    )
}

fn patience_json(patience: &Patience) -> Value {
    let Patience { agent, bytes, since, until, .. } = patience;
    json!({ "agent": agent.to_string(), "input_bytes": bytes, "since_us": since.0, "until_us": until.0 })
}

fn again_json(again: &Again) -> Value {
    let Again { failure, items, next, not_before, infrastructure } = again;
    json!({
        "attempt": failure.attempt, "state": failure.state.as_str(), "reason": failure.reason.as_str(), "message": failure.message,
        "agent": failure.agent.as_ref().map(ToString::to_string), "items": items, "infrastructure": infrastructure,
        "next_attempt": next, "not_before_us": not_before.map(|t| t.0),
    })
}

fn resources(wire: Option<smalti_proto::v1::Resources>) -> Resources {
    wire.and_then(|r| Resources::try_from(r).ok()).unwrap_or_default()
}

fn attributes(info: &smalti_proto::v1::AgentInfo) -> Attributes {
    Attributes(info.attributes.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
}

/// Name of an agent for people.
pub(crate) fn name(agent: &AgentStatus) -> String {
    agent
        .info
        .as_ref()
        .map_or_else(|| "?".into(), |i| if i.hostname.is_empty() { i.id.clone() } else { format!("{} ({})", i.id, i.hostname) })
}

impl Facts {
    pub(crate) fn of(job: &Job, now: Time) -> Self {
        let waiting_task =
            matches!(job.state.stage, Stage::Single | Stage::Reduce) && !job.state.run.as_ref().is_some_and(|r| r.is_placed());
        let waiting_items = job.state.stage == Stage::Map && job.state.pool.as_ref().is_some_and(|p| p.ready() > 0 && p.slots() == 0);
        Self {
            view: job.view(),
            waits: waiting_task || waiting_items,
            needs: Needs::of(&job.request()),
            tasks: places(job, now),
            patience: job.waits_for(now).cloned(),
        }
    }

    /// The explanation: text, and the same as JSON.
    pub(crate) async fn explain(self, cluster: &Cluster) -> (String, String) {
        let view = &self.view;
        let mut text = format!("job {} ({}): {}", view.job, view.name, view.state);
        if !view.phase.is_empty() {
            let _ = write!(text, ", {}", view.phase);
        }
        if view.kind == "map" {
            let _ = write!(
                text,
                "; {} of {} items finished, {} failed, {} handed out",
                view.items_finished, view.items_total, view.items_failed, view.items_running
            );
        }
        let mut json = json!({
            "job_id": view.job.to_string(), "state": view.state, "phase": view.phase, "reason": view.reason.as_str(),
            "message": view.message, "exit_code": view.exit_code, "waits": self.waits, "agents": [], "again": view.again.as_ref().map(again_json),
            "waits_for": self.patience.as_ref().map(patience_json),
        });
        if !view.message.is_empty() {
            let _ = write!(
                text,
                "\n{}{}",
                if view.reason.as_str().is_empty() { String::new() } else { format!("{}: ", view.reason) },
                view.message
            );
        }
        for task in &self.tasks {
            let _ = write!(text, "\n  {task}");
        }
        if self.waits && view.exit_code.is_none() {
            let agents = self.agents(cluster, &mut text).await;
            if let Some(map) = json.as_object_mut() {
                map.insert("agents".into(), Value::Array(agents));
                map.insert("needs".into(), Value::String(self.needs.resources.to_string()));
            }
        }
        text.push('\n');
        (text, json.to_string())
    }

    async fn agents(&self, cluster: &Cluster, text: &mut String) -> Vec<Value> {
        let ports = if self.needs.ports > 0 { format!(", {} ports", self.needs.ports) } else { String::new() };
        let _ = write!(text, "\nwaits for {}{ports}", self.needs.resources);
        let agents = match cluster.agents().await {
            Ok(agents) => agents,
            Err(status) => {
                let _ = write!(text, "\nthe master cannot be asked about agents: {}", status.message());
                return Vec::new();
            }
        };
        if agents.is_empty() {
            text.push_str("\nno agents are registered with the master");
        }
        let mut list = Vec::new();
        for agent in agents.iter().take(MOST_AGENTS) {
            let why = self.why_not(agent);
            let _ = write!(text, "\n  {}: {why}", name(agent));
            list.push(json!({ "agent": agent.info.as_ref().map(|i| i.id.clone()), "state": agent.state, "why": why }));
        }
        if agents.len() > MOST_AGENTS {
            let _ = write!(text, "\n  and {} more agents", agents.len() - MOST_AGENTS);
        }
        list
    }

    fn why_not(&self, agent: &AgentStatus) -> String {
        let Some(info) = &agent.info else { return "says nothing about itself".into() };
        if agent.state != "active" {
            return format!("is {}", agent.state);
        }
        let attributes = attributes(info);
        let request = self.needs.request();
        if let Some(why) = request.why_not(&resources(info.total.clone()), &attributes) {
            return format!("can never run it: {why}");
        }
        match request.why_not(&resources(agent.free.clone()), &attributes) {
            Some(why) => format!("is busy: {why}"),
            None if self.patience.as_ref().is_some_and(|p| p.agent.as_str() != info.id) => {
                "has room, and less of the input: its offers are let pass for now".into()
            }
            None => "has room: an offer should come at once, unless it goes to a framework that has less".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smalti_scheduler_core::{Event, JobId, JobSpec, Policy, Scheduler, SingleSpec, Work};
    use smalti_types::protocol::FrameworkEvent;
    use smalti_types::{
        AgentId, BundleRef, Digest, FrameworkId, HoldingKey, Input, MasterEpoch, MilliCpus, Offer, OfferId, Role, TaskSpec,
    };

    fn offer(number: u64, milli: u64, holdings: Vec<HoldingKey>) -> Offer {
        Offer {
            id: OfferId { epoch: MasterEpoch(1), number },
            framework: FrameworkId::new("F1-0").unwrap(),
            role: Role::default(),
            agent: AgentId::new(format!("a{number}")).unwrap(),
            hostname: String::new(),
            resources: Resources::new(MilliCpus(milli), Bytes::gib(1)),
            attributes: Attributes::default(),
            holdings,
        }
    }

    #[test]
    fn a_job_that_lets_offers_pass_says_for_whom_and_how_long() {
        let digest = Some(Digest::of(b"data"));
        let data = Input { guest_path: Some("/data".into()), uri: None, digest, length: 64 << 20, etag: None, packing: None };
        let held = HoldingKey::of_input(&data).into_iter().collect();
        let task = TaskSpec { inputs: vec![data], ..TaskSpec::new(BundleRef { digest: Digest::of(b"x"), uri: None }) };
        let single = SingleSpec { spec: task, resources: Resources::new(MilliCpus(1_000), Bytes::mib(1)), ports: 0 };
        let id = JobId::new(1, 0);
        let spec = JobSpec {
            id,
            request: String::new(),
            name: "n".into(),
            role: Role::default(),
            policy: Policy::default(),
            work: Work::Single(Box::new(single)),
            output_store: None,
        };
        let mut core = Scheduler::new();
        let offers = FrameworkEvent::Offers(vec![offer(1, 10, held), offer(2, 4_000, Vec::new())]);
        for event in [Event::Submit(spec.into()), Event::Framework { role: Role::default(), event: offers }] {
            let _ = core.step(Time(1_000_000), event);
        }
        let facts = |us: u64| Facts::of(core.job(id).unwrap(), Time(us));
        assert_eq!(
            facts(1_000_000).tasks,
            ["waits up to 3.0 s more for room on agent a1, which holds 64MiB of its input; then it goes elsewhere"]
        );
        assert!(facts(3_950_000).tasks[0].starts_with("waits up to 0.1 s more"), "{:?}", facts(3_950_000).tasks);
        let json = facts(3_950_000).patience.as_ref().map(patience_json).unwrap();
        assert_eq!(json, json!({ "agent": "a1", "input_bytes": 64 << 20, "since_us": 1_000_000, "until_us": 4_000_000 }));
        let info = |id: &str| smalti_proto::v1::AgentInfo {
            id: id.into(),
            total: Some(Resources::new(MilliCpus(4_000), Bytes::gib(1)).into()),
            ..Default::default()
        };
        let agent = |id: &str| AgentStatus { info: Some(info(id)), state: "active".into(), free: info(id).total, ..Default::default() };
        assert!(facts(2_000_000).why_not(&agent("a2")).contains("less of the input"));
        assert!(facts(4_000_000).why_not(&agent("a2")).contains("an offer should come") && facts(4_000_000).tasks.is_empty());
    }
}
