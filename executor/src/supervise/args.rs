//! The supervisor's command line, written by the agent and by `launch`, never by people.

use super::Error;
use std::ffi::OsString;
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
    /// The worker ends itself when no agent came back for this long.
    pub(super) recovery_timeout_ms: u64,
    /// False: the agent has found out that namespaces are not to be had, or was told not to use them.
    pub(super) namespaces: bool,
    /// Further arguments of the worker.
    pub(super) worker: Vec<OsString>,
}

/// Fifteen minutes.
const RECOVERY_TIMEOUT_MS: u64 = 15 * 60 * 1000;

impl Supervisor {
    /// Reads `launch|init --dir DIR [--recovery-timeout-ms N] [--no-namespaces] [-- WORKER-ARGS…]`.
    pub(super) fn parse(args: Vec<OsString>) -> Result<Self, Error> {
        let bad = |text: String| Error::Args(text);
        let mut args = args.into_iter();
        let verb = match args.next().as_deref().and_then(|v| v.to_str()) {
            Some("launch") => Verb::Launch,
            Some("init") => Verb::Init,
            other => return Err(bad(format!("{other:?} is neither launch nor init"))),
        };
        let mut parsed =
            Self { verb, directory: PathBuf::new(), recovery_timeout_ms: RECOVERY_TIMEOUT_MS, namespaces: true, worker: Vec::new() };
        while let Some(arg) = args.next() {
            match arg.to_str() {
                Some("--dir") => parsed.directory = args.next().ok_or_else(|| bad("--dir needs a directory".into()))?.into(),
                Some("--recovery-timeout-ms") => {
                    let value = args.next().unwrap_or_default();
                    let number = value.to_str().and_then(|v| v.parse().ok());
                    parsed.recovery_timeout_ms = number.ok_or_else(|| bad(format!("--recovery-timeout-ms {value:?} is not a number")))?;
                }
                Some("--no-namespaces") => parsed.namespaces = false,
                Some("--") => parsed.worker.extend(args.by_ref()),
                _ => return Err(bad(format!("{arg:?} is not known"))),
            }
        }
        if !parsed.directory.is_absolute() {
            return Err(bad(format!("{:?} is not an absolute path", parsed.directory.display())));
        }
        Ok(parsed)
    }

    /// The arguments for `init`.
    pub(super) fn for_init(&self) -> Vec<OsString> {
        let mut out: Vec<OsString> = vec!["init".into(), "--dir".into(), self.directory.clone().into()];
        out.extend(["--recovery-timeout-ms".into(), self.recovery_timeout_ms.to_string().into(), "--".into()]);
        out.extend(self.worker.iter().cloned());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Supervisor, Error> {
        Supervisor::parse(args.iter().map(OsString::from).collect())
    }

    #[test]
    fn what_launch_passes_on_init_reads() {
        let launch = parse(&["launch", "--dir", "/x", "--no-namespaces", "--recovery-timeout-ms", "5", "--", "--a", "b"]).unwrap();
        assert!(!launch.namespaces);
        let init = Supervisor::parse(launch.for_init()).unwrap();
        assert_eq!(init, Supervisor { verb: Verb::Init, namespaces: true, ..launch });
    }

    #[test]
    fn bad_arguments_are_refused() {
        for bad in [
            &["work"][..],
            &["launch"],
            &["launch", "--dir", "x"],
            &["launch", "--dir", "/x", "--recovery-timeout-ms", "a"],
            &["init", "-x"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
