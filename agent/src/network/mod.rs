//! The network of tasks: what each is granted, its listening ports, and the broker that makes its sockets.
//!
//! Owns the operator's policy, the check of ports against what other programs of this machine use, and look-ups of names: once,
//! before a launch, in the name of the task. What comes out are plain addresses; the executor and its broker know neither names nor
//! rules. Deliberately absent: which tasks run where (the core's), and everything between a socket's two ends: no byte of a task
//! passes through the agent.

mod broker;
mod policy;
mod ports;

pub use broker::Broker;
pub use policy::{Policy, PolicyError};

use crate::prepare::Failure;
use anyhow::Context;
use smalti_executor_protocol::v1;
use smalti_fetch::lookup::{self, look_up};
use smalti_fetch::protected;
use smalti_types::connect::Protected;
use smalti_types::{Endpoint, PortSet, Reason, Role};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Most listening ports of one task: each costs a descriptor, and a frame carries so many.
const MAX_PORTS: u32 = 32;
/// Most addresses of one name that are used.
const MAX_ADDRESSES: usize = 32;

/// What the operator has set.
#[derive(Debug)]
pub struct Network {
    policy: Policy,
    /// Where tasks listen.
    listen: IpAddr,
    /// The master, the scheduler and other services that tasks must not reach, as `host:port`.
    services: Vec<String>,
}

/// What one task may do, with its listening sockets.
#[derive(Debug)]
pub struct Grants {
    listen: IpAddr,
    ports: Vec<u16>,
    endpoints: Vec<SocketAddr>,
    names: BTreeMap<String, Vec<IpAddr>>,
    /// Of a preview 1 module, one per port; taken by the one launch.
    listeners: Mutex<Vec<Arc<OwnedFd>>>,
    inherited: usize,
}

