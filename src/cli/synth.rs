//! `vlmdiff synth`

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, builder::RangedU64ValueParser};

use super::{
    EXIT_DONE,
    text::{count, say},
};
use crate::{datasets::synthetic, engine::Error, report::make_empty, stages::ingest::Synthetic};

/// Generate a dataset of pictures in MVTec layout.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  vlmdiff synth products --size 256 --train 100\n  vlmdiff run pipelines/folder.yaml --set images.root=products"
)]
pub(super) struct Synth {
    /// The folder to write: a new or an empty one.
    dir: PathBuf,
    /// Height and width of the pictures.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=2048))]
    size: u32,
    /// Classes, separated by commas; all by default.
    #[arg(long, value_delimiter = ',')]
    classes: Vec<String>,
    /// Normal training pictures per class.
    #[arg(long, default_value_t = Synthetic::default().train, value_parser = pictures())]
    train: u32,
    /// Normal test pictures per class.
    #[arg(long, default_value_t = Synthetic::default().test_good, value_parser = pictures())]
    test_good: u32,
    /// Test pictures per class and kind of defect.
    #[arg(long, default_value_t = Synthetic::default().test_per_defect, value_parser = pictures())]
    test_per_defect: u32,
    /// The seed of the dataset. Another seed makes other pictures.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn pictures() -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(..=u64::from(synthetic::MOST))
}

impl Synth {
    pub(super) fn run(self) -> Result<u8> {
        let mut spec = Synthetic {
            train: self.train,
            test_good: self.test_good,
            test_per_defect: self.test_per_defect,
            seed: self.seed,
            ..Synthetic::default()
        };
        if !self.classes.is_empty() {
            spec.classes = self.classes;
        }
        let items = spec.items().map_err(|e| Error::Input(e.to_string()))?;
        make_empty(&self.dir)?;
        synthetic::write_mvtec(&self.dir, &items, self.seed, self.size).map_err(|e| Error::Input(e.to_string()))?;
        say(format!("{} in {}", count(items.len() as u64, "picture"), self.dir.display()));
        Ok(EXIT_DONE)
    }
}
