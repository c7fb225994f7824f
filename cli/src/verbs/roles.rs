//! `smalti roles`: the roles that frameworks are in.

use crate::cluster::{Cluster, ClusterOptions};
use crate::failure::{Exit, Failure, Result, SUCCESS};
use crate::output::{self, OutputOptions};
use crate::views::RoleView;
use clap::Args;
use smalti_proto::v1::Empty;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  smalti roles\n  smalti roles -o json")]
pub(crate) struct Roles {
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(flatten)]
    output: OutputOptions,
}

impl Roles {
    pub(crate) async fn run(self) -> Result<Exit> {
        let mut operator = Cluster::connect(&self.cluster).await?.operator();
        let list = operator.list_frameworks(Empty {}).await.map_err(|s| Failure::rpc("listing roles", &s))?.into_inner();
        let views = RoleView::of_frameworks(&list.frameworks);
        output::list(&self.output, &views, &["ROLE", "FRAMEWORKS", "TASKS", "USED", "OFFERED"], |r| {
            vec![r.name.clone(), r.frameworks.len().to_string(), r.tasks.to_string(), r.used.brief(), r.offered.brief()]
        })?;
        Ok(SUCCESS)
    }
}
