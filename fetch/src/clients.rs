//! HTTP clients: for the world, checked by what each role may reach, and for the cluster's own master.
//!
//! Owns the check at connect time: a client looks names up through [`Checked`], so it connects to no address but those that were allowed a
//! moment before. One client a role and port, since what a name may stand for depends on both. Deliberately absent: redirects, which
//! are followed by hand, each checked like a first request.

use crate::guard::{self, Barred};
use crate::options::{Setup, SetupError};
use crate::policy::Section;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, ClientBuilder, Url};
use smalti_types::Role;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Clients that are kept.
const MAX_CLIENTS: usize = 64;
/// Time for a connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// All HTTP clients of this process.
pub(crate) struct Clients {
    setup: Arc<Setup>,
    world: Mutex<HashMap<(Role, u16), Client>>,
    /// The master is named by address and is never behind a proxy or elsewhere.
    pub(crate) cluster: Client,
}

/// Looks names up in the name of a role.
struct Checked {
    role: Role,
    section: Arc<Section>,
    port: u16,
    services: Vec<String>,
    /// The operator's own proxy, which no policy is about.
    proxy: Option<String>,
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let (role, section, port, services) = (self.role.clone(), self.section.clone(), self.port, self.services.clone());
        let (host, is_proxy) = (name.as_str().to_owned(), self.proxy.as_deref() == Some(name.as_str()));
        Box::pin(async move {
            let addresses: Vec<IpAddr> = if is_proxy {
                crate::lookup::look_up(&host).await?
            } else {
                guard::addresses((&role, &section), (&host, port), &services).await?
            };
            let addresses: Addrs = Box::new(addresses.into_iter().map(|a| SocketAddr::new(a, 0)));
            Ok(addresses)
        })
    }
}

impl Clients {
    pub(crate) fn new(setup: Arc<Setup>) -> Result<Self, SetupError> {
        let cluster = base(&setup)?.no_proxy().build().map_err(SetupError::Http)?;
        let clients = Self { setup, world: Mutex::default(), cluster };
        // What is wrong with a certificate or a proxy is to be said at the start.
        clients.build(&Role::default(), 443)?;
        Ok(clients)
    }

    /// A client that may connect to where `url` is, or why none may.
    pub(crate) async fn world(&self, role: &Role, url: &Url) -> Result<Client, Barred> {
        let port = url.port_or_known_default().unwrap_or_default();
        let host = url.host_str().unwrap_or_default();
        // What is an address already is never looked up.
        if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            let section = self.setup.policy.section(role);
            guard::addresses((role, section), (&address.to_string(), port), &self.setup.services).await?;
        }
        let key = (role.clone(), port);
        if let Some(client) = self.lock().get(&key) {
            return Ok(client.clone());
        }
        let client = self.build(role, port).map_err(|e| Barred::Trouble(e.to_string()))?;
        let mut clients = self.lock();
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(Role, u16), Client>> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn build(&self, role: &Role, port: u16) -> Result<Client, SetupError> {
        let setup = &self.setup;
        let proxy_host = setup.proxy.as_deref().and_then(|p| Url::parse(p).ok()).and_then(|u| u.host_str().map(str::to_owned));
        let checked = Checked {
            role: role.clone(),
            section: setup.policy.section(role).clone(),
            port,
            services: setup.services.clone(),
            proxy: proxy_host,
        };
        let mut builder = base(setup)?.no_proxy().dns_resolver(Arc::new(checked));
        if let Some(proxy) = &setup.proxy {
            let except = setup.no_proxy.as_deref().and_then(reqwest::NoProxy::from_string);
            builder = builder.proxy(reqwest::Proxy::all(proxy).map_err(SetupError::Http)?.no_proxy(except));
        }
        builder.build().map_err(SetupError::Http)
    }
}

fn base(setup: &Setup) -> Result<ClientBuilder, SetupError> {
    let mut builder = Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(setup.stall)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .user_agent(concat!("smalti/", env!("CARGO_PKG_VERSION")));
    let mut certificates = Vec::new();
    for pem in &setup.ca {
        certificates.extend(reqwest::Certificate::from_pem_bundle(pem).map_err(SetupError::Http)?);
    }
    if !certificates.is_empty() {
        builder = builder.tls_certs_merge(certificates);
    }
    Ok(builder)
}
