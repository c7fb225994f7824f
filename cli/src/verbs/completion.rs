//! `smalti completion`: a script that completes verbs and options in a shell.

use crate::command::Cli;
use crate::failure::{Exit, Result, SUCCESS};
use crate::output;
use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Supported {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  smalti completion bash > /etc/bash_completion.d/smalti\n  smalti completion fish > ~/.config/fish/completions/smalti.fish"
)]
pub(crate) struct Completion {
    /// Which shell
    shell: Supported,
}

impl Completion {
    pub(crate) fn run(self) -> Result<Exit> {
        let shell = match self.shell {
            Supported::Bash => Shell::Bash,
            Supported::Zsh => Shell::Zsh,
            Supported::Fish => Shell::Fish,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "smalti", &mut script);
        output::write(&script)?;
        Ok(SUCCESS)
    }
}
