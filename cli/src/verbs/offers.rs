//! `smalti offers`: resources that are held for frameworks which have not answered yet.

use crate::cluster::{Cluster, ClusterOptions};
use crate::failure::{Exit, Failure, Result, SUCCESS};
use crate::output::{self, OutputOptions};
use crate::views::OfferView;
use clap::Args;
use smalti_proto::v1::Empty;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  smalti offers\n  smalti offers -o json")]
pub(crate) struct Offers {
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(flatten)]
    output: OutputOptions,
}

impl Offers {
    pub(crate) async fn run(self) -> Result<Exit> {
        let mut operator = Cluster::connect(&self.cluster).await?.operator();
        let list = operator.list_offers(Empty {}).await.map_err(|s| Failure::rpc("listing offers", &s))?.into_inner();
        let views: Vec<_> = list.offers.into_iter().map(OfferView::from).collect();
        output::list(&self.output, &views, &["OFFER", "FRAMEWORK", "ROLE", "AGENT", "RESOURCES"], |o| {
            vec![o.id.clone(), o.framework_id.clone(), o.role.clone(), o.agent_id.clone(), o.resources.brief()]
        })?;
        Ok(SUCCESS)
    }
}
