//! Where other agents reach this one.
//!
//! Owns the choice: nothing listens beyond this machine unless the operator says so, since what goes there is not encrypted and whoever
//! reaches the port may ask in any role's name for what that role holds here.

use anyhow::Context;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use tokio::net::TcpListener;

/// What `--peer-listen` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerListen {
    /// Other agents do not fetch from here.
    Off,
    /// Here; with port 0 at any that is free.
    At(SocketAddr),
}

impl FromStr for PeerListen {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let address: SocketAddr =
            text.parse().map_err(|_| "write ADDRESS:PORT, like 10.0.0.5:5060 or [fd00::5]:5060, or off".to_owned())?;
        if address.ip().is_unspecified() || address.ip().is_multicast() {
            return Err("others are told this address: it must be one of this machine that they reach".to_owned());
        }
        Ok(Self::At(address))
    }
}

/// Opens the port, where there is to be one.
///
/// # Errors
/// When the address is not of this machine, or the port is taken.
pub(crate) async fn open(choice: Option<PeerListen>, master: &str) -> anyhow::Result<Option<TcpListener>> {
    let address = match choice {
        Some(PeerListen::At(address)) => address,
        Some(PeerListen::Off) => return Ok(None),
        None if is_here(master) => (Ipv4Addr::LOCALHOST, 0).into(),
        None => {
            tracing::info!("other agents do not fetch from this one what it holds; --peer-listen ADDRESS:PORT lets them");
            return Ok(None);
        }
    };
    let listener = TcpListener::bind(address).await.with_context(|| format!("listening at {address} for other agents (--peer-listen)"))?;
    Ok(Some(listener))
}

/// Whether `host:port` is this machine, as far as its name tells.
fn is_here(master: &str) -> bool {
    let host = master.rsplit_once(':').map_or(master, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_listens_beyond_this_machine_unasked() {
        for here in ["127.0.0.1:5050", "localhost:1", "[::1]:5050"] {
            assert!(is_here(here), "{here}");
        }
        for elsewhere in ["10.0.0.1:5050", "master.example:5050", "127.example:1"] {
            assert!(!is_here(elsewhere), "{elsewhere}");
        }
        assert_eq!("off".parse(), Ok(PeerListen::Off));
        assert_eq!("10.0.0.5:0".parse(), Ok(PeerListen::At("10.0.0.5:0".parse().unwrap())));
        for bad in ["0.0.0.0:1", "[::]:1", "host:1", "10.0.0.5", "", "224.0.0.1:5"] {
            assert!(bad.parse::<PeerListen>().is_err(), "{bad}");
        }
    }
}
