//! How executors that are one process ended: seen by the forge, whose children they are, and recorded as a supervisor does it for others.
//!
//! Owns each one's exit record and the end of the line on which it names a system call that its filter denied. The record is written before
//! the process is waited for: who sees that it is gone altogether finds the record.

use super::init::record;
use super::{Error, step};
use crate::confine::trap;
use nix::libc;
use nix::sys::wait::WaitStatus;
use smalti_executor_protocol::supervision::ExitRecord;
use std::collections::HashMap;
use std::fs::File;
use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

/// What is written about one.
#[derive(Debug)]
pub(super) struct Note {
    record: File,
    denied: PipeReader,
}

impl Note {
    /// Of an executor with this directory that is about to be started; with the end of the line that it gets.
    ///
    /// # Errors
    /// No file, no pipe.
    pub(super) fn new(directory: &Path) -> Result<(Self, OwnedFd), Error> {
        let record = ExitRecord::create(directory).map_err(step(format!("making the exit record in {}", directory.display())))?;
        let (denied, line) = std::io::pipe().map_err(step("making a pipe"))?;
        // Whoever reads it never waits, whoever holds the other end.
        rustix::io::ioctl_fionbio(&denied, true).map_err(step("making a pipe"))?;
        Ok((Self { record, denied }, line.into()))
    }

    fn write(mut self, record: ExitRecord) -> std::io::Result<()> {
        let mut number = [0; size_of::<i32>()];
        let denied_syscall = self.denied.read_exact(&mut number).is_ok().then(|| i32::from_le_bytes(number));
        ExitRecord { denied_syscall, ..record }.store(&self.record)
    }
}

/// All that live, by pid.
#[derive(Debug, Default)]
pub(super) struct Watch(HashMap<i32, Note>);

impl Watch {
    /// This child of the forge is to be watched.
    pub(super) fn begin(&mut self, pid: i32, note: Note) {
        self.0.insert(pid, note);
    }

    /// A child has ended and was not waited for yet.
    pub(super) fn has_ended(&mut self, ended: WaitStatus) {
        let (pid, record) = match ended {
            WaitStatus::Exited(pid, code) => (pid, of_code(code)),
            WaitStatus::Signaled(pid, signal, _) => (pid, ExitRecord { signal: Some(signal as i32), ..record() }),
            _ => return,
        };
        let Some(note) = self.0.remove(&pid.as_raw()) else { return };
        if let Err(e) = note.write(record) {
            eprintln!("smalti-executor: recording the end of process {pid}: {e}");
        }
    }

    /// Whether nobody is watched.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The first process of a pid namespace does not get its own SIGABRT: a handler ends it, with a code that means that signal.
fn of_code(code: i32) -> ExitRecord {
    match code {
        trap::ABORTED => ExitRecord { signal: Some(libc::SIGABRT), ..record() },
        code => ExitRecord { code: Some(code), ..record() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::Signal;
    use nix::unistd::Pid;
    use std::io::Write;

    #[test]
    fn an_end_is_recorded_once_with_a_denied_call_if_there_was_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Watch::default();
        let mut ended = |status, denied: Option<&[u8]>| {
            let (note, line) = Note::new(dir.path()).unwrap();
            if let Some(bytes) = denied {
                File::from(line).write_all(bytes).unwrap();
            }
            watch.begin(7, note);
            watch.has_ended(WaitStatus::Exited(Pid::from_raw(8), 1));
            assert!(!watch.is_empty() && ExitRecord::load(dir.path()).unwrap().is_none(), "somebody else");
            watch.has_ended(status);
            assert!(watch.is_empty());
            ExitRecord::load(dir.path()).unwrap().unwrap()
        };
        let record = ExitRecord { version: ExitRecord::VERSION, ..ExitRecord::default() };
        let pid = Pid::from_raw(7);
        assert_eq!(ended(WaitStatus::Exited(pid, 3), None), ExitRecord { code: Some(3), ..record });
        assert_eq!(ended(WaitStatus::Signaled(pid, Signal::SIGKILL, false), None), ExitRecord { signal: Some(9), ..record });
        assert_eq!(ended(WaitStatus::Exited(pid, 134), None), ExitRecord { signal: Some(6), ..record });
        let denied = ExitRecord { code: Some(159), denied_syscall: Some(101), ..record };
        assert_eq!(ended(WaitStatus::Exited(pid, 159), Some(&101_i32.to_le_bytes())), denied);
        assert_eq!(ended(WaitStatus::Exited(pid, 0), Some(&[1])), ExitRecord { code: Some(0), ..record }, "half a number is none");
    }

    #[test]
    fn who_holds_the_line_open_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let (note, _line) = Note::new(dir.path()).unwrap();
        let mut watch = Watch::default();
        watch.begin(7, note);
        watch.has_ended(WaitStatus::Exited(Pid::from_raw(7), 0));
        assert_eq!(ExitRecord::load(dir.path()).unwrap().unwrap().code, Some(0));
    }
}
