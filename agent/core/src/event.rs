//! What can come into the agent's core and what can go out. A feature starts as a variant of each.
//!
//! Owns the vocabulary only. Descriptors, paths and environments are the shell's: here, a run is a number.

use crate::parameters::ExecutorKind;
use smalti_types::protocol::AgentCommand;
use smalti_types::{
    BootTime, Bytes, Digest, DurationMs, Endpoint, ExecutorId, FrameworkId, Input, ItemSet, Launch, LaunchArray, MasterEpoch, MilliCpus,
    PortSet, Reason, Role, Split, StatusUpdate, TaskKey, TaskSpec, Usage,
};
use std::sync::Arc;

/// The agent's own number of one attempt: what it and its executors call it. Never used twice, over all lives of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run(pub u64);

/// An executor's number of a piece of compiled code. Never used twice in one executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleId(pub u32);

/// Why something did not work, for machines and for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For machines.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// Which of the task's ports other programs have, if that is what it is.
    pub ports_in_use: PortSet,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// A failure with its words.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), ports_in_use: PortSet::default() }
    }
}

/// What a task may reach over the network, for its executor's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The task.
    pub run: Run,
    /// Its attempt.
    pub key: TaskKey,
    /// Its framework's role: the operator may have a policy for it.
    pub role: Role,
    /// Where it may listen, on the agent's address.
    pub ports: PortSet,
    /// Where it may connect to.
    pub connect: Vec<Endpoint>,
}

/// What happened.
#[expect(clippy::large_enum_variant, reason = "events are moved once, from an inbox into the core; a box would cost more")]
#[derive(Debug, Clone)]
pub enum Event {
    /// The master has answered the registration that [`crate::Agent::registration`] described.
    MasterConnected {
        /// This life of the master.
        epoch: MasterEpoch,
    },
    /// The connection to the master is gone.
    MasterDisconnected,
    /// The master wants something.
    Command(AgentCommand),
    /// Answer to [`Message::Prepare`]: the digest of the code to run.
    Prepared {
        /// Which.
        run: Run,
        /// The bundle's digest, or why the task cannot run.
        result: Result<Digest, Failure>,
    },
    /// Answer to [`Message::FetchSplits`]: the bytes of these items are there, or word of why not.
    SplitsThere {
        /// Of which array part.
        run: Run,
        /// Which.
        items: ItemSet,
    },
    /// How far the transfers are that a preparation waits for.
    Fetching {
        /// Which.
        run: Run,
        /// Thousandths; 0 also when nobody knows the whole.
        permille: u16,
        /// For people.
        text: String,
    },
    /// An executor said hello.
    ExecutorStarted {
        /// Which.
        executor: ExecutorId,
        /// How many slots it has; what was asked for, or the shell has killed it.
        slots: u32,
        /// Processor time that its start took, where that is counted.
        cpu_us: Option<u64>,
    },
    /// An executor could not be started. No `ExecutorExited` follows.
    ExecutorFailed {
        /// Which.
        executor: ExecutorId,
        /// `LAUNCH_FAILED`, or what is wrong with the task that it was for.
        failure: Failure,
    },
    /// An executor that had started is gone.
    ExecutorExited {
        /// Which.
        executor: ExecutorId,
        /// How it ended.
        cause: String,
        /// Whether the kernel killed in its own memory group, at that group's limit.
        out_of_memory: bool,
    },
    /// An executor of an earlier life of this agent was found again. What it has to say follows, and then
    /// [`FromExecutor::Holds`]. One that cannot be found has exited.
    ExecutorBack {
        /// Which.
        executor: ExecutorId,
        /// How many slots it has.
        slots: u32,
    },
    /// An executor said something.
    Executor {
        /// Which.
        executor: ExecutorId,
        /// Counts what must not be missed, from 1; 0: anything else.
        number: u64,
        /// What.
        message: FromExecutor,
    },
    /// The agent is to end: nothing new is taken, items that nobody has begun with go back, and what runs goes on.
    Drain,
    /// Whether the checkpoint has room for more than what runs may still have to say.
    Room(bool),
    /// About 100 ms have gone by. Only time-outs hang on it: idle stops, re-sending, kill deadlines, pacing of reports.
    Tick,
}

