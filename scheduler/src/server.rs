//! The listening socket and the gRPC server on it.

use crate::service::JobService;
use anyhow::Context;
use smalti_proto::convert::MAX_FRAME_LEN;
use smalti_proto::v1::jobs_server::JobsServer;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;

/// How long open streams may go on when the process is to end.
pub(crate) const DRAIN: Duration = Duration::from_millis(500);

/// Takes the port.
pub(crate) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; is another scheduler running there? Choose another port with --listen"))
}

/// Serves until `stop`. Garbage on the port ends its own connection and nothing else.
pub(crate) async fn serve(
    listener: TcpListener,
    service: Arc<JobService>,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let jobs = JobsServer::from_arc(service).max_decoding_message_size(MAX_FRAME_LEN).max_encoding_message_size(MAX_FRAME_LEN);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tonic::transport::Server::builder().serve_with_incoming_shutdown(jobs, incoming, stop).await
}
