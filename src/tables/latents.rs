//! Latents: images as an autoencoder encodes them, by the moments of a Gaussian, or as the features of an extractor,
//! which are exact and have no variance.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};

use super::images::image_id;
use crate::engine::{
    stage::{Column, Misfit, Schemas},
    store::tensor_field,
};

/// The mean, `float32[C, h, w]`.
pub const MEAN: &str = "mean";
/// The logarithm of the variance, `float32[C, h, w]`. Features have none.
pub const LOGVAR: &str = "logvar";

/// Returns the schema of moments of this shape.
pub fn schema(shape: [usize; 3]) -> SchemaRef {
    let moment = |name| tensor_field(name, DataType::Float32, &shape, false);
    Arc::new(Schema::new(vec![image_id(), moment(MEAN), moment(LOGVAR)]))
}

/// Returns the schema of features of this shape.
pub fn feature_schema(shape: [usize; 3]) -> SchemaRef {
    Arc::new(Schema::new(vec![image_id(), tensor_field(MEAN, DataType::Float32, &shape, false)]))
}

/// Returns the shape `[C, h, w]` of the latents at the port `latents`.
pub fn shape(schemas: &Schemas) -> Result<[usize; 3], Misfit> {
    let mean = schemas.shape("latents", MEAN)?;
    if !has_variance(schemas) {
        return Ok(mean);
    }
    let logvar: [usize; 3] = schemas.shape("latents", LOGVAR)?;
    if mean == logvar {
        Ok(mean)
    } else {
        Err(Misfit::input("latents", format!("column `mean` is {mean:?} and `logvar` {logvar:?}")))
    }
}

/// Returns true if the latents at the port `latents` are those of an autoencoder.
pub fn has_variance(schemas: &Schemas) -> bool {
    schemas.field("latents", LOGVAR).is_ok()
}

/// Returns the column of means, as a stage reads it.
pub fn mean_column() -> Column {
    Column::tensors(MEAN, DataType::Float32, "[C, h, w]")
}

/// Returns the column of variances, as a stage reads it.
pub fn logvar_column() -> Column {
    Column::tensors(LOGVAR, DataType::Float32, "[C, h, w]")
}
