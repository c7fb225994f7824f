//! Jobs and tasks as wire messages.

use smalti_proto::v1;
use smalti_scheduler_core::{Again, Job, JobView, TaskView};
use smalti_types::Time;

/// A job as `jobs` lists it.
pub(crate) fn job(job: &Job) -> v1::JobView {
    from_view(job.view())
}

/// A job as watchers see it: with its tasks.
pub(crate) fn watched(job: &Job) -> v1::JobView {
    let tasks = job.tasks().into_iter().map(|t| task(job, t)).collect();
    v1::JobView { tasks, ..self::job(job) }
}

fn from_view(view: JobView) -> v1::JobView {
    v1::JobView {
        job: view.job.to_string(),
        name: view.name,
        role: view.role.to_string(),
        kind: view.kind.into(),
        state: view.state.into(),
        items_total: view.items_total,
        items_finished: view.items_finished,
        items_failed: view.items_failed,
        items_running: view.items_running,
        exit_code: view.exit_code,
        reason: view.reason.to_string(),
        message: view.message,
        submitted_us: view.submitted.0,
        finished_us: view.finished.map(|t| t.0),
        phase: view.phase,
        items_by_agent: view.items_by_agent.into_iter().map(|(agent, n)| (agent.to_string(), n)).collect(),
        framework: view.framework.map(|f| f.to_string()).unwrap_or_default(),
        tasks: Vec::new(),
        again: view.again.map(again),
        output_store: view.output_store.map(|uri| smalti_fetch::shown(&uri)),
        items_stored: view.items_stored,
    }
}

fn again(again: Again) -> v1::Again {
    let Again { failure, items, next, not_before, infrastructure } = again;
    v1::Again {
        attempt: failure.attempt,
        state: v1::TaskState::from(failure.state).into(),
        reason: failure.reason.to_string(),
        message: failure.message,
        agent: failure.agent.map(|a| a.to_string()).unwrap_or_default(),
        items,
        next_attempt: next,
        not_before_us: not_before.map(|t| t.0),
        infrastructure,
    }
}

/// A task, array or item of this job.
pub(crate) fn task(job: &Job, view: TaskView) -> v1::TaskView {
    let time = |t: Option<Time>| t.map_or(0, |t| t.0);
    let [total, finished, failed, running] = view.items;
    v1::TaskView {
        task: view.task,
        job: view.job.to_string(),
        item: view.item,
        framework: view.framework.map(|f| f.to_string()).unwrap_or_default(),
        role: job.spec.role.to_string(),
        agent: view.agent.map(|a| a.to_string()).unwrap_or_default(),
        state: v1::TaskState::from(view.state).into(),
        reason: view.reason.to_string(),
        message: view.message,
        exit_code: view.exit_code,
        usage: Some(view.usage.into()),
        attempt: view.attempt,
        resources: Some(view.resources.into()),
        items_total: total,
        items_finished: finished,
        items_failed: failed,
        items_running: running,
        progress: view.progress.map(|(permille, text)| v1::Progress { permille: permille.into(), text }),
        result: view.result.map(Into::into),
        started_us: time(view.started),
        finished_us: time(view.ended),
        name: job.spec.name.clone(),
    }
}
