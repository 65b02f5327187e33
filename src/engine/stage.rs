//! The contract between the engine and what it runs.
//!
//! A stage has two halves in one file. The describing half is its parameters: [`Stage`] says what it reads and writes, and the
//! engine plans with it. The doing half is an [`Operator`], opened only where rows are stale: in the worker, which has
//! libtorch, or in the driver for a stage that needs none.

use std::{collections::BTreeMap, fmt::Debug};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Result, Sources, manifest::Note, sample::Sample, task::Rows, task::Sink};

/// Whether a stage makes one row per row that it reads, or one table from all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// One row per joined input row, with the same id in the first column. Rows are cached one by one.
    RowPerRow,
    /// One table from all rows, with an id of its own in the first column of each row, so that other stages can read it row
    /// by row: filters, joins. Cached as a whole.
    Rows,
    /// One table from all rows, without ids: training, aggregates. Cached as a whole.
    Table,
}

impl Output {
    /// Whether the first column identifies a row.
    pub fn has_ids(self) -> bool {
        self != Self::Table
    }
}

/// How a stage reads an input table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Row by row, joined with the stage's other `Rows` inputs on the id in the first column.
    Rows,
    /// As a whole, before the first row: weights.
    Table,
}

/// One input of a stage.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// What the input is to the stage; the standard pipeline calls the table so too.
    pub name: &'static str,
    /// The columns that the stage reads. Nothing else of the table can change its output.
    pub columns: &'static [&'static str],
    /// Columns that it reads too where the table has them.
    pub also: &'static [&'static str],
    /// Row by row or as a whole.
    pub reads: Reads,
    /// Whether `from:` may leave it out. Optional ports come last.
    pub optional: bool,
}

impl Port {
    /// An input read row by row.
    pub const fn rows(name: &'static str, columns: &'static [&'static str]) -> Self {
        Self { name, columns, also: &[], reads: Reads::Rows, optional: false }
    }

    /// An input read as a whole.
    pub const fn table(name: &'static str, columns: &'static [&'static str]) -> Self {
        Self { name, columns, also: &[], reads: Reads::Table, optional: false }
    }

    /// The same input, of which more columns are read where the table has them.
    pub const fn also(self, also: &'static [&'static str]) -> Self {
        Self { also, ..self }
    }

    /// The same input, where `from:` may leave it out.
    pub const fn optional(self) -> Self {
        Self { optional: true, ..self }
    }
}

/// What `from:` may name.
#[derive(Clone, Copy, Debug)]
pub enum Ports {
    /// These inputs, in this order or by name.
    Named(&'static [Port]),
    /// Any tables, each under its own name and with the columns that [`Stage::columns`] says. A stage that makes a row per row
    /// reads those that have ids row by row; all others are read whole.
    Any,
}

/// The declared schemas of a stage's inputs.
#[derive(Clone, Debug, Default)]
pub struct Schemas {
    /// The schemas by port.
    pub all: BTreeMap<String, SchemaRef>,
    /// The ports that are read row by row, in the order of `from:`.
    pub by_row: Vec<String>,
}

impl Schemas {
    /// The schema at a port, if `from:` names a table for it.
    pub fn get(&self, port: &str) -> Option<&SchemaRef> {
        self.all.get(port)
    }

    /// The field `column` at `port`; the pipeline loader has checked that it is there.
    pub fn field(&self, port: &str, column: &str) -> Result<&arrow::datatypes::Field, String> {
        let schema =
            self.get(port).ok_or_else(|| format!("the stage reads a table `{port}` and `from:` names none"))?;
        schema.field_with_name(column).map_err(|_| {
            let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
            format!("`{port}` has no column `{column}`; it has {}", names.join(", "))
        })
    }
}

/// The describing half of a stage: its parameters, as people write them below `with:`. Cheap to build and to ask: never
/// touches a device or weights, and files or the network only to ask for the schema of rows that lie there.
pub trait Stage:
    Debug + Send + Sync + Serialize + DeserializeOwned + JsonSchema + garde::Validate<Context = ()> + 'static
{
    /// The name in `stage:`.
    const NAME: &'static str;
    /// Bumped when the meaning of the output changes: every table made by the stage is then stale.
    const REVISION: u32;
    /// What it reads.
    const PORTS: Ports;
    /// What it makes; of several, [`Stage::makes`] says which.
    const OUTPUT: &'static [Output];
    /// Parameters that say where something lies. What lies there is identified by its content, not by its place.
    const LOCATIONS: &'static [&'static str] = &[];
    /// What helps where memory runs out.
    const MEMORY: &'static str = "lower --batch-size or --task-rows";
    /// True if a table that is made as a whole takes at least one row, as a training does.
    const NEEDS_ROWS: bool = false;

