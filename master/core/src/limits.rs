//! Bounds on what peers may ask for. Each refusal names its limit.

/// Operations in one accept: far above what one agent can hold, and one message of them stays below the wire's limit.
pub const MAX_OPERATIONS: usize = 10_000;
/// Offers named in one accept or decline.
pub const MAX_OFFERS_PER_CALL: usize = 10_000;
/// Slots of one array part: an agent is one machine.
pub const MAX_SLOTS: u32 = 4_096;
/// Items of one task array; leaves every sum of items far from 64 bits.
pub const MAX_ITEMS: u64 = 1 << 40;
/// Arguments of one task.
pub const MAX_ARGS: usize = 4_096;
/// Environment variables of one task.
pub const MAX_ENV: usize = 1_024;
/// Bytes of all arguments and the environment of one task.
pub const MAX_ARGS_ENV_BYTES: usize = 256 * 1_024;
/// Inputs of one task, and sources of one reduce.
pub const MAX_INPUTS: usize = 1_024;
/// Objects that the splits of one array refer to.
pub const MAX_SPLIT_INPUTS: usize = 65_536;
/// Sources whose outputs one reduce reads.
pub const MAX_OUTPUT_SOURCES: usize = 65_536;
/// Bytes of one URI, path or ETag.
pub const MAX_TEXT: usize = 4_096;
/// Longest wall time limit and longest grace period: ten years in milliseconds.
pub const MAX_SPAN_MS: u64 = 10 * 366 * 24 * 3_600 * 1_000;
/// Bytes of a framework's or host's name, a principal, or an attribute.
pub const MAX_NAME: usize = 256;
/// Services that one framework announces, and attributes of one agent.
pub const MAX_ENTRIES: usize = 256;
/// Kinds of custom resources of one agent or task.
pub const MAX_CUSTOM: usize = 64;
/// Tasks that one agent may bring back when it registers.
pub const MAX_TASKS_PER_AGENT: usize = 200_000;
/// Attempts of one framework that run or whose end it has not acknowledged.
pub const MAX_TASKS_PER_FRAMEWORK: usize = 1_000_000;
/// Connected and remembered agents.
pub const MAX_AGENTS: usize = 200_000;
/// Connected and remembered frameworks.
pub const MAX_FRAMEWORKS: usize = 20_000;
