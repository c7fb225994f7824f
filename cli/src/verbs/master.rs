//! `smalti master`.

use crate::failure::{Exit, Result};
use crate::role::{RoleOptions, Shutdown};
use clap::Args;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  smalti master --data-dir /var/lib/smalti/master\n  smalti master --config /etc/smalti/master.toml --print-config"
)]
pub(crate) struct Master {
    #[command(flatten)]
    options: smalti_master::Options,
    #[command(flatten)]
    role: RoleOptions,
}

impl Master {
    pub(crate) async fn run(self) -> Result<Exit> {
        let options = self.options;
        self.role.run("master", async |shutdown: Shutdown| smalti_master::run(options, shutdown.wait()).await).await
    }
}
