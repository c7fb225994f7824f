//! `smalti agents`: the nodes, and who has how much of them.

use crate::cluster::{Cluster, ClusterOptions};
use crate::failure::{Exit, Failure, Result, SUCCESS};
use crate::output::{self, OutputOptions};
use crate::views::AgentView;
use clap::{Args, Subcommand};
use smalti_proto::v1::Empty;
use smalti_types::Bytes;

const HEADER: [&str; 10] =
    ["AGENT", "HOSTNAME", "STATE", "TASKS", "EXECUTORS", "CPUS USED/TOTAL", "MEM USED/TOTAL", "OFFERED", "PORTS", "ATTRIBUTES"];
/// Longest text of attributes in a table, in characters: processor features are many.
const MAX_ATTRIBUTES: usize = 60;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  smalti agents\n  smalti agents -o json")]
pub(crate) struct Agents {
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(flatten)]
    output: OutputOptions,
    #[command(subcommand)]
    change: Option<Change>,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Take no new tasks (not supported yet)
    #[command(hide = true)]
    Drain { agent: String },
    /// Take new tasks again (not supported yet)
    #[command(hide = true)]
    Activate { agent: String },
}

impl Agents {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self.change {
            Some(Change::Drain { agent }) => return Err(Failure::not_yet(&format!("agents drain {agent}"), "")),
            Some(Change::Activate { agent }) => return Err(Failure::not_yet(&format!("agents activate {agent}"), "")),
            None => {}
        }
        let mut operator = Cluster::connect(&self.cluster).await?.operator();
        let list = operator.list_agents(Empty {}).await.map_err(|s| Failure::rpc("listing agents", &s))?.into_inner();
        let mut views: Vec<_> = list.agents.into_iter().map(AgentView::from).collect();
        views.sort_by(|a, b| a.id.cmp(&b.id));
        output::list(&self.output, &views, &HEADER, row)?;
        Ok(SUCCESS)
    }
}

fn row(agent: &AgentView) -> Vec<String> {
    let attributes: Vec<_> = agent.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut attributes = attributes.join(" ");
    if attributes.chars().count() > MAX_ATTRIBUTES {
        attributes = attributes.chars().take(MAX_ATTRIBUTES).chain(['…']).collect();
    }
    vec![
        agent.id.clone(),
        agent.hostname.clone(),
        agent.away_since.as_ref().map_or_else(|| agent.state.clone(), |since| format!("{} since {since}", agent.state)),
        agent.tasks.to_string(),
        agent.executors.len().to_string(),
        format!("{}/{}", agent.used.cpus, agent.total.cpus),
        format!("{}/{}", Bytes(agent.used.mem), agent.total.mem_text()),
        format!("{} cpus, {}", agent.offered.cpus, agent.offered.mem_text()),
        format!("{}/{}", agent.used.port_count(), agent.total.port_count()),
        attributes,
    ]
}
