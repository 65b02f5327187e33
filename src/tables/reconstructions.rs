//! Reconstructions: images as they would be without an anomaly.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};

use super::{
    images::image_id,
    tensor::{FLOATS, find_shape},
};
use crate::engine::{
    stage::{Column, Misfit, Schemas},
    store::tensor_field,
};

/// The latent of the reconstruction, `float32[C, h, w]`.
pub const LATENT: &str = "latent";
/// The reconstruction, `float16[3, H, W]`, normalised by the mean and standard deviation of ImageNet's colours.
pub const PIXELS: &str = "pixels";
/// The image after the autoencoder alone, as [`PIXELS`].
pub const AUTOENCODED: &str = "autoencoded";

/// Returns the schema of reconstructions of this size. With `lacks_autoencoded`, [`AUTOENCODED`] may be null.
pub fn schema(latent: [usize; 3], [height, width]: [usize; 2], lacks_autoencoded: bool) -> SchemaRef {
    Arc::new(Schema::new(vec![
        image_id(),
        tensor_field(LATENT, DataType::Float32, &latent, false),
        tensor_field(PIXELS, DataType::Float16, &[3, height, width], false),
        tensor_field(AUTOENCODED, DataType::Float16, &[3, height, width], lacks_autoencoded),
    ]))
}

/// Returns the columns of pixels, as a stage reads them.
pub fn pixel_columns() -> [Column; 2] {
    [PIXELS, AUTOENCODED].map(|name| Column::tensors(name, DataType::Float16, "[3, H, W]"))
}

/// Returns the shape `[3, H, W]` of the pixels at the port `reconstructions`.
pub fn pixels(schemas: &Schemas) -> Result<[usize; 3], Misfit> {
    schemas.shape("reconstructions", PIXELS)
}

/// Returns the height and width of a table's reconstructions, which are floats of any width; `None` if it has none.
pub fn size(schema: &Schema) -> Option<[usize; 2]> {
    let [channels, height, width] = find_shape(schema, PIXELS, &FLOATS)?;
    (channels == 3).then_some([height, width])
}
