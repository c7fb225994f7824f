//! Which addresses a host stands for, and which of them somebody may reach.
//!
//! Owns what belongs to the cluster itself: this machine's addresses as they are now, and where its services are. The decision is
//! `smalti_types::connect`'s.

use crate::lookup::look_up;
use crate::policy::Section;
use smalti_types::address::effective;
use smalti_types::connect::{self, Protected};
use smalti_types::{Endpoint, Role};
use std::net::{IpAddr, SocketAddr};

/// Why no connection is made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Barred {
    /// The policy says no.
    #[error("{0}; the operator would have to allow it in the fetch policy")]
    Policy(String),
    /// There is nobody to connect to.
    #[error("{0}")]
    NoSuchHost(String),
    /// Nobody can say now.
    #[error("{0}")]
    Trouble(String),
}

/// The addresses of `host` that `role` may reach at `port`; at least one.
pub(crate) async fn addresses(
    (role, section): (&Role, &Section),
    (host, port): (&str, u16),
    services: &[String],
) -> Result<Vec<IpAddr>, Barred> {
    let endpoint = Endpoint::new(host.trim_end_matches('.'), port).map_err(|e| Barred::NoSuchHost(e.to_string()))?;
    let all = look_up(&endpoint.host).await.map_err(|e| match e {
        crate::lookup::Error::NoSuchName(_) => Barred::NoSuchHost(format!("the name {host} cannot be looked up: {e}")),
        crate::lookup::Error::Trouble(_) => Barred::Trouble(format!("the name {host} cannot be looked up: {e}")),
    })?;
    let protected = protected(services).await.map_err(Barred::Trouble)?;
    let (mut allowed, mut refusal) = (Vec::new(), None);
    for address in all {
        match connect::check(&section.addresses, role, &endpoint, address, &protected) {
            Ok(()) => allowed.push(address),
            Err(e) => refusal = Some(e.to_string()),
        }
    }
    if allowed.is_empty() {
        return Err(Barred::Policy(refusal.unwrap_or_else(|| format!("{host} stands for no address"))));
    }
    Ok(allowed)
}

/// What belongs to the cluster: this machine's addresses as they are now, and where its services (`host:port`) are.
///
/// # Errors
/// When that is not known, in words.
pub async fn protected(services: &[String]) -> Result<Protected, String> {
    let mut protected = Protected {
        hosts: own_addresses().map_err(|e| format!("this machine's addresses cannot be listed: {e}"))?,
        ..Protected::default()
    };
    for service in services {
        let (host, port) = service
            .rsplit_once(':')
            .and_then(|(h, p)| Some((h, p.parse().ok()?)))
            .ok_or_else(|| format!("{service:?} is no address of a service"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let addresses =
            look_up(host).await.map_err(|why| format!("the address of {service}, which tasks must not reach, is not known: {why}"))?;
        for address in addresses.into_iter().map(effective) {
            protected.services.push(SocketAddr::new(address, port));
            protected.hosts.push(address);
        }
    }
    Ok(protected)
}

/// Every address of this machine's interfaces.
fn own_addresses() -> nix::Result<Vec<IpAddr>> {
    let mut all = Vec::new();
    for interface in nix::ifaddrs::getifaddrs()? {
        let Some(address) = interface.address else { continue };
        let four = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let six = address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()));
        all.extend(four.or(six).map(effective));
    }
    Ok(all)
}
