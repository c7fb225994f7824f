//! `smalti agent`.

use crate::failure::{Exit, Result};
use crate::role::{RoleOptions, Shutdown};
use clap::Args;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  smalti agent --data-dir /var/lib/smalti/agent\n  smalti agent --config /etc/smalti/agent.toml --print-config"
)]
pub(crate) struct Agent {
    #[command(flatten)]
    options: smalti_agent::Options,
    #[command(flatten)]
    role: RoleOptions,
}

impl Agent {
    pub(crate) async fn run(self) -> Result<Exit> {
        let options = self.options;
        self.role.run("agent", async |shutdown: Shutdown| smalti_agent::run(options, shutdown.wait()).await).await
    }
}
