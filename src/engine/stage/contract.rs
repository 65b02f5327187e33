//! The contract between the engine and what it runs.
//!
//! A stage has two halves in one file. The describing half is its parameters: [`Stage`] says what it reads and writes, and the
//! engine plans with it. The doing half is an [`Operator`], opened only where rows are stale: in the worker, which has
//! libtorch, or in the driver for a stage that needs none.

use std::{collections::BTreeMap, fmt::Debug};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    port::{Output, Ports, Schemas},
    sample::Sample,
};
use crate::engine::{Result, source::Sources, store::Note};

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
