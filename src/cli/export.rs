//! `vlmdiff export`

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;

use super::{
    EXIT_DONE, StoreArgs,
    run::stop_at_signals,
    text::{count, print, say},
};
use crate::{
    engine::{Error, Stop, expand_home, is_url, source::Sources, store::Store},
    exchange::{
        HUGGING_FACE, NewFolder, Table, WEB_DATASET, Written, write_delta, write_hugging_face, write_web_dataset,
    },
    query::{self, Session},
    report::{self, Exported, Source},
    stages::KINDS,
};

/// Write a table for other programs, or maps, verdicts and regions as pictures.
#[derive(Args)]
#[command(after_help = "\
With --to, writes the rows of a table in the format of other programs:
  hf           a data set of Hugging Face (`datasets.load_dataset(FOLDER)`): Parquet files by split, and a card
  webdataset   shards of WebDataset: a sample for each row, with KEY.json, KEY.COLUMN.png and KEY.COLUMN.npy
  delta        a Delta table; another export of the table is its next version
  coco         the regions of a table, as the stage `regions` makes them, as COCO's annotations
Tensors of bytes with one, three or four channels are pictures in `hf` and `webdataset`. The stage `read` reads the first three.

Without --to, writes into a folder, for each image with an anomaly map, at the size of its photograph:
  heat/ID.png      the map in 16 bits of grey, on one scale per class (scales.csv)
  overlay/ID.png   the map over the photograph
  mask/ID.png      where the map is above the threshold of pixels
  contour/ID.png   the contour of the mask over the photograph
and the regions: regions.json (COCO), labelme/ID.json (LabelMe), regions.csv.

Examples:
  vlmdiff export images --to hf -o dataset
  vlmdiff export metrics --to delta -o s3://BUCKET/metrics
  vlmdiff export found
  vlmdiff export alarms --alarms --pipeline folder")]
pub(super) struct Export {
    /// With --to, the table; TABLE@RUN is one as a run left it. Without, the folder to write: a new or an empty one.
    #[arg(value_name = "TABLE|FOLDER")]
    what: String,
    /// Write the rows of a table in this format.
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: Option<Format>,
    /// The folder to write, for Delta Lake also a URL. A folder that an export wrote is replaced; others are refused.
    /// Default: one with the name of the table, here.
    #[arg(short, long, value_name = "FOLDER", requires = "to")]
    output: Option<String>,
    /// The pipeline whose tables are exported; by default the one that ran last.
    #[arg(long)]
    pipeline: Option<String>,
    /// Export only images whose verdict is anomalous.
    #[arg(long, conflicts_with = "to")]
    alarms: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// The formats of tables.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Hf,
    Delta,
    Webdataset,
    Coco,
}

impl Export {
    pub(super) fn run(self) -> Result<u8> {
        let store = self.store.open()?;
        match self.to {
            Some(Format::Coco) => self.regions(&store),
            Some(format) => self.table(&store, format),
            None => self.pictures(&store),
        }
    }

    /// Returns the query of all rows of the table.
    fn rows(&self) -> String {
        format!("select * from \"{}\"", self.what.replace('"', "\"\""))
    }

    /// Returns the place of an export.
    fn output(&self) -> String {
        self.output.as_deref().map_or_else(|| self.what.clone(), expand_home)
    }

    /// Returns the folder of an export, which cannot be a URL.
    fn folder(&self) -> Result<PathBuf> {
        let output = self.output();
        if is_url(&output) {
            let message = format!("{output}: this format is written to a folder; `--to delta` takes a URL too");
            return Err(Error::Input(message).into());
        }
        Ok(output.into())
    }

    /// Writes the rows of a table.
    fn table(&self, store: &Store, format: Format) -> Result<u8> {
        let session = Session::open(store, self.pipeline.as_deref())?.in_order();
        let mut answer = session.answer(&self.rows())?;
        let pipeline = session.pipeline().to_owned();
        let table = Table { pipeline, table: self.what.clone(), schema: answer.schema.clone() };
        let bar = ProgressBar::new_spinner();
        let stop = Stop::default();
        let message = "stopping: what is written is removed; a second signal ends the export at once";
        stop_at_signals(store, &stop, message, |message| say(message))?;
        let mut rows = || {
            if stop.is_requested() {
                return Err(Error::Interrupted);
            }
            answer.next().inspect(|batch| batch.iter().for_each(|rows| bar.inc(rows.num_rows() as u64)))
        };
        let written = match format {
            Format::Hf => {
                self.into_folder(HUGGING_FACE, &table, |folder| write_hugging_face(&table, &mut rows, folder))?
            }
            Format::Webdataset => {
                self.into_folder(WEB_DATASET, &table, |folder| write_web_dataset(&table, &mut rows, folder))?
            }
            Format::Delta | Format::Coco => write_delta(&table, &mut rows, &self.output())?,
        };
        bar.finish_and_clear();
        let Written { rows, files, version } = written;
        let version = version.map(|version| format!(", version {version}")).unwrap_or_default();
        let (rows, files) = (count(rows, "row"), count(files as u64, "file"));
        print(format!("{}: {rows} in {files}{version}", self.output()))?;
        Ok(EXIT_DONE)
    }

    /// Writes a folder, which gets its name when it is complete.
    fn into_folder<T>(
        &self,
        format: &str,
        table: &Table,
        write: impl FnOnce(&Path) -> crate::engine::Result<T>,
    ) -> Result<T> {
        let output = self.folder()?;
        let folder = NewFolder::begin(&output)?;
        let written = write(folder.path()).map_err(|error| match error {
            Error::Io(_) | Error::Parquet(_) => Error::Stage(format!("cannot write {}: {error}", output.display())),
            other => other,
        })?;
        folder.finish(format, table)?;
        Ok(written)
    }

    /// Writes the regions of a table as annotations.
    fn regions(&self, store: &Store) -> Result<u8> {
        let source = Source::open(store, self.pipeline.as_deref(), KINDS)?;
        let schema = Session::open(store, Some(&source.pipeline))?.answer(&self.rows())?.schema;
        let table = Table { pipeline: source.pipeline.clone(), table: self.what.clone(), schema };
        let exported = report::coco(&source, &self.what)?;
        self.into_folder("coco", &table, |folder| Ok(fs::write(folder.join("annotations.json"), &exported.json)?))?;
        let (images, regions) = (count(exported.images as u64, "image"), count(exported.regions as u64, "region"));
        print(format!("{}/annotations.json: {images}, {regions}", self.output()))?;
        Ok(EXIT_DONE)
    }

    /// Writes maps, verdicts and regions as pictures and annotations.
    fn pictures(&self, store: &Store) -> Result<u8> {
        let folder = Path::new(&self.what);
        if is_url(&self.what) {
            let message =
                format!("{}: pictures are written to a folder; `--to delta` writes a table to a URL", self.what);
            return Err(Error::Input(message).into());
        }
        let source = Source::open(store, self.pipeline.as_deref(), KINDS)?;
        let bar = ProgressBar::new(0);
        let step = |done: usize, total: usize| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        };
        let exported = report::export(&source, folder, self.alarms, &Sources::default(), step);
        bar.finish_and_clear();
        let Exported { images, regions, without_mask } = exported?;
        if query::manifests(store)?.iter().any(|(_, manifest)| manifest.table == self.what) {
            say(format!(
                "`{0}` is also the name of a table; `vlmdiff export {0} --to hf` would write its rows",
                self.what
            ));
        }
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
        print(format!("{}: {}{regions}", folder.display(), count(images as u64, "image")))?;
        Ok(EXIT_DONE)
    }
}
