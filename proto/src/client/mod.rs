//! Connecting to a master: one place for addresses, transport settings and the words of a refusal.
//!
//! Owns no state; reconnecting is for the callers, who know what has to be said again.

pub mod outputs;

use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Time for the TCP connection and the first frames.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection on which nothing moves is asked for a sign of life after this long: NAT boxes forget sooner than TCP notices.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long that sign of life may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Flow-control windows in bytes: a batch of some ten thousand updates in flight without waiting for the reader.
const STREAM_WINDOW: u32 = 4 << 20;
/// All streams of one connection together.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not an address.
    #[error("`{addr}` is not the address of a master: write it like 127.0.0.1:5050")]
    Address {
        /// What was given.
        addr: String,
    },
    /// Nobody answers there.
    #[error("no master at {addr}: {cause}; start one with `smalti dev`, or name another with --master or $SMALTI_MASTER")]
    NoMaster {
        /// Where we looked.
        addr: String,
        /// What the operating system says.
        cause: String,
    },
}

/// Result of connecting.
pub type Result<T> = std::result::Result<T, ConnectError>;

/// Connects to the master at `addr` (`host:port`, with or without `http://`).
///
/// # Errors
/// [`ConnectError`] when the address is none or nobody answers.
pub async fn connect(addr: &str) -> Result<Channel> {
    let host = addr.strip_prefix("http://").unwrap_or(addr).trim_end_matches('/');
    endpoint(host)?.connect().await.map_err(|e| ConnectError::NoMaster { addr: host.to_owned(), cause: root_cause(&e) })
}

fn endpoint(host: &str) -> Result<Endpoint> {
    let bad = || ConnectError::Address { addr: host.to_owned() };
    let port = host.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    if !matches!(port, Some(Ok(1..))) || host.starts_with(':') || host.contains('/') {
        return Err(bad());
    }
    let endpoint = Endpoint::from_shared(format!("http://{host}")).map_err(|_| bad())?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(KEEPALIVE_INTERVAL))
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW))
}

/// The innermost cause: "Connection refused" and not "transport error".
fn root_cause(error: &tonic::transport::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let text = cause.to_string();
    // "Connection refused (os error 111)": the number helps nobody.
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map_or_else(|| "it does not answer".into(), |c| c.to_lowercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_master_that_is_not_there_is_named_with_what_to_do() {
        let nobody = smalti_test_ports::take_one();
        let port = nobody.first();
        let error = connect(&format!("127.0.0.1:{port}")).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("no master at 127.0.0.1:{port}: connection refused; start one with `smalti dev`")), "{error}");
    }

    #[tokio::test]
    async fn what_is_no_address_is_said_to_be_none() {
        for bad in ["", "here", "127.0.0.1", "127.0.0.1:", ":5050", "127.0.0.1:0", "a b:5050", "h:1/x"] {
            assert!(matches!(connect(bad).await, Err(ConnectError::Address { .. })), "{bad:?}");
        }
    }
}
