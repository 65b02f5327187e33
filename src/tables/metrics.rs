//! Metrics by class and protocol.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

pub use super::images::CLASS;

/// The protocol by whose rules the metrics of a row are computed.
pub const PROTOCOL: &str = "protocol";
/// The number of images that were judged.
pub const N_IMAGES: &str = "n_images";
/// The number of anomalous images among them.
pub const N_ANOMALOUS: &str = "n_anomalous";

/// The class of the row that holds the means over classes, which no class of images may have.
pub const MEAN: &str = "mean";

/// Returns the schema of a table with these metrics.
pub fn schema<'a>(names: impl IntoIterator<Item = &'a str>) -> SchemaRef {
    let mut fields = vec![
        Field::new(CLASS, DataType::Utf8, false),
        Field::new(PROTOCOL, DataType::Utf8, false),
        Field::new(N_IMAGES, DataType::Int64, false),
        Field::new(N_ANOMALOUS, DataType::Int64, false),
    ];
    fields.extend(names.into_iter().map(|name| Field::new(name, DataType::Float64, true)));
    Arc::new(Schema::new(fields))
}

/// Returns the metrics of a table: the columns with floats of 64 bits.
pub fn names(schema: &Schema) -> Vec<String> {
    let metrics = schema.fields().iter().filter(|field| *field.data_type() == DataType::Float64);
    metrics.map(|field| field.name().clone()).collect()
}
