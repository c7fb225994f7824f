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
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// How long open streams may go on when the process is to end.
pub(crate) const DRAIN: Duration = Duration::from_millis(500);

/// A connection on which nothing moves is asked for a sign of life after this long: a client whose machine vanished says no goodbye, and
/// what it follows would be kept for it until the kernel gives up, or for good when there is nothing to say.
const PING_EVERY: Duration = Duration::from_secs(5);
/// How long that sign of life may take.
const PING_ANSWER: Duration = Duration::from_secs(10);

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
    transport(PING_EVERY, PING_ANSWER).serve_with_incoming_shutdown(jobs, incoming, stop).await
}

fn transport(ping_every: Duration, ping_answer: Duration) -> Server {
    Server::builder().http2_keepalive_interval(Some(ping_every)).http2_keepalive_timeout(Some(ping_answer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tonic::service::Routes;

    /// What a client of HTTP/2 begins with, and a frame of settings without one.
    const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    /// Its end of the connection is open, and nobody is there any more: so it looks when a machine has gone.
    #[tokio::test]
    async fn a_client_that_has_vanished_is_let_go_of() {
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let soon = Duration::from_millis(20);
        let routes = transport(soon, soon).add_routes(Routes::default());
        let serving = tokio::spawn(routes.serve_with_incoming(TcpIncoming::from(listener)));
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        client.write_all(HELLO).await.unwrap();
        let heard = async { while client.read(&mut [0; 256]).await.is_ok_and(|n| n > 0) {} };
        tokio::time::timeout(Duration::from_secs(60), heard).await.expect("the server keeps a connection without an other end");
        serving.abort();
    }
}
