//! Starts a master: checks the options, opens what it needs, listens, serves, and stops.

use crate::agent_service::Agents;
use crate::bundle_service::Bundles;
use crate::bundle_store::BundleStore;
use crate::clock::Clock;
use crate::data_dir::DataDir;
use crate::event_loop::{EventLoop, Handle};
use crate::framework_service::Frameworks;
use crate::operator_service::Operators;
use crate::registry::Registry;
use crate::sandbox_relay::Relay;
use crate::{Options, StartError, bundles_http, listener, registry};
use anyhow::Context as _;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use smalti_master_core::{Config, Master};
use smalti_proto::convert::MAX_FRAME_LEN;
use smalti_proto::v1;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// Flow-control window of one stream: a large batch fits without a round trip.
const STREAM_WINDOW: u32 = 4 << 20;
/// Flow-control window of one connection: several streams of an agent (control, reads) side by side.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Streams of one connection at the same time.
const MAX_STREAMS: u32 = 1_024;
/// Bytes of one request's headers.
const MAX_HEADERS: u32 = 16 << 10;
/// How often a silent connection is pinged, and how long it may take to answer: 15 s in all.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_ANSWER: Duration = Duration::from_secs(10);
/// How long connections may take to end when the master stops.
const DRAIN: Duration = Duration::from_secs(2);

/// A master that listens and has not begun to serve.
#[derive(Debug)]
pub struct Server {
    options: Options,
    config: Config,
    listener: TcpListener,
    addr: SocketAddr,
    data: DataDir,
    store: BundleStore,
    registry: Box<dyn Registry>,
}

/// Runs a master until `shutdown`, after one line on stdout that says where it listens.
///
/// # Errors
/// [`StartError`] when it cannot start; what the server says when it cannot go on.
pub async fn run(options: Options, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
    allow_connections(options.max_connections);
    let server = Server::bind(options).await?;
    println!("ready: master {}", server.local_addr());
    server
        .serve(async {
            shutdown.await;
            leave_at_next_signal();
            tracing::info!("stepping down; a second signal stops at once");
        })
        .await
}

/// Each agent is a connection, and the usual soft limit of 1024 open files is soon reached.
fn allow_connections(most: usize) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(hard)
    });
    match raised {
        Ok(limit) if limit < most as u64 => tracing::info!(limit, most, "open files are limited to fewer than --max-connections"),
        Ok(_) => {}
        Err(e) => tracing::warn!("cannot raise the limit of open files, and so of connections: {e}"),
    }
}

/// Somebody who asks twice does not want to wait. The registry is whole at every moment, so nothing is lost.
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

impl Server {
    /// Checks the options, opens the data directory and the store, and listens.
    ///
    /// # Errors
    /// [`StartError`], one line each.
    pub async fn bind(options: Options) -> Result<Self, StartError> {
        if !options.listen.ip().is_loopback() {
            if !options.insecure_listen {
                return Err(StartError::BeyondLoopback(options.listen));
            }
            tracing::warn!(
                listen = %options.listen,
                "INSECURE: listening beyond loopback without authentication; everybody who can reach this address may run anything"
            );
        }
        let config = options.core_config()?;
        let data = DataDir::open(&options.data_dir())?;
        let store = BundleStore::open(options.bundle_store.as_deref(), &data.path, options.max_bundle.0)?;
        let registry = registry::open(options.registry.as_deref(), &data.path)?;
        let fail = |cause| StartError::listen(options.listen, cause);
        let listener = TcpListener::bind(options.listen).await.map_err(fail)?;
        let addr = listener.local_addr().map_err(fail)?;
        Ok(Self { options, config, listener, addr, data, store, registry })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// When the registry or the epoch cannot be read or written, or the server fails.
    pub async fn serve(mut self, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
        let mut clock = Clock::default();
        let stored = self.registry.load()?;
        let epoch = self.registry.next_epoch(self.data.next_epoch(clock.now())?)?;
        tracing::info!(agents = stored.agents.len(), frameworks = stored.frameworks.len(), "the registry is read");
        let config = self.config;
        let stop = CancellationToken::new();
        let master = Master::recover(config, epoch, clock.now(), stored);
        let (event_loop, handle) = EventLoop::new(master, self.registry, clock, self.options.agents_beat());
        let mut looping = tokio::spawn(event_loop.run(stop.clone()));
        let routes = routes(&self.options, handle, self.store);
        let incoming = listener::incoming(self.listener, self.options.max_connections);
        let serving = transport().add_routes(routes).serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        tokio::pin!(serving);
        tracing::info!(addr = %self.addr, epoch = epoch.0, "master serves");
        let served = tokio::select! {
            served = &mut serving => served,
            ended = &mut looping => {
                // Nobody is told anything any more; what was queued, and why it ends, still reaches the peers.
                stop.cancel();
                let _ = tokio::time::timeout(DRAIN, serving).await;
                return Ok(ended.context("the event loop ended")??);
            }
            () = shutdown => {
                stop.cancel();
                // Streams end when the loop lets go of them; whoever does not leave by then is left behind.
                tokio::time::timeout(DRAIN, serving).await.unwrap_or(Ok(()))
            }
        };
        stop.cancel();
        looping.await.context("the event loop ended")??;
        tracing::info!("master has stepped down");
        Ok(served?)
    }
}

fn transport() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .accept_http1(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_ANSWER))
}

fn routes(options: &Options, handle: Handle, store: BundleStore) -> Routes {
    let relay = Relay::default();
    let agents = Agents { handle: handle.clone(), relay: relay.clone(), ping_timeout: options.ping_timeout.to_std() };
    let frameworks = Frameworks { handle: handle.clone() };
    let agents = v1::agent_service_server::AgentServiceServer::new(agents).max_decoding_message_size(MAX_FRAME_LEN);
    let frameworks = v1::framework_service_server::FrameworkServiceServer::new(frameworks).max_decoding_message_size(MAX_FRAME_LEN);
    let operators = v1::operator_service_server::OperatorServiceServer::new(Operators { handle, relay });
    let bundles = v1::bundle_service_server::BundleServiceServer::new(Bundles::new(store.clone()));
    let grpc = Routes::new(agents).add_service(frameworks).add_service(operators).add_service(bundles);
    bundles_http::add_routes(grpc.into_axum_router().fallback(nothing_here), store).into()
}

/// Neither a service nor a page.
async fn nothing_here(request: Request) -> Response {
    let grpc = request.headers().get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        return tonic::Status::unimplemented("this master does not have this method").into_http::<axum::body::Body>();
    }
    (StatusCode::NOT_FOUND, "nothing here: bundles are at /v1/bundles/<64 hexadecimal digits>\n").into_response()
}
