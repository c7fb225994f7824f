//! The one owner of the agent's core: drains the inbox in batches, steps each event, does what was decided, sends once per peer.
//!
//! Owns the core, the clock that it sees, and the updates on their way to the master. Everything that may wait is in tasks of its own,
//! which answer through the inbox. Deliberately absent: decisions (the core's) and connections (`master_link`, `executors`).

use crate::checkpoint::Checkpoint;
use crate::disk::Lent;
use crate::executor_reports::Reporter;
use crate::executors::Executors;
use crate::figures::Figures;
use crate::holdings::Teller;
use crate::launcher::{Gone, Running};
use crate::ledgers;
use crate::prepare::{self, Laid, Prepared};
use crate::sandbox::{self, Sandboxes};
use crate::splits::Splits;
use crate::watermark::Watermark;
use crate::wire;
use smalti_agent_core::{Agent, Event, Failure, FromExecutor, Message, Record, Run, ToExecutor};
use smalti_proto::v1;
use smalti_types::protocol::{AgentCommand, RunningTask};
use smalti_types::{Bytes, Digest, Effects, ExecutorId, FrameworkId, MasterEpoch, Reason, StatusUpdate, Stdin, TaskKey, Time};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

/// Events waiting for the loop.
pub(crate) const INBOX: usize = 4_096;
/// Events of one batch.
const BATCH: usize = 1_024;
/// The core's time-outs are this exact.
const TICK: Duration = Duration::from_millis(100);
/// Updates of one message to the master: by number, and about this many bytes.
const BATCH_UPDATES: usize = 2_000;
const BATCH_BYTES: usize = 4 << 20;

/// What reaches the loop.
#[derive(Debug)]
pub(crate) enum Input {
    /// A new connection asks what to register.
    Register {
        /// The connection's number; later ones are greater.
        connection: u64,
        /// Where updates go from now on.
        outbound: mpsc::Sender<v1::AgentToMaster>,
        /// The answer: what runs, and what is not acknowledged.
        reply: oneshot::Sender<(Vec<RunningTask>, Vec<StatusUpdate>)>,
    },
    /// The master took the registration.
    Registered {
        /// On which connection.
        connection: u64,
        /// This life of the master.
        epoch: MasterEpoch,
        /// Whether it wants to know what the caches hold.
        wants_holdings: bool,
    },
    /// The connection is gone.
    Disconnected {
        /// Which.
        connection: u64,
    },
    /// The master wants something.
    Commands {
        /// On which connection.
        connection: u64,
        /// What.
        commands: Vec<AgentCommand>,
    },
    /// The disks of a run that is ready otherwise.
    Disks {
        /// Whose.
        run: Run,
        /// What else is ready.
        ready: Box<prepare::Ready>,
        /// One for each slot, or why there are none.
        result: Result<Vec<Lent>, String>,
    },
    /// What an array's items read, or word of why it is not there.
    Piece {
        /// Of which part.
        run: Run,
        /// Which of its objects, and which bytes.
        of: (u32, Range<u64>),
        /// Of the question.
        number: u64,
        /// What lies there now.
        laid: Laid,
    },
    /// A disk in the place of one that an executor left dirty.
    Renewed {
        /// Who waits for it.
        executor: ExecutorId,
        /// Whose it is.
        run: Run,
        /// Which of its run's.
        lane: usize,
        /// The disk, or why there is none.
        result: Result<Lent, String>,
    },
    /// An executor is up, or could not be started.
    Launched {
        /// Which.
        executor: ExecutorId,
        /// What came of it.
        result: Result<Box<Running>, Failure>,
    },
    /// An executor of an earlier life was found again, or not.
    Adopted {
        /// Which.
        executor: ExecutorId,
        /// What came of it.
        result: Result<Box<Running>, Gone>,
    },
    /// An executor said something.
    Said {
        /// Which.
        executor: ExecutorId,
        /// Its number; 0: none.
        number: u64,
        /// What.
        message: FromExecutor,
        /// Lets it say more once this has been taken in.
        credit: OwnedSemaphorePermit,
    },
    /// An executor is gone.
    Exited {
        /// Which.
        executor: ExecutorId,
        /// How it ended.
        cause: String,
        /// Whether the kernel killed in its memory group.
        out_of_memory: bool,
    },
    /// The agent is to end: it takes nothing more, and says when all has ended and is acknowledged.
    Drain {
        /// Told then.
        done: oneshot::Sender<()>,
    },
}

