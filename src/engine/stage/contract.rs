//! The contract between the engine and the stages.
//!
//! A stage has two halves in one file. The describing half is its parameters: [`Stage`] states what it reads and
//! writes, and the engine plans with it. The doing half is an [`Operator`](super::Operator), which is opened only if
//! rows are stale: in the worker, which has libtorch, or in the driver for a stage that needs no libtorch.

use std::{collections::BTreeMap, fmt::Debug};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    misfit::{Misfit, ParamError},
    port::{Output, Ports, Schemas},
    sample::Sample,
};
use crate::engine::{Result, source::Sources, store::Note};

/// The parameters of a stage in canonical form, with all defaults. This form is stored, compared and sent to workers.
pub trait Parameters {
    /// Returns the parameters as JSON.
    fn params(&self) -> Value;
}

impl<S: Serialize> Parameters for S {
    fn params(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// The describing half of a stage: its parameters, as people write them below `with:`. All answers may depend on the
/// parameters.
///
/// # Contract
/// A stage is cheap to build and its methods are cheap to call: they use no device and no weights, and files or the
/// network only to read the schema of rows that lie there. Equal parameters give equal answers.
pub trait Stage: Parameters + Debug + Send + Sync {
    /// Reads the parameters from JSON. An error has the path of the parameter.
    fn read(params: &Value) -> Result<Self, ParamError>
    where
        Self: Sized + DeserializeOwned,
    {
        Ok(serde_path_to_error::deserialize(params)?)
    }

    /// Returns the revision of the stage. It is raised when the meaning of the output changes, which makes every
    /// table of the stage stale.
    fn revision(&self) -> u32;

    /// Returns the inputs that the stage reads.
    fn ports(&self) -> Ports;

    /// Returns the kind of output that the stage makes with these parameters.
    fn makes(&self) -> Output;

    /// Returns the schema of every batch that the stage writes. The engine has checked that the inputs have the
    /// columns and types of [`Stage::ports`].
    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit>;

    /// Returns the process in which the stage runs. It is called only for a stage that the registry can open in both
    /// processes.
    fn place(&self) -> Place {
        Place::Worker
    }

    /// Returns the paths of the parameters that are no part of the stage's identity, such as `weights` or
    /// `method.rd.weights`: places of files or folders, which are identified by content, and parameters whose whole
    /// effect is in the rows of [`Stage::list`].
    fn locations(&self) -> &'static [&'static str] {
        &[]
    }

    /// Returns true if a row takes microseconds, so that a task of thousands of rows loses little in a crash.
    fn is_quick(&self) -> bool {
        false
    }

    /// Returns true if the stage depends on more of a machine than the files that it names, such as the programs there. The
    /// driver then runs it if it can.
    fn is_bound(&self) -> bool {
        false
    }

    /// Returns true if each row states its model: the digest that [`Context::model`] has. It is then part of what identifies
    /// the row.
    ///
    /// [`Context::model`]: super::Context::model
    fn states_model(&self) -> bool {
        false
    }

    /// Returns advice for the case that memory runs out.
    fn memory_advice(&self) -> &'static str {
        "lower --batch-size or --task-rows"
    }

    /// Returns the most bytes of memory that making the table takes beyond what any stage takes; `None` if that is not known
    /// before it is made. It is made from `rows` rows; `whole` has the number of rows of each table that is read as a whole,
    /// by port, if that is known. Plans state the memory.
    fn memory(&self, _inputs: &Schemas, _rows: u64, _whole: &BTreeMap<&str, u64>) -> Option<u64> {
        None
    }

    /// Returns true if a table that is made as a whole needs at least one row, as a training does.
    fn needs_rows(&self) -> bool {
        false
    }

    /// Returns the columns that a stage with [`Ports::Any`] reads, by input; all columns by default.
    fn columns(&self, inputs: &Schemas) -> Result<BTreeMap<String, Vec<String>>, Misfit> {
        let names = |schema: &SchemaRef| schema.fields().iter().map(|field| field.name().clone()).collect();
        Ok(inputs.all.iter().map(|(port, schema)| (port.clone(), names(schema))).collect())
    }

    /// Returns the files and URLs named by parameters whose content is part of the stage's identity, such as weights.
    /// An error names the missing file and the command that fetches it.
    fn files(&self) -> Result<Vec<String>, Misfit> {
        Ok(Vec::new())
    }

    /// Returns notes on a table that was made without an error, such as that it missed its purpose. Called in the
    /// driver each time before a table is published.
    fn review(&self, _table: &Sample<'_>) -> Result<Vec<Note>> {
        Ok(Vec::new())
    }

    /// Lists the rows of a stage without inputs. `None` for a stage that reads tables.
    fn list(&self, _sources: &Sources) -> Result<Option<Listing>> {
        Ok(None)
    }
}

impl dyn Stage + '_ {
    /// Returns the parameters that can change the output: all except [`Stage::locations`].
    pub fn identity(&self) -> Value {
        let mut params = self.params();
        for path in self.locations() {
            let (above, name) = path.rsplit_once('.').unwrap_or(("", path));
            if let Some(parameters) = parameter(&mut params, above).and_then(Value::as_object_mut) {
                parameters.shift_remove(name);
            }
        }
        params
    }
}

/// Returns the parameter at a path, such as `method.rd`; all of them at the empty path.
pub(in crate::engine) fn parameter<'v>(params: &'v mut Value, path: &str) -> Option<&'v mut Value> {
    path.split('.').filter(|name| !name.is_empty()).try_fold(params, |below, name| below.get_mut(name))
}

/// The process in which a stage runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The driver, which plans and is not linked to libtorch.
    Driver,
    /// A worker process, which has libtorch.
    Worker,
}

/// The rows of a stage without inputs, as they are outside the store.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The rows: the id first, and all that a row depends on. A column that the stage also writes must have the
    /// values that it writes, so that `where:` of later tables can be evaluated for rows that are still to be
    /// computed.
    pub rows: RecordBatch,
    /// Notes on the listing, such as files that are left out.
    pub notes: Vec<Note>,
}

impl From<RecordBatch> for Listing {
    fn from(rows: RecordBatch) -> Self {
        Self { rows, notes: Vec::new() }
    }
}
