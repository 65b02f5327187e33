//! `vlmdiff report`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use indicatif::HumanBytes;

use super::{EXIT_DONE, StoreArgs, text::print};
use crate::{
    report::{self, Source},
    stages::KINDS,
};

/// Write an HTML page of metrics, curves and pictures.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff report -o report.html
  vlmdiff report --pipeline quickstart --per-kind 10 --images 1000")]
pub(super) struct Report {
    /// The file to write: a page that needs no network and no other file.
    #[arg(short, long, default_value = "report.html")]
    output: PathBuf,
    /// The pipeline to report on; by default the one that published last.
    #[arg(long)]
    pipeline: Option<String>,
    /// The number of images to show of each class and kind of defect, alternately from both ends of their scores: first
    /// the highest one of normal images and the lowest one of anomalous images.
    #[arg(long, default_value_t = 4, value_name = "N")]
    per_kind: usize,
    /// The maximum number of images to show in all, spread over classes and kinds of defect.
    #[arg(long, default_value_t = 240, value_name = "N")]
    images: usize,
    #[command(flatten)]
    store: StoreArgs,
}

impl Report {
    pub(super) fn run(self) -> Result<u8> {
        let source = Source::open(&self.store.open()?, self.pipeline.as_deref(), KINDS)?;
        let page = report::html(&source, report::Options { per_kind: self.per_kind, images: self.images })?;
        std::fs::write(&self.output, &page).with_context(|| format!("cannot write {}", self.output.display()))?;
        print(format!("{} ({}): open it in a browser", self.output.display(), HumanBytes(page.len() as u64)))?;
        Ok(EXIT_DONE)
    }
}
