//! `vlmdiff report`

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use indicatif::HumanBytes;

use super::{
    EXIT_DONE, StoreArgs,
    text::{cannot_write, print, print_exactly},
};
use crate::{
    report::{self, Source},
    stages::KINDS,
};

/// Write an HTML page of metrics, curves and pictures, or the tables of metrics as text.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff report -o report.html
  vlmdiff report --pipeline quickstart --per-kind 10 --images 1000
  vlmdiff report --format latex -o metrics.tex
  vlmdiff report --format csv --dataset mvtec      beside the numbers of the paper")]
pub(super) struct Report {
    /// The file to write. Default: `report.html`; the other formats are printed.
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// The form of the report.
    #[arg(long, value_enum, default_value_t = Format::Html)]
    format: Format,
    /// The data set whose published results stand beside the metrics: mvtec, visa, real_iad or coco_ad; by default that of
    /// the pipeline's images.
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// The pipeline to report on; by default the one that ran last.
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

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// A page of metrics, curves and pictures that needs no network and no other file.
    Html,
    /// The tables of metrics as Markdown.
    Md,
    /// The tables of metrics as LaTeX.
    Latex,
    /// The metrics, a line for each number.
    Csv,
}

impl Report {
    pub(super) fn run(self) -> Result<u8> {
        let source = Source::open(&self.store.open()?, self.pipeline.as_deref(), KINDS)?;
        let plain = |format| report::plain(&source, format, self.dataset.as_deref());
        let text = match self.format {
            Format::Html => return self.page(&source),
            Format::Md => plain(report::Format::Markdown)?,
            Format::Latex => plain(report::Format::Latex)?,
            Format::Csv => plain(report::Format::Csv)?,
        };
        match &self.output {
            Some(file) => std::fs::write(file, text).map_err(cannot_write(file))?,
            None => print_exactly(text.trim_end())?,
        }
        Ok(EXIT_DONE)
    }

    fn page(&self, source: &Source) -> Result<u8> {
        let options = report::Options { per_kind: self.per_kind, images: self.images, dataset: self.dataset.clone() };
        let page = report::html(source, options)?;
        let output = self.output.clone().unwrap_or_else(|| "report.html".into());
        std::fs::write(&output, &page).map_err(cannot_write(&output))?;
        print(format!("{} ({}): open it in a browser", output.display(), HumanBytes(page.len() as u64)))?;
        Ok(EXIT_DONE)
    }
}
