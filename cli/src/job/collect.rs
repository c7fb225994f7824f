//! `--collect DIR`: outputs as files of this machine, beside what goes to stdout and stderr.
//!
//! While the job runs, bytes gather in files whose names begin with a dot; when it has ended and everything has come, they get the names
//! that the cluster's output store would give them: `JOB/ITEM.ATTEMPT.stdout`, with `task` or `reduce` in the place of an item. So what has
//! such a name is whole. A disk that is full does not end the job; it is told at the end.

use super::Link;
use super::sink::Sink;
use crate::failure::{Failure, Result, io_text};
use smalti_proto::v1::{JobView, ListTasksRequest, OutputChunk, OutputStream, TaskState};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Items asked for at a time.
const PAGE: u32 = 1000;

/// What an output is of: an item, or an attempt of the one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    Item(u64),
    Attempt(u32),
}

impl Of {
    fn gathering(self, stream: &str) -> String {
        match self {
            Self::Item(item) => format!(".{item}.{stream}.part"),
            Self::Attempt(attempt) => format!(".attempt-{attempt}.{stream}.part"),
        }
    }
}

const fn name(stream: OutputStream) -> &'static str {
    if matches!(stream, OutputStream::Stderr) { "stderr" } else { "stdout" }
}

/// The files of one job.
#[derive(Debug)]
pub(crate) struct Collect {
    dir: PathBuf,
    /// Of the output that is being written.
    open: Option<(Of, BTreeMap<&'static str, File>)>,
    attempts: u32,
    failed: Option<Failure>,
}

fn failed(doing: &str, path: &Path, e: &io::Error) -> Failure {
    Failure::new(format!("--collect: {doing} {}: {}", path.display(), io_text(e)))
}

/// Makes the directory before there is a job whose outputs could be lost.
pub(crate) fn prepare(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| failed("making the directory", dir, &e))
}

impl Collect {
    /// For this job, below `dir`.
    pub(crate) fn new(dir: &Path, job: &str) -> Result<Self> {
        let dir = dir.join(job);
        prepare(&dir)?;
        Ok(Self { dir, open: None, attempts: 0, failed: None })
    }

    fn write(&mut self, chunk: &OutputChunk) -> io::Result<()> {
        let of = chunk.item.map_or(Of::Attempt(chunk.attempt), Of::Item);
        if let Of::Attempt(attempt) = of {
            self.attempts = self.attempts.max(attempt + 1);
        }
        let stream = name(chunk.stream());
        let (current, files) = self.open.get_or_insert_with(|| (of, BTreeMap::new()));
        if *current != of {
            (*current, *files) = (of, BTreeMap::new());
        }
        if !files.contains_key(stream) {
            let file = File::options().create(true).append(true).open(self.dir.join(of.gathering(stream)))?;
            files.insert(stream, file);
        }
        files.get_mut(stream).map_or(Ok(()), |file| file.write_all(&chunk.data))
    }

    /// Everything has come: gives the outputs their names. Of a task, the last attempt's counts.
    pub(crate) async fn conclude(mut self, link: &mut Link, job: &JobView) -> Result<()> {
        self.open = None;
        if let Some(failure) = self.failed.take() {
            return Err(failure);
        }
        let has_task = job.kind == "run" || job.tasks.iter().any(|t| t.task != job.job);
        if has_task && let Some(task) = job.tasks.last() {
            let what = if job.kind == "run" { "task" } else { "reduce" };
            self.name(Of::Attempt(task.attempt), what, task.attempt, has_run(task.state))?;
        }
        if job.kind != "run" {
            self.items(link, &job.job, !has_task).await?;
        }
        for attempt in 0..self.attempts {
            for stream in ["stdout", "stderr"] {
                // Of attempts that did not count.
                let _ = fs::remove_file(self.dir.join(Of::Attempt(attempt).gathering(stream)));
            }
        }
        Ok(())
    }

    async fn items(&self, link: &mut Link, job: &str, with_stdout: bool) -> Result<()> {
        let mut page = String::new();
        loop {
            let request = ListTasksRequest { job_or_task: job.to_owned(), all: true, items: true, limit: PAGE, page };
            let list = loop {
                match link.jobs().list_tasks(request.clone()).await {
                    Ok(list) => break list.into_inner(),
                    Err(status) => link.again("listing the job's items", &status).await?,
                }
            };
            for task in &list.tasks {
                if let Some(item) = task.item {
                    self.name(Of::Item(item), &item.to_string(), task.attempt, with_stdout && has_run(task.state))?;
                }
            }
            if list.next_page.is_empty() {
                return Ok(());
            }
            page = list.next_page;
        }
    }

    /// `always`: also an empty stdout.
    fn name(&self, of: Of, what: &str, attempt: u32, always: bool) -> Result<()> {
        for stream in ["stderr", "stdout"] {
            let (from, to) = (self.dir.join(of.gathering(stream)), self.dir.join(format!("{what}.{attempt}.{stream}")));
            let done = match fs::rename(&from, &to) {
                Err(e) if e.kind() == io::ErrorKind::NotFound && stream == "stdout" && always => File::create(&to).map(drop),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            };
            done.map_err(|e| failed("writing", &to, &e))?;
        }
        Ok(())
    }
}

fn has_run(state: i32) -> bool {
    matches!(TaskState::try_from(state), Ok(TaskState::Finished | TaskState::Failed))
}

/// Writes files and hands on.
pub(crate) struct Tee<S> {
    pub(crate) sink: S,
    pub(crate) collect: Option<Collect>,
}

impl<S: Sink> Sink for Tee<S> {
    fn take(&mut self, chunk: &OutputChunk) -> io::Result<()> {
        if let Some(collect) = self.collect.as_mut().filter(|c| c.failed.is_none())
            && let Err(e) = collect.write(chunk)
        {
            collect.failed = Some(failed("writing to", &collect.dir, &e));
        }
        self.sink.take(chunk)
    }
}
