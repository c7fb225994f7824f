//! What an executor's supervisor tells the agent outside of the socket: one line when it has started, one file when it is over.
//!
//! Both are read by a process with more rights than the one that wrote them: every read is bounded and every value optional.

use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

/// Name of the worker's socket below the executor's directory.
pub const SOCKET_NAME: &str = "socket";
/// Name of the [`ExitRecord`]'s file below the executor's directory.
pub const EXIT_NAME: &str = "exit.json";
/// Name of the file below the executor's directory that receives what supervisor and worker write to stderr.
pub const STDERR_NAME: &str = "stderr.log";
/// Longest record or line that is read.
const MAX_BYTES: u64 = 64 << 10;

/// The line that `smalti-executor launch` prints: where the supervisor is, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Launched {
    /// The supervisor runs and listens on the socket.
    Started {
        /// The supervisor's pid as the launcher's own namespace sees it.
        pid: i32,
        /// Whether it is pid 1 of a namespace of its own, which ends with it.
        pid_namespace: bool,
        /// Layers that could not be made.
        warnings: Vec<String>,
    },
    /// It could not be started.
    Failed {
        /// What failed, on what, and why.
        error: String,
    },
}

impl Launched {
    /// One line, with its line end.
    #[must_use]
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_string(self).unwrap_or_else(|e| format!("{{\"failed\":{{\"error\":\"{e}\"}}}}"));
        line.push('\n');
        line
    }

    /// Reads a line.
    ///
    /// # Errors
    /// When it is none of ours.
    pub fn parse(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line.trim())
    }
}

/// How a worker ended, as its parent saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Format of this record.
    pub version: u32,
    /// Exit code, when it exited.
    pub code: Option<i32>,
    /// Signal, when one killed it.
    pub signal: Option<i32>,
}

impl ExitRecord {
    /// The format written today.
    pub const VERSION: u32 = 1;

    /// Writes the record below `directory`, whole or not at all (temporary file, then rename).
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn store(&self, directory: &Path) -> io::Result<()> {
        let temporary = directory.join("exit.json.new");
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(self).map_err(io::Error::other)?)?;
        fs::rename(&temporary, directory.join(EXIT_NAME))
    }

    /// The record below `directory`; `None` when there is none (the supervisor itself was killed).
    ///
    /// # Errors
    /// When it cannot be read, or is none of ours.
    pub fn load(directory: &Path) -> io::Result<Option<Self>> {
        let file = match fs::File::open(directory.join(EXIT_NAME)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_line_is_one_line_and_comes_back() {
        let line = Launched::Started { pid: 7, pid_namespace: true, warnings: vec!["a\nb".into()] };
        assert_eq!(line.to_line().matches('\n').count(), 1);
        assert_eq!(Launched::parse(&line.to_line()).unwrap(), line);
        assert!(Launched::parse("garbage").is_err());
    }

    #[test]
    fn an_exit_record_is_stored_whole() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ExitRecord::load(dir.path()).unwrap(), None);
        let record = ExitRecord { version: ExitRecord::VERSION, code: None, signal: Some(9) };
        record.store(dir.path()).unwrap();
        assert_eq!(ExitRecord::load(dir.path()).unwrap(), Some(record));
        fs::write(dir.path().join(EXIT_NAME), "{").unwrap();
        assert!(ExitRecord::load(dir.path()).is_err());
    }
}