impl Network {
    /// Reads the policy, if there is one. `services` are addresses of the cluster itself.
    ///
    /// # Errors
    /// A file that cannot be read, or is no policy.
    pub fn new(policy: Option<&Path>, listen: IpAddr, services: Vec<String>) -> anyhow::Result<Self> {
        let policy = match policy {
            None => Policy::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("reading the network policy {}", path.display()))?;
                text.parse().with_context(|| format!("the network policy {}", path.display()))?
            }
        };
        Ok(Self { policy, listen, services })
    }

    /// Decides what a task gets, and binds its ports: those of a module for good, those of a component, which binds them itself, for
    /// a moment, to know that nobody else has them.
    ///
    /// # Errors
    /// A port that another program uses, an endpoint that the policy refuses or that stands for no address.
    pub async fn grant(&self, role: &Role, connect: &[Endpoint], ports: &PortSet, component: bool) -> Result<Grants, Failure> {
        let count = ports.len();
        if count > MAX_PORTS {
            return Err(Failure::new(
                Reason::InvalidTask,
                format!("{count} ports are more than the {MAX_PORTS} that one task can listen on"),
            ));
        }
        let (mut endpoints, mut names) = (Vec::new(), BTreeMap::new());
        if !connect.is_empty() {
            let protected = protected(&self.services).await.map_err(|what| Failure::new(Reason::LaunchFailed, what))?;
            for endpoint in connect {
                let addresses = self.addresses(role, endpoint, &protected).await?;
                endpoints.extend(addresses.iter().map(|a| SocketAddr::new(*a, endpoint.port)));
                if endpoint.host.parse::<IpAddr>().is_err() {
                    let known: &mut Vec<IpAddr> = names.entry(endpoint.host.clone()).or_default();
                    known.extend(addresses);
                    known.sort_unstable();
                    known.dedup();
                }
            }
        }
        endpoints.sort_unstable();
        endpoints.dedup();
        let listeners = self.bind(ports, component)?;
        let ports: Vec<u16> = ports.iter().collect();
        Ok(Grants { listen: self.listen, ports, endpoints, names, inherited: listeners.len(), listeners: Mutex::new(listeners) })
    }

    /// The listening sockets of a module; of a component, none. All ports are tried, so that whoever chooses others knows all that
    /// somebody has.
    fn bind(&self, ports: &PortSet, component: bool) -> Result<Vec<Arc<OwnedFd>>, Failure> {
        let (mut listeners, mut in_use, mut why) = (Vec::new(), Vec::new(), None);
        for port in ports.iter() {
            let bound = if component {
                ports::probe(self.listen, port)
            } else {
                ports::listen(self.listen, port).map(|l| listeners.push(Arc::new(l)))
            };
            match bound {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
                    in_use.push(port);
                    why = Some(e);
                }
                Err(e) => {
                    let message = format!("port {port} at {} cannot be listened on: {e}", self.listen);
                    return Err(Failure::new(Reason::LaunchFailed, message));
                }
            }
        }
        let Some(why) = why else { return Ok(listeners) };
        let in_use: PortSet = in_use.into_iter().collect();
        let message = format!("port {in_use} at {} cannot be listened on: {why}", self.listen);
        Err(Failure { ports_in_use: in_use, ..Failure::new(Reason::LaunchFailed, message) })
    }

    /// The addresses of an endpoint that the role may connect to; at least one.
    async fn addresses(&self, role: &Role, endpoint: &Endpoint, protected: &Protected) -> Result<Vec<IpAddr>, Failure> {
        let all = look_up(&endpoint.host).await.map_err(|why| {
            let reason = match why {
                // Another agent or another try would say the same.
                lookup::Error::NoSuchName(_) => Reason::InvalidTask,
                lookup::Error::Trouble(_) => Reason::LaunchFailed,
            };
            Failure::new(reason, format!("the name of {endpoint}, which the task wants to connect to, cannot be looked up: {why}"))
        })?;
        let mut refusal = None;
        let mut allowed = Vec::new();
        for address in all.into_iter().take(MAX_ADDRESSES) {
            match self.policy.check(role, endpoint, address, protected) {
                Ok(()) => allowed.push(address),
                Err(e) => refusal = Some(e.to_string()),
            }
        }
        if allowed.is_empty() {
            return Err(Failure::new(Reason::InvalidTask, refusal.unwrap_or_else(|| format!("{endpoint} stands for no address"))));
        }
        Ok(allowed)
    }
}

impl Grants {
    /// For the executor, with the listeners; the second call finds none.
    pub(crate) fn for_executor(&self, run: u64) -> (v1::GuestNetwork, Vec<Arc<OwnedFd>>) {
        let listeners = std::mem::take(&mut *self.listeners.lock().unwrap_or_else(PoisonError::into_inner));
        let names = self
            .names
            .iter()
            .map(|(name, addresses)| v1::GuestName { name: name.clone(), addresses: addresses.iter().map(ToString::to_string).collect() });
        let message = v1::GuestNetwork {
            run,
            ports: self.ports.iter().map(|p| u32::from(*p)).collect(),
            listen: self.listen.to_string(),
            endpoints: self.endpoints.iter().map(ToString::to_string).collect(),
            names: names.collect(),
        };
        (message, listeners)
    }

    /// For the broker: a module makes no sockets itself.
    pub(crate) fn for_broker(&self) -> v1::BrokerRules {
        let module = self.inherited > 0;
        v1::BrokerRules {
            ports: if module { Vec::new() } else { self.ports.iter().map(|p| u32::from(*p)).collect() },
            listen: self.listen.to_string(),
            endpoints: self.endpoints.iter().map(ToString::to_string).collect(),
        }
    }

