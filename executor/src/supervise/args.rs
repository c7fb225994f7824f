//! The supervisor's command line, written by the agent and by `launch`, never by people.

use super::Error;
use smalti_executor_protocol::supervision::ExecutorKind;
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

/// Which role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Launch,
    Init,
}

/// What both roles are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Supervisor {
    pub(super) verb: Verb,
    /// The supervisor's directory: socket, exit record and stderr lie there, out of the tasks' reach.
    pub(super) directory: PathBuf,
    pub(super) kind: ExecutorKind,
    /// The user and group that belong to this executor alone; `None`: it stays who it is.
    pub(super) uid: Option<u32>,
    /// Most threads of that user.
    pub(super) max_threads: Option<u64>,
    /// Longest file that it can make.
    pub(super) max_file_bytes: Option<u64>,
    /// The worker ends itself when no agent came back for this long.
    pub(super) recovery_timeout_ms: u64,
    /// False: the agent has found out that namespaces are not to be had, or was told not to use them.
    pub(super) namespaces: bool,
    /// For `init`: nobody with privilege outside writes the maps of its user namespace, it does so itself.
    pub(super) self_mapped: bool,
    /// For `init`: stays open in it and in its worker, unused, so that whoever holds the other meaning of it knows that they live.
    pub(super) keep_fd: Option<RawFd>,
    /// Further arguments of the worker.
    pub(super) worker: Vec<OsString>,
}

/// Fifteen minutes.
const RECOVERY_TIMEOUT_MS: u64 = 15 * 60 * 1000;

impl Supervisor {
    /// Reads `launch|init --dir DIR [--kind K] [--uid N] [--max-threads N] [--max-file-bytes N] [--recovery-timeout-ms N]
    /// [--no-namespaces] [--self-mapped] [--keep-fd N] [-- WORKER-ARGS…]`.
    pub(super) fn parse(args: Vec<OsString>) -> Result<Self, Error> {
        let bad = |text: String| Error::Args(text);
        let mut args = args.into_iter();
        let verb = match args.next().as_deref().and_then(|v| v.to_str()) {
            Some("launch") => Verb::Launch,
            Some("init") => Verb::Init,
            other => return Err(bad(format!("{other:?} is neither launch nor init"))),
        };
        let mut parsed = Self {
            verb,
            directory: PathBuf::new(),
            kind: ExecutorKind::default(),
            uid: None,
            max_threads: None,
            max_file_bytes: None,
            recovery_timeout_ms: RECOVERY_TIMEOUT_MS,
            namespaces: true,
            self_mapped: false,
            keep_fd: None,
            worker: Vec::new(),
        };
        while let Some(arg) = args.next() {
            match arg.to_str() {
                Some("--dir") => parsed.directory = args.next().ok_or_else(|| bad("--dir needs a directory".into()))?.into(),
                Some(flag @ "--kind") => parsed.kind = value(flag, args.next())?,
                Some(flag @ "--uid") => parsed.uid = Some(value(flag, args.next())?),
                Some(flag @ "--max-threads") => parsed.max_threads = Some(value(flag, args.next())?),
                Some(flag @ "--max-file-bytes") => parsed.max_file_bytes = Some(value(flag, args.next())?),
                Some(flag @ "--recovery-timeout-ms") => parsed.recovery_timeout_ms = value(flag, args.next())?,
                Some(flag @ "--keep-fd") => parsed.keep_fd = Some(value(flag, args.next())?),
                Some("--no-namespaces") => parsed.namespaces = false,
                Some("--self-mapped") => parsed.self_mapped = true,
                Some("--") => parsed.worker.extend(args.by_ref()),
                _ => return Err(bad(format!("{arg:?} is not known"))),
            }
        }
        if !parsed.directory.is_absolute() {
            return Err(bad(format!("{:?} is not an absolute path", parsed.directory.display())));
        }
        if parsed.uid == Some(0) {
            return Err(bad("--uid 0 is root".into()));
        }
        Ok(parsed)
    }

    /// The arguments for `init`.
    pub(super) fn for_init(&self) -> Vec<OsString> {
        let mut out: Vec<OsString> = vec!["init".into(), "--dir".into(), self.directory.clone().into()];
        out.extend(["--kind".into(), self.kind.as_str().into()]);
        let numbers = [
            ("--uid", self.uid.map(|n| n.to_string())),
            ("--max-threads", self.max_threads.map(|n| n.to_string())),
            ("--max-file-bytes", self.max_file_bytes.map(|n| n.to_string())),
            ("--recovery-timeout-ms", Some(self.recovery_timeout_ms.to_string())),
            ("--keep-fd", self.keep_fd.map(|n| n.to_string())),
        ];
        for (flag, number) in numbers {
            out.extend(number.into_iter().flat_map(|n| [flag.into(), n.into()]));
        }
        for (flag, set) in [("--no-namespaces", !self.namespaces), ("--self-mapped", self.self_mapped)] {
            out.extend(set.then(|| flag.into()));
        }
        out.push("--".into());
        out.extend(self.worker.iter().cloned());
        out
    }
}

fn value<T: std::str::FromStr>(flag: &str, text: Option<OsString>) -> Result<T, Error> {
    let text = text.unwrap_or_default();
    let parsed = text.to_str().and_then(|t| t.parse().ok());
    parsed.ok_or_else(|| Error::Args(format!("{flag} {} is not understood", text.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Supervisor, Error> {
        Supervisor::parse(args.iter().map(OsString::from).collect())
    }

    #[test]
    fn what_launch_passes_on_init_reads() {
        let all = "launch --dir /x --kind networked --uid 7 --max-threads 9 --max-file-bytes 8 --no-namespaces --self-mapped --keep-fd 5 \
                   --recovery-timeout-ms 5 -- --a b";
        let launch = parse(&all.split_whitespace().collect::<Vec<_>>()).unwrap();
        assert!(!launch.namespaces && launch.uid == Some(7) && launch.worker == ["--a", "b"]);
        for launch in [launch, parse(&["launch", "--dir", "/x"]).unwrap()] {
            let init = Supervisor::parse(launch.for_init()).unwrap();
            assert_eq!(init, Supervisor { verb: Verb::Init, ..launch });
        }
    }

    #[test]
    fn bad_arguments_are_refused() {
        for bad in [
            &["work"][..],
            &["launch"],
            &["launch", "--dir", "x"],
            &["launch", "--dir", "/x", "--recovery-timeout-ms", "a"],
            &["launch", "--dir", "/x", "--uid", "0"],
            &["launch", "--dir", "/x", "--kind", "other"],
            &["init", "-x"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
