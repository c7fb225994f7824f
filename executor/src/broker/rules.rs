//! What one task may bind, listen on and dial. Pure.
//!
//! Owns the comparison. Which endpoints a task may have at all was decided by the agent, from the operator's policy and on
//! resolved addresses; here an address is either on the list or not.

use crate::network::canonical;
use rustix::io::Errno;
use smalti_executor_protocol::v1;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest address that is read, in bytes.
pub(super) const MAX_ADDRESS: usize = 128;
/// Lengths of the kernel's addresses.
const V4_LENGTH: usize = 16;
const V6_LENGTH: usize = 28;

/// One task's. Without any, all is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules {
    ports: Vec<u16>,
    listen: Option<IpAddr>,
    endpoints: Vec<SocketAddr>,
}

impl Rules {
    /// Reads the agent's words.
    pub(super) fn read(message: &v1::BrokerRules) -> Result<Self, String> {
        let endpoint = |text: &String| text.parse().map(canonical).map_err(|e| format!("the endpoint {text:?}: {e}"));
        Ok(Self {
            ports: message.ports.iter().filter_map(|p| u16::try_from(*p).ok()).filter(|p| *p > 0).collect(),
            listen: Some(message.listen.parse().map_err(|e| format!("the address {:?}: {e}", message.listen))?),
            endpoints: message.endpoints.iter().map(endpoint).collect::<Result<_, _>>()?,
        })
    }

    /// Whether sockets make sense at all.
    pub(super) const fn any(&self) -> bool {
        !self.ports.is_empty() || !self.endpoints.is_empty()
    }

    /// Where a socket is really bound that asks for `wanted`: any address means the one for tasks.
    pub(super) fn bind(&self, wanted: SocketAddr) -> Result<SocketAddr, Errno> {
        let Some(listen) = self.listen.filter(|_| self.ports.contains(&wanted.port())) else { return Err(Errno::ACCESS) };
        if wanted.ip() == listen || (listen.is_unspecified() && wanted.is_ipv4() == listen.is_ipv4()) {
            return Ok(SocketAddr::new(wanted.ip(), wanted.port()));
        }
        if wanted.ip().is_unspecified() && wanted.is_ipv4() == listen.is_ipv4() {
            return Ok(SocketAddr::new(listen, wanted.port()));
        }
        Err(Errno::ADDRNOTAVAIL)
    }

    /// Whether a socket that is bound to `local` may be listened on.
    pub(super) fn listen(&self, local: SocketAddr) -> Result<(), Errno> {
        // Not bound: the kernel would choose a port.
        if self.ports.contains(&local.port()) { Ok(()) } else { Err(Errno::ACCESS) }
    }

    /// The address to dial.
    pub(super) fn connect(&self, wanted: SocketAddr) -> Result<SocketAddr, Errno> {
        if self.endpoints.contains(&canonical(wanted)) { Ok(wanted) } else { Err(Errno::ACCESS) }
    }
}

