//! Connections of the frameworks, one per role, each through `framework-sdk`.

use crate::event_loop::{Inbox, Input};
use smalti_framework_sdk::{Ack, Event, Events, Framework, Handle, Options};
use smalti_proto::v1::jobs_server::SERVICE_NAME as JOBS_SERVICE;
use smalti_scheduler_core::Event as CoreEvent;
use smalti_types::protocol::{Call, FrameworkEvent};
use smalti_types::{FrameworkId, Role};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;

/// Batches of calls that wait for the connection.
const CALL_QUEUE: usize = 1024;
/// Events of the master that become one batch for the event loop.
const EVENT_BATCH: usize = 1024;
/// After a refusal the framework tries again, in case the master changes its mind.
const AFTER_REFUSAL: Duration = Duration::from_secs(5);

/// All frameworks of this scheduler.
#[derive(Debug)]
pub(crate) struct Frameworks {
    master: String,
    name: String,
    address: String,
    inbox: Inbox,
    known: BTreeMap<Role, FrameworkId>,
    calls: BTreeMap<Role, mpsc::Sender<Vec<Call>>>,
}

impl Frameworks {
    pub(crate) fn new(master: String, name: String, address: String, inbox: Inbox, known: BTreeMap<Role, FrameworkId>) -> Self {
        Self { master, name, address, inbox, known, calls: BTreeMap::new() }
    }

    /// Subscribes a framework for this role, now and whenever it breaks.
    pub(crate) fn connect(&mut self, role: &Role) {
        if self.calls.contains_key(role) {
            return;
        }
        let mut options = Options::new(
            &self.master,
            if role.as_str() == Role::default().as_str() { self.name.clone() } else { format!("{}-{role}", self.name) },
        );
        options.info.role = role.clone();
        options.info.services.insert(JOBS_SERVICE.into(), self.address.clone());
        options.id = self.known.get(role).cloned();
        options.wait_for_master = true;
        let (sender, calls) = mpsc::channel(CALL_QUEUE);
        self.calls.insert(role.clone(), sender);
        tokio::spawn(keep_subscribed(options, role.clone(), calls, self.inbox.clone()));
    }

    /// Sends calls of one batch.
    pub(crate) async fn send(&mut self, role: &Role, calls: Vec<Call>) {
        if let Some(sender) = self.calls.get(role) {
            // It ends only with this process.
            let _ = sender.send(calls).await;
        }
    }

    /// Whether the id is new and must be kept.
    pub(crate) fn learn(&mut self, role: &Role, framework: &FrameworkId) -> bool {
        self.known.insert(role.clone(), framework.clone()).as_ref() != Some(framework)
    }
}

async fn keep_subscribed(mut options: Options, role: Role, mut calls: mpsc::Receiver<Vec<Call>>, inbox: Inbox) {
    loop {
        match Framework::connect(options.clone()).await {
            Ok((handle, events)) => {
                let error = relay(&role, handle, events, &mut calls, &inbox).await;
                let Some(error) = error else { return };
                tracing::error!(%role, error, "the master ended the subscription");
            }
            Err(error) => tracing::error!(%role, %error, "cannot subscribe"),
        }
        // An id that the master has removed is of no use any more.
        options.id = None;
        tokio::time::sleep(AFTER_REFUSAL).await;
    }
}

/// Passes events in and calls out until the subscription ends: why, or `None` when this process ends.
async fn relay(role: &Role, handle: Handle, mut events: Events, calls: &mut mpsc::Receiver<Vec<Call>>, inbox: &Inbox) -> Option<String> {
    let mut batch = Vec::with_capacity(EVENT_BATCH);
    let mut reason = String::from("the subscription ended");
    loop {
        tokio::select! {
            n = events.recv_many(&mut batch, EVENT_BATCH) => {
                if n == 0 {
                    return Some(reason);
                }
                for event in batch.drain(..) {
                    if let Event::Error(text) = &event {
                        reason.clone_from(text);
                    }
                    if let Some((event, ack)) = translate(event) {
                        let event = CoreEvent::Framework { role: role.clone(), event };
                        inbox.send(Input::Event { event, ack }).await.ok()?;
                    }
                }
            }
            calls = calls.recv() => {
                if let Err(error) = handle.calls(calls?).await {
                    return Some(error.to_string());
                }
            }
        }
    }
}

fn translate(event: Event) -> Option<(FrameworkEvent, Option<Ack>)> {
    Some(match event {
        Event::Subscribed { framework, epoch } => (FrameworkEvent::Subscribed { framework, epoch }, None),
        Event::Offers(offers) => (FrameworkEvent::Offers(offers), None),
        Event::Update(u) => (FrameworkEvent::Updates(vec![(u.agent, u.update)]), Some(u.ack)),
        Event::AgentLost { agent, reason } => (FrameworkEvent::AgentLost { agent, reason }, None),
        Event::Refused { call, message } => {
            tracing::warn!(call, message, "the master refused a call");
            (FrameworkEvent::Refused { call, message }, None)
        }
        Event::Error(text) => (FrameworkEvent::Error(text), None),
        // Offers are answered at once, so none is held.
        Event::Rescind(_) | Event::Disconnected => return None,
    })
}
