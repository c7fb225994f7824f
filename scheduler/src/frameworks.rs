//! Frameworks of this scheduler, one per role, each through `framework-sdk`, all with their records in the scheduler's store.

use crate::event_loop::{Inbox, Input};
use crate::store::framework_table;
use smalti_framework_sdk::store::RedbStore;
use smalti_framework_sdk::{Ack, Error, Event, Events, Framework, Handle, Options, Transaction};
use smalti_proto::v1::jobs_server::SERVICE_NAME as JOBS_SERVICE;
use smalti_scheduler_core::Event as CoreEvent;
use smalti_types::protocol::{Call, FrameworkEvent, REMOVED_FRAMEWORK};
use smalti_types::{FrameworkId, Role};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// Events of the master that become one batch for the event loop.
const EVENT_BATCH: usize = 1024;
/// After a refusal the framework tries again, in case the master changes its mind.
const AFTER_REFUSAL: Duration = Duration::from_secs(5);

/// The handle that a role's framework has at present.
type Present = Arc<Mutex<Handle>>;

/// All frameworks of this scheduler.
#[derive(Debug)]
pub(crate) struct Frameworks {
    master: String,
    name: String,
    address: String,
    inbox: Inbox,
    store: Arc<RedbStore>,
    /// Ids from before the library kept them.
    known: BTreeMap<Role, FrameworkId>,
    present: BTreeMap<Role, Present>,
}

impl Frameworks {
    pub(crate) fn new(
        master: String,
        name: String,
        address: String,
        inbox: Inbox,
        store: Arc<RedbStore>,
        known: BTreeMap<Role, FrameworkId>,
    ) -> Self {
        Self { master, name, address, inbox, store, known, present: BTreeMap::new() }
    }

    /// Subscribes a framework for this role, now and whenever it breaks.
    pub(crate) fn connect(&mut self, role: &Role) -> Result<(), Error> {
        if self.present.contains_key(role) {
            return Ok(());
        }
        let mut options = Options::new(
            &self.master,
            if role.as_str() == Role::default().as_str() { self.name.clone() } else { format!("{}-{role}", self.name) },
        );
        options.info.role = role.clone();
        options.info.services.insert(JOBS_SERVICE.into(), self.address.clone());
        options.id = self.known.get(role).cloned();
        options.table = framework_table(role);
        let options = options.with_store(self.store.clone());
        let (handle, events) = Framework::start(options.clone())?;
        let present = Arc::new(Mutex::new(handle));
        self.present.insert(role.clone(), present.clone());
        tokio::spawn(keep_subscribed(options, role.clone(), events, present, self.inbox.clone()));
        Ok(())
    }

    /// A call that belongs to no transaction.
    pub(crate) async fn call(&mut self, role: &Role, call: Call) -> Result<(), Error> {
        self.connect(role)?;
        let Some(present) = self.present.get(role) else { return Err(Error::Closed) };
        match present.lock().await.call(call).await {
            // The next subscription has no refusals to forget.
            Err(Error::Closed) => Ok(()),
            sent => sent,
        }
    }

    /// Commits what one batch decided for the framework of this role.
    pub(crate) async fn commit(&mut self, role: &Role, transaction: Transaction) -> Result<(), Error> {
        self.connect(role)?;
        let Some(present) = self.present.get(role) else { return Err(Error::Closed) };
        present.lock().await.commit(transaction).await
    }
}

/// Relays events, and subscribes again when the master does not want the framework any more.
async fn keep_subscribed(mut options: Options, role: Role, mut events: Events, present: Present, inbox: Inbox) {
    loop {
        let Some(End { reason, subscribed }) = relay(&role, &mut events, &inbox).await else { return };
        let removed = reason.contains(REMOVED_FRAMEWORK);
        if subscribed && !removed {
            // Another scheduler has taken over, or the store has failed: to go on would be to fight it, or to forget.
            // The loop may be gone already.
            let _ = inbox.send(Input::Ended { role, reason }).await;
            return;
        }
        tracing::error!(%role, reason, "the master refuses the subscription");
        options.anew = removed;
        tokio::time::sleep(AFTER_REFUSAL).await;
        // Nobody commits meanwhile: the next life reads what the last has kept.
        let mut handle = present.lock().await;
        match Framework::start(options.clone()) {
            Ok(next) => (*handle, events) = next,
            Err(error) => {
                let _ = inbox.send(Input::Ended { role, reason: error.to_string() }).await;
                return;
            }
        }
    }
}

/// How a subscription ended.
struct End {
    reason: String,
    /// Whether it ever stood.
    subscribed: bool,
}

/// Passes events in until the subscription ends: how, or `None` when this process ends.
async fn relay(role: &Role, events: &mut Events, inbox: &Inbox) -> Option<End> {
    let mut batch = Vec::with_capacity(EVENT_BATCH);
    let mut end = End { reason: "the subscription ended".into(), subscribed: false };
    loop {
        tokio::select! {
            n = events.recv_many(&mut batch, EVENT_BATCH) => if n == 0 { return Some(end) },
            () = inbox.closed() => return None,
        }
        for event in batch.drain(..) {
            match &event {
                Event::Error(text) => end.reason.clone_from(text),
                Event::Subscribed { .. } => end.subscribed = true,
                _ => {}
            }
            if let Some((event, ack)) = translate(event) {
                let event = CoreEvent::Framework { role: role.clone(), event };
                inbox.send(Input::Event { event, ack }).await.ok()?;
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