/// An address as a program passes it to the kernel. Flow and scope are left out: nothing that needs them is granted.
pub(super) fn parse(bytes: &[u8]) -> Result<SocketAddr, Errno> {
    let two = |at: usize| bytes.get(at..at + 2).and_then(|b| <[u8; 2]>::try_from(b).ok());
    let family = two(0).map(u16::from_ne_bytes).ok_or(Errno::INVAL)?;
    let port = two(2).map(u16::from_be_bytes).ok_or(Errno::INVAL)?;
    match i32::from(family) {
        nix::libc::AF_INET if bytes.len() >= V4_LENGTH => {
            let octets: [u8; 4] = bytes[4..8].try_into().map_err(|_| Errno::INVAL)?;
            Ok(SocketAddr::new(Ipv4Addr::from(octets).into(), port))
        }
        nix::libc::AF_INET6 if bytes.len() >= V6_LENGTH => {
            let octets: [u8; 16] = bytes[8..24].try_into().map_err(|_| Errno::INVAL)?;
            Ok(SocketAddr::new(Ipv6Addr::from(octets).into(), port))
        }
        nix::libc::AF_INET | nix::libc::AF_INET6 => Err(Errno::INVAL),
        // Among them AF_UNSPEC, which would undo a connection.
        _ => Err(Errno::AFNOSUPPORT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(listen: &str, ports: &[u32], endpoints: &[&str]) -> Rules {
        let endpoints = endpoints.iter().map(ToString::to_string).collect();
        Rules::read(&v1::BrokerRules { ports: ports.to_vec(), listen: listen.to_owned(), endpoints }).unwrap()
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn exactly_the_granted_ports_are_bound_at_the_address_for_tasks() {
        let r = rules("10.0.0.5", &[8000, 8001], &[]);
        assert_eq!(r.bind(at("0.0.0.0:8000")), Ok(at("10.0.0.5:8000")), "any address means that one");
        assert_eq!(r.bind(at("10.0.0.5:8001")), Ok(at("10.0.0.5:8001")));
        assert_eq!(r.bind(at("127.0.0.1:8000")), Err(Errno::ADDRNOTAVAIL));
        assert_eq!(r.bind(at("[::]:8000")), Err(Errno::ADDRNOTAVAIL));
        assert_eq!(r.bind(at("0.0.0.0:8002")), Err(Errno::ACCESS));
        assert_eq!(r.bind(at("0.0.0.0:0")), Err(Errno::ACCESS));
        assert_eq!(r.listen(at("10.0.0.5:8000")), Ok(()));
        assert_eq!(r.listen(at("0.0.0.0:0")), Err(Errno::ACCESS), "not bound: the kernel would choose");
        let everywhere = rules("0.0.0.0", &[8000], &[]);
        assert_eq!(everywhere.bind(at("127.0.0.1:8000")), Ok(at("127.0.0.1:8000")));
        assert_eq!(everywhere.bind(at("0.0.0.0:8000")), Ok(at("0.0.0.0:8000")));
        assert_eq!(rules("::1", &[80], &[]).bind(at("[::]:80")), Ok(at("[::1]:80")));
    }

    #[test]
    fn exactly_the_granted_endpoints_are_dialled() {
        let r = rules("127.0.0.1", &[], &["192.0.2.1:80", "[2001:db8::1]:443"]);
        assert_eq!(r.connect(at("192.0.2.1:80")), Ok(at("192.0.2.1:80")));
        assert_eq!(r.connect(at("[::ffff:192.0.2.1]:80")), Ok(at("[::ffff:192.0.2.1]:80")));
        for refused in ["192.0.2.1:81", "192.0.2.2:80", "[::ffff:192.0.2.2]:80", "[::192.0.2.1]:80", "0.0.0.0:80", "127.0.0.1:80"] {
            assert_eq!(r.connect(at(refused)), Err(Errno::ACCESS), "{refused}");
        }
        assert!(r.any() && !Rules::default().any());
        assert_eq!(Rules::default().connect(at("192.0.2.1:80")), Err(Errno::ACCESS));
        assert_eq!(Rules::default().bind(at("0.0.0.0:80")), Err(Errno::ACCESS));
    }

    #[test]
    fn addresses_are_read_as_the_kernel_reads_them() {
        let mut v4 = [0_u8; 16];
        v4[..2].copy_from_slice(&2_u16.to_ne_bytes());
        v4[2..4].copy_from_slice(&[0x1f, 0x90]);
        v4[4..8].copy_from_slice(&[127, 0, 0, 1]);
        assert_eq!(parse(&v4), Ok(at("127.0.0.1:8080")));
        assert_eq!(parse(&v4[..15]), Err(Errno::INVAL));
        let mut v6 = [0_u8; 28];
        v6[..2].copy_from_slice(&10_u16.to_ne_bytes());
        v6[23] = 1;
        assert_eq!(parse(&v6), Ok(at("[::1]:0")));
        assert_eq!(parse(&v6[..16]), Err(Errno::INVAL));
        assert_eq!(parse(&[0; 16]), Err(Errno::AFNOSUPPORT), "AF_UNSPEC");
        assert_eq!(parse(&[1, 0, b'/', b'x', 0]), Err(Errno::AFNOSUPPORT), "AF_UNIX");
        assert_eq!(parse(&[]), Err(Errno::INVAL));
    }
}
