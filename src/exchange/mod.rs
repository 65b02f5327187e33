//! Tables in the formats of other programs: data sets of Hugging Face, shards of WebDataset, Delta Lake.
//!
//! Each format is one file, with what writes a table and what reads it. Rows are written as they come, so that memory
//! does not grow with a table. Tensors of bytes with one, three or four channels are pictures in formats that have
//! pictures. An export states the schema of its table beside the rows, by which a reader restores tensors and types that
//! the format lacks.

#[cfg(feature = "delta")]
mod delta;
mod features;
mod folder;
mod hugging_face;
mod npy;
mod restore;
mod splits;
mod tensors;
mod web_dataset;

use std::fmt::Display;

use arrow::{array::RecordBatch, datatypes::SchemaRef};

pub use self::{folder::NewFolder, hugging_face::HUGGING_FACE, web_dataset::WEB_DATASET};
use crate::engine::{Error, Result, is_url, local_path, source::Sources};

/// A table that is exported.
#[derive(Clone, Debug)]
pub struct Table {
    /// The pipeline's name.
    pub pipeline: String,
    /// The table's name.
    pub table: String,
    /// The schema of its rows.
    pub schema: SchemaRef,
}

impl Table {
    /// Returns the name of the table with that of its pipeline.
    pub fn name(&self) -> String {
        format!("{}.{}", self.pipeline, self.table)
    }
}

/// Returns the next rows of a table, or `None` at the end.
pub type NextRows<'a> = dyn FnMut() -> Result<Option<RecordBatch>> + 'a;

/// The size of a finished export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The number of rows.
    pub rows: u64,
    /// The number of files with rows.
    pub files: usize,
    /// The version of a Delta table.
    pub version: Option<u64>,
}

/// The size of a file of rows in bytes, after which another one is begun.
const FILE_BYTES: usize = 500 << 20;

pub use hugging_face::write as write_hugging_face;
pub use web_dataset::write as write_web_dataset;

/// Writes a table to a Delta table, as a new version if an export of the table lies there. The version is committed as a
/// whole.
///
/// # Errors
/// [`Error::Input`] if anything else lies there, or a column has a type that Delta Lake lacks.
#[cfg(feature = "delta")]
pub fn write_delta(table: &Table, rows: &mut NextRows<'_>, address: &str) -> Result<Written> {
    delta::write(table, rows, address)
}

/// Refuses, because the program was built without Delta Lake.
#[cfg(not(feature = "delta"))]
pub fn write_delta(_: &Table, _: &mut NextRows<'_>, _: &str) -> Result<Written> {
    Err(without_delta())
}

#[cfg(not(feature = "delta"))]
fn without_delta() -> Error {
    Error::Input("this program was built without Delta Lake; the feature `delta` of the build adds it".into())
}

/// Rows of a data set as they are read, or the error about it.
pub type Batches = Box<dyn Iterator<Item = Result<RecordBatch>>>;

/// A data set that is open.
pub struct DataSet {
    /// The columns of its rows.
    pub schema: SchemaRef,
    /// Its rows.
    pub rows: Batches,
}

impl std::fmt::Debug for DataSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DataSet({:?})", self.schema)
    }
}

/// The way in which the rows of a data set lie at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A folder of Parquet files, as data sets of Hugging Face are.
    HuggingFace,
    /// Shards of samples: a `.tar` file, or a folder of them.
    WebDataset,
    /// A Delta table.
    Delta,
}

impl Layout {
    /// Returns the layout of what lies at an address: a folder, the URL of one, or a `.tar` file. `None` if it is neither
    /// or has another content.
    pub fn find(address: &str, sources: &Sources) -> Result<Option<Self>> {
        if is_shard(address) {
            return Ok(Some(Self::WebDataset));
        }
        let has_ending = |path: &str, ending: &str| path.to_lowercase().ends_with(ending);
        if is_url(address) {
            // A name with an ending is that of a file, which other readers know.
            if address.trim_end_matches('/').rsplit('/').next().is_some_and(|name| name.contains('.')) {
                return Ok(None);
            }
        } else if !local_path(address).is_dir() {
            return Ok(None);
        } else if local_path(address).join(DELTA_LOG).is_dir() {
            return Ok(Some(Self::Delta));
        }
        let tree = sources.tree(address)?;
        let has = |is: &dyn Fn(&str) -> bool| tree.paths().any(is);
        Ok(if has(&|path| path.starts_with(&format!("{DELTA_LOG}/"))) {
            Some(Self::Delta)
        } else if has(&|path| !path.contains('/') && is_shard(path)) {
            Some(Self::WebDataset)
        } else if has(&|path| has_ending(path, ".parquet")) {
            Some(Self::HuggingFace)
        } else {
            None
        })
    }

    /// Opens a data set. `version` is that of a Delta table; the newest by default.
    ///
    /// # Errors
    /// [`Error::Input`] if it cannot be read, or has no such version.
    pub fn open(self, address: &str, version: Option<u64>, sources: &Sources) -> Result<DataSet> {
        match self {
            Self::HuggingFace => hugging_face::read(address, sources),
            Self::WebDataset => web_dataset::read(address, sources),
            #[cfg(feature = "delta")]
            Self::Delta => delta::read(address, version, sources),
            #[cfg(not(feature = "delta"))]
            Self::Delta => {
                let _ = version;
                Err(without_delta())
            }
        }
    }
}

/// The folder of the log of a Delta table.
const DELTA_LOG: &str = "_delta_log";

fn is_shard(path: &str) -> bool {
    path.to_lowercase().ends_with(".tar")
}

/// Makes the error about a column that a format cannot hold.
fn cannot_hold(format: &str, column: &str, of: &arrow::datatypes::DataType) -> Error {
    Error::Input(format!(
        "column `{column}` has the type {of}, which {format} lacks; a stage `sql` makes a table without it, or with another \
         type"
    ))
}

fn cannot_read(place: &str, error: impl Display) -> Error {
    Error::Input(format!("{place}: {error}"))
}
