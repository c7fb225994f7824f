//! Where a task may connect to: a host, by name or address, and a port.
//!
//! Owns the syntax. Deliberately absent: name look-ups, and whether anybody may go there (the agent's policy).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Longest host name in bytes (RFC 1035, without the final dot).
const MAX_HOST: usize = 253;
/// Longest part of a host name between dots in bytes.
const MAX_LABEL: usize = 63;

/// A host and a port. As text: `host:port`, `192.0.2.1:port` or `[2001:db8::1]:port`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint {
    /// A name in lower case, or an address in its shortest form and without brackets.
    pub host: String,
    /// Not zero.
    pub port: u16,
}

/// Why a text is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an endpoint: write it like example.org:443, 192.0.2.1:80 or [2001:db8::1]:80, with a port from 1 to 65535")]
pub struct EndpointError(pub String);

impl Endpoint {
    /// A checked endpoint. `host` is a name or an address, without brackets.
    ///
    /// # Errors
    /// When `host` is neither, or `port` is zero.
    pub fn new(host: &str, port: u16) -> Result<Self, EndpointError> {
        let host = host_of(host).filter(|_| port > 0).ok_or_else(|| EndpointError(shown(host, port)))?;
        Ok(Self { host, port })
    }
}

/// The one form of a host: shortest for addresses, lower case for names.
fn host_of(text: &str) -> Option<String> {
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Some(address.to_string());
    }
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Some(address.to_string());
    }
    let label = |l: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !l.is_empty() && l.len() <= MAX_LABEL && l.bytes().all(inner) && !l.starts_with('-') && !l.ends_with('-')
    };
    // What ends in a number is read as an address by resolvers (`127.1`, `0x7f000001`), and would hide which.
    let last = text.rsplit('.').next()?;
    let like_a_number = last.bytes().next().is_some_and(|b| b.is_ascii_digit());
    (text.len() <= MAX_HOST && !like_a_number && text.split('.').all(label)).then(|| text.to_ascii_lowercase())
}

fn shown(host: &str, port: u16) -> String {
    let host: String = host.chars().take(MAX_HOST).collect();
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl FromStr for Endpoint {
    type Err = EndpointError;
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let error = || EndpointError(text.chars().take(2 * MAX_HOST).collect());
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error());
        }
        let port = port.parse().map_err(|_| error())?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').filter(|h| h.contains(':')).ok_or_else(error)?,
            None if host.contains(':') => return Err(error()),
            None => host,
        };
        Self::new(host, port).map_err(|_| error())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&shown(&self.host, self.port))
    }
}

impl TryFrom<String> for Endpoint {
    type Error = EndpointError;
    fn try_from(text: String) -> Result<Self, EndpointError> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_and_value_agree(text in "(\\[[0-9a-f:]{2,12}\\]|[a-zA-Z0-9_.-]{1,12}):[0-9]{1,5}") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                prop_assert_eq!(endpoint.to_string().parse::<Endpoint>(), Ok(endpoint.clone()));
                prop_assert_eq!(Endpoint::new(&endpoint.host, endpoint.port), Ok(endpoint));
            }
        }

        #[test]
        fn addresses_are_endpoints(v4: Ipv4Addr, v6: Ipv6Addr, port in 1_u16..) {
            prop_assert_eq!(format!("{v4}:{port}").parse::<Endpoint>().unwrap().host, v4.to_string());
            prop_assert_eq!(format!("[{v6}]:{port}").parse::<Endpoint>().unwrap().host, v6.to_string());
        }
    }

    #[test]
    fn one_host_has_one_form() {
        let form = |t: &str| t.parse::<Endpoint>().unwrap().to_string();
        assert_eq!(form("Example.ORG:443"), "example.org:443");
        assert_eq!(form("[2001:DB8:0:0::1]:80"), "[2001:db8::1]:80");
    }

    #[test]
    fn what_is_ambiguous_or_wrong_is_refused() {
        let bad = [
            "",
            "h",
            ":1",
            "h:",
            "h:0",
            "h:65536",
            "h:+1",
            "h: 1",
            "a:b:1",
            "::1:80",
            "[h]:1",
            "[127.0.0.1]:1",
            "[::1:1",
            "h/x:1",
            "h x:1",
            "-h:1",
            "h..x:1",
            "h.:1",
            "127.1:80",
            "0x7f000001:80",
            "2130706433:80",
            "1.2.3.04:1",
            "*:80",
            "user@h:1",
            "http://h:1",
        ];
        for text in bad {
            let error = text.parse::<Endpoint>().expect_err(text);
            assert!(error.to_string().contains("write it like"), "{error}");
        }
    }
}