    /// What the guest finds in its environment: where it is reached, and which descriptors listen.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        /// Behind stdin, stdout and stderr.
        const FIRST: usize = 3;
        let mut all = Vec::new();
        if !self.ports.is_empty() {
            all.push(("SMALTI_LISTEN".to_owned(), self.listen.to_string()));
        }
        if self.inherited > 0 {
            all.push(("LISTEN_FDS".to_owned(), self.inherited.to_string()));
            all.extend((0..self.inherited).map(|i| (format!("SMALTI_LISTEN_FD{i}"), (FIRST + i).to_string())));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(connect: &[&str]) -> Vec<Endpoint> {
        connect.iter().map(|e| e.parse().unwrap()).collect()
    }

    fn network(policy: &str) -> Network {
        let services = vec!["127.0.0.1:5050".to_owned()];
        Network { policy: policy.parse().unwrap(), listen: "127.0.0.1".parse().unwrap(), services }
    }

    #[tokio::test]
    async fn a_port_that_another_program_has_is_named() {
        let network = network("");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let ports: PortSet = port.to_string().parse().unwrap();
        for component in [false, true] {
            let failure = network.grant(&Role::default(), &to(&[]), &ports, component).await.unwrap_err();
            assert_eq!(failure.reason, Reason::LaunchFailed);
            assert!(failure.message.contains(&port.to_string()) && failure.message.contains("in use"), "{failure}");
            assert_eq!(failure.ports_in_use, ports);
        }
    }

    #[tokio::test]
    async fn a_module_gets_listeners_and_a_component_its_ports() {
        let network = network("");
        let free = smalti_test_ports::take_one();
        let port = free.first();
        let ports: PortSet = port.to_string().parse().unwrap();
        let component = network.grant(&Role::default(), &to(&[]), &ports, true).await.unwrap();
        assert!(component.for_executor(1).1.is_empty());
        assert_eq!(component.for_broker().ports, [u32::from(port)]);
        assert_eq!(component.environment(), [("SMALTI_LISTEN".to_owned(), "127.0.0.1".to_owned())]);
        let module = network.grant(&Role::default(), &to(&[]), &ports, false).await.unwrap();
        assert!(module.environment().contains(&("SMALTI_LISTEN_FD0".to_owned(), "3".to_owned())));
        assert!(module.for_broker().ports.is_empty(), "its one listener is there already");
        std::net::TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        assert_eq!((module.for_executor(1).1.len(), module.for_executor(1).1.len()), (1, 0));
        drop(module);
        std::net::TcpListener::bind(("127.0.0.1", port)).expect("free again");
    }

    #[tokio::test]
    async fn endpoints_are_looked_up_and_checked_by_address() {
        let refused = network("").grant(&Role::default(), &to(&["localhost:8080"]), &PortSet::default(), true).await.unwrap_err();
        assert!(refused.message.contains("may not connect to localhost:8080"), "{refused}");
        let open = network("[default]\nconnect = [\"127.0.0.0/8:*\", \"[::1]:*\"]");
        let grants = open.grant(&Role::default(), &to(&["localhost:8080", "127.0.0.1:9090"]), &PortSet::default(), true).await.unwrap();
        let (message, _) = grants.for_executor(1);
        assert!(message.endpoints.contains(&"127.0.0.1:8080".to_owned()) && message.endpoints.contains(&"127.0.0.1:9090".to_owned()));
        assert_eq!((message.names.len(), message.names[0].name.as_str()), (1, "localhost"));
        let own = open.grant(&Role::default(), &to(&["127.0.0.1:5050"]), &PortSet::default(), true).await.unwrap_err();
        assert!(own.message.contains("a service of the cluster itself"), "{own}");
        let nowhere = open.grant(&Role::default(), &to(&["no-such-host.invalid:80"]), &PortSet::default(), true).await.unwrap_err();
        // What the resolver of this machine says of it decides which of both.
        let expected = if nowhere.message.contains("there is no such name") { Reason::InvalidTask } else { Reason::LaunchFailed };
        assert!(nowhere.message.contains("cannot be looked up") && nowhere.reason == expected, "{nowhere}");
    }
}
