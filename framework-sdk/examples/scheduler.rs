//! A scheduler in one page: runs COUNT tasks of one bundle wherever it is offered resources, and prints what becomes of them.
//! Killed at any moment and started again with the same STORE, it goes on: nothing runs twice, nothing is forgotten.
//!
//! `cargo run --release -p smalti-framework-sdk --example scheduler -- 127.0.0.1:5050 hello.wasm 10 [ARGS…]`
//! The bundle is a file, which is uploaded, or the digest of one that the cluster has: `blake3:<64 hex digits>`. The store is
//! the file that the environment variable `STORE` names; without it, all is forgotten at the end.

use anyhow::Context as _;
use smalti_framework_sdk::store::{MemoryStore, RedbStore, Store};
use smalti_framework_sdk::types::protocol::Call;
use smalti_framework_sdk::types::{BundleRef, Bytes, Filters, Launch, MilliCpus, Operation, Resources, TaskId, TaskSpec};
use smalti_framework_sdk::{Event, Framework, Options, Transaction, push_bundle};
use std::sync::Arc;

/// Table of this scheduler's own: what is known of each task.
const TASKS: &str = "tasks";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: scheduler MASTER BUNDLE COUNT [ARGS…]";
    let (master, bundle, count) = (args.next().context(usage)?, args.next().context(usage)?, args.next().context(usage)?);
    let count: u32 = count.parse().context(usage)?;
    let options = Options::new(&master, "example-scheduler");
    // Agents fetch it in the framework's role.
    let bundle = if bundle.starts_with("blake3:") {
        BundleRef { digest: bundle.parse()?, uri: None }
    } else {
        push_bundle(&master, &options.info.role, bundle).await?
    };
    let spec = TaskSpec { args: args.collect(), ..TaskSpec::new(bundle) };
    let wanted = Resources::new(MilliCpus(100), Bytes::mib(64));

    let store: Arc<dyn Store> = match std::env::var_os("STORE") {
        Some(path) => Arc::new(RedbStore::open(path)?),
        None => Arc::new(MemoryStore::default()),
    };
    // What an earlier life launched, and what has ended of it, well or not.
    let rows = store.read(TASKS)?;
    let count_of = |state: &str| u32::try_from(rows.iter().filter(|(_, s)| s == state.as_bytes()).count());
    let (mut launched, mut failed) = (u32::try_from(rows.len())?, count_of("failed")?);
    let mut ended = count_of("finished")? + failed;
    let (handle, mut events) = Framework::connect(options.with_store(store)).await?;
    while ended < count {
        let event = events.recv().await.context("the master ended the subscription")?;
        match event {
            Event::Subscribed { framework, .. } => println!("subscribed as {framework}"),
            Event::Offers(offers) => {
                for offer in offers {
                    // As many tasks as fit; what is left over is free again when the offer is accepted.
                    let fit = offer.resources.times(&wanted, count - launched);
                    let (mut operations, mut transaction) = (Vec::new(), Transaction::new());
                    for _ in 0..fit {
                        let task = TaskId::new(format!("task-{launched}"))?;
                        transaction.put(TASKS, task.as_str(), "launched");
                        operations.push(Operation::Launch(Launch { task, attempt: 0, resources: wanted.clone(), spec: spec.clone() }));
                        launched += 1;
                    }
                    if operations.is_empty() {
                        handle.decline(vec![offer.id], Filters::default()).await?;
                    } else {
                        println!("{fit} tasks start on {}", offer.hostname);
                        // Kept and launched, or neither.
                        transaction.call(Call::Accept { offers: vec![offer.id], operations, filters: Filters::default() });
                        handle.commit(transaction).await?;
                    }
                }
                if launched == count {
                    handle.suppress().await?;
                }
            }
            Event::Update(u) => {
                let (task, state, reason) = (&u.update.key.task.task, u.update.state, u.update.reason);
                println!("{task} is {state} {reason} {}", u.update.message);
                let mut transaction = Transaction::new();
                if state.is_terminal() {
                    let well = state == smalti_framework_sdk::types::TaskState::Finished;
                    (ended, failed) = (ended + 1, failed + u32::from(!well));
                    transaction.put(TASKS, task.as_str(), if well { "finished" } else { "failed" });
                }
                // What it means and that it was taken are kept together: the agent may forget this update.
                transaction.take(u.ack);
                handle.commit(transaction).await?;
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
