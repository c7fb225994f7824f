//! The agent's checkpoint: the core's records as bytes (`record`), in frames that show damage (`frame`), in a log (`log`) on a disk (`disk`).
//!
//! Owns the format. What is read back is exactly what was written, or cut at the last good frame where a crash tore the end, or refused
//! with words that say what to do. Deliberately absent: what records mean (the core's), and when to write (the shell's).

mod disk;
mod frame;
mod log;
mod record;

pub use disk::{Disk, Files, Which};
pub use log::{Error, Log, Opened};
pub use record::{RECORD_VERSION, RecordError, decode, encode};
