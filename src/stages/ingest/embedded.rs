//! Pictures in the rows of a Parquet file: columns of records `{bytes, path}`, as data sets of Hugging Face have them
//! (`Image` features).

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Display,
    path::{Path, PathBuf},
};

use arrow::{
    array::{AsArray, BinaryArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Schema, SchemaRef},
};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};
use serde_json::Value;

use crate::engine::{
    Digest, Error, Result,
    source::{Batches, ParquetFile, Sources},
};

/// The field of the encoded pictures.
const BYTES: &str = "bytes";
/// The number of rows that are read at a time.
const BATCH_ROWS: usize = 64;

/// A Parquet file.
pub(super) struct Embedded<'a> {
    /// The path or URL, which messages name.
    address: &'a str,
    path: PathBuf,
    schema: SchemaRef,
    /// The names of the numbers in each column, if it is a `ClassLabel` of Hugging Face.
    class_names: HashMap<String, Vec<String>>,
}

impl<'a> Embedded<'a> {
    /// Opens a file.
    pub(super) fn open(address: &'a str, sources: &Sources) -> Result<Self> {
        let path = sources.local(address)?;
        let schema = open(address, &path)?.schema().clone();
        let class_names = class_names(&schema).unwrap_or_default();
        Ok(Self { address, path, schema, class_names })
    }

    /// Returns the names of the columns.
    pub(super) fn columns(&self) -> Vec<String> {
        self.schema.fields().iter().map(|field| field.name().clone()).collect()
    }

    /// Returns true if a column holds pictures.
    pub(super) fn has_pictures(&self, column: &str) -> bool {
        match self.schema.field_with_name(column).map(|field| field.data_type()) {
            Ok(DataType::Struct(fields)) => fields.iter().any(|field| field.name() == BYTES),
            _ => false,
        }
    }

    /// Returns the names of the numbers in a column, if it is a `ClassLabel` of Hugging Face.
    pub(super) fn class_names(&self, column: &str) -> Option<&Vec<String>> {
        self.class_names.get(column)
    }

    /// Returns the digest of each picture in a column; `None` for a row without one.
    pub(super) fn digests(&self, column: &str) -> Result<Vec<Option<Digest>>> {
        let mut digests = Vec::new();
        for batch in self.reader(column, None)? {
            let pictures = self.pictures(batch)?;
            digests.extend(pictures.iter().map(|bytes| bytes.map(Digest::of)));
        }
        Ok(digests)
    }

    /// Returns the pictures of some rows of a column, which are numbered from 0.
    pub(super) fn read(&self, column: &str, rows: &BTreeSet<u32>) -> Result<HashMap<u32, Bytes>> {
        let mut found = HashMap::new();
        let mut wanted = rows.iter();
        for batch in self.reader(column, Some(rows))? {
            for (bytes, row) in self.pictures(batch)?.iter().zip(wanted.by_ref()) {
                found.extend(bytes.map(|bytes| (*row, Bytes::copy_from_slice(bytes))));
            }
        }
        Ok(found)
    }

    /// Reads the pictures of a column, of all rows or of some.
    fn reader(&self, column: &str, rows: Option<&BTreeSet<u32>>) -> Result<Batches> {
        let file = open(self.address, &self.path)?.columns([format!("{column}.{BYTES}").as_str()]);
        let file = match rows {
            Some(rows) => file.rows(selection(rows)),
            None => file,
        };
        file.read(BATCH_ROWS).map_err(|e| cannot_read(self.address, e))
    }

    /// Returns the pictures in the only column of a batch.
    fn pictures(&self, batch: Result<RecordBatch, String>) -> Result<BinaryArray> {
        let batch = batch.map_err(|e| cannot_read(self.address, e))?;
        let field = batch.columns().first().and_then(|column| column.as_struct_opt()?.columns().first());
        let bytes = field.ok_or_else(|| cannot_read(self.address, "it has no pictures"))?;
        Ok(cast(bytes, &DataType::Binary)?.as_binary::<i32>().clone())
    }
}

/// Returns the names of numbers from the metadata that Hugging Face's library writes.
fn class_names(schema: &Schema) -> Option<HashMap<String, Vec<String>>> {
    let about: Value = serde_json::from_str(schema.metadata().get("huggingface")?).ok()?;
    let features = about.pointer("/info/features")?.as_object()?.iter();
    let names = |feature: &Value| serde_json::from_value(feature.get("names")?.clone()).ok();
    Some(features.filter_map(|(column, feature)| Some((column.clone(), names(feature)?))).collect())
}

fn open(address: &str, path: &Path) -> Result<ParquetFile> {
    ParquetFile::open(path).map_err(|e| cannot_read(address, e))
}

fn selection(rows: &BTreeSet<u32>) -> RowSelection {
    let mut next = 0;
    let mut selectors = Vec::with_capacity(2 * rows.len());
    for row in rows {
        selectors.extend([RowSelector::skip((row - next) as usize), RowSelector::select(1)]);
        next = row + 1;
    }
    selectors.into()
}

fn cannot_read(address: &str, error: impl Display) -> Error {
    Error::Input(format!("cannot read {address}: {error}"))
}
