//! Rows in, from a file: Parquet, CSV or JSON lines.

use std::{fs::File, io::BufReader, path::Path, sync::Arc};

use arrow::{
    array::{Array, RecordBatch},
    compute::{cast, concat_batches},
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
};
use garde::Validate;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::types;
use crate::engine::{
    Error, Result, Sources,
    columns::plain,
    stage::{Context, Listing, Open, Operator, Output, Ports, Schemas, Stage},
    task::{Rows, SOURCE, Sink},
};

/// Rows of a CSV or JSON file that its columns' types are guessed from.
const GUESS_ROWS: usize = 10_000;
/// Rows decoded at a time.
const BATCH_ROWS: usize = 65_536;

/// Reads rows from a file: Parquet, CSV with a header, or JSON lines, by its ending.
///
/// All columns are kept, the one that identifies a row first. Rows are told apart by their ids and values: ten rows
/// appended to twenty thousand are ten rows computed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct Read {
    /// The file or its URL, ending in `.parquet`, `.csv`, `.jsonl` or `.ndjson`. Where it lies is no part of the rows' identity.
    #[garde(length(min = 1))]
    pub path: String,
    /// The column that identifies a row: text or integers, each value once.
    #[garde(length(min = 1))]
    pub id: String,
    /// Types of columns of a CSV or JSON file where the first ten thousand rows do not show them, such as `zip: utf8?`.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub types: Map<String, Value>,
}

impl Stage for Read {
    const NAME: &'static str = "read";
    const REVISION: u32 = 1;
    const PORTS: Ports = Ports::Named(&[]);
    const OUTPUT: &'static [Output] = &[Output::RowPerRow];
    const LOCATIONS: &'static [&'static str] = &["path"];

    fn output(&self, _: &Schemas) -> Result<SchemaRef, String> {
        let path = Sources::default().local(&self.path).map_err(|e| format!("`path`: {e}"))?;
        self.schema(&self.open_file(&path)?.0)
    }

    fn list(&self, sources: &Sources) -> Result<Option<Listing>> {
        self.rows(&sources.local(&self.path)?).map(|rows| Some(rows.into())).map_err(Error::Input)
    }
}

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>;

impl Read {
    /// The file's own schema and its rows.
    fn open_file(&self, path: &Path) -> Result<(SchemaRef, Batches), String> {
        let failed = |e: &dyn std::fmt::Display| format!("`path`: cannot read {}: {e}", self.path);
        let open = || File::open(path).map_err(|e| failed(&e));
        let arrow = |e: ArrowError| failed(&e);
        let place = self.path.split('?').next().unwrap_or(&self.path);
        match place.rsplit('.').next().unwrap_or_default() {
            "parquet" if !self.types.is_empty() => {
                Err("`types`: a Parquet file says itself what its columns are".into())
            }
            "parquet" => {
                let builder = ParquetRecordBatchReaderBuilder::try_new(open()?).map_err(|e| failed(&e))?;
                let schema = builder.schema().clone();
                let reader = builder.with_batch_size(BATCH_ROWS).build().map_err(|e| failed(&e))?;
                Ok((schema, Box::new(reader)))
            }
            "csv" => {
                let format = arrow::csv::reader::Format::default().with_header(true);
                let (guess, _) = format.infer_schema(BufReader::new(open()?), Some(GUESS_ROWS)).map_err(arrow)?;
                let schema = self.with_types(guess)?;
                let reader =
                    arrow::csv::ReaderBuilder::new(schema.clone()).with_header(true).with_batch_size(BATCH_ROWS);
                Ok((schema, Box::new(reader.build(open()?).map_err(arrow)?)))
            }
            "jsonl" | "ndjson" => {
                let guess = arrow::json::reader::infer_json_schema(BufReader::new(open()?), Some(GUESS_ROWS));
                let schema = self.with_types(guess.map_err(arrow)?.0)?;
                let reader = arrow::json::ReaderBuilder::new(schema.clone()).with_batch_size(BATCH_ROWS);
                // A column that appears later is not lost silently.
                let reader = reader.with_strict_mode(true).build(BufReader::new(open()?)).map_err(arrow)?;
                Ok((schema, Box::new(reader)))
            }
            _ => Err(format!("`path`: {} ends in none of .parquet, .csv, .jsonl and .ndjson", self.path)),
        }
    }

    fn with_types(&self, guess: Schema) -> Result<SchemaRef, String> {
        let types = types::fields(&self.types).map_err(|e| format!("`types`: {e}"))?;
        let mut fields = guess.fields().to_vec();
        for given in types {
            match fields.iter_mut().find(|field| field.name() == given.name()) {
                Some(field) => *field = Arc::new(given),
                // A JSON column that no row shows yet.
                None => fields.push(Arc::new(given)),
            }
        }
        Ok(Arc::new(Schema::new(fields)))
    }

    /// The schema of the table: the id first, as text, and no view or dictionary of a value instead of the value.
    fn schema(&self, file: &SchemaRef) -> Result<SchemaRef, String> {
        let id = file.field_with_name(&self.id).map_err(|_| {
            let names: Vec<&str> = file.fields().iter().map(|field| field.name().as_str()).collect();
            format!("`id`: {} has no column `{}`; it has {}", self.path, self.id, names.join(", "))
        })?;
        if !id.data_type().is_integer() && plain(id.data_type()) != DataType::Utf8 {
            return Err(format!(
                "`id`: column `{}` is {}; rows are identified by text or integers",
                self.id,
                id.data_type()
            ));
        }
        let others = file.fields().iter().filter(|field| *field.name() != self.id).map(|field| {
            let mut metadata = field.metadata().clone();
            metadata.retain(|name, _| name.starts_with("ARROW:extension"));
            Field::new(field.name(), plain(field.data_type()), field.is_nullable()).with_metadata(metadata)
        });
        let id = Field::new(&self.id, DataType::Utf8, false);
        Ok(Arc::new(Schema::new(std::iter::once(id).chain(others).collect::<Vec<_>>())))
    }

    fn rows(&self, path: &Path) -> Result<RecordBatch, String> {
        let (file, batches) = self.open_file(path)?;
        let schema = self.schema(&file)?;
        let places: Vec<usize> = schema.fields().iter().filter_map(|field| file.index_of(field.name()).ok()).collect();
        let failed = |e: ArrowError| {
            let hint = if self.path.ends_with("parquet") {
                ""
            } else {
                "; `types` says what a column is, such as `zip: utf8?`"
            };
            format!("cannot read {}: {e}{hint}", self.path)
        };
        let rows = batches.map(|batch| {
            let batch = batch?;
            let columns = schema.fields().iter().zip(&places);
            let columns = columns.map(|(field, at)| cast(batch.column(*at), field.data_type()));
            let columns = columns.collect::<Result<Vec<_>, _>>()?;
            if columns.first().is_some_and(|ids| ids.null_count() > 0) {
                return Err(ArrowError::ParseError(format!("a row has no `{}`", self.id)));
            }
            RecordBatch::try_new(schema.clone(), columns)
        });
        let rows = rows.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        concat_batches(&schema, &rows).map_err(failed)
    }
}

impl Open for Read {
    fn open(self, _: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Listed))
    }
}

/// The rows are what was listed.
struct Listed;

impl Operator for Listed {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(usize::MAX)? {
            batch.port(SOURCE).map_or(Ok(()), |rows| out.write(rows))?;
        }
        Ok(())
    }
}
