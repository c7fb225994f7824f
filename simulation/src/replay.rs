//! Logs on disk: written for a run, and run again beside one, line by line, up to a step.
//!
//! A log names its run in its first line, so a replay needs nothing else. It says when the run that it sees is another one: then the
//! code has changed since.

use crate::report::{Failure, Header, Report};
use crate::run_until;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::rc::Rc;

/// What a replay gives.
#[derive(Debug)]
pub struct Replayed {
    /// How the run ended, or that it went well so far.
    pub result: Result<Report, Box<Failure>>,
    /// The first line that differs from the log: its number, the log's, and what came instead.
    pub differs: Option<(u64, String, String)>,
    /// Every node as it is at the end, for people.
    pub state: String,
}

/// Runs one world to its end and writes its log.
///
/// # Errors
/// When the log cannot be written.
pub fn write_log(header: &Header, path: &Path) -> io::Result<Result<Report, Box<Failure>>> {
    let mut file = BufWriter::new(File::create(path)?);
    writeln!(file, "{header}")?;
    let out = Rc::new(RefCell::new((file, Ok(()))));
    let sink = Rc::clone(&out);
    let take = move |line: &str| {
        let (file, result) = &mut *sink.borrow_mut();
        if result.is_ok() {
            *result = writeln!(file, "{line}");
        }
    };
    let (run, world) = run_until(header.seed, &header.config, u64::MAX, Some(Box::new(take)));
    drop(world);
    let (file, result) = &mut *out.borrow_mut();
    std::mem::replace(result, Ok(()))?;
    if let Err(failure) = &run {
        writeln!(file, "{}", failure.problem)?;
    }
    file.flush()?;
    Ok(run)
}

/// Runs again what a log was written for, up to step `until`, and shows every line from step `from` on to `show`.
///
/// # Errors
/// When the log cannot be read, or is none.
pub fn replay(path: &Path, until: u64, mut show: impl FnMut(&str) + 'static) -> io::Result<Replayed> {
    let mut lines = BufReader::new(File::open(path)?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let header: Header = first.parse().map_err(|e: String| io::Error::new(io::ErrorKind::InvalidData, e))?;
    let differs = Rc::new(RefCell::new(None));
    let noted = Rc::clone(&differs);
    let mut number = 1;
    let take = move |line: &str| {
        number += 1;
        show(line);
        let before = lines.next().and_then(Result::ok).unwrap_or_default();
        if before != line {
            noted.borrow_mut().get_or_insert((number, before, line.to_owned()));
        }
    };
    let (result, world) = run_until(header.seed, &header.config, until, Some(Box::new(take)));
    let mut state = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(state, "{:#?}\n{:#?}\n{:#?}", world.master, world.agents, world.frameworks);
    drop(world);
    let differs = differs.borrow_mut().take();
    Ok(Replayed { result, differs, state })
}
