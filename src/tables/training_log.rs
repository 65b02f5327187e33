//! The log of a training: one row per logged step.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::Serialize;

use super::weights::weights_field;
use crate::engine::store::volatile;

/// The optimiser's step, from 1.
pub const STEP: &str = "step";
/// The number of times that every row was seen.
pub const EPOCH: &str = "epoch";
/// The loss.
pub const LOSS: &str = "loss";
/// The learning rate.
pub const LR: &str = "lr";
/// The norm of the gradients.
pub const GRAD_NORM: &str = "grad_norm";
/// The speed of the training, in rows per second.
pub const ROWS_PER_S: &str = "rows_per_s";

/// Returns the schema of a training's table. `parts` names the parts of the loss, which are followed by the `optional`
/// ones; `config` is the configuration that a reader of the weights needs.
pub fn schema(parts: &[&str], optional: &[&str], config: &impl Serialize) -> SchemaRef {
    let float = |name: &str| Field::new(name, DataType::Float32, false);
    let mut fields =
        vec![Field::new(STEP, DataType::Int64, false), Field::new(EPOCH, DataType::Int64, false), float(LOSS)];
    fields.extend(parts.iter().map(|part| float(part)));
    fields.extend(optional.iter().map(|part| float(part).with_nullable(true)));
    fields.extend([float(LR), float(GRAD_NORM), volatile(float(ROWS_PER_S)), weights_field(config)]);
    Arc::new(Schema::new(fields))
}
