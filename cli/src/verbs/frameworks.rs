//! `smalti frameworks`: who schedules, and what share it has.

use crate::cluster::{Cluster, ClusterOptions};
use crate::failure::{Exit, Failure, Result, SUCCESS};
use crate::output::{self, OutputOptions};
use crate::views::FrameworkView;
use clap::Args;
use smalti_proto::v1::Empty;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  smalti frameworks\n  smalti frameworks -o json")]
pub(crate) struct Frameworks {
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(flatten)]
    output: OutputOptions,
}

impl Frameworks {
    pub(crate) async fn run(self) -> Result<Exit> {
        let mut operator = Cluster::connect(&self.cluster).await?.operator();
        let list = operator.list_frameworks(Empty {}).await.map_err(|s| Failure::rpc("listing frameworks", &s))?.into_inner();
        let mut views: Vec<_> = list.frameworks.into_iter().map(FrameworkView::from).collect();
        views.sort_by(|a, b| a.id.cmp(&b.id));
        let header = ["FRAMEWORK", "NAME", "ROLE", "STATE", "TASKS", "SHARE", "USED", "OFFERED"];
        output::list(&self.output, &views, &header, |f| {
            vec![
                f.id.clone(),
                f.name.clone(),
                f.role.clone(),
                f.failover_deadline.as_ref().map_or_else(|| f.state.clone(), |until| format!("{} until {until}", f.state)),
                f.tasks.to_string(),
                format!("{:.1}%", f.dominant_share * 100.0),
                f.used.brief(),
                f.offered.brief(),
            ]
        })?;
        Ok(SUCCESS)
    }
}
