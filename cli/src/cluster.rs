//! Finding the cluster: the master by its address, the batch scheduler through the master.
//!
//! Owns connections. Deliberately absent: what is asked over them.

use crate::failure::{self, Failure, Result};
use clap::Args;
use smalti_proto::client::{ConnectError, connect};
use smalti_proto::convert::MAX_FRAME_LEN;
use smalti_proto::v1::bundle_service_client::BundleServiceClient;
use smalti_proto::v1::jobs_client::JobsClient;
use smalti_proto::v1::jobs_server::SERVICE_NAME as JOBS_SERVICE;
use smalti_proto::v1::operator_service_client::OperatorServiceClient;
use smalti_proto::v1::{BundleDigest, Empty};
use smalti_types::{Digest, Role};
use tonic::transport::Channel;

pub(crate) type Operator = OperatorServiceClient<Channel>;
pub(crate) type Jobs = JobsClient<Channel>;

#[derive(Debug, Clone, Args)]
pub(crate) struct ClusterOptions {
    /// Address of the master; it names the scheduler
    #[arg(long, env = "SMALTI_MASTER", default_value = "127.0.0.1:5050", value_name = "HOST:PORT")]
    pub(crate) master: String,
}

/// A connection to the master.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    master: String,
    channel: Channel,
}

/// The bundle store, in a role or as the operator.
#[derive(Debug, Clone)]
pub(crate) struct Bundles {
    client: BundleServiceClient<Channel>,
    role: String,
}

impl Bundles {
    /// Calls on clones share one connection.
    pub(crate) fn client(&self) -> BundleServiceClient<Channel> {
        self.client.clone()
    }

    /// Empty for the operator.
    pub(crate) fn role(&self) -> &str {
        &self.role
    }

    /// Names a bundle in this role.
    pub(crate) fn named(&self, digest: Digest) -> BundleDigest {
        BundleDigest { digest: digest.as_bytes().to_vec().into(), role: self.role.clone() }
    }
}

impl Cluster {
    /// Connects to the master.
    pub(crate) async fn connect(options: &ClusterOptions) -> Result<Self> {
        let channel = connect(&options.master).await.map_err(|e| Failure::new(e.to_string()))?;
        Ok(Self { master: options.master.clone(), channel })
    }

    /// Agents, frameworks and offers.
    pub(crate) fn operator(&self) -> Operator {
        OperatorServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_FRAME_LEN)
    }

    /// The bundle store as this role sees it.
    pub(crate) fn bundles(&self, role: Option<&Role>) -> Bundles {
        let client = BundleServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_FRAME_LEN);
        Bundles { client, role: role.map(Role::to_string).unwrap_or_default() }
    }

    /// The batch scheduler's job API, at the address that the master names.
    pub(crate) async fn jobs(&self) -> Result<Jobs> {
        let info = self.operator().cluster(Empty {}).await.map_err(|status| self.no_master(&status))?.into_inner();
        let Some(address) = info.services.get(JOBS_SERVICE) else {
            return Err(Failure::new(format!(
                "no batch scheduler is registered with the master at {}; start one with `smalti scheduler --master {}`",
                self.master, self.master
            )));
        };
        let channel = connect(address).await.map_err(|error| {
            let why = match error {
                ConnectError::NoMaster { cause, .. } => cause,
                other @ ConnectError::Address { .. } => other.to_string(),
            };
            Failure::new(format!("no scheduler at {address}, where the master at {} says it is: {why}", self.master))
        })?;
        Ok(JobsClient::new(channel).max_decoding_message_size(MAX_FRAME_LEN))
    }

    /// A first call that failed: something listens there, but perhaps no master.
    fn no_master(&self, status: &tonic::Status) -> Failure {
        let what = format!("asking the master at {}", self.master);
        if failure::is_passing(status) {
            return Failure::new(format!(
                "{what}: {}; does a Smalti master listen there? Start a cluster with `smalti dev`, or name yours with --master HOST:PORT",
                failure::status_text(status)
            ));
        }
        Failure::rpc(&what, status)
    }
}
