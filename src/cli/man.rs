//! `vlmdiff man`

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use clap::{Args, CommandFactory};

use super::{Cli, EXIT_DONE};

/// Write a manual page for each command.
#[derive(Args)]
#[command(after_help = "Example:\n  vlmdiff man ~/.local/share/man/man1 && man vlmdiff-run")]
pub(super) struct Man {
    /// The folder to write into.
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(self) -> Result<u8> {
        let cannot = || format!("cannot write manual pages into {}", self.dir.display());
        fs::create_dir_all(&self.dir).with_context(cannot)?;
        clap_mangen::generate_to(Cli::command(), &self.dir).with_context(cannot)?;
        Ok(EXIT_DONE)
    }
}
