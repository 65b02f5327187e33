//! `vlmdiff export`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use indicatif::ProgressBar;

use super::{
    EXIT_DONE, StoreArgs,
    text::{count, print, say},
};
use crate::{
    engine::source::Sources,
    report::{self, Exported, Source},
    stages::KINDS,
};

/// Write anomaly maps, verdicts and regions as pictures and annotations.
#[derive(Args)]
#[command(after_help = "\
Writes for each image with an anomaly map, at the size of its photograph:
  heat/ID.png      the map in 16 bits of grey, on one scale per class (scales.csv)
  overlay/ID.png   the map over the photograph
  mask/ID.png      where the map is above the threshold of pixels
  contour/ID.png   the contour of the mask over the photograph
and the regions: regions.json (COCO), labelme/ID.json (LabelMe), regions.csv.

Examples:
  vlmdiff export found
  vlmdiff export alarms --alarms --pipeline folder")]
pub(super) struct Export {
    /// The folder to write: a new or an empty one.
    dir: PathBuf,
    /// The pipeline whose tables are exported; by default the one that published last.
    #[arg(long)]
    pipeline: Option<String>,
    /// Export only images whose verdict is anomalous.
    #[arg(long)]
    alarms: bool,
    #[command(flatten)]
    store: StoreArgs,
}

impl Export {
    pub(super) fn run(self) -> Result<u8> {
        let source = Source::open(&self.store.open()?, self.pipeline.as_deref(), KINDS)?;
        let bar = ProgressBar::new(0);
        let step = |done: usize, total: usize| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        };
        let exported = report::export(&source, &self.dir, self.alarms, &Sources::default(), step);
        bar.finish_and_clear();
        let Exported { images, regions, without_mask } = exported?;
        if without_mask > 0 {
            say(format!(
                "{} without mask and contour: no threshold of pixels is known, which the stages `calibrate` and `decide` make",
                count(without_mask as u64, "image")
            ));
        }
        if regions.is_none() {
            say("no regions: no published table of this pipeline has them; the stage `regions` makes such a table");
        }
        let regions = regions.map(|regions| format!(", {}", count(regions as u64, "region"))).unwrap_or_default();
        print(format!("{}: {}{regions}", self.dir.display(), count(images as u64, "image")))?;
        Ok(EXIT_DONE)
    }
}