/// How the agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Not yet.
    No,
    /// With its executors.
    WithExecutors,
    /// Its executors go on: the next life takes them up again.
    Alone,
}

/// Wall time that never goes back while this process lives.
#[derive(Debug)]
struct Clock {
    began: Instant,
    began_at: Time,
}

impl Clock {
    fn new() -> Self {
        Self { began: Instant::now(), began_at: SystemTime::now().into() }
    }

    fn now(&self) -> Time {
        Time(self.began_at.0.saturating_add(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)))
    }
}

/// Disks to lend to a run.
#[derive(Debug)]
struct Wanted {
    framework: FrameworkId,
    size: Bytes,
    slots: u32,
}

/// The loop.
#[derive(Debug)]
pub(crate) struct EventLoop {
    core: Agent,
    clock: Clock,
    executors: Executors,
    preparer: prepare::Handle,
    splits: Splits,
    sandboxes: Sandboxes,
    /// Disks that runs in preparation will need.
    wanted: HashMap<Run, Wanted>,
    figures: Arc<Figures>,
    connection: u64,
    outbound: Option<mpsc::Sender<v1::AgentToMaster>>,
    /// Decided and not yet handed to the connection.
    outgoing: VecDeque<StatusUpdate>,
    /// What the master is told about executors.
    reporter: Reporter,
    /// What the master is told about the caches.
    holdings: Teller,
    /// As of the last look at them.
    generation: Option<u64>,
    /// Consequences of acting that the core must hear of in the same batch.
    again: VecDeque<Event>,
    checkpoint: Checkpoint,
    /// Decided in this batch, not durable yet.
    effects: Effects<Record, Message>,
    /// Up to which number executors may forget what they said.
    confirmed: BTreeMap<ExecutorId, u64>,
    /// Whether exclusive tasks need a lease: the link asks for it.
    lease_wanted: watch::Sender<bool>,
    /// Attempts that an earlier life left in executors, with their bundles.
    earlier: Vec<(TaskKey, Digest)>,
    /// Whether there is room on the disk.
    watermark: Watermark,
    /// The same in the checkpoint log, and what the core was told of both.
    log_room: bool,
    room: bool,
    /// Who waits for the end of everything.
    drained: Option<oneshot::Sender<()>>,
}

impl EventLoop {
    pub(crate) fn new(
        (checkpoint, core): (Checkpoint, Agent),
        (executors, preparer, splits, sandboxes, watermark): (Executors, prepare::Handle, Splits, Sandboxes, Watermark),
        figures: Arc<Figures>,
        (reporter, holdings): (Reporter, Teller),
        lease_wanted: watch::Sender<bool>,
    ) -> Self {
        Self {
            earlier: core.bundles_in_use().map(|(key, digest)| (key.clone(), digest)).collect(),
            core,
            clock: Clock::new(),
            executors,
            preparer,
            splits,
            sandboxes,
            wanted: HashMap::new(),
            figures,
            connection: 0,
            outbound: None,
            outgoing: VecDeque::new(),
            reporter,
            holdings,
            generation: None,
            again: VecDeque::new(),
            checkpoint,
            effects: Effects::default(),
            confirmed: BTreeMap::new(),
            lease_wanted,
            watermark,
            log_room: true,
            room: true,
            drained: None,
        }
    }

