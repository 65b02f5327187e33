//! Latents: images as an autoencoder encodes them, by the moments of a Gaussian.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};

use super::images::image_id;
use crate::engine::{
    stage::{Column, Misfit, Schemas},
    store::tensor_field,
};

/// The mean, `float32[C, h, w]`.
pub const MEAN: &str = "mean";
/// The logarithm of the variance, `float32[C, h, w]`.
pub const LOGVAR: &str = "logvar";

/// Returns the schema of moments of this shape.
pub fn schema(shape: [usize; 3]) -> SchemaRef {
    let moment = |name| tensor_field(name, DataType::Float32, &shape, false);
    Arc::new(Schema::new(vec![image_id(), moment(MEAN), moment(LOGVAR)]))
}

/// Returns the shape `[C, h, w]` of the moments at the port `latents`.
pub fn shape(schemas: &Schemas) -> Result<[usize; 3], Misfit> {
    let (mean, logvar) = (schemas.shape("latents", MEAN)?, schemas.shape("latents", LOGVAR)?);
    if mean == logvar {
        Ok(mean)
    } else {
        Err(Misfit::input("latents", format!("column `mean` is {mean:?} and `logvar` {logvar:?}")))
    }
}

/// Returns the columns of the moments, as a stage reads them.
pub fn moment_columns() -> [Column; 2] {
    [MEAN, LOGVAR].map(|name| Column::tensors(name, DataType::Float32, "[C, h, w]"))
}
