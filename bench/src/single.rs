//! Single tasks per second: each has its own id, resources, RUNNING and terminal update and acknowledgements. Accepts and
//! frames may carry many.

use crate::Effort;
use crate::figures::Figures;
use crate::rpc::spec;
use anyhow::{Context, Result, bail};
use smalti_framework_sdk::{Event, Events, Framework, Handle, Options};
use smalti_tests::Cluster;
use smalti_types::{Bytes, DurationMs, Filters, Launch, MilliCpus, Offer, Operation, Resources, TaskId, TaskSpec, TaskState};
use std::time::Instant;

/// Tasks that start what the others find.
const WARM_UP: u64 = 200;

/// What one task takes: 40 of them run at once on the two cpus.
fn request() -> Resources {
    Resources::new(MilliCpus(50), Bytes::mib(16))
}

pub(crate) async fn measure(cluster: &Cluster, digest: &str, effort: Effort, figures: &mut Figures) -> Result<()> {
    let spec = spec(digest)?;
    let mut rates = Vec::new();
    for _ in 0..effort.repetitions {
        rates.push(rate(cluster, &spec, effort.single_tasks).await?);
    }
    figures.add("single_tasks_per_s", rates);
    Ok(())
}

/// Tasks per second of a framework of their own, whose executor is there.
pub(crate) async fn rate(cluster: &Cluster, spec: &TaskSpec, tasks: u64) -> Result<f64> {
    let (handle, mut events) = Framework::connect(Options::new(&cluster.address, "bench")).await?;
    run(&handle, &mut events, spec, ("w", WARM_UP.min(tasks))).await?;
    let start = Instant::now();
    run(&handle, &mut events, spec, ("t", tasks)).await?;
    let seconds = start.elapsed().as_secs_f64();
    handle.teardown().await?;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    Ok(tasks as f64 / seconds)
}

/// Launches `tasks` tasks on whatever is offered and waits for their ends.
async fn run(handle: &Handle, events: &mut Events, spec: &TaskSpec, (name, tasks): (&str, u64)) -> Result<()> {
    let (mut launched, mut ended) = (0, 0);
    let mut running = 0_u64;
    handle.revive().await?;
    while ended < tasks {
        match events.recv().await.context("the subscription ended")? {
            Event::Offers(offers) => {
                for offer in offers {
                    launched += accept(handle, offer, spec, (name, tasks), launched).await?;
                }
            }
            Event::Update(update) => {
                let state = update.update.state;
                running += u64::from(state == TaskState::Running);
                if state.is_terminal() {
                    if state != TaskState::Finished {
                        bail!("{} ended {state}: {}", update.update.key.task, update.update.message);
                    }
                    ended += 1;
                }
                update.ack.done();
            }
            Event::Error(message) | Event::Refused { message, .. } => bail!("{message}"),
            _ => {}
        }
    }
    if running < tasks {
        bail!("only {running} of {tasks} tasks reported RUNNING");
    }
    handle.suppress().await?;
    Ok(())
}

/// Puts as many tasks on `offer` as fit and are left; returns how many.
async fn accept(handle: &Handle, offer: Offer, spec: &TaskSpec, (name, tasks): (&str, u64), launched: u64) -> Result<u64> {
    let most = u32::try_from(tasks - launched).unwrap_or(u32::MAX);
    let n = offer.resources.times(&request(), most);
    if n == 0 {
        handle.decline(vec![offer.id], Filters { refuse: DurationMs(if most == 0 { 60_000 } else { 0 }) }).await?;
        return Ok(0);
    }
    let operations = (0..u64::from(n))
        .map(|k| {
            let task = TaskId::new(format!("{name}{}", launched + k))?;
            Ok(Operation::Launch(Launch { task, attempt: 0, resources: request(), spec: spec.clone() }))
        })
        .collect::<Result<_>>()?;
    handle.accept(vec![offer.id], operations, Filters { refuse: DurationMs(0) }).await?;
    Ok(u64::from(n))
}
