//! `vlmdiff man`

use std::{fs, path::PathBuf};

use anyhow::Result;
use clap::{Args, CommandFactory};

use super::{Cli, EXIT_DONE, text::cannot_write};

/// Write a manual page for each command.
#[derive(Args)]
#[command(after_help = "Example:\n  vlmdiff man ~/.local/share/man/man1 && man vlmdiff-run")]
pub(super) struct Man {
    /// The folder to write into.
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(self) -> Result<u8> {
        fs::create_dir_all(&self.dir).map_err(cannot_write(&self.dir))?;
        clap_mangen::generate_to(Cli::command(), &self.dir).map_err(cannot_write(&self.dir))?;
        Ok(EXIT_DONE)
    }
}
