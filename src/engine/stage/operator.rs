//! The doing half of a stage, which computes.

use std::{collections::BTreeMap, fmt::Debug};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{contract::Stage, port::Schemas, rows::Rows, sink::Sink};
use crate::engine::{Digest, Error, Result, source::Sources, store::Store};

/// Opens the doing half: loads weights, prepares a device.
pub trait Open: Stage + DeserializeOwned {
    /// Opens the operator. Called once per table and process, before the first row.
    fn open(self, context: &Context) -> Result<Box<dyn Operator>>;
}

/// A stage that the driver opens with some parameters and a worker with others, as [`Stage::place`] says.
pub trait OpenInDriver: Open {
    /// Opens the operator in the driver; called only if [`Stage::place`] says so. It must not name code that needs
    /// libtorch, as [`Open::open`] may: the driver would be linked to it.
    fn open_in_driver(self, context: &Context) -> Result<Box<dyn Operator>>;
}

/// An opened stage; it owns its models. `Send`, not `Sync`: a tensor is not.
///
/// # Contract
/// - Each id that was read is written or failed, once. An id that was not read is not written.
/// - Each batch that is written has the declared schema.
/// - A result depends on no batch and no task: the same rows in other batches, in other tasks or in another order
///   give the same results, but for the last digits of a network's arithmetic.
/// - Randomness comes from the parameters' seed and the row's id alone.
/// - Nothing is kept from one task to the next that the store lacks: any task may run in another process, or again.
/// - [`Error::Interrupted`] is returned only after what was done is saved; a stage that makes a row per row need not
///   ask, as the sink ends it.
///
/// The sink refuses the first two. Laws in `tests/laws.rs` hold the others for every stage of the registry.
pub trait Operator: Send {
    /// Reads rows and writes their results. Called once per task.
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()>;
}

/// The surroundings of an operator, given to it when it is opened.
#[derive(Debug)]
pub struct Context {
    /// The device to compute on: `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// The number of rows per batch of a network, if the run sets it. It is not part of the identity of results.
    pub batch_size: Option<usize>,
    /// The schema to write.
    pub output: SchemaRef,
    /// The declared schemas of all inputs, as [`Stage::output`] saw them.
    pub schemas: Schemas,
    /// Every `Table` input as a whole, by port.
    pub tables: BTreeMap<String, RecordBatch>,
    /// The digest of the model: of the tables that are read whole by the stage and by those on the way to it. Only for a stage
    /// that [states](super::Stage::states_model) it.
    pub model: Option<Digest>,
    /// Blobs that tables name.
    pub store: Store,
    /// Files and URLs outside the store.
    pub sources: Sources,
}

/// Opens an operator from parameters.
pub type OpenFn = fn(&Value, &Context) -> Result<Box<dyn Operator>>;

/// Opens an operator of type `S` from JSON; the worker's half of a registry entry.
pub fn open<S: Open>(params: &Value, context: &Context) -> Result<Box<dyn Operator>> {
    read::<S>(params)?.open(context)
}

/// Opens an operator of type `S` in the driver; the driver's half of a registry entry for either process.
pub(super) fn open_in_driver<S: OpenInDriver>(params: &Value, context: &Context) -> Result<Box<dyn Operator>> {
    read::<S>(params)?.open_in_driver(context)
}

fn read<S: DeserializeOwned>(params: &Value) -> Result<S> {
    serde_json::from_value(params.clone()).map_err(|e| Error::Stage(format!("parameters that cannot be read: {e}")))
}
