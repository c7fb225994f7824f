//! What an executor's supervisor tells the agent outside of the socket: one line when it has started, one file when it is over.
//!
//! Both are read by a process with more rights than the one that wrote them: every read is bounded and every value optional.

use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Name of the worker's socket below the executor's directory.
pub const SOCKET_NAME: &str = "socket";
/// Name of the [`ExitRecord`]'s file below the executor's directory.
pub const EXIT_NAME: &str = "exit.json";
/// Name of the file below the executor's directory that receives what supervisor and worker write to stderr.
pub const STDERR_NAME: &str = "stderr.log";
/// Longest record or line that is read.
const MAX_BYTES: u64 = 64 << 10;

/// What an executor is for; decides which system calls its worker may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExecutorKind {
    /// Many tasks of one framework, in its slots. No sockets.
    #[default]
    Shared,
    /// One task, not known yet when it starts; used once. No sockets.
    Pooled,
    /// One task with ports or peers, started for it; used once. TCP sockets.
    Networked,
}

impl ExecutorKind {
    /// As it is written on the command line of `smalti-executor launch`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Pooled => "pooled",
            Self::Networked => "networked",
        }
    }
}

impl std::str::FromStr for ExecutorKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Shared, Self::Pooled, Self::Networked];
        all.into_iter().find(|k| k.as_str() == text).ok_or_else(|| format!("{text:?} is not a kind of executor"))
    }
}

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
        to_line(self)
    }

    /// Reads a line.
    ///
    /// # Errors
    /// When it is none of ours.
    pub fn parse(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line.trim())
    }
}

/// Longest request to a forge: arguments, each ended by a zero byte.
pub const MAX_FORGE_BYTES: usize = 32 << 10;
/// What the agent says to the forge when it has moved a launcher to where it belongs.
pub const FORGE_PLACED: &[u8] = b"placed";

/// What a forge answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forged {
    /// The launcher runs and waits for its go byte. Nobody else gets its pid before the agent says [`FORGE_PLACED`].
    Started {
        /// Its pid.
        pid: i32,
    },
    /// The executor itself runs, one process, the first of a pid namespace of its own, and waits for its go byte; the rest as above. How it
    /// ends the forge records before it waits for it.
    Alone {
        /// Its pid.
        pid: i32,
    },
    /// It could not be started.
    Failed {
        /// What failed, on what, and why.
        error: String,
    },
}

impl Forged {
    /// One line, with its line end.
    #[must_use]
    pub fn to_line(&self) -> String {
        to_line(self)
    }

    /// Reads a line.
    ///
    /// # Errors
    /// When it is none of ours.
    pub fn parse(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line.trim())
    }
}

fn to_line(value: &impl Serialize) -> String {
    let mut line = serde_json::to_string(value).unwrap_or_else(|e| format!("{{\"failed\":{{\"error\":\"{e}\"}}}}"));
    line.push('\n');
    line
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
    /// Number of the system call that its filter denied, when that ended it. The worker itself says so: it may lie.
    #[serde(default)]
    pub denied_syscall: Option<i32>,
}

impl ExitRecord {
    /// The format written today.
    pub const VERSION: u32 = 1;

    /// Makes the record's file below `directory`, empty, replacing an older one. The supervisor opens it while it still may open
    /// files and keeps the descriptor.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn create(directory: &Path) -> io::Result<fs::File> {
        let path = directory.join(EXIT_NAME);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
    }

    /// Writes the record into the file that [`ExitRecord::create`] made, in one call.
    ///
    /// # Errors
    /// What the kernel said, also when not all of it was taken.
    pub fn store(&self, mut file: &fs::File) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        match file.write(&bytes)? {
            n if n == bytes.len() => Ok(()),
            n => Err(io::Error::other(format!("{n} of {} bytes were written", bytes.len()))),
        }
    }

    /// The record below `directory`; `None` when there is none, or an empty one (the supervisor itself was killed). Never waits,
    /// whatever lies there.
    ///
    /// # Errors
    /// When it cannot be read, or is none of ours.
    pub fn load(directory: &Path) -> io::Result<Option<Self>> {
        let file = match open_plain(&directory.join(EXIT_NAME)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other)
    }
}

/// Opens a file for reading that must be an ordinary one: no link is followed, and nobody who reads it waits for a writer.
///
/// # Errors
/// What the kernel said, or that it is something else.
pub fn open_plain(path: &Path) -> io::Result<fs::File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::other(format!("{} is not an ordinary file", path.display())))
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
        let record = ExitRecord { version: ExitRecord::VERSION, code: None, signal: Some(9), denied_syscall: Some(165) };
        let file = ExitRecord::create(dir.path()).unwrap();
        assert_eq!(ExitRecord::load(dir.path()).unwrap(), None, "made, but not written");
        record.store(&file).unwrap();
        assert_eq!(ExitRecord::load(dir.path()).unwrap(), Some(record));
        assert!(ExitRecord::create(dir.path()).is_ok(), "an older one is replaced");
        fs::write(dir.path().join(EXIT_NAME), "{").unwrap();
        assert!(ExitRecord::load(dir.path()).is_err());
        // Written by a version that knew of no filter.
        fs::write(dir.path().join(EXIT_NAME), r#"{"version":1,"code":3,"signal":null}"#).unwrap();
        assert_eq!(ExitRecord::load(dir.path()).unwrap().unwrap().denied_syscall, None);
    }

    #[test]
    fn reading_never_waits_for_what_lies_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(EXIT_NAME);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert!(ExitRecord::load(dir.path()).unwrap_err().to_string().contains("ordinary"));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(ExitRecord::load(dir.path()).is_err());
    }

    #[test]
    fn a_kind_is_read_as_it_is_written() {
        for kind in [ExecutorKind::Shared, ExecutorKind::Pooled, ExecutorKind::Networked] {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert!("other".parse::<ExecutorKind>().is_err());
    }
}
