//! Staying with a job to its end: its output as it comes, its changes, and Ctrl-C.

use super::collect::{self, Collect, Tee};
use super::interrupts::Interrupts;
use super::output::{self, Stopped};
use super::retries::Retries;
use super::sink::{Capture, PassThrough, Sink};
use super::{Link, outcome, submit};
use crate::failure::{Exit, Failure, INTERRUPTED, KILLED, Result, SMALTI_FAILED, SUCCESS};
use crate::output::OutputOptions;
use crate::terminal;
use crate::views::JobJson;
use indicatif::ProgressBar;
use serde::Serialize;
use smalti_proto::v1::{JobRef, JobView, KillRequest, OutputRequest, OutputStream, SubmitRequest, TaskState, TaskView};
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;
use tokio_stream::StreamExt;

/// How long a kill request may take when our reader is gone and nobody would see the answer.
const PARTING_KILL: Duration = Duration::from_secs(5);
/// A Watch stream that ends without the job's end is opened again after this long.
const WATCH_AGAIN: Duration = Duration::from_millis(200);

/// Submits a job and stays with it: `run` and `map` without `--detach`.
///
/// `collect`: where outputs are to be files, too.
pub(crate) async fn submit_and_follow(
    mut link: Link,
    request: SubmitRequest,
    options: &OutputOptions,
    collect: Option<&Path>,
) -> Result<Exit> {
    if let Some(dir) = collect {
        collect::prepare(dir)?;
    }
    // Before the job exists, so that no Ctrl-C falls between.
    let mut interrupts = Interrupts::new()?;
    let is_map = matches!(request.kind, Some(smalti_proto::v1::submit_request::Kind::Map(_)));
    let job = {
        let sent = submit::send(&mut link, request);
        tokio::pin!(sent);
        loop {
            tokio::select! {
                job = &mut sent => break job?,
                // The first is kept for the job that is about to exist; see `Interrupts::next`.
                n = interrupts.next() => if n > 1 { return Err(left("the job may have been submitted")) },
            }
        }
    };
    let files = collect.map(|dir| Collect::new(dir, &job)).transpose()?;
    if options.is_json() {
        let sink = Tee { sink: Capture::default(), collect: files };
        let followed = follow(link.clone(), &job, sink, ProgressBar::hidden(), interrupts).await?;
        return print_captured(collected(&mut link, followed).await);
    }
    let bar = if is_map { terminal::bar(0, "{msg} {wide_bar} {pos}/{len} {eta}") } else { terminal::quiet_bar() };
    let sink = Tee { sink: PassThrough::new(bar.clone()), collect: files };
    let followed = follow(link.clone(), &job, sink, bar, interrupts).await?;
    let followed = collected(&mut link, followed).await;
    Ok(conclude(&followed.end, followed.lost.as_ref()))
}

/// Gives what was collected its names. What cannot be written is lost to whoever asked for files.
async fn collected<S>(link: &mut Link, followed: Followed<Tee<S>>) -> Followed<S> {
    let Followed { end, sink: Tee { sink, collect }, mut lost } = followed;
    if let (Some(collect), None) = (collect, &lost) {
        lost = collect.conclude(link, &end).await.err();
    }
    Followed { end, sink, lost }
}

fn left(what: &str) -> Failure {
    Failure::with_code(INTERRUPTED, format!("left: {what}; `smalti jobs` shows it"))
}

/// Prints why the job did not succeed and gives the exit code. Output that is lost fails a job that would have succeeded.
pub(crate) fn conclude(job: &JobView, lost: Option<&Failure>) -> Exit {
    if let Some(text) = outcome::explanation(job) {
        terminal::note(&text);
    }
    let code = outcome::exit_code(job);
    match lost {
        Some(failure) => {
            terminal::note(&format!("job {}: {failure}", job.job));
            if code == SUCCESS { SMALTI_FAILED } else { code }
        }
        None => code,
    }
}

#[derive(Serialize)]
struct WithOutput {
    #[serde(flatten)]
    job: JobJson,
    stdout: String,
    stderr: String,
    /// Whether `stdout` or `stderr` is only the first part; `smalti logs` has all.
    truncated: bool,
}

fn print_captured(Followed { end, sink: capture, lost }: Followed<Capture>) -> Result<Exit> {
    let code = conclude(&end, lost.as_ref());
    crate::output::json(&WithOutput {
        job: end.into(),
        stdout: String::from_utf8_lossy(&capture.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&capture.stderr).into_owned(),
        truncated: capture.truncated,
    })?;
    Ok(code)
}

/// A job that has ended.
struct Followed<S> {
    end: JobView,
    sink: S,
    /// Why its output is not complete, if so.
    lost: Option<Failure>,
}

