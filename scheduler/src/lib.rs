//! The batch scheduler: a resident process that serves the job API (`smalti.v1.Jobs`) and runs jobs as an ordinary framework.
//!
//! [`run`] is the table of contents. Decisions are in `smalti-scheduler-core`; this crate acts: it resolves what clients name,
//! keeps jobs in a store, speaks to the master through `smalti-framework-sdk`, and relays outputs.

mod cluster;
mod delivery;
mod event_loop;
mod explain;
mod frameworks;
mod options;
mod resolve;
mod rounds;
mod server;
mod service;
mod store;
mod submit;
mod views;
mod watchers;

pub use options::Options;

use anyhow::Context;
use cluster::Cluster;
use delivery::Deliveries;
use event_loop::EventLoop;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use store::Store;
use tokio::signal::unix::{SignalKind, signal};

/// How long frameworks may take to end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Runs a scheduler until `shutdown` completes. Prints one line on stdout once it is registered for the first time: clients
/// find it through the master from then on.
///
/// # Errors
/// When the data directory cannot be used, the address is taken or not allowed, or the store fails.
pub async fn run(options: Options, shutdown: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
    options.check()?;
    let store = Store::open(&options.data_dir)?;
    let listener = server::listen(options.listen).await?;
    let address = listener.local_addr().context("reading the address of the listening socket")?;
    let cluster = Cluster::new(options.master.clone());
    let mut setup = smalti_fetch::Setup::new(options.master.clone()).apply(&options.fetch)?;
    setup.file_roots.clone_from(&options.file_root);
    setup.output_roots.clone_from(&options.output_root);
    setup.services.push(address.to_string());
    let sources = Arc::new(smalti_fetch::Sources::new(setup)?);
    let deliveries = Deliveries::new(cluster.clone(), sources.clone());
    let (handle, event_loop, registered) = EventLoop::new(&options, &store, (cluster.clone(), deliveries), announced(address))?;
    let service = service::JobService::new(handle, cluster, sources, options.role()?);
    let mut event_loop = tokio::spawn(event_loop.run());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut server = tokio::spawn(server::serve(listener, Arc::new(service), async move {
        let _ = stopped.await;
    }));
    let registered = async {
        if registered.await.is_ok() {
            ready(address);
        }
        // What ends this process is one of the others.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = registered => {}
        () = shutdown => {}
        ended = &mut event_loop => return ended.context("the event loop panicked")?.context("the scheduler's event loop ended"),
        ended = &mut server => return ended.context("the server panicked")?.context("serving the job API"),
    }
    leave_at_next_signal();
    tracing::info!("stopping: tasks run on; a second signal stops at once");
    // Streams that follow a job would keep the server up: tasks run on, and clients connect again.
    drop(stop);
    let _ = tokio::time::timeout(server::DRAIN, server).await;
    event_loop.abort();
    let _ = event_loop.await;
    // Frameworks say their last words (acknowledgements above all), and let go of the store.
    store.released(LAST_WORDS).await;
    Ok(())
}

/// Somebody who asks twice does not want to wait. The store is whole at every moment, so nothing is lost.
fn leave_at_next_signal() {
    // Listens before it is awaited, so that a signal that comes at once is not missed.
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else { return };
    tokio::spawn(async move {
        let number = tokio::select! {
            _ = interrupt.recv() => SignalKind::interrupt(),
            _ = terminate.recv() => SignalKind::terminate(),
        };
        std::process::exit(128 + number.as_raw_value());
    });
}

/// What the master is told: an address that others can dial.
fn announced(address: SocketAddr) -> String {
    address.to_string()
}

#[expect(clippy::print_stdout, reason = "the one line that parents wait for")]
fn ready(address: SocketAddr) {
    use std::io::Write;
    println!("ready: scheduler {address}");
    // A parent that has gone needs no line.
    let _ = std::io::stdout().flush();
}
