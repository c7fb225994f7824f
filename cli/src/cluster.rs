//! Finding the cluster: the master by its address, the batch scheduler through the master.
//!
//! Owns connections. Deliberately absent: what is asked over them.

use crate::failure::{self, Failure, Result};
use clap::Args;
use smalti_proto::client::{ConnectError, connect};
use smalti_proto::convert::MAX_FRAME_LEN;
use smalti_proto::v1::Empty;
use smalti_proto::v1::bundle_service_client::BundleServiceClient;
use smalti_proto::v1::jobs_client::JobsClient;
use smalti_proto::v1::jobs_server::SERVICE_NAME as JOBS_SERVICE;
use smalti_proto::v1::operator_service_client::OperatorServiceClient;
use tonic::transport::Channel;

pub(crate) type Operator = OperatorServiceClient<Channel>;
pub(crate) type Bundles = BundleServiceClient<Channel>;
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

    /// The bundle store.
    pub(crate) fn bundles(&self) -> Bundles {
        BundleServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_FRAME_LEN)
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
