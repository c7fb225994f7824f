//! The network of a guest: listeners that the agent bound for it, and endpoints that it may dial.
//!
//! Owns what a guest was granted, as the agent said it, and the second layer of checks (the first is the broker's, which makes
//! every socket of this process and trusts nothing here). Only executors for one networked task have any of this: in all others
//! the linkers know no sockets, the runtimes have no I/O driver, and the kernel refuses the system calls.

mod lookup;
mod memory;
pub(crate) mod notify;
mod poll;
mod preview1;
mod socket;
mod table;

pub(crate) use lookup::add_to_linker as add_lookup_to_component;
pub(crate) use preview1::add_to_linker as add_sockets_to_core;
pub(crate) use table::Table;

use crate::failure::Failure;
use smalti_executor_protocol::v1;
use smalti_types::task_state::Reason;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::sockets::SocketAddrUse;

/// Most listeners of one guest.
const MAX_LISTENERS: usize = 32;
/// Most endpoints and names of one guest.
const MAX_ENDPOINTS: usize = 1024;

/// What one guest may do.
#[derive(Debug)]
pub(crate) struct Grants {
    ports: Vec<u16>,
    /// Where the guest's listeners are reached from outside.
    listen: IpAddr,
    endpoints: Vec<SocketAddr>,
    names: BTreeMap<String, Vec<IpAddr>>,
    /// Bound and listening; taken by the one run.
    listeners: Mutex<Vec<TcpListener>>,
}

impl Grants {
    /// Reads what the agent said.
    ///
    /// # Errors
    /// Texts that are no addresses, too much of anything.
    fn read(message: &v1::GuestNetwork, listeners: Vec<OwnedFd>) -> Result<Self, Failure> {
        let bad = |what: String| Failure::new(Reason::LaunchFailed, what);
        let too_many = listeners.len() > MAX_LISTENERS || message.endpoints.len() > MAX_ENDPOINTS || message.names.len() > MAX_ENDPOINTS;
        if too_many {
            return Err(bad(format!("{} listeners and {} endpoints are too many", listeners.len(), message.endpoints.len())));
        }
        let address = |text: &String| text.parse::<IpAddr>().map_err(|e| bad(format!("{text:?} is no address: {e}")));
        let mut names = BTreeMap::new();
        for name in &message.names {
            names.insert(name.name.to_ascii_lowercase(), name.addresses.iter().map(address).collect::<Result<_, _>>()?);
        }
        let endpoint = |text: &String| text.parse::<SocketAddr>().map(canonical).map_err(|e| bad(format!("{text:?} is no endpoint: {e}")));
        Ok(Self {
            ports: message.ports.iter().filter_map(|p| u16::try_from(*p).ok()).collect(),
            listen: address(&message.listen)?,
            endpoints: message.endpoints.iter().map(endpoint).collect::<Result<_, _>>()?,
            names,
            listeners: Mutex::new(listeners.into_iter().map(TcpListener::from).collect()),
        })
    }

    /// Sets the guest's WASI up: TCP with a check of each address, nothing of UDP.
    pub(crate) fn apply(self: &Arc<Self>, builder: &mut WasiCtxBuilder) {
        let grants = self.clone();
        builder.allow_tcp(true).allow_udp(false).socket_addr_check(move |address, purpose| {
            let allowed = grants.allows(address, purpose);
            Box::pin(std::future::ready(allowed))
        });
    }

