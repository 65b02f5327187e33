//! Reads rows from a file, Parquet, CSV or JSON lines, or from a data set of another program.

mod text;
mod values;

use std::{path::Path, sync::Arc};

use arrow::{
    array::{Array, RecordBatch},
    compute::{cast, concat_batches},
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use self::{
    text::{Opened, Text},
    values::{BATCH_ROWS, without_id},
};
use super::types;
use crate::{
    engine::{
        Error, Result,
        source::{ParquetFile, Sources},
        stage::{Context, Listing, Misfit, Open, Operator, Output, Ports, Rows, SOURCE, Schemas, Sink, Stage},
        store::plain,
    },
    exchange::Layout,
};

/// Reads rows from a file, Parquet, CSV with a header, or JSON lines, by its ending; or from a data set of Hugging Face, a
/// Delta table, or shards of WebDataset.
///
/// All columns are kept, the one that identifies a row first. Rows are told apart by their ids and values: ten rows
/// appended to twenty thousand are ten rows computed. What `vlmdiff export` wrote has the columns of the table that was
/// exported, with its tensors. Of other data sets, encoded pictures are bytes, which the stage `ingest` reads as photographs;
/// a column `split` is added where the names of files say the split; and the samples of shards have their key as
/// `__key__`, the fields of their JSON, and other files as columns by their endings.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "path": "rows.csv", "id": "id" }]))]
pub struct Read {
    /// The file or its URL, ending in `.parquet`, `.csv`, `.tsv`, `.jsonl`, `.ndjson` or, for samples, `.tar`. Or the folder
    /// of a data set, or its URL: Parquet files, a Delta table, or `.tar` files. Its place is not part of the rows' identity.
    #[garde(length(min = 1))]
    pub path: String,
    /// The column that identifies a row, each value once: text as it stands in the file, or integers of a Parquet file.
    #[garde(length(min = 1))]
    pub id: String,
    /// Types of columns of a CSV or JSON file where the first ten thousand rows do not show them, such as `zip:
    /// utf8?`. A type that is guessed changes no value: `007` is text.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub types: Map<String, Value>,
    /// The separator between the columns of a CSV file: by default a comma, in a `.tsv` file a tab.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<char>,
    /// The version of a Delta table; the newest by default. Which rows are computed again follows from the rows alone.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

impl Stage for Read {
    fn revision(&self) -> u32 {
        1
    }

    fn ports(&self) -> Ports {
        Ports::Named(Vec::new())
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn locations(&self) -> &'static [&'static str] {
        &["path", "version"]
    }

    fn is_quick(&self) -> bool {
        true
    }

    fn output(&self, _: &Schemas) -> Result<SchemaRef, Misfit> {
        self.schema(&self.open_rows(&Sources::default())?.schema)
    }

    fn list(&self, sources: &Sources) -> Result<Option<Listing>> {
        self.rows(sources).map(Some).map_err(|misfit| Error::Input(misfit.to_string()))
    }
}

impl Read {
    /// Opens the file or data set.
    fn open_rows(&self, sources: &Sources) -> Result<Opened, Misfit> {
        let wrong = |e: Error| Misfit::parameter("path", e);
        let layout = Layout::find(&self.path, sources).map_err(wrong)?;
        if self.version.is_some() && layout != Some(Layout::Delta) {
            return Err(Misfit::parameter("version", format!("{} is no Delta table", self.path)));
        }
        let Some(layout) = layout else { return self.open_file(&sources.local(&self.path).map_err(wrong)?) };
        if !self.types.is_empty() {
            return Err(Misfit::parameter(
                "types",
                format!("the data set {} says itself what its columns are", self.path),
            ));
        }
        if self.separator.is_some() {
            return Err(Misfit::parameter("separator", format!("{} is no CSV file", self.path)));
        }
        let failed = |path: &str, e: &Error| Misfit::parameter("path", format!("cannot read {path}: {e}"));
        let opened = layout.open(&self.path, self.version, sources).map_err(|e| failed(&self.path, &e))?;
        let path = self.path.clone();
        let rows = opened.rows.map(move |rows| rows.map_err(|e| failed(&path, &e)));
        Ok(Opened { schema: opened.schema, rows: Box::new(rows), notes: Vec::new() })
    }

    /// Opens the file. Returns its own schema, and its rows in the types of the table.
    fn open_file(&self, path: &Path) -> Result<Opened, Misfit> {
        let place = self.path.split('?').next().unwrap_or(&self.path);
        let ending = place.rsplit('.').next().unwrap_or_default().to_lowercase();
        let types = types::fields(&self.types).map_err(|e| Misfit::parameter("types", e))?;
        if ending == "parquet" && !types.is_empty() {
            return Err(Misfit::parameter("types", "a Parquet file says itself what its columns are"));
        }
        let text = Text { name: &self.path, path, id: &self.id, types };
        if self.separator.is_some() && !matches!(ending.as_str(), "csv" | "tsv") {
            return Err(Misfit::parameter("separator", format!("{} is no CSV file", self.path)));
        }
        match ending.as_str() {
            "parquet" => self.parquet(path),
            "csv" => text.csv(self.separator),
            "tsv" => text.csv(self.separator.or(Some('\t'))),
            "jsonl" | "ndjson" => text.json(),
            _ => {
                let message = format!(
                    "{} ends in none of .parquet, .csv, .tsv, .jsonl and .ndjson, and is no data set: a folder of Parquet \
                     files, a Delta table, or .tar files",
                    self.path
                );
                Err(Misfit::parameter("path", message))
            }
        }
    }

    fn parquet(&self, path: &Path) -> Result<Opened, Misfit> {
        let name = self.path.clone();
        let failed = move |e: String| Misfit::parameter("path", format!("cannot read {name}: {e}"));
        let file = ParquetFile::open(path).map_err(&failed)?;
        let schema = file.schema().clone();
        let batches = file.read(BATCH_ROWS).map_err(&failed)?;
        let rows = batches.map(move |rows| rows.map_err(&failed));
        Ok(Opened { schema, rows: Box::new(rows), notes: Vec::new() })
    }

    /// Returns the schema of the table: the id first, as text, and types without views and dictionaries.
    fn schema(&self, file: &SchemaRef) -> Result<SchemaRef, Misfit> {
        let id = file.field_with_name(&self.id).map_err(|_| without_id(&self.path, &self.id, file))?;
        if !id.data_type().is_integer() && !matches!(plain(id.data_type()), DataType::Utf8 | DataType::Null) {
            let message =
                format!("column `{}` is {}; rows are identified by text or integers", self.id, id.data_type());
            return Err(Misfit::parameter("id", message));
        }
        if file.fields().iter().filter(|field| *field.name() == self.id).count() > 1 {
            return Err(Misfit::parameter("id", format!("{} has several columns `{}`", self.path, self.id)));
        }
        let others = file.fields().iter().filter(|field| *field.name() != self.id).map(|field| {
            let mut metadata = field.metadata().clone();
            metadata.retain(|name, _| name.starts_with("ARROW:extension"));
            let kept = values::known(&plain(field.data_type()));
            Field::new(field.name(), kept, field.is_nullable()).with_metadata(metadata)
        });
        let id = Field::new(&self.id, DataType::Utf8, false);
        Ok(Arc::new(Schema::new(std::iter::once(id).chain(others).collect::<Vec<_>>())))
    }

    fn rows(&self, sources: &Sources) -> Result<Listing, Misfit> {
        let Opened { schema: file, rows: batches, notes } = self.open_rows(sources)?;
        let schema = self.schema(&file)?;
        let places: Vec<usize> = schema.fields().iter().filter_map(|field| file.index_of(field.name()).ok()).collect();
        let failed = |e: ArrowError| Misfit::parameter("path", format!("cannot read {}: {e}", self.path));
        let (mut rows, mut before) = (Vec::new(), 0);
        for batch in batches {
            let batch = batch?;
            let columns = schema.fields().iter().zip(&places);
            let columns = columns.map(|(field, at)| cast(batch.column(*at), field.data_type()));
            let columns = columns.collect::<Result<Vec<_>, _>>().map_err(failed)?;
            if let Some(row) = columns.first().and_then(|ids| (0..ids.len()).find(|row| ids.is_null(*row))) {
                let message = format!("cannot read {}: row {} has no `{}`", self.path, before + row + 1, self.id);
                return Err(Misfit::parameter("path", message));
            }
            before += batch.num_rows();
            rows.push(RecordBatch::try_new(schema.clone(), columns).map_err(failed)?);
        }
        Ok(Listing { rows: concat_batches(&schema, &rows).map_err(failed)?, notes })
    }
}

impl Open for Read {
    fn open(self, _: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Listed))
    }
}

/// An operator whose rows are those of the listing.
struct Listed;

impl Operator for Listed {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(usize::MAX)? {
            batch.port(SOURCE).map_or(Ok(()), |rows| out.write(rows))?;
        }
        Ok(())
    }
}