    /// The schema of every batch it writes. An error says which parameter or input does not fit.
    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, String>;

    /// What it makes with these parameters.
    fn makes(&self) -> Output {
        Self::OUTPUT[0]
    }

    /// Of a stage that reads [`Ports::Any`]: the columns it reads of each input; all by default.
    fn columns(&self, inputs: &Schemas) -> Result<BTreeMap<String, Vec<String>>, String> {
        let names = |schema: &SchemaRef| schema.fields().iter().map(|field| field.name().clone()).collect();
        Ok(inputs.all.iter().map(|(port, schema)| (port.clone(), names(schema))).collect())
    }

    /// Files and URLs named by parameters whose content is part of the stage's identity, such as weights. An error says
    /// which file is needed and not there, and what brings it.
    fn files(&self) -> Result<Vec<String>, String> {
        Ok(Vec::new())
    }

    /// What a person should know of a table that was made without an error: whether it did what it is for. Asked in the driver
    /// each time before a table is published.
    fn review(&self, _table: &Sample<'_>) -> Result<Vec<Note>> {
        Ok(Vec::new())
    }

    /// The rows of a stage without inputs. `None` for a stage that reads tables.
    fn list(&self, _sources: &Sources) -> Result<Option<Listing>> {
        Ok(None)
    }
}

/// The rows of a stage without inputs, as they are outside the store.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The rows: the id first, and all that a row depends on. A column that the stage also writes has the values that it
    /// writes, so that `where:` below can be answered for rows that are still to be computed.
    pub rows: RecordBatch,
    /// Remarks on what was listed, such as files that are left out.
    pub notes: Vec<Note>,
}

impl From<RecordBatch> for Listing {
    fn from(rows: RecordBatch) -> Self {
        Self { rows, notes: Vec::new() }
    }
}

/// Opens the doing half: loads weights, prepares a device.
pub trait Open: Stage {
    /// Called once per table and worker, before the first row.
    fn open(self, context: &Context) -> Result<Box<dyn Operator>>;
}

/// An opened stage; it owns its models. `Send`, not `Sync`: a tensor is not.
pub trait Operator: Send {
    /// Reads rows and writes their results. Called once per task.
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()>;
}

/// What an operator finds when it is opened.
#[derive(Debug)]
pub struct Context {
    /// The device to compute on: `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// How many rows a network sees at once, where the run says so. No part of the result.
    pub batch_size: Option<usize>,
    /// The schema to write.
    pub output: SchemaRef,
    /// The declared schemas of all inputs, as [`Stage::output`] saw them.
    pub schemas: Schemas,
    /// Every `Table` input, whole, by port.
    pub tables: BTreeMap<String, RecordBatch>,
    /// Blobs that tables name.
    pub store: super::Store,
    /// Files and URLs outside the store.
    pub sources: Sources,
}

/// A stage kind as the driver knows it.
#[derive(Clone, Copy)]
pub struct StageKind {
    /// The name in `stage:`.
    pub name: &'static str,
    /// Bumped when the meaning of the output changes.
    pub revision: u32,
    /// What it reads.
    pub ports: Ports,
    /// What it can make.
    pub output: &'static [Output],
    /// Parameters that are no part of its identity.
    pub locations: &'static [&'static str],
    /// What helps where memory runs out.
    pub memory: &'static str,
    /// True if a table that is made as a whole takes at least one row.
    pub needs_rows: bool,
    /// The JSON Schema of its parameters; its description is the stage's documentation.
    pub schema: fn() -> schemars::Schema,
    /// Reads and checks parameters. The error holds the path to the parameter.
    pub parse: fn(&Value) -> Result<Box<dyn Described>, ParamError>,
    /// Opens the stage in the driver; `None` where it needs the worker.
    pub open_here: Option<OpenFn>,
}

/// Opens an operator from parameters.
pub type OpenFn = fn(&Value, &Context) -> Result<Box<dyn Operator>>;

/// A parameter that is not what the stage takes.
#[derive(Debug)]
pub struct ParamError {
    /// Path to it below `with:`, such as `config.block_out_channels[1]`; empty for the whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

impl StageKind {
    /// The registry entry of a stage that runs in the worker.
    pub const fn in_worker<S: Stage>() -> Self {
        Self {
            name: S::NAME,
            revision: S::REVISION,
            ports: S::PORTS,
            output: S::OUTPUT,
            locations: S::LOCATIONS,
            memory: S::MEMORY,
            needs_rows: S::NEEDS_ROWS,
            schema: schema_of::<S>,
            parse: parse::<S>,
            open_here: None,
        }
    }

