//! Which addresses a role may reach, by rules that an operator wrote. Pure.
//!
//! Owns the form of one rule and the decision. What is special has to be named: a rule for everything (`0.0.0.0/0`, `public`) is one for
//! public addresses, a private address needs a rule whose whole network is private, and so on; a cloud's metadata, this machine's and the
//! master's own addresses need a rule for exactly that address, and the services of Smalti itself one with exactly their port.
//! Deliberately absent: the files in which rules stand, look-ups, and who asks for what.

use crate::address::{Block, Scope, effective, scope};
use crate::{Endpoint, Role};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// What a rule for all public addresses is called.
const PUBLIC: &str = "public";

/// Ports that a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    const ALL: Self = Self { first: 1, last: u16::MAX };

    const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    const fn is_one(self) -> bool {
        self.first == self.last
    }
}

impl FromStr for Ports {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let port = |t: &str| t.parse::<u16>().ok().filter(|p| *p > 0 && t.bytes().all(|b| b.is_ascii_digit())).ok_or(());
        if text == "*" {
            return Ok(Self::ALL);
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let ports = Self { first: port(first)?, last: port(last)? };
        if ports.first <= ports.last { Ok(ports) } else { Err(()) }
    }
}

/// One thing that is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// Every public address.
    Public,
    /// A network, or one address of it.
    Network(Block, Ports),
    /// What this name stands for, unless that is special.
    Name(String, Ports),
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a rule: write \"public\", or HOST:PORTS like \"10.0.0.0/8:443\", \"[fd00::/8]:*\" or \"db.example:5432-5440\"")]
pub struct RuleError(String);

impl FromStr for Rule {
    type Err = RuleError;
    fn from_str(text: &str) -> Result<Self, RuleError> {
        let error = || RuleError(text.to_owned());
        if text == PUBLIC {
            return Ok(Self::Public);
        }
        let (host, ports) = text.rsplit_once(':').ok_or_else(error)?;
        let ports: Ports = ports.parse().map_err(|()| error())?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        if bracketed.is_none() && host.contains(':') {
            return Err(error());
        }
        let (address, prefix) = match bracketed.unwrap_or(host).split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (bracketed.unwrap_or(host), None),
        };
        if let Ok(first) = address.parse::<IpAddr>() {
            let width = if first.is_ipv4() { 32 } else { 128 };
            let prefix = prefix.map_or(Ok(width), |p| p.parse().map_err(|_| error()))?;
            if prefix > width || first.is_ipv6() != bracketed.is_some() || effective(first) != first {
                return Err(error());
            }
            return Ok(Self::Network(Block { first, prefix }, ports));
        }
        // The same names as an endpoint's.
        let name = Endpoint::new(host, ports.first).map_err(|_| error())?;
        if prefix.is_some() || bracketed.is_some() { Err(error()) } else { Ok(Self::Name(name.host, ports)) }
    }
}

impl Rule {
    fn allows(&self, endpoint: &Endpoint, address: IpAddr, kind: Scope, guard: Guard) -> bool {
        match self {
            Self::Public => guard == Guard::None && kind == Scope::Public,
            Self::Name(name, ports) => {
                let reachable = matches!(kind, Scope::Public | Scope::Private);
                guard == Guard::None && reachable && *name == endpoint.host && ports.contains(endpoint.port)
            }
            Self::Network(block, ports) => {
                let named = match (guard, kind) {
                    (Guard::Service, _) => block.is_host() && ports.is_one(),
                    (Guard::Host, _) | (_, Scope::Metadata) => block.is_host(),
                    (Guard::None, Scope::Public) => true,
                    (Guard::None, kind) => block.scope() == kind,
                };
                named && block.contains(address) && ports.contains(endpoint.port)
            }
        }
    }
}

/// How much an address has to be named beyond what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guard {
    None,
    /// An address of this agent's or the master's machine.
    Host,
    /// A service of the cluster itself.
    Service,
}

/// What belongs to the cluster itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Protected {
    /// Addresses of this machine and of the master's.
    pub hosts: Vec<IpAddr>,
    /// Where the master, the scheduler, … listen.
    pub services: Vec<SocketAddr>,
}

impl Protected {
    fn guard(&self, address: IpAddr, port: u16) -> Guard {
        // What listens on one address of this machine may be listening on all.
        let here = |a: IpAddr| a.is_loopback() || self.hosts.contains(&a);
        let same = |service: &SocketAddr| {
            let host = effective(service.ip());
            service.port() == port && (host == address || (here(host) && here(address)))
        };
        if self.services.iter().any(same) {
            Guard::Service
        } else if self.hosts.contains(&address) && !address.is_loopback() {
            Guard::Host
        } else {
            Guard::None
        }
    }
}

/// Why an endpoint is not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("role {role} may not connect to {endpoint} ({address} is {what})")]
pub struct Denied {
    role: String,
    endpoint: Endpoint,
    address: IpAddr,
    what: &'static str,
}

/// Whether `role`, which has these rules, may connect to `address`, one of those that `endpoint` stands for.
///
/// # Errors
/// Why not.
pub fn check(rules: &[Rule], role: &Role, endpoint: &Endpoint, address: IpAddr, protected: &Protected) -> Result<(), Denied> {
    let (kind, real) = (scope(address), effective(address));
    let guard = protected.guard(real, endpoint.port);
    if kind != Scope::Never && rules.iter().any(|rule| rule.allows(endpoint, real, kind, guard)) {
        return Ok(());
    }
    Err(Denied { role: shown(role), endpoint: endpoint.clone(), address, what: describe(kind, guard) })
}

fn shown(role: &Role) -> String {
    if role.as_str().is_empty() { "(none)".to_owned() } else { format!("`{}`", role.as_str()) }
}

const fn describe(kind: Scope, guard: Guard) -> &'static str {
    match (guard, kind) {
        (Guard::Service, _) => "a service of the cluster itself",
        (Guard::Host, _) => "this agent's or the master's own address",
        (_, Scope::Public) => "a public address",
        (_, Scope::Private) => "a private address",
        (_, Scope::LinkLocal) => "a link-local address",
        (_, Scope::Loopback) => "a loopback address",
        (_, Scope::Metadata) => "a cloud's metadata address",
        (_, Scope::Never) => "no address that a task can connect to",
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ALL => write!(f, "*"),
            one if one.is_one() => write!(f, "{}", one.first),
            Self { first, last } => write!(f, "{first}-{last}"),
        }
    }
}
