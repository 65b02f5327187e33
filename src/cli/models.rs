//! `vlmdiff models`

mod digest;
mod download;
mod fetch;
mod inspect;
mod list;
mod package;
mod verify;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};

use crate::{engine::Error, models::catalogue};

/// The maximum number of differing names that are listed for each kind of difference.
const DIFFERENT: usize = 5;

/// List, fetch and look into published checkpoints.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff models list
  vlmdiff models fetch dino-vits8
  vlmdiff models inspect dino-vits8
  vlmdiff models inspect downloads/fs_visa.ckpt --keys
  vlmdiff models verify dino-vits8

A pipeline takes these names wherever it asks for weights: `weights: dino-vits8`.")]
pub(super) struct Models {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the checkpoints that have a name.
    List(list::List),
    /// Download checkpoints into the caches.
    Fetch(fetch::Fetch),
    /// Show the tensors of a file of weights, and the architecture that they fit.
    Inspect(inspect::Inspect),
    /// Check that fetched files are complete and have the right content.
    Verify(verify::Verify),
}

/// An output format.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Models {
    pub(super) fn run(self) -> Result<u8> {
        match self.action {
            Action::List(command) => command.run(),
            Action::Fetch(command) => command.run(),
            Action::Inspect(command) => command.run(),
            Action::Verify(command) => command.run(),
        }
    }
}

/// Returns the path of the weights that a user names.
fn locate(text: &str) -> Result<PathBuf> {
    Ok(catalogue::locate(text).map_err(input)?)
}

/// Makes the error of wrong input by the user.
fn input(error: impl std::fmt::Display) -> Error {
    Error::Input(error.to_string())
}

/// Formats a size as the hub does, such as `87 MB`.
fn size(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for larger in ["kB", "MB", "GB", "TB"] {
        if value >= 999.5 {
            (value, unit) = (value / 1000., larger);
        }
    }
    let digits = if unit == "B" || value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_significant_digits() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(999), "999 B");
        assert_eq!(size(7289), "7.29 kB");
        assert_eq!(size(86_700_000), "86.7 MB");
        assert_eq!(size(335_000_000), "335 MB");
        assert_eq!(size(999_700_000), "1.00 GB");
        assert_eq!(size(16_160_000_000), "16.2 GB");
    }
}
