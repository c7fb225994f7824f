//! A scheduler in one page: runs COUNT tasks of one bundle wherever it is offered resources, and prints what becomes of them.
//!
//! `cargo run --release -p smalti-framework-sdk --example scheduler -- 127.0.0.1:5050 hello.wasm 10 [ARGS…]`
//! The bundle is a file, which is uploaded, or the digest of one that the cluster has: `blake3:<64 hex digits>`.

use anyhow::Context as _;
use smalti_framework_sdk::types::{BundleRef, Bytes, Filters, Launch, MilliCpus, Operation, Resources, TaskId, TaskSpec};
use smalti_framework_sdk::{Event, Framework, Options, push_bundle};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: scheduler MASTER BUNDLE COUNT [ARGS…]";
    let (master, bundle, count) = (args.next().context(usage)?, args.next().context(usage)?, args.next().context(usage)?);
    let count: u32 = count.parse().context(usage)?;
    let bundle =
        if bundle.starts_with("blake3:") { BundleRef { digest: bundle.parse()?, uri: None } } else { push_bundle(&master, bundle).await? };
    let spec = TaskSpec { args: args.collect(), ..TaskSpec::new(bundle) };
    let wanted = Resources::new(MilliCpus(100), Bytes::mib(64));

    let (handle, mut events) = Framework::connect(Options::new(master, "example-scheduler")).await?;
    let (mut launched, mut ended, mut failed) = (0, 0, 0);
    while ended < count {
        let event = events.recv().await.context("the master ended the subscription")?;
        match event {
            Event::Subscribed { framework, .. } => println!("subscribed as {framework}"),
            Event::Offers(offers) => {
                for offer in offers {
                    // As many tasks as fit; what is left over is free again when the offer is accepted.
                    let fit = offer.resources.times(&wanted, count - launched);
                    let mut operations = Vec::new();
                    for _ in 0..fit {
                        let task = TaskId::new(format!("task-{launched}"))?;
                        operations.push(Operation::Launch(Launch { task, attempt: 0, resources: wanted.clone(), spec: spec.clone() }));
                        launched += 1;
                    }
                    if operations.is_empty() {
                        handle.decline(vec![offer.id], Filters::default()).await?;
                    } else {
                        println!("{fit} tasks start on {}", offer.hostname);
                        handle.accept(vec![offer.id], operations, Filters::default()).await?;
                    }
                }
                if launched == count {
                    handle.suppress().await?;
                }
            }
            Event::Update(u) => {
                let (task, state, reason) = (&u.update.key.task.task, u.update.state, u.update.reason);
                println!("{task} is {state} {reason} {}", u.update.message);
                if state.is_terminal() {
                    ended += 1;
                    failed += u32::from(state != smalti_framework_sdk::types::TaskState::Finished);
                }
                // Whatever had to be kept is kept: the agent may forget this update.
                u.ack.done();
            }
            Event::Refused { call, message } => anyhow::bail!("the master refused {call}: {message}"),
            Event::Error(message) => anyhow::bail!("{message}"),
            Event::Disconnected => println!("disconnected; tasks run on"),
            Event::Rescind(_) | Event::AgentLost { .. } => {}
        }
    }
    handle.teardown().await?;
    while events.recv().await.is_some() {}
    println!("{count} tasks ended, {failed} of them not well");
    anyhow::ensure!(failed == 0, "{failed} tasks failed");
    Ok(())
}
