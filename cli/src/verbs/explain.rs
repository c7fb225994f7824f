//! `smalti explain`: why a job or task is where it is, as the scheduler tells it.

use crate::cluster::{Cluster, ClusterOptions};
use crate::failure::{Exit, Failure, Result, SUCCESS};
use crate::output::{self, OutputOptions};
use clap::Args;
use serde_json::{Value, json};
use smalti_proto::v1::{ExplainReply, ExplainRequest};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  smalti explain $job\n  smalti explain -o json $job")]
pub(crate) struct Explain {
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(flatten)]
    output: OutputOptions,
    /// What to explain
    #[arg(value_name = "TASK|JOB")]
    of: String,
}

impl Explain {
    pub(crate) async fn run(self) -> Result<Exit> {
        let mut jobs = Cluster::connect(&self.cluster).await?.jobs().await?;
        let what = format!("explaining {}", self.of);
        let request = ExplainRequest { job_or_task: self.of };
        let reply = jobs.explain(request).await.map_err(|s| Failure::rpc(&what, &s))?.into_inner();
        if self.output.is_json() {
            output::json(&as_json(&reply))?;
        } else {
            let lines: Vec<_> = reply.text.lines().map(output::printable).collect();
            output::line(lines.join("\n").trim_end())?;
        }
        Ok(SUCCESS)
    }
}

/// What the scheduler gives as JSON, or its words when that is none.
fn as_json(reply: &ExplainReply) -> Value {
    serde_json::from_str(&reply.json).unwrap_or_else(|_| json!({ "text": reply.text }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_json() {
        let reply = |text: &str, json: &str| as_json(&ExplainReply { text: text.into(), json: json.into() });
        assert_eq!(reply("t", r#"{"a":1}"#), json!({"a": 1}));
        assert_eq!(reply("t", ""), json!({"text": "t"}));
    }
}