/// What an executor says; sizes were bounded by its link, contents are not checked yet.
#[derive(Debug, Clone)]
pub enum FromExecutor {
    /// The code is loaded, or cannot be.
    ModuleLoaded {
        /// Which.
        module: ModuleId,
        /// Why not.
        failure: Option<Failure>,
    },
    /// The guest of a task runs.
    Started {
        /// Which.
        run: Run,
    },
    /// A task ended.
    Outcome {
        /// Which.
        run: Run,
        /// The guest's exit code, when it had one.
        exit_code: Option<i32>,
        /// Why it ended, unless it returned.
        failure: Option<Failure>,
        /// What it used.
        usage: Usage,
        /// The value that it returned.
        result: Option<Vec<u8>>,
    },
    /// Items of an array part ended.
    Report {
        /// Which part.
        run: Run,
        /// What happened.
        report: ArrayReport,
    },
    /// Slots of an array part are free again.
    Ended {
        /// Which part.
        run: Run,
        /// Which slots.
        slots: Vec<u32>,
    },
    /// A guest says how far it is.
    Progress {
        /// Which task.
        run: Run,
        /// Thousandths.
        permille: u16,
        /// The guest's words.
        text: String,
    },
    /// What running tasks, and the running items of array parts, have used so far.
    Usage {
        /// By run, each at most once.
        runs: Vec<(Run, Usage)>,
    },
    /// What it has: said once after the agent has found it again, after everything that the agent may not have taken in.
    Holds {
        /// Code.
        modules: Vec<ModuleId>,
        /// Single tasks.
        tasks: Vec<Run>,
        /// Array parts.
        parts: Vec<HeldPart>,
    },
}

/// What an executor has of an array part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldPart {
    /// Which.
    pub run: Run,
    /// Leased items of which no report has spoken.
    pub items: ItemSet,
    /// Slots that have not left.
    pub slots: Vec<u32>,
}

/// What happened to a part's items since the report before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArrayReport {
    /// Ended with exit code 0.
    pub finished: ItemSet,
    /// Ended otherwise.
    pub failed: Vec<ItemFailure>,
    /// Answer to [`ToExecutor::Unlease`].
    pub returned: ItemSet,
    /// Values that items returned.
    pub results: Vec<(u64, Vec<u8>)>,
    /// Sum over the items of this report.
    pub usage: Usage,
    /// Leased items that no slot had taken.
    pub unstarted: u64,
    /// Slots that were running an item.
    pub busy: u32,
}

/// How one item did not finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemFailure {
    /// The item.
    pub item: u64,
    /// The guest's exit code, when it had one.
    pub exit_code: Option<i32>,
    /// Why, unless the exit code says it.
    pub failure: Option<Failure>,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Send these to the master, in this order.
    Updates(Vec<StatusUpdate>),
    /// Make the task's directory, fetch, verify and compile what it needs.
    Prepare {
        /// Answer with this.
        run: Run,
        /// Which attempt.
        key: TaskKey,
        /// Its framework's role: the operator says what that may fetch.
        role: Role,
        /// What it runs.
        spec: Arc<TaskSpec>,
        /// Objects that an array's splits refer to.
        split_inputs: Arc<[Input]>,
        /// Whether it is an array part: its outputs then lie in slots' files.
        array: bool,
        /// Whether it runs in executors of its own: nothing of it is then used for another task.
        alone: bool,
        /// Size of the disk of each of its slots; 0: none.
        disk: Bytes,
        /// Most slots that it can get.
        slots: u32,
        /// Whether its directory has something that must stay: it goes on after a restart of the agent. Else it begins anew.
        keep: bool,
    },
    /// Fetch what these items read, and no more of the objects. Nothing of it is kept for a task of another life of this agent.
    FetchSplits {
        /// Of which array part.
        run: Run,
        /// Its attempt.
        key: TaskKey,
        /// Its framework's role.
        role: Role,
        /// Which bytes of what.
        wanted: Vec<(Split, Input)>,
    },
    /// What these items read is not needed any more, or not waited for.
    DropSplits {
        /// Of which array part.
        run: Run,
        /// Which.
        items: ItemSet,
    },
    /// Nobody waits for this any more. No answer is expected.
    CancelPrepare {
        /// Which.
        run: Run,
    },
    /// Start an executor; answer with `ExecutorStarted` or `ExecutorFailed`.
    StartExecutor {
        /// Its name.
        executor: ExecutorId,
        /// What it is for.
        kind: ExecutorKind,
        /// Whose tasks it will run; `None` for pooled ones: that is told by [`Message::BindExecutor`].
        framework: Option<FrameworkId>,
        /// For networked ones: the task that it is for, and what that may reach.
        grant: Option<Arc<Grant>>,
        /// How many slots.
        slots: u32,
        /// Its memory limit for now.
        memory: Bytes,
    },
    /// A pooled executor now has the one task of its life.
    BindExecutor {
        /// Which.
        executor: ExecutorId,
        /// Which attempt, or of which array part an item.
        key: TaskKey,
    },
    /// End an executor whose task is over, or that nobody needs. `ExecutorExited` follows.
    DiscardExecutor {
        /// Which.
        executor: ExecutorId,
    },
    /// Let an idle executor end. `ExecutorExited` follows.
    StopExecutor {
        /// Which.
        executor: ExecutorId,
    },
    /// End an executor that does not do what it was told. `ExecutorExited` follows.
    KillExecutor {
        /// Which.
        executor: ExecutorId,
        /// What it did not do.
        why: String,
    },
    /// Send this to an executor.
    ToExecutor {
        /// Which.
        executor: ExecutorId,
        /// What.
        message: ToExecutor,
    },
    /// Limit one slot's processor time, before the messages that follow are sent.
    SetSlotCpus {
        /// In which executor.
        executor: ExecutorId,
        /// Which slot.
        slot: u32,
        /// To this.
        cpus: MilliCpus,
    },
    /// An array part gave these slots back and goes on in others (only where cpu time is lent).
    SlotsIdle {
        /// The part.
        run: Run,
        /// The slots.
        slots: Vec<u32>,
    },
    /// Limit an executor's memory, before the messages that follow are sent.
    SetExecutorMemory {
        /// Which.
        executor: ExecutorId,
        /// To this.
        bytes: Bytes,
    },
    /// The run is over: its descriptors can be closed, and its sandbox is kept only as long as the budget allows.
    Ended {
        /// Which.
        run: Run,
        /// Which attempt.
        key: TaskKey,
    },
}

