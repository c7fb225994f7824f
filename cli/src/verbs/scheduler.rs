//! `smalti scheduler`.

use crate::failure::{Exit, Result};
use crate::role::{RoleOptions, Shutdown};
use clap::Args;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  smalti scheduler --data-dir /var/lib/smalti/scheduler\n  smalti scheduler --config /etc/smalti/scheduler.toml --print-config"
)]
pub(crate) struct Scheduler {
    #[command(flatten)]
    options: smalti_scheduler::Options,
    #[command(flatten)]
    role: RoleOptions,
}

impl Scheduler {
    pub(crate) async fn run(self) -> Result<Exit> {
        let options = self.options;
        self.role.run("scheduler", async |shutdown: Shutdown| smalti_scheduler::run(options, shutdown.wait()).await).await
    }
}
