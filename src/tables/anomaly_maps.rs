//! Anomaly maps: how anomalous each pixel of an image is, and the image as a whole.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::{
    images::image_id,
    tensor::{FLOATS, find_shape},
};
use crate::engine::{
    stage::{Misfit, Schemas},
    store::tensor_field,
};

/// The map, `float16[H, W]`; higher is more anomalous.
pub const MAP: &str = "map";
/// The image's score, float32; higher is more anomalous.
pub const SCORE: &str = "score";

/// Returns the schema of maps of this size.
pub fn schema([height, width]: [usize; 2]) -> SchemaRef {
    Arc::new(Schema::new(vec![
        image_id(),
        tensor_field(MAP, DataType::Float16, &[height, width], false),
        Field::new(SCORE, DataType::Float32, false),
    ]))
}

/// Returns the shape `[H, W]` of the maps at the port `anomaly_maps`.
pub fn shape(schemas: &Schemas) -> Result<[usize; 2], Misfit> {
    schemas.shape("anomaly_maps", MAP)
}

/// Returns the height and width of a table's maps, which are floats of any width; `None` if it has none.
pub fn size(schema: &Schema) -> Option<[usize; 2]> {
    find_shape(schema, MAP, &FLOATS)
}
