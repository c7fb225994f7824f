//! The task that owns the core. It drains its inbox in batches: step each event, then one transaction per framework, with what
//! changed, the updates that changed it, and the calls that follow; then questions about the new state are answered.

use crate::cluster::Cluster;
use crate::delivery::Deliveries;
use crate::frameworks::Frameworks;
use crate::options::Options;
use crate::rounds;
use crate::store::{self, Store, StoreError};
use crate::watchers::{Watch, Watchers};
use smalti_framework_sdk::{Ack, Transaction};
use smalti_scheduler_core::{Admission, Event, Job, JobId, JobSpec, Message, Record, Scheduler};
use smalti_types::protocol::{Call, FrameworkEvent};
use smalti_types::{Effects, Role, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot};

/// What waits for the loop.
const INBOX: usize = 8192;
/// What becomes one batch and one commit.
const BATCH: usize = 1024;
/// How often the core looks at its time-outs.
const TICK: Duration = Duration::from_millis(100);

/// Sends to the loop.
pub(crate) type Inbox = mpsc::Sender<Input>;
type Submitted = oneshot::Sender<Result<JobId, Full>>;
type Question = Box<dyn FnOnce(&Scheduler) + Send>;

/// What the loop takes in.
pub(crate) enum Input {
    /// Something happened; an update brings the means to acknowledge it.
    Event { event: Event, ack: Option<Ack> },
    /// A job without an id.
    Submit { job: Box<JobSpec>, reply: Submitted },
    /// Look at the state.
    Ask(Question),
    /// Views of a job from now on.
    Watch { job: JobId, reply: oneshot::Sender<Option<Watch>> },
    /// The framework of this role has ended for good.
    Ended { role: Role, reason: String },
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Event { .. } => "Event",
            Self::Submit { .. } => "Submit",
            Self::Ask(_) => "Ask",
            Self::Watch { .. } => "Watch",
            Self::Ended { .. } => "Ended",
        })
    }
}

/// Why the loop ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoopError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("what must be kept could not be: {0}")]
    Commit(#[from] smalti_framework_sdk::Error),
    #[error(
        "the framework of role {role} has ended: {reason}; its tasks run on. One scheduler at a time may use this data directory,          or a copy of it: stop the other, and start this one again"
    )]
    Ended { role: Role, reason: String },
}

/// Too many jobs.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("there are too many unfinished jobs; wait for some to end, or kill them")]
pub(crate) struct Full;

/// The loop is gone: the process is ending.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the scheduler is stopping")]
pub(crate) struct Stopping;

/// How everybody else reaches the loop.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    inbox: Inbox,
}

impl Handle {
    /// Submits a job; returns once it is durable.
    pub(crate) async fn submit(&self, job: JobSpec) -> Result<Result<JobId, Full>, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Input::Submit { job: Box::new(job), reply }).await.map_err(|_| Stopping)?;
        answer.await.map_err(|_| Stopping)
    }

    /// Feeds an event in.
    pub(crate) async fn event(&self, event: Event) -> Result<(), Stopping> {
        self.inbox.send(Input::Event { event, ack: None }).await.map_err(|_| Stopping)
    }

    /// Asks something about the state.
    pub(crate) async fn ask<T: Send + 'static>(&self, question: impl FnOnce(&Scheduler) -> T + Send + 'static) -> Result<T, Stopping> {
        let (reply, answer) = oneshot::channel();
        let question = Box::new(move |s: &Scheduler| {
            // Whoever asked may have gone.
            let _ = reply.send(question(s));
        });
        self.inbox.send(Input::Ask(question)).await.map_err(|_| Stopping)?;
        answer.await.map_err(|_| Stopping)
    }

    /// Views of a job, the present one first; `None` when there is no such job.
    pub(crate) async fn watch(&self, job: JobId) -> Result<Option<Watch>, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Input::Watch { job, reply }).await.map_err(|_| Stopping)?;
        answer.await.map_err(|_| Stopping)
    }
}

/// The owner of all state.
pub(crate) struct EventLoop {
    core: Scheduler,
    frameworks: Frameworks,
    watchers: Watchers,
    cluster: Cluster,
    deliveries: Arc<Deliveries>,
    handle: Handle,
    inbox: mpsc::Receiver<Input>,
    /// Of updates that were given to the core, in that order.
    acks: VecDeque<Ack>,
    /// What may be lost and is kept with the next commit.
    noted: BTreeSet<JobId>,
    /// Whose framework commits what belongs to no role.
    role: Role,
    /// Told once that framework is subscribed for the first time: clients find the job API from then on.
    registered: Option<oneshot::Sender<()>>,
}

/// What a batch leaves to do once it is durable.
#[derive(Default)]
struct Batch {
    effects: Effects<Record, Message>,
    submitted: Vec<(Submitted, Result<JobId, Full>)>,
    questions: Vec<Question>,
    watches: Vec<(JobId, oneshot::Sender<Option<Watch>>)>,
}