    /// The listeners, once.
    pub(crate) fn take_listeners(&self) -> Vec<TcpListener> {
        std::mem::take(&mut self.listeners.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a name that was granted stands for.
    fn resolve(&self, name: &str) -> Option<&[IpAddr]> {
        self.names.get(&name.to_ascii_lowercase()).map(Vec::as_slice)
    }

    fn allows(&self, address: SocketAddr, purpose: SocketAddrUse) -> bool {
        match purpose {
            // Before a connect: the kernel chooses a port that nobody can reach.
            SocketAddrUse::TcpBind if address.ip().is_unspecified() && address.port() == 0 => !self.endpoints.is_empty(),
            SocketAddrUse::TcpBind | SocketAddrUse::TcpListen => {
                let here = address.ip().is_unspecified() || self.listen.is_unspecified() || address.ip() == self.listen;
                here && self.ports.contains(&address.port())
            }
            SocketAddrUse::TcpAccept => !self.ports.is_empty(),
            SocketAddrUse::TcpConnect => self.endpoints.contains(&canonical(address)),
            SocketAddrUse::UdpBind | SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => false,
        }
    }
}

/// One form for each address: an IPv4 address that is written as an IPv6 one is an IPv4 address; flow and scope do not count.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Grants that came and wait for their task, which follows at once.
#[derive(Debug, Default)]
pub(crate) struct Announced(Option<(u64, Result<Arc<Grants>, Failure>)>);

impl Announced {
    /// Takes in what one message brought; it replaces the one before. What makes no sense is an error of its task.
    pub(crate) fn add(&mut self, message: &v1::GuestNetwork, fds: Vec<OwnedFd>) {
        self.0 = Some((message.run, Grants::read(message, fds).map(Arc::new)));
    }

    /// An executor without a network was told of one: its task must not run as if it had it.
    pub(crate) fn refuse(&mut self, run: u64) {
        self.0 = Some((run, Err(Failure::new(Reason::LaunchFailed, "this executor has no network"))));
    }

    /// Those of a task that starts now, if any came for it. What was announced for another is forgotten.
    ///
    /// # Errors
    /// What was wrong with them.
    pub(crate) fn take(&mut self, run: u64) -> Result<Option<Arc<Grants>>, Failure> {
        self.0.take().filter(|(announced, _)| *announced == run).map(|(_, grants)| grants).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(ports: &[u32], endpoints: &[&str]) -> Grants {
        let message = v1::GuestNetwork {
            run: 1,
            ports: ports.to_vec(),
            listen: "10.0.0.5".to_owned(),
            endpoints: endpoints.iter().map(ToString::to_string).collect(),
            names: vec![v1::GuestName { name: "Db.Example".to_owned(), addresses: vec!["10.0.0.9".to_owned()] }],
        };
        Grants::read(&message, Vec::new()).expect("sense")
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn only_granted_ports_on_the_given_address_are_bound() {
        let listening = grants(&[8000], &[]);
        for purpose in [SocketAddrUse::TcpBind, SocketAddrUse::TcpListen] {
            assert!(listening.allows(at("0.0.0.0:8000"), purpose) && listening.allows(at("10.0.0.5:8000"), purpose));
            assert!(!listening.allows(at("127.0.0.1:8000"), purpose) && !listening.allows(at("0.0.0.0:8001"), purpose));
            assert!(!listening.allows(at("0.0.0.0:0"), purpose), "a port that the kernel chooses");
        }
        assert!(!listening.allows(at("10.0.0.9:80"), SocketAddrUse::TcpConnect));
        assert!(!listening.allows(at("0.0.0.0:8000"), SocketAddrUse::UdpBind));
    }

    #[test]
    fn only_granted_endpoints_are_dialled() {
        let dialling = grants(&[], &["10.0.0.9:80", "[2001:db8::1]:443"]);
        assert!(dialling.allows(at("10.0.0.9:80"), SocketAddrUse::TcpConnect));
        assert!(dialling.allows(at("[::ffff:10.0.0.9]:80"), SocketAddrUse::TcpConnect));
        assert!(dialling.allows(at("[2001:db8::1]:443"), SocketAddrUse::TcpConnect));
        assert!(dialling.allows(at("0.0.0.0:0"), SocketAddrUse::TcpBind));
        assert!(!dialling.allows(at("10.0.0.9:81"), SocketAddrUse::TcpConnect));
        assert!(
            !dialling.allows(at("0.0.0.0:0"), SocketAddrUse::TcpListen) && !dialling.allows(at("10.0.0.1:5"), SocketAddrUse::TcpAccept)
        );
        assert_eq!(dialling.resolve("db.example"), Some(&[IpAddr::from([10, 0, 0, 9])][..]));
        assert_eq!(dialling.resolve("example"), None);
    }

    #[test]
    fn grants_belong_to_one_run() {
        let mut announced = Announced::default();
        let message = v1::GuestNetwork { run: 7, listen: "::".to_owned(), ..Default::default() };
        announced.add(&message, Vec::new());
        assert!(matches!((announced.take(8), announced.take(7)), (Ok(None), Ok(None))), "forgotten with the first start");
        announced.add(&message, Vec::new());
        assert!(matches!(announced.take(7), Ok(Some(_))));
        let senseless = v1::GuestNetwork { endpoints: vec!["example.org:80".to_owned()], ..message };
        announced.add(&senseless, Vec::new());
        assert!(announced.take(7).is_err());
        announced.refuse(9);
        assert!(announced.take(9).is_err());
    }
}