    /// Takes up what an earlier life left, then runs until `ending`, and ends all executors unless they are to go on.
    ///
    /// # Errors
    /// When the checkpoint cannot be written: nothing may be decided any more, and executors go on.
    pub(crate) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Input>,
        mut prepared: mpsc::Receiver<Prepared>,
        mut ending: watch::Receiver<Ending>,
    ) -> Result<(), smalti_agent_checkpoint::Error> {
        self.take_up().await?;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut inputs, mut answers) = (Vec::with_capacity(BATCH), Vec::new());
        loop {
            let outbound = self.outbound.clone().filter(|_| !self.outgoing.is_empty());
            tokio::select! {
                _ = ending.wait_for(|e| *e != Ending::No) => break,
                _ = inbox.recv_many(&mut inputs, BATCH) => {}
                _ = prepared.recv_many(&mut answers, BATCH) => {}
                _ = tick.tick() => {
                    self.figures.count_caches(&self.preparer.stock());
                    self.release_earlier();
                    for (ticket, permille, text) in self.preparer.progress() {
                        self.again.push_back(Event::Fetching { run: Run(ticket), permille, text });
                    }
                    self.again.push_back(Event::Tick);
                }
                // The connection was full and has room again.
                () = room(outbound) => {}
            }
            while answers.len() < BATCH
                && let Ok(answer) = prepared.try_recv()
            {
                answers.push(answer);
            }
            let now = self.clock.now();
            for input in inputs.drain(..) {
                if let Some(event) = self.take_in(now, input).await? {
                    self.step(now, event);
                }
            }
            for answer in answers.drain(..) {
                if let Some(event) = self.take_prepared(answer) {
                    self.step(now, event);
                }
            }
            self.commit(now).await?;
            self.checkpoint.keep_short(&self.core)?;
            self.log_room = self.checkpoint.room_changed(self.core.len())?.unwrap_or(self.log_room);
            let room = self.log_room && !self.watermark.is_low(Instant::now());
            if std::mem::replace(&mut self.room, room) != room {
                self.step(now, Event::Room(room));
            }
            self.send();
            self.report(now);
            self.tell_holdings();
            self.figures.count(self.executors.frames(), self.core.counters(), self.room);
        }
        self.commit(self.clock.now()).await?;
        let alone = *ending.borrow() == Ending::Alone;
        inbox.close();
        while let Ok(input) = inbox.try_recv() {
            // Up at the last moment: nobody else knows of it.
            if let Input::Launched { result: Ok(running), .. } = input
                && !alone
            {
                running.process.kill();
            }
        }
        drop(inbox);
        if !alone {
            self.executors.end_all(END_WITHIN).await;
        }
        Ok(())
    }

    /// What an earlier life left: its attempts are prepared again, its executors looked for.
    async fn take_up(&mut self) -> Result<(), smalti_agent_checkpoint::Error> {
        let now = self.clock.now();
        let lost: Vec<ExecutorId> = self.core.to_find().cloned().collect();
        for id in lost {
            let kind = self.core.executor_views().find(|v| v.id == id).map(|v| v.kind);
            if let Some(kind) = kind {
                self.executors.adopt(id.clone(), kind, self.core.heard(&id));
            }
        }
        let effects = self.core.resume(now);
        self.effects.merge(effects);
        self.commit(now).await
    }

    /// What attempts of an earlier life needed may go with the last of them.
    fn release_earlier(&mut self) {
        let before = self.earlier.len();
        self.earlier.retain(|(key, _)| self.core.is_live(key));
        if self.earlier.len() < before {
            self.preparer.release(&self.earlier.iter().map(|(_, digest)| *digest).collect());
        }
    }

    /// One event through the core. What it decided waits for the end of the batch.
    fn step(&mut self, now: Time, event: Event) {
        let effects = self.core.step(now, event);
        self.effects.merge(effects);
    }

    /// Makes durable what was decided, with one write, and then does it, in order; and the same with what follows from that. Updates go first,
    /// and out: somebody waits for them, and nobody for what an end leaves to do here.
    async fn commit(&mut self, now: Time) -> Result<(), smalti_agent_checkpoint::Error> {
        loop {
            while let Some(event) = self.again.pop_front() {
                self.step(now, event);
            }
            if self.effects.is_empty() {
                break;
            }
            let effects = std::mem::take(&mut self.effects);
            let mut messages = effects.commit(|records| self.checkpoint.write(records, &self.core))?;
            for updates in messages.extract_if(.., |message| matches!(message, Message::Updates(_))) {
                self.act(now, updates);
            }
            if !self.outgoing.is_empty() && !messages.is_empty() {
                self.send();
                // The connection may have no other thread than this one.
                tokio::task::yield_now().await;
            }
            for message in messages {
                self.act(now, message);
            }
        }
        for (executor, number) in std::mem::take(&mut self.confirmed) {
            self.executors.confirm(&executor, number);
        }
        self.executors.say_all();
        let wanted = self.core.wants_lease();
        self.lease_wanted.send_if_modified(|before| std::mem::replace(before, wanted) != wanted);
        if self.core.is_empty()
            && let Some(done) = self.drained.take()
        {
            // Nobody waits for it any more when a second signal came.
            let _ = done.send(());
        }
        Ok(())
    }

    /// What an input means to the core; the shell's own part is done here.
    async fn take_in(&mut self, now: Time, input: Input) -> Result<Option<Event>, smalti_agent_checkpoint::Error> {
        Ok(match input {
            Input::Register { connection, outbound, reply } => {
                self.connection = connection;
                self.outbound = None;
                self.outgoing.clear();
                self.reporter.close();
                self.holdings.close();
                self.step(now, Event::MasterDisconnected);
                // What it says leaves the process.
                self.commit(now).await?;
                if reply.send(self.core.registration(now)).is_ok() {
                    self.outbound = Some(outbound);
                }
                None
            }
            Input::Registered { connection, epoch, wants_holdings } => {
                if connection != self.connection {
                    return Ok(None);
                }
                self.reporter.open();
                if wants_holdings {
                    self.holdings.open();
                    self.generation = None;
                }
                Some(Event::MasterConnected { epoch })
            }
            Input::Disconnected { connection } if connection == self.connection => {
                self.outbound = None;
                self.outgoing.clear();
                self.reporter.close();
                self.holdings.close();
                Some(Event::MasterDisconnected)
            }
            Input::Disconnected { .. } => None,
            Input::Commands { connection, commands } => {
                if connection == self.connection {
                    for command in commands {
                        self.step(now, Event::Command(command));
                    }
                }
                None
            }
            Input::Renewed { executor, run, lane, result } => {
                for message in self.executors.renewed(&executor, run, lane, result) {
                    self.tell(now, &executor, message);
                }
                None
            }
            Input::Piece { run, of, number, laid } => {
                let items = self.splits.arrived(run, &of, number, laid);
                (!items.is_empty()).then_some(Event::SplitsThere { run, items })
            }
            Input::Disks { run, ready, result } => Some(self.take_disks(run, *ready, result)),
            Input::Launched { executor, result: Ok(running) } => {
                let cpu_us = running.start_cpu_us;
                self.executors.launched(&executor, *running).map(|slots| Event::ExecutorStarted { executor, slots, cpu_us })
            }
            Input::Launched { executor, result: Err(failure) } => {
                tracing::error!(%executor, "cannot be started: {}", failure.message);
                self.executors.failed(&executor);
                Some(Event::ExecutorFailed { executor, failure })
            }
            Input::Adopted { executor, result: Ok(running) } => {
                self.executors.launched(&executor, *running).map(|slots| Event::ExecutorBack { executor, slots })
            }
            Input::Adopted { executor, result: Err(Gone { cause, oom }) } => {
                tracing::warn!(%executor, "is not there any more: {cause}");
                self.executors.failed(&executor);
                Some(self.gone(now, executor, cause, oom))
            }
            Input::Said { executor, number, message, credit } => {
                drop(credit);
                Some(Event::Executor { executor, number, message })
            }
            Input::Exited { executor, cause, out_of_memory } => {
                tracing::info!(%executor, "ended: {cause}");
                self.executors.exited(&executor);
                Some(self.gone(now, executor, cause, out_of_memory))
            }
            Input::Drain { done } => {
                self.drained = Some(done);
                Some(Event::Drain)
            }
        })
    }

    /// An executor is gone. What it has written about its items, and could not say any more, counts.
    fn gone(&mut self, now: Time, executor: ExecutorId, cause: String, out_of_memory: bool) -> Event {
        for (run, report) in ledgers::read(&self.sandboxes, &self.core.leased_in(&executor)) {
            let message = FromExecutor::Report { run, report };
            self.step(now, Event::Executor { executor: executor.clone(), number: 0, message });
        }
        Event::ExecutorExited { executor, cause, out_of_memory }
    }

    /// `None`: its disks are still to come.
    fn take_prepared(&mut self, answer: Prepared) -> Option<Event> {
        let run = Run(answer.ticket);
        let wanted = self.wanted.remove(&run);
        let ready = answer.result.and_then(|ready| match wire::check(&ready) {
            Ok(()) => Ok(ready),
            Err(e) => Err(Failure::new(Reason::InvalidTask, e.to_string())),
        });
        let result = match (ready, wanted) {
            (Ok(ready), Some(wanted)) => {
                self.executors.lend(run, ready, (wanted.framework, wanted.size, wanted.slots));
                return None;
            }
            (Ok(ready), None) => Ok(self.keep(run, ready, Vec::new())),
            (Err(failure), _) => Err(failure),
        };
        Some(Event::Prepared { run, result })
    }

    fn take_disks(&mut self, run: Run, ready: prepare::Ready, result: Result<Vec<Lent>, String>) -> Event {
        let result = result.map(|disks| self.keep(run, ready, disks)).map_err(|why| Failure::new(Reason::LaunchFailed, why));
        Event::Prepared { run, result }
    }

    /// Keeps what a run needs until it is over.
    fn keep(&mut self, run: Run, ready: prepare::Ready, disks: Vec<Lent>) -> Digest {
        let digest = ready.digest;
        // The core may have given the run up meanwhile; nobody would release it then.
        if self.core.is_preparing(run) {
            self.executors.keep(run, ready, disks);
        }
        digest
    }

    fn act(&mut self, now: Time, message: Message) {
        match message {
            Message::Updates(updates) => {
                if self.outbound.is_some() {
                    self.outgoing.extend(updates);
                }
            }
            Message::Prepare { run, key, role, spec, split_inputs, array, alone, disk, slots, keep } => {
                self.splits.forget(run);
                let failed = |message: String| Event::Prepared { run, result: Err(Failure::new(Reason::LaunchFailed, message)) };
                let kind = match (array, alone) {
                    (true, _) => sandbox::Kind::Part,
                    (false, true) => sandbox::Kind::Alone,
                    (false, false) => sandbox::Kind::Task,
                };
                let laid_out = !spec.inputs.is_empty() || matches!(spec.stdin, Stdin::Outputs(_));
                let directory = match self.sandboxes.make(&key, kind, keep, laid_out) {
                    Ok(directory) => directory,
                    Err(e) => return self.again.push_back(failed(format!("cannot make the task's directory: {e}"))),
                };
                if disk.0 > 0 {
                    self.wanted.insert(run, Wanted { framework: key.framework.clone(), size: disk, slots });
                }
                let fuel = spec.limits.fuel.is_some();
                let spec = Arc::unwrap_or_clone(spec);
                let request = prepare::Request {
                    ticket: run.0,
                    framework: key.framework,
                    role,
                    spec,
                    split_inputs: split_inputs.to_vec(),
                    directory,
                    fuel,
                };
                if let Err(e) = self.preparer.prepare(request) {
                    self.again.push_back(failed(e.to_string()));
                }
            }
            Message::FetchSplits { run, key, role, wanted } => {
                let place = (self.sandboxes.task_directory(&key), !self.executors.all_know_pieces());
                let items = self.splits.fetch(run, (&key, &role), wanted, place);
                if !items.is_empty() {
                    self.again.push_back(Event::SplitsThere { run, items });
                }
            }
            Message::DropSplits { run, items } => self.splits.drop_items(run, &items),
            Message::CancelPrepare { run } => {
                self.wanted.remove(&run);
                self.preparer.cancel(run.0);
            }
            Message::StartExecutor { executor, kind, framework: _, grant, slots, memory } => {
                self.executors.start(executor, kind, grant, slots, memory);
            }
            Message::BindExecutor { executor, key } => tracing::debug!(%executor, %key, "has the one task of its life"),
            Message::DiscardExecutor { executor } => self.executors.discard(&executor),
            Message::StopExecutor { executor } => self.executors.stop(&executor),
            Message::KillExecutor { executor, why } => self.executors.kill(&executor, &why),
            Message::SetSlotCpus { executor, slot, cpus } => self.executors.set_slot_cpus(&executor, slot, cpus),
            Message::SlotsIdle { run, slots } => self.executors.slots_idle(run, &slots),
            Message::SetExecutorMemory { executor, bytes } => self.executors.set_memory(&executor, bytes),
            Message::ToExecutor { executor, message: ToExecutor::Confirm { number } } => drop(self.confirmed.insert(executor, number)),
            Message::ToExecutor { executor, message } => self.tell(now, &executor, message),
            Message::Ended { run, key } => {
                self.wanted.remove(&run);
                self.executors.release(run);
                self.splits.forget(run);
                self.sandboxes.ended(&key);
            }
        }
    }

    /// A message that cannot be sent would leave its run waiting for ever: the run's failure is told to the core in its place.
    fn tell(&mut self, now: Time, executor: &ExecutorId, message: ToExecutor) {
        let load = if let ToExecutor::LoadModule { module, .. } = &message { Some(*module) } else { None };
        if let Err((run, e)) = self.executors.tell(executor, message, now) {
            tracing::error!(%executor, ?run, "cannot tell it: {e}");
            let failure = Some(Failure::new(Reason::LaunchFailed, e.to_string()));
            let message = match load {
                Some(module) => FromExecutor::ModuleLoaded { module, failure },
                None => FromExecutor::Outcome { run, exit_code: None, failure, usage: smalti_types::Usage::default(), result: None },
            };
            self.again.push_back(Event::Executor { executor: executor.clone(), number: 0, message });
        }
    }

    /// Hands updates to the connection, as many as it takes.
    fn send(&mut self) {
        let Some(outbound) = &self.outbound else { return };
        while !self.outgoing.is_empty() {
            let Ok(permit) = outbound.try_reserve() else { return };
            let mut batch = v1::UpdateBatch::default();
            let mut bytes = 0;
            while batch.updates.len() < BATCH_UPDATES
                && bytes < BATCH_BYTES
                && let Some(update) = self.outgoing.pop_front()
            {
                let update = v1::StatusUpdate::from(update);
                bytes += prost_len(&update);
                batch.updates.push(update);
            }
            permit.send(v1::AgentToMaster { message: Some(v1::agent_to_master::Message::Updates(batch)) });
        }
    }

    /// Tells the master about executors, when something is new and the connection has room.
    fn report(&mut self, now: Time) {
        let Some(Ok(permit)) = self.outbound.as_ref().map(mpsc::Sender::try_reserve) else { return };
        let executors = self.core.executor_views().map(|view| {
            let facts = self.executors.facts(&view.id);
            (view, facts)
        });
        if let Some(reports) = self.reporter.due(now, executors, self.core.losses()) {
            permit.send(v1::AgentToMaster { message: Some(v1::agent_to_master::Message::Executors(reports)) });
        }
    }

    /// Tells the master what the caches hold, when something has changed and the connection has room.
    fn tell_holdings(&mut self) {
        if !self.holdings.is_due(Instant::now()) {
            return;
        }
        let generation = Some(self.preparer.generation());
        let Some(Ok(permit)) = self.outbound.as_ref().map(mpsc::Sender::try_reserve) else { return };
        if self.generation != generation {
            self.generation = generation;
            if let Some(news) = self.holdings.news(self.preparer.holdings()) {
                permit.send(v1::AgentToMaster { message: Some(v1::agent_to_master::Message::Holdings(news)) });
            }
        }
    }
}

/// How long executors have to die at the agent's end.
const END_WITHIN: Duration = Duration::from_secs(10);

/// Resolves when the connection has room, never without one.
async fn room(outbound: Option<mpsc::Sender<v1::AgentToMaster>>) {
    match outbound {
        // A closed connection says so by itself.
        Some(outbound) if !outbound.is_closed() => drop(outbound.reserve().await),
        _ => std::future::pending().await,
    }
}

/// About how many bytes an update has on the wire: only results and deltas are large.
fn prost_len(update: &v1::StatusUpdate) -> usize {
    let array = update.array.as_ref().map_or(0, |a| {
        let results: usize = a.results.iter().map(|r| 16 + r.value.len()).sum();
        let failed: usize = a.failed.iter().map(|f| 48 + f.message.len()).sum();
        results + failed + 16 * (a.finished.as_ref().map_or(0, |s| s.ranges.len()))
    });
    256 + update.message.len() + update.result.as_ref().map_or(0, |r| r.len()) + array
}
