//! Embeddings: captions as the hidden states of a text encoder, one a row or several.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};

use super::images::image_id;
use crate::engine::{
    stage::{Column, Misfit, Schemas},
    store::tensor_field,
};

/// The hidden states of a caption's tokens, `float32[T, D]`; of several captions of an image, `float32[N, T, D]`.
pub const EMBEDDING: &str = "embedding";

/// The port at which each row has its own caption.
pub const TEXT: &str = "text_embeddings";
/// The port whose first row is the caption of all rows, or the one from which guidance leads away.
pub const UNCONDITIONAL: &str = "unconditional";

/// Returns the schema of embeddings of this shape: one a row, or `captions` a row.
pub fn schema(captions: Option<usize>, shape: [usize; 2]) -> SchemaRef {
    let shape: Vec<usize> = captions.into_iter().chain(shape).collect();
    Arc::new(Schema::new(vec![image_id(), tensor_field(EMBEDDING, DataType::Float32, &shape, false)]))
}

/// Returns the column of embeddings, as a stage reads it that takes one caption a row: T tokens of D numbers.
pub fn embedding_column() -> Column {
    Column::tensors(EMBEDDING, DataType::Float32, "[T, D]").advised(
        "make it by `encode_text` without `lines`, since only `train_denoiser` draws among several captions of an image",
    )
}

/// Returns the column of embeddings, as a stage reads it that takes one caption a row or several.
pub fn embeddings_column() -> Column {
    Column::tensors(EMBEDDING, DataType::Float32, "[T, D] or [N, T, D]")
}

/// Returns the shape `[T, D]` of each embedding at a port.
pub fn shape(schemas: &Schemas, port: &str) -> Result<[usize; 2], Misfit> {
    shape_of_row(schemas, port).map(|[_, tokens, width]| [tokens, width])
}

/// Returns the shape `[N, T, D]` of the embeddings of a row at a port. N is 1 where the column has one caption a row.
pub fn shape_of_row(schemas: &Schemas, port: &str) -> Result<[usize; 3], Misfit> {
    match schemas.shape(port, EMBEDDING) {
        Ok([tokens, width]) => Ok([1, tokens, width]),
        Err(_) => schemas.shape(port, EMBEDDING),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_of_one_embedding_and_row_of_several_have_embeddings_of_one_shape() {
        for (captions, count) in [(None, 1), (Some(1), 1), (Some(5), 5)] {
            let all = [(TEXT.to_owned(), schema(captions, [77, 8]))].into();
            let schemas = Schemas { all, by_row: Vec::new() };
            assert_eq!((shape(&schemas, TEXT), shape_of_row(&schemas, TEXT)), (Ok([77, 8]), Ok([count, 77, 8])));
            let field = schemas.field(TEXT, EMBEDDING).unwrap();
            assert_eq!(embeddings_column().check(field), Ok(()));
            assert_eq!(embedding_column().check(field).is_ok(), captions.is_none());
        }
    }
}
