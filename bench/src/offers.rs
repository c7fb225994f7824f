//! From a freed resource to the next offer: a task that held all of the agent has ended, and the framework hears of both.

use crate::Effort;
use crate::figures::{Figures, percentile};
use crate::rpc::spec;
use anyhow::{Context, Result, bail};
use smalti_framework_sdk::{Event, Framework, Options};
use smalti_tests::Cluster;
use smalti_types::{DurationMs, Filters, Launch, Operation, TaskId};
use std::time::Instant;

pub(crate) async fn measure(cluster: &Cluster, digest: &str, effort: Effort, figures: &mut Figures) -> Result<()> {
    let spec = spec(digest)?;
    let mut medians = Vec::new();
    for _ in 0..effort.repetitions {
        let (handle, mut events) = Framework::connect(Options::new(&cluster.address, "offers")).await?;
        handle.revive().await?;
        let (mut samples, mut ended, mut launched) = (Vec::new(), None::<Instant>, 0);
        while samples.len() < effort.offers {
            match events.recv().await.context("the subscription ended")? {
                Event::Offers(offers) => {
                    if let Some(ended) = ended.take() {
                        samples.push(ended.elapsed().as_secs_f64() * 1e6);
                    }
                    for offer in offers {
                        let task = TaskId::new(format!("o{launched}"))?;
                        launched += 1;
                        let resources = smalti_types::Resources::new(offer.resources.cpus, offer.resources.mem);
                        let launch = Launch { task, attempt: 0, resources, spec: spec.clone() };
                        handle.accept(vec![offer.id], vec![Operation::Launch(launch)], Filters { refuse: DurationMs(0) }).await?;
                    }
                }
                Event::Update(update) => {
                    if update.update.state.is_terminal() {
                        ended = Some(Instant::now());
                    }
                    update.ack.done();
                }
                Event::Error(message) | Event::Refused { message, .. } => bail!("{message}"),
                _ => {}
            }
        }
        medians.push(percentile(&mut samples, 0.5));
        handle.teardown().await?;
    }
    figures.add("offer_latency_p50_us", medians);
    Ok(())
}
