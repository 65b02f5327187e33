//! Embeddings: captions as the hidden states of a text encoder.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};

use super::images::image_id;
use crate::engine::{
    stage::{Column, Misfit, Schemas},
    store::tensor_field,
};

/// The hidden states of a caption's tokens, `float32[T, D]`.
pub const EMBEDDING: &str = "embedding";

/// The port at which each row has its own caption.
pub const TEXT: &str = "text_embeddings";
/// The port whose first row is the caption of all rows, or the one from which guidance leads away.
pub const UNCONDITIONAL: &str = "unconditional";

/// Returns the schema of embeddings of this shape.
pub fn schema(shape: [usize; 2]) -> SchemaRef {
    Arc::new(Schema::new(vec![image_id(), tensor_field(EMBEDDING, DataType::Float32, &shape, false)]))
}

/// Returns the column of embeddings, as a stage reads it: T tokens of D numbers.
pub fn embedding_column() -> Column {
    Column::tensors(EMBEDDING, DataType::Float32, "[T, D]")
}

/// Returns the shape `[T, D]` of the embeddings at a port.
pub fn shape(schemas: &Schemas, port: &str) -> Result<[usize; 2], Misfit> {
    schemas.shape(port, EMBEDDING)
}