impl EventLoop {
    /// A loop that goes on where the store left off, and word of its first registration.
    pub(crate) fn new(
        options: &Options,
        store: &Store,
        (cluster, deliveries): (Cluster, Arc<Deliveries>),
        address: String,
    ) -> anyhow::Result<(Handle, Self, oneshot::Receiver<()>)> {
        let stored = store.load()?;
        let (sender, inbox) = mpsc::channel(INBOX);
        let handle = Handle { inbox: sender.clone() };
        let core = Scheduler::restore(now(), stored.next_number, stored.jobs).with_locality_wait(options.locality_wait);
        let role = options.role()?;
        let mut frameworks =
            Frameworks::new(options.master.clone(), options.name.clone(), address, sender, store.shared(), stored.frameworks);
        // The default role is there from the start, so that the master can name the job API.
        frameworks.connect(&role)?;
        core.roles().try_for_each(|role| frameworks.connect(role))?;
        let watchers = Watchers::default();
        let (acks, noted) = (VecDeque::new(), BTreeSet::new());
        let (first, first_registration) = oneshot::channel();
        let registered = Some(first);
        let event_loop =
            Self { core, frameworks, watchers, cluster, deliveries, handle: handle.clone(), inbox, acks, noted, role, registered };
        event_loop.core.jobs().filter(|job| job.state.outcome.is_none()).for_each(|job| event_loop.deliver(job));
        Ok((handle, event_loop, first_registration))
    }

    /// Sees to it that the job's outputs get where they belong.
    fn deliver(&self, job: &Job) {
        if job.spec.output_store.is_some() {
            tokio::spawn(self.deliveries.clone().run(self.handle.clone(), job.id()));
        }
    }

