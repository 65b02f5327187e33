//! `vlmdiff completions`

use std::io::Write;

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::{Cli, EXIT_DONE, text::StandardOutput};

/// Print a script by which a shell completes commands and options.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff completions bash > ~/.local/share/bash-completion/completions/vlmdiff
  vlmdiff completions zsh > ~/.zfunc/_vlmdiff
  vlmdiff completions fish > ~/.config/fish/completions/vlmdiff.fish")]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<u8> {
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "vlmdiff", &mut script);
        StandardOutput::lock().write_all(&script)?;
        Ok(EXIT_DONE)
    }
}