    /// The registry entry of a stage that needs no libtorch and runs in the driver.
    pub const fn in_driver<S: Open>() -> Self {
        Self { open_here: Some(open::<S>), ..Self::in_worker::<S>() }
    }

    /// What of the parameters can change the output.
    pub fn identity(&self, stage: &dyn Described) -> Value {
        let mut params = stage.params();
        if let Some(params) = params.as_object_mut() {
            params.retain(|name, _| !self.locations.contains(&name.as_str()));
        }
        params
    }

    /// The names of its parameters.
    pub fn parameters(&self) -> Vec<String> {
        let schema = (self.schema)();
        let properties = schema.get("properties").and_then(Value::as_object);
        properties.map(|properties| properties.keys().cloned().collect()).unwrap_or_default()
    }

    /// The first paragraph of the stage's documentation.
    pub fn about(&self) -> String {
        let schema = (self.schema)();
        let text = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        text.split("\n\n").next().unwrap_or_default().replace('\n', " ")
    }
}

fn schema_of<S: Stage>() -> schemars::Schema {
    schemars::schema_for!(S)
}

fn parse<S: Stage>(params: &Value) -> Result<Box<dyn Described>, ParamError> {
    let stage: S = serde_path_to_error::deserialize(params).map_err(|e| ParamError {
        path: e.path().to_string().trim_matches('.').to_owned(),
        message: e.into_inner().to_string(),
    })?;
    stage.validate().map_err(|report| {
        let (path, error) = report.iter().next().map(|(p, e)| (p.to_string(), e.to_string())).unwrap_or_default();
        ParamError { path, message: error }
    })?;
    unread(params, &stage.params(), "").map_or(Ok(Box::new(stage)), Err)
}

/// The first name that was written and not read. Below a stage's parameters are structures that published files hold too, with
/// names that mean nothing here; in a pipeline each has to mean something.
fn unread(written: &Value, read: &Value, below: &str) -> Option<ParamError> {
    let (written, read) = (written.as_object()?, read.as_object()?);
    written.iter().find_map(|(name, value)| {
        let path = format!("{below}{name}");
        if let Some(read) = read.get(name) {
            return unread(value, read, &format!("{path}."));
        }
        let says_nothing = value.is_null() || value.as_object().is_some_and(|object| object.is_empty());
        let known: Vec<String> = read.keys().map(|name| format!("`{name}`")).collect();
        let message = format!("unknown field `{name}`, expected one of {}", known.join(", "));
        (!says_nothing).then_some(ParamError { path, message })
    })
}

/// The worker's half of a registry entry.
pub fn open<S: Open>(params: &Value, context: &Context) -> Result<Box<dyn Operator>> {
    let stage: S = serde_json::from_value(params.clone())
        .map_err(|e| super::Error::Stage(format!("parameters of {}: {e}", S::NAME)))?;
    stage.open(context)
}

/// A stage with its parameters, of any kind.
pub trait Described: Debug + Send + Sync {
    /// The parameters with all defaults, in canonical form.
    fn params(&self) -> Value;
    /// See [`Stage::output`].
    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, String>;
    /// See [`Stage::makes`].
    fn makes(&self) -> Output;
    /// See [`Stage::columns`].
    fn columns(&self, inputs: &Schemas) -> Result<BTreeMap<String, Vec<String>>, String>;
    /// See [`Stage::files`].
    fn files(&self) -> Result<Vec<String>, String>;
    /// See [`Stage::review`].
    fn review(&self, table: &Sample<'_>) -> Result<Vec<Note>>;
    /// See [`Stage::list`].
    fn list(&self, sources: &Sources) -> Result<Option<Listing>>;
}

impl<S: Stage> Described for S {
    fn params(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, String> {
        Stage::output(self, inputs)
    }
    fn makes(&self) -> Output {
        Stage::makes(self)
    }
    fn columns(&self, inputs: &Schemas) -> Result<BTreeMap<String, Vec<String>>, String> {
        Stage::columns(self, inputs)
    }
    fn files(&self) -> Result<Vec<String>, String> {
        Stage::files(self)
    }
    fn review(&self, table: &Sample<'_>) -> Result<Vec<Note>> {
        Stage::review(self, table)
    }
    fn list(&self, sources: &Sources) -> Result<Option<Listing>> {
        Stage::list(self, sources)
    }
}