    /// Runs for ever, or until the store fails: what cannot be kept must not be done.
    pub(crate) async fn run(mut self) -> Result<(), LoopError> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut inputs = Vec::with_capacity(BATCH);
        loop {
            let mut batch = Batch::default();
            tokio::select! {
                n = self.inbox.recv_many(&mut inputs, BATCH) => if n == 0 { return Ok(()) },
                _ = ticks.tick() => batch.effects = self.core.step(now(), Event::Tick),
            }
            for input in inputs.drain(..) {
                self.take(input, &mut batch)?;
            }
            self.finish(batch).await?;
        }
    }

    fn take(&mut self, input: Input, batch: &mut Batch) -> Result<(), LoopError> {
        match input {
            Input::Event { event, ack } => {
                debug_assert!(
                    ack.is_none() || matches!(&event, Event::Framework { event: FrameworkEvent::Updates(u), .. } if u.len() == 1)
                );
                self.acks.extend(ack);
                self.note_registration(&event);
                batch.effects.merge(self.core.step(now(), event));
            }
            Input::Submit { job, reply } => {
                let result = self.submit(*job, batch);
                batch.submitted.push((reply, result));
            }
            Input::Ask(question) => batch.questions.push(question),
            Input::Watch { job, reply } => batch.watches.push((job, reply)),
            Input::Ended { role, reason } => return Err(LoopError::Ended { role, reason }),
        }
        Ok(())
    }

    fn note_registration(&mut self, event: &Event) {
        let Event::Framework { role, event: FrameworkEvent::Subscribed { .. } } = event else { return };
        if let Some(first) = self.registered.take_if(|_| *role == self.role) {
            // The process may be ending.
            let _ = first.send(());
        }
    }

    fn submit(&mut self, mut job: JobSpec, batch: &mut Batch) -> Result<JobId, Full> {
        let suffix = uuid::Uuid::new_v4().as_u128() & 0xffff;
        match self.core.admit(&job.request, u16::try_from(suffix).unwrap_or(0)) {
            Admission::Existing(id) => Ok(id),
            Admission::Full => Err(Full),
            Admission::New(id) => {
                job.id = id;
                batch.effects.merge(self.core.step(now(), Event::Submit(Arc::new(job))));
                // It asks for work through the inbox, so not before the job is durable.
                if let Some(job) = self.core.job(id) {
                    self.deliver(job);
                }
                Ok(id)
            }
        }
    }

    async fn finish(&mut self, batch: Batch) -> Result<(), LoopError> {
        // Records become writes here, and durable in the transactions below: nothing leaves before, calls included.
        let mut records = Vec::new();
        let messages = batch.effects.commit(|r| {
            records = r;
            Ok::<_, StoreError>(())
        })?;
        let mut transactions: BTreeMap<Role, Transaction> = BTreeMap::new();
        self.write(records, &mut transactions)?;
        let revived = revived(&messages);
        for role in &revived {
            self.frameworks.call(role, Call::Revive).await?;
        }
        let messages = messages.into_iter().filter(|m| !is_said(m, &revived)).collect();
        let later = self.sort(messages, &mut transactions);
        for (role, transaction) in transactions {
            self.frameworks.commit(&role, transaction).await?;
        }
        self.act(later)?;
        for (reply, result) in batch.submitted {
            // A client that has gone asks again with the same request id.
            let _ = reply.send(result);
        }
        for (job, reply) in batch.watches {
            let _ = reply.send(self.core.job(job).map(|job| self.watchers.watch(job)));
        }
        batch.questions.into_iter().for_each(|question| question(&self.core));
        Ok(())
    }

    /// What the records write, by the framework whose transaction writes it.
    fn write(&mut self, records: Vec<Record>, transactions: &mut BTreeMap<Role, Transaction>) -> Result<(), StoreError> {
        let role_of = |core: &Scheduler, id| core.job(id).map(|job| job.spec.role.clone());
        let mut by_role: BTreeMap<Role, Vec<Record>> = BTreeMap::new();
        for record in records {
            let (Record::Submitted(id) | Record::Changed(id) | Record::Noted(id) | Record::Forgotten(id)) = record;
            if matches!(record, Record::Noted(_)) {
                self.noted.insert(id);
            } else {
                by_role.entry(role_of(&self.core, id).unwrap_or_else(|| self.role.clone())).or_default().push(record);
            }
        }
        for (role, mut records) in by_role {
            let noted = self.noted.extract_if(.., |id| role_of(&self.core, *id).is_none_or(|r| r == role));
            records.extend(noted.map(Record::Noted));
            transactions.entry(role).or_default().write(store::writes(&self.core, &records)?);
        }
        Ok(())
    }

    /// Puts calls and acknowledgements into the transactions; what is left follows them. An acknowledgement without a
    /// transaction is of an update whose loss would be no loss: the library commits it when it is convenient.
    fn sort(&mut self, messages: Vec<Message>, transactions: &mut BTreeMap<Role, Transaction>) -> Vec<Message> {
        let mut later = Vec::new();
        let mut handled: Vec<(Role, Ack)> = Vec::new();
        for message in messages {
            match message {
                Message::Call { role, call } => transactions.entry(role).or_default().call(call),
                Message::Handled { role, .. } => handled.extend(self.acks.pop_front().map(|ack| (role, ack))),
                other => later.push(other),
            }
        }
        for (role, ack) in handled {
            match transactions.get_mut(&role) {
                Some(transaction) => transaction.take(ack),
                None => ack.done(),
            }
        }
        later
    }

    fn act(&mut self, messages: Vec<Message>) -> Result<(), LoopError> {
        let mut changed: Vec<JobId> = Vec::new();
        for message in messages {
            match message {
                Message::Connect(role) => self.frameworks.connect(&role)?,
                Message::Changed(job) => changed.push(job),
                Message::StoreOutput { job, round, agent, task, attempt } => {
                    let Some((role, framework)) = self.core.job(job).map(|j| (j.spec.role.clone(), j.state.framework.clone())) else {
                        continue;
                    };
                    let what = rounds::Source { job, role, round, framework, agent, task, attempt };
                    tokio::spawn(rounds::store_output(self.cluster.clone(), self.handle.clone(), what));
                }
                // Gone with the transactions.
                Message::Call { .. } | Message::Handled { .. } => {}
            }
        }
        changed.sort_unstable();
        changed.dedup();
        for job in changed {
            self.watchers.changed(job, self.core.job(job));
        }
        Ok(())
    }
}

/// Roles that want offers in the end. That need not wait until anything is durable: a crash that forgets why costs no more than refusing
/// an offer; and while what was decided becomes durable, the offer is on its way.
fn revived(messages: &[Message]) -> BTreeSet<Role> {
    let mut roles = BTreeSet::new();
    for message in messages {
        match message {
            Message::Call { role, call: Call::Revive } => drop(roles.insert(role.clone())),
            Message::Call { role, call: Call::Suppress } => drop(roles.remove(role)),
            _ => {}
        }
    }
    roles
}

/// Whether a role that wants offers in the end has said so, and this about it is out of date.
fn is_said(message: &Message, revived: &BTreeSet<Role>) -> bool {
    matches!(message, Message::Call { role, call: Call::Revive | Call::Suppress } if revived.contains(role))
}

/// Microseconds since 1970.
pub(crate) fn now() -> Time {
    SystemTime::now().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_last_about_offers_counts() {
        let (a, b) = (Role::new("a").unwrap(), Role::new("b").unwrap());
        let call = |role: &Role, call| Message::Call { role: role.clone(), call };
        let messages = [call(&a, Call::Suppress), call(&a, Call::Revive), call(&b, Call::Revive), call(&b, Call::Suppress)];
        let revived = revived(&messages);
        assert_eq!(revived.iter().collect::<Vec<_>>(), [&a]);
        let left: Vec<_> = messages.iter().filter(|m| !is_said(m, &revived)).collect();
        assert_eq!(left.len(), 2, "a's are said, b's go with its transaction");
        assert!(left.iter().all(|m| matches!(m, Message::Call { role, .. } if *role == b)));
    }
}