/// Follows a job to its end and to the end of its output.
async fn follow<S: Sink + 'static>(link: Link, job: &str, sink: S, bar: ProgressBar, mut interrupts: Interrupts) -> Result<Followed<S>> {
    let (ended, ended_receiver) = watch::channel(false);
    let request = OutputRequest { job_or_task: job.to_owned(), stream: OutputStream::Both.into(), follow: true, ..Default::default() };
    let mut out = tokio::spawn(output::read(link.quiet_clone(), request, sink, ended_receiver));
    let retries = Retries::default();
    let end = watch(link.clone(), job, |view| {
        show(&bar, view);
        if let Some(line) = retries.news(view) {
            bar.suspend(|| terminal::note(&line));
        }
    });
    tokio::pin!(end);
    let (mut last, mut printed) = (None, None);
    if interrupts.count() > 0 {
        stop(&link, job, &bar);
    }
    loop {
        tokio::select! {
            view = &mut end, if last.is_none() => {
                last = Some(view?);
                ended.send_replace(true);
                bar.finish_and_clear();
            }
            joined = &mut out, if printed.is_none() => {
                let (sink, result) = joined.map_err(|e| Failure::new(format!("reading the output of job {job}: {e}")))?;
                printed = match result {
                    Ok(()) => Some((sink, None)),
                    Err(Stopped::Lost(failure)) => Some((sink, Some(failure))),
                    Err(Stopped::Sink(error)) => {
                        bar.finish_and_clear();
                        return Err(reader_gone(&link, job, &error).await);
                    }
                };
            }
            n = interrupts.next() => {
                if n > 1 {
                    bar.finish_and_clear();
                    return Err(left(&format!("job {job} was told to stop")));
                }
                stop(&link, job, &bar);
            }
        }
        if let (Some(_), Some(_)) = (&last, &printed)
            && let (Some(end), Some((sink, lost))) = (last.take(), printed.take())
        {
            return Ok(Followed { end, sink, lost });
        }
    }
}

/// The first Ctrl-C: the job is told to stop, and we stay. A scheduler that is away is told when it is back; a refusal is shown
/// and no more, for the caller goes on waiting.
fn stop(link: &Link, job: &str, bar: &ProgressBar) {
    bar.suspend(|| terminal::note(&format!("killing job {job}; Ctrl-C again leaves at once")));
    let (mut link, job) = (link.quiet_clone(), job.to_owned());
    tokio::spawn(async move {
        let what = format!("killing job {job}");
        while let Err(status) = link.jobs().kill(KillRequest { job_or_task: job.clone(), grace_ms: None }).await {
            if let Err(failure) = link.again(&what, &status).await {
                return terminal::note(&failure.to_string());
            }
        }
    });
}

/// Nobody reads our stdout (`smalti run … | head`): the job ends, without words.
async fn reader_gone(link: &Link, job: &str, error: &std::io::Error) -> Failure {
    let request = KillRequest { job_or_task: job.to_owned(), grace_ms: None };
    // Whatever comes back, there is nobody to tell.
    let _ = tokio::time::timeout(PARTING_KILL, link.jobs().kill(request)).await;
    match Failure::stdout(error) {
        Failure { message: None, .. } => Failure { code: KILLED, message: None },
        other => other,
    }
}

/// Waits for the end of a job; `seen` is called with each view on the way.
pub(crate) async fn watch(mut link: Link, job: &str, seen: impl Fn(&JobView)) -> Result<JobView> {
    let what = format!("watching job {job}");
    loop {
        let broken = match link.jobs().watch(JobRef { job: job.to_owned() }).await {
            Err(status) => status,
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    match stream.next().await {
                        Some(Ok(view)) => {
                            link.works();
                            seen(&view);
                            if outcome::is_terminal(&view) {
                                return Ok(view);
                            }
                        }
                        Some(Err(status)) => break status,
                        None => {
                            tokio::time::sleep(WATCH_AGAIN).await;
                            break tonic::Status::cancelled("the stream ended before the job did");
                        }
                    }
                }
            }
        };
        link.again(&what, &broken).await?;
    }
}

/// Of a single task: how far its agent is with what it fetches. Once it runs, the terminal is the guest's.
fn show_fetching(bar: &ProgressBar, view: &JobView) {
    let staging = |task: &&TaskView| task.state == i32::from(TaskState::Staging);
    match view.tasks.iter().find(staging).and_then(|task| task.progress.as_ref()) {
        Some(progress) => terminal::show(bar, progress.permille.into(), &crate::output::printable(&progress.text)),
        None => terminal::hide(bar),
    }
}

fn show(bar: &ProgressBar, view: &JobView) {
    if view.kind == "run" {
        return show_fetching(bar, view);
    }
    bar.set_length(view.items_total);
    bar.set_position(view.items_finished + view.items_failed);
    let failed = if view.items_failed > 0 { format!(", {} failed", view.items_failed) } else { String::new() };
    bar.set_message(format!("{}, {} running{failed}", crate::output::printable(&view.phase), view.items_running));
}
