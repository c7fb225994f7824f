//! `jobs` and `ps`: bounded lists, in pages.

use crate::views;
use smalti_proto::v1;
use smalti_scheduler_core::{Job, JobId, Scheduler, Target, TaskName};
use tonic::Status;

/// Entries of a list when the client names no number.
const DEFAULT_LIMIT: usize = 1_000;
/// Most entries of one answer.
const MAX_LIMIT: usize = 10_000;

fn limit(asked: u32) -> usize {
    match asked {
        0 => DEFAULT_LIMIT,
        n => (n as usize).min(MAX_LIMIT),
    }
}

/// The newest jobs, oldest of them first; without `all` only those that are not over.
pub(super) fn jobs(scheduler: &Scheduler, request: &v1::ListJobsRequest) -> v1::JobList {
    let wanted = |j: &&Job| request.all || j.state.outcome.is_none();
    let mut jobs: Vec<_> = scheduler.jobs().rev().filter(wanted).take(limit(request.limit)).map(views::job).collect();
    jobs.reverse();
    v1::JobList { jobs }
}

/// Tasks of one job or of all. A page token names the job that comes next, and within a job's items the next item.
pub(super) fn tasks(scheduler: &Scheduler, request: &v1::ListTasksRequest) -> Result<v1::TaskList, Status> {
    let limit = limit(request.limit);
    if request.job_or_task.is_empty() {
        return all_tasks(scheduler, request, limit);
    }
    let target: Target = request.job_or_task.parse().map_err(|e: smalti_scheduler_core::NameError| Status::not_found(e.to_string()))?;
    let Some(job) = scheduler.job(target.job) else { return Err(Status::not_found(format!("no job {}", target.job))) };
    if request.items && job.spec.map().is_some() && !matches!(target.task, Some(TaskName::Reduce { .. })) {
        return items(job, request, limit);
    }
    let wanted = |task: &str| match target.task {
        None => true,
        // Parts have no line of their own: the array stands for them.
        Some(TaskName::Part { .. }) => task == job.id().to_string(),
        Some(_) => task == request.job_or_task,
    };
    let tasks = job.tasks().into_iter().filter(|t| wanted(&t.task)).map(|t| views::task(job, t)).collect();
    Ok(v1::TaskList { tasks, next_page: String::new() })
}

fn items(job: &Job, request: &v1::ListTasksRequest, limit: usize) -> Result<v1::TaskList, Status> {
    let from: u64 = if request.page.is_empty() { 0 } else { request.page.parse().map_err(|_| bad_page(&request.page))? };
    let mut tasks: Vec<_> = job.items(from, limit).into_iter().map(|t| views::task(job, t)).collect();
    let next = from + tasks.len() as u64;
    let next_page = if next < job.spec.items() { next.to_string() } else { String::new() };
    if next_page.is_empty() {
        // The reduce follows the items.
        tasks.extend(job.tasks().into_iter().skip(1).map(|t| views::task(job, t)));
    }
    Ok(v1::TaskList { tasks, next_page })
}

fn all_tasks(scheduler: &Scheduler, request: &v1::ListTasksRequest, limit: usize) -> Result<v1::TaskList, Status> {
    let after: Option<JobId> =
        if request.page.is_empty() { None } else { Some(request.page.parse().map_err(|_| bad_page(&request.page))?) };
    let mut list = v1::TaskList::default();
    let mut last = None;
    for job in scheduler.jobs().filter(|j| after.is_none_or(|a| j.id() > a)) {
        if list.tasks.len() >= limit {
            list.next_page = last.map(|id: JobId| id.to_string()).unwrap_or_default();
            break;
        }
        last = Some(job.id());
        if !request.all && job.state.outcome.is_some() {
            continue;
        }
        let over = |t: &v1::TaskView| t.finished_us > 0;
        if request.items && job.spec.map().is_some() {
            // Of each array the first page: the rest is asked for by its id.
            list.tasks.extend(job.items(0, limit - list.tasks.len()).into_iter().map(|t| views::task(job, t)));
        } else {
            let tasks = job.tasks().into_iter().map(|t| views::task(job, t));
            list.tasks.extend(tasks.filter(|t| request.all || !over(t)));
        }
    }
    Ok(list)
}

fn bad_page(page: &str) -> Status {
    Status::invalid_argument(format!("{page:?} is not a page of this list"))
}
