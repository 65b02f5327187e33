//! Decisions: the verdict on each image, and the thresholds that it follows from.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::images::image_id;
pub use super::{
    anomaly_maps::SCORE,
    images::CLASS,
    thresholds::{RATE, THRESHOLD},
};

/// The conformal p-value: a good photograph has one of at most p with a probability of at most p. Null if no good
/// photograph of its class is known.
pub const P_VALUE: &str = "p_value";
/// The verdict: true if the score is above the threshold. Null if no threshold is known.
pub const ANOMALOUS: &str = "anomalous";
/// The threshold of the pixels of its map; null if none is known.
pub const PIXEL_THRESHOLD: &str = "pixel_threshold";

/// Returns the schema of decisions.
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        image_id(),
        Field::new(CLASS, DataType::Utf8, false),
        Field::new(SCORE, DataType::Float32, false),
        Field::new(P_VALUE, DataType::Float64, true),
        Field::new(RATE, DataType::Float64, true),
        Field::new(THRESHOLD, DataType::Float32, true),
        Field::new(ANOMALOUS, DataType::Boolean, true),
        Field::new(PIXEL_THRESHOLD, DataType::Float32, true),
    ]))
}
