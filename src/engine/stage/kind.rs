//! Stage kinds: what the registry knows of a stage.

use std::{collections::BTreeMap, fmt::Debug};

use arrow::datatypes::SchemaRef;
use serde_json::Value;

use super::{
    contract::{Listing, Stage},
    operator::{Open, OpenFn, open},
    port::{Output, Ports, Schemas},
    sample::Sample,
};
use crate::engine::{Result, source::Sources, store::Note};

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
