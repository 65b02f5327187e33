//! Features of the patches of images: one row per image.

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    column::has,
    images::{CLASS, image_id},
};
use crate::engine::{
    hint,
    stage::{Column, Misfit, Schemas},
    with_hint,
};

/// The vectors of an image's patches, one after another: f16, `channels` numbers each.
pub const PATCHES: &str = "patches";
/// The centres of these patches, one after another: f32, x and y as shares of the width and the height of the image.
pub const PLACES: &str = "places";
/// The length of a vector.
pub const CHANNELS: &str = "channels";
/// The files of the network that made them: a JSON object of names and of the digests of their content.
pub const NETWORK: &str = "network";

/// The key under which the column of patches has the parameters that they were made with.
const PARAMETERS: &str = "parameters";

fn list_of(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, false)))
}

fn patches_type() -> DataType {
    list_of(DataType::Float16)
}

/// Returns the schema of features that are made with these parameters. `shape` is the number of an image's patches and the
/// length of a vector, if they are known.
pub fn schema(parameters: &impl Serialize, shape: Option<[usize; 2]>) -> SchemaRef {
    let parameters = serde_json::to_string(parameters).unwrap_or_default();
    let metadata = HashMap::from([(PARAMETERS.to_owned(), parameters)]);
    let patches = Field::new(PATCHES, patches_type(), false).with_metadata(metadata);
    let patches = match shape {
        Some([count, channels]) => with_hint(patches, format!("{count}x{channels}")),
        None => patches,
    };
    Arc::new(Schema::new(vec![
        image_id(),
        Field::new(CLASS, DataType::Utf8, true),
        patches,
        Field::new(PLACES, list_of(DataType::Float32), false),
        Field::new(CHANNELS, DataType::UInt32, false),
        Field::new(NETWORK, DataType::Utf8, false),
    ]))
}

/// Returns true if the rows of a table are features of images.
pub fn are_in(schema: &Schema) -> bool {
    has(schema, PATCHES, &patches_type())
}

/// Returns the columns of features, as a stage reads them that compares patches wherever they are.
pub fn columns() -> [Column; 4] {
    [
        Column::new(CLASS, DataType::Utf8),
        Column::new(PATCHES, patches_type()),
        Column::new(CHANNELS, DataType::UInt32),
        Column::new(NETWORK, DataType::Utf8),
    ]
}

/// Returns the column of the patches' places, as a stage reads it.
pub fn places_column() -> Column {
    Column::new(PLACES, list_of(DataType::Float32))
}

/// Returns the number of patches of an image at a port and the length of their vectors; `None` if they are not known, and
/// without such a table.
pub fn shape_of(inputs: &Schemas, port: &str) -> Option<[u64; 2]> {
    let field = inputs.get(port)?.field_with_name(PATCHES).ok()?;
    let (patches, channels) = hint(field)?.split_once('x')?;
    Some([patches.parse().ok()?, channels.parse().ok()?])
}

/// Returns the parameters with which the features at a port were made.
pub fn parameters_of<P: DeserializeOwned>(inputs: &Schemas, port: &str) -> Result<P, Misfit> {
    let field = inputs.field(port, PATCHES)?;
    let none = || {
        Misfit::input(
            port,
            format!("`{port}` does not say how its patches were made; the stage `extract` makes such a table"),
        )
    };
    let json = field.metadata().get(PARAMETERS).ok_or_else(none)?;
    serde_json::from_str(json).map_err(|e| Misfit::input(port, format!("`{port}` was made with other parameters: {e}")))
}