/// What an executor is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToExecutor {
    /// Load the code that was prepared for `run`.
    LoadModule {
        /// Under this number.
        module: ModuleId,
        /// Whose code.
        run: Run,
        /// Whether it counts fuel.
        fuel: bool,
    },
    /// Forget code that nothing uses.
    UnloadModule {
        /// Which.
        module: ModuleId,
    },
    /// Run one task.
    StartTask {
        /// Its number.
        run: Run,
        /// Where.
        slot: u32,
        /// What.
        module: ModuleId,
        /// Which attempt.
        key: TaskKey,
        /// Its description.
        launch: Arc<Launch>,
        /// Of an exclusive one: how long it may run, until [`ToExecutor::Renew`] says more.
        lease_until: Option<BootTime>,
    },
    /// Open an array part.
    StartArray {
        /// Its number.
        run: Run,
        /// Where.
        slots: Vec<u32>,
        /// Numbers of the slots' output files within the part, in the order of `slots`. Those of a part in class `process` are
        /// used by one executor after the other.
        segments: Vec<u32>,
        /// What.
        module: ModuleId,
        /// Which attempt.
        key: TaskKey,
        /// Its description. The items come as leases.
        launch: Arc<LaunchArray>,
    },
    /// Run these items.
    Lease {
        /// Of which part.
        run: Run,
        /// Which.
        items: ItemSet,
        /// Their attempt.
        attempt: u32,
        /// What they read.
        splits: Vec<Split>,
        /// Report when this many leased items are not started.
        report_when_left: u64,
        /// Report at the latest this long after an outcome.
        report_interval_us: u64,
    },
    /// Give back up to `most` items that have not been started, and report, even if there are none.
    Unlease {
        /// Of which part.
        run: Run,
        /// How many.
        most: u64,
    },
    /// No leases will follow: slots leave after their item. Sent only when no leased item waits.
    EndArray {
        /// Which part.
        run: Run,
        /// Its slots.
        slots: Vec<u32>,
    },
    /// Tell the guest to stop, and stop it after `grace`.
    Kill {
        /// Which run.
        run: Run,
        /// How long it has.
        grace: DurationMs,
    },
    /// An exclusive task may run until then.
    Renew {
        /// Which.
        run: Run,
        /// Until when.
        until: BootTime,
    },
    /// What it said up to this number need not be said again. The last of a batch says it all.
    Confirm {
        /// The number.
        number: u64,
    },
}
