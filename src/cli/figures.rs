//! `vlmdiff figures`

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::{
    EXIT_DONE, StoreArgs,
    text::{count, print},
};
use crate::{
    report::{self, FigureOptions, SharedScale, Source},
    stages::KINDS,
};

/// Write pictures of images beside their ground truth and their maps by several tables.
#[derive(Args)]
#[command(after_help = "\
Writes a figure for each class, CLASS.png: a row for each image, and columns with the image, its ground truth (grey where it is
not known) and its maps. columns.csv says what the columns show, with the map values of the darkest and of the brightest colour;
rows.csv says which images the rows show.

Examples:
  vlmdiff figures figures
  vlmdiff figures figures --table anomaly_maps --table bank_maps --rows 4 --seed 7
  vlmdiff figures figures --together --rows 1 --overlay")]
pub(super) struct Figures {
    /// The folder to write: a new or an empty one.
    dir: PathBuf,
    /// The pipeline whose maps are drawn; by default the one that ran last.
    #[arg(long)]
    pipeline: Option<String>,
    /// Draw the maps of this table, with all instances of a swept one. May be given several times, in the order of the
    /// columns. Default: all tables with maps of photographs.
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,
    /// The maximum number of images of each class: anomalous ones, spread over kinds of defects.
    #[arg(long, default_value_t = FigureOptions::default().rows, value_name = "N", value_parser = at_least_one)]
    rows: usize,
    /// The seed by which images are chosen. Scores do not matter for the choice.
    #[arg(long, default_value_t = FigureOptions::default().seed)]
    seed: u64,
    /// The maps that share a colour scale, over all images of the figure.
    #[arg(long, value_enum, default_value_t = Scale::Table)]
    scale: Scale,
    /// Write one figure of all classes, all.png.
    #[arg(long)]
    together: bool,
    /// Draw maps over the images, the stronger the higher they are.
    #[arg(long)]
    overlay: bool,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Scale {
    /// The maps of a table, with all instances of a swept one.
    Table,
    /// All maps.
    Figure,
    /// The maps of a column.
    Column,
}

impl Figures {
    pub(super) fn run(self) -> Result<u8> {
        let source = Source::open(&self.store.open()?, self.pipeline.as_deref(), KINDS)?;
        let options = FigureOptions {
            tables: self.tables,
            rows: self.rows,
            seed: self.seed,
            scale: match self.scale {
                Scale::Table => SharedScale::Table,
                Scale::Figure => SharedScale::Figure,
                Scale::Column => SharedScale::Column,
            },
            together: self.together,
            overlay: self.overlay,
        };
        let written = report::figures(&source, &self.dir, &options)?;
        let names = written.join(", ");
        print(format!("{}: {}: {names}", self.dir.display(), count(written.len() as u64, "figure")))?;
        Ok(EXIT_DONE)
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|_| "a whole number is needed".to_owned())?;
    if number == 0 { Err("a figure needs a row".into()) } else { Ok(number) }
}
