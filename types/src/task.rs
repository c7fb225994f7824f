//! What a framework asks an agent to run: single tasks and task arrays.

use crate::amount::Bytes;
use crate::digest::Digest;
use crate::endpoint::Endpoint;
use crate::id::{AgentId, TaskId};
use crate::items::ItemSet;
use crate::resources::Resources;
use crate::time::DurationMs;
use serde::{Deserialize, Serialize};

/// A bundle by its digest and, optionally, where to find it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BundleRef {
    /// BLAKE3 of the bytes. What does not match never runs.
    pub digest: Digest,
    /// `http://…`, `https://…`, `s3://bucket/key`, `file:///…`; `None`: the cluster's own bundle store.
    pub uri: Option<String>,
}

/// How a task is isolated (design, section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// A fresh instance in a slot of the framework's executor: microseconds.
    #[default]
    Instance,
    /// An executor process of its own.
    Process,
}

/// Limits of one task or item. Cpus, memory and disk are in its resources.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Wall time from its start, without queue and fetch; `None`: unlimited.
    pub timeout: Option<DurationMs>,
    /// Between telling the guest to stop and stopping it.
    pub grace: DurationMs,
    /// Deterministic instruction budget; `None`: not counted.
    pub fuel: Option<u64>,
    /// stdout and stderr together.
    pub output: Bytes,
}

impl Default for Limits {
    fn default() -> Self {
        Self { timeout: None, grace: DurationMs(5_000), fuel: None, output: Bytes::mib(64) }
    }
}

/// A read-only file the task sees, or the object that the splits of an array cut up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Where the guest sees it (absolute path of one file); `None` for objects that are read as splits on stdin.
    pub guest_path: Option<String>,
    /// `store:` for the cluster's store, else as in [`BundleRef::uri`].
    pub uri: Option<String>,
    /// Pins the content when it is known; required when `uri` is `None`.
    pub digest: Option<Digest>,
    /// Length in bytes at submission; a different length is an input failure.
    pub length: u64,
    /// Which version it was at submission: an `ETag`, sent back as If-Match, or what else the place has (`smalti-fetch` knows its forms).
    pub etag: Option<String>,
    /// How an object that is read on stdin is packed; the guest reads it unpacked. `None` is left to whoever resolves it, and means
    /// plain from then on. Files that the guest sees by name are never unpacked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packing: Option<Packing>,
}

/// How an object is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// As it is.
    Plain,
    /// gzip, also several members in a row.
    Gzip,
    /// Zstandard, also several frames in a row.
    Zstd,
}

impl Packing {
    /// What a name says.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        let ends = |suffix: &str| name.len() > suffix.len() && name.to_ascii_lowercase().ends_with(suffix);
        match () {
            () if ends(".gz") || ends(".gzip") => Self::Gzip,
            () if ends(".zst") || ends(".zstd") => Self::Zstd,
            () => Self::Plain,
        }
    }
}

/// What a guest reads on stdin.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdin {
    /// End of file at once.
    #[default]
    Empty,
    /// The whole of one object.
    Object(Input),
    /// For array items: their split of one of the template's `split_inputs`.
    Split,
    /// The outputs (stdout) of items of earlier arrays, merged in item order: a reduce.
    Outputs(Vec<OutputSource>),
}

/// Where the stdout of some finished items lies: one array part on one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputSource {
    /// The agent that keeps it.
    pub agent: AgentId,
    /// The array part's task id.
    pub task: TaskId,
    /// The array part's attempt.
    pub attempt: u32,
    /// Which of its items to take. Sources of one reduce are disjoint.
    pub items: ItemSet,
}

/// What one instance runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// What to run.
    pub bundle: BundleRef,
    /// Arguments after the program name.
    pub args: Vec<String>,
    /// Environment, in this order.
    pub env: Vec<(String, String)>,
    /// What it reads on stdin.
    pub stdin: Stdin,
    /// Read-only files it sees.
    pub inputs: Vec<Input>,
    /// Limits beside its resources.
    pub limits: Limits,
    /// Isolation class. A task with ports or endpoints runs in class `process` whatever it says here.
    pub isolation: Isolation,
    /// What it may connect to, beside nothing: the operator's policy for its role must allow it, too.
    #[serde(default)]
    pub connect: Vec<Endpoint>,
    /// Absolute guest path of its writable directory, whose size is the disk of its resources; `None`: [`crate::grants::DEFAULT_DISK_PATH`].
    #[serde(default)]
    pub disk_path: Option<String>,
    /// At most one attempt of it runs at a time, whatever fails: it runs under a lease that its agent renews, and is stopped when that
    /// runs out. Single tasks only.
    #[serde(default)]
    pub exclusive: bool,
}

impl TaskSpec {
    /// A run of `bundle` without arguments, environment and inputs, with the default limits. Set what differs.
    #[must_use]
    pub fn new(bundle: BundleRef) -> Self {
        Self {
            bundle,
            args: Vec::new(),
            env: Vec::new(),
            stdin: Stdin::Empty,
            inputs: Vec::new(),
            limits: Limits::default(),
            isolation: Isolation::Instance,
            connect: Vec::new(),
            disk_path: None,
            exclusive: false,
        }
    }
}

/// One task to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Its id within the framework.
    pub task: TaskId,
    /// Which execution, from 0.
    pub attempt: u32,
    /// What it takes of the offer.
    pub resources: Resources,
    /// What to run.
    pub spec: TaskSpec,
}

/// The part of a task array that all items share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrayTemplate {
    /// What each item runs.
    pub spec: TaskSpec,
    /// Items of the whole array over all agents: the guest sees it.
    pub total_items: u64,
    /// Objects that splits refer to by index.
    pub split_inputs: Vec<Input>,
}

/// The bytes of one input that one item reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// The item.
    pub item: u64,
    /// Index into [`ArrayTemplate::split_inputs`].
    pub input: u32,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// Items handed to an array part.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ItemBatch {
    /// Which items, disjoint from all that the part was given before and did not return.
    pub items: ItemSet,
    /// Attempt number of each of these items, as the guest sees it.
    pub attempt: u32,
    /// One split per item when the template's stdin is [`Stdin::Split`], sorted by item; else empty.
    pub splits: Vec<Split>,
}

/// One part of a task array, to start on one agent.
///
/// The part holds `slots` times `slot_resources`. While it is open, a slot without an item waits for more; once it is
/// closed, a slot that finds no more items gives its resources back at once, and the part ends with its last slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchArray {
    /// Id of this part within the framework.
    pub task: TaskId,
    /// Which execution of the part, from 0.
    pub attempt: u32,
    /// What one slot takes of the offer. No ports: items of an array cannot listen.
    pub slot_resources: Resources,
    /// How many slots.
    pub slots: u32,
    /// What the items share.
    pub template: ArrayTemplate,
    /// The first items.
    pub batch: ItemBatch,
    /// Whether more items may follow without a new offer.
    pub open: bool,
}
