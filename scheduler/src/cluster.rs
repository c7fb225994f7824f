//! The connection to the master for everything that is not the framework's stream: agents, sandboxes, the bundle store.
//!
//! Owns one channel, made on first use and made again when it breaks. A framework of any other team could do the same.

use smalti_proto::client::{ConnectError, connect};
use smalti_proto::convert::MAX_FRAME_LEN;
use smalti_proto::v1::bundle_service_client::BundleServiceClient;
use smalti_proto::v1::operator_service_client::OperatorServiceClient;
use smalti_proto::v1::{AgentStatus, BundleDigest, Empty};
use smalti_types::{Digest, Role};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tonic::transport::Channel;

/// How long it is believed that the store has a bundle, and how many are remembered. It is asked so that a wrong digest is told to whoever
/// submits; what is removed within this time is told by the task.
const STORED_KEPT: Duration = Duration::from_secs(1);
const MOST_STORED: usize = 1024;
/// How long the list of agents may be reused for the check whether a job can ever fit.
const AGENTS_KEPT: Duration = Duration::from_secs(1);

/// The master, as seen by this process.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    master: String,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    channel: Option<Channel>,
    agents: Option<(Instant, Arc<Vec<AgentStatus>>)>,
    /// Lengths of bundles that the store has for a role.
    stored: BTreeMap<(Role, Digest), (Instant, u64)>,
}

impl Cluster {
    pub(crate) fn new(master: String) -> Self {
        Self { master, shared: Arc::default() }
    }

    /// The master's address.
    pub(crate) fn master(&self) -> &str {
        &self.master
    }

    /// A channel: it reconnects by itself once it has been made.
    pub(crate) async fn channel(&self) -> Result<Channel, ConnectError> {
        let mut shared = self.shared.lock().await;
        if let Some(channel) = &shared.channel {
            return Ok(channel.clone());
        }
        let channel = connect(&self.master).await?;
        shared.channel = Some(channel.clone());
        Ok(channel)
    }

    pub(crate) async fn operator(&self) -> Result<OperatorServiceClient<Channel>, tonic::Status> {
        let channel = self.channel().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
        Ok(OperatorServiceClient::new(channel).max_decoding_message_size(MAX_FRAME_LEN))
    }

    pub(crate) async fn bundles(&self) -> Result<BundleServiceClient<Channel>, tonic::Status> {
        let channel = self.channel().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
        Ok(BundleServiceClient::new(channel).max_decoding_message_size(MAX_FRAME_LEN))
    }

    /// Length of what is in the cluster's store under this digest for this role, as of a moment ago.
    pub(crate) async fn stored(&self, role: &Role, digest: Digest) -> Result<u64, tonic::Status> {
        let key = (role.clone(), digest);
        if let Some((_, length)) = self.shared.lock().await.stored.get(&key).filter(|(at, _)| at.elapsed() < STORED_KEPT) {
            return Ok(*length);
        }
        let wire = BundleDigest { digest: bytes::Bytes::copy_from_slice(digest.as_bytes()), role: role.to_string() };
        let length = self.bundles().await?.stat(wire).await?.into_inner().length;
        let mut shared = self.shared.lock().await;
        if shared.stored.len() >= MOST_STORED {
            shared.stored.clear();
        }
        shared.stored.insert(key, (Instant::now(), length));
        Ok(length)
    }

    /// All agents, now.
    pub(crate) async fn agents(&self) -> Result<Arc<Vec<AgentStatus>>, tonic::Status> {
        let agents = Arc::new(self.operator().await?.list_agents(Empty {}).await?.into_inner().agents);
        self.shared.lock().await.agents = Some((Instant::now(), agents.clone()));
        Ok(agents)
    }

    /// All agents, as of a moment ago: good enough to see that a job fits somewhere.
    pub(crate) async fn recent_agents(&self) -> Option<Arc<Vec<AgentStatus>>> {
        let shared = self.shared.lock().await;
        shared.agents.as_ref().filter(|(at, _)| at.elapsed() < AGENTS_KEPT).map(|(_, agents)| agents.clone())
    }
}
