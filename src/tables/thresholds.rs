//! Thresholds of scores and of the pixels of anomaly maps, by class and requested rate of false alarms.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};

pub use super::images::CLASS;

/// The kind of scores that a threshold is compared with: [`IMAGE`] or [`PIXEL`].
pub const LEVEL: &str = "level";
/// The level of the scores of images.
pub const IMAGE: &str = "image";
/// The level of the pixels of anomaly maps.
pub const PIXEL: &str = "pixel";
/// The requested rate of false alarms: the share of good images, or of the pixels of a good image, above the threshold.
/// Null for a threshold that was chosen by costs.
pub const RATE: &str = "rate";
/// The confidence with which the rate is promised; null where it is promised on average, as that of pixels.
pub const CONFIDENCE: &str = "confidence";
/// The threshold: a value above it is an alarm. Null where there are too few photographs.
pub const THRESHOLD: &str = "threshold";
/// The number of good photographs that it was computed from.
pub const PHOTOGRAPHS: &str = "photographs";
/// The lowest rate that so many photographs allow.
pub const LEAST_RATE: &str = "least_rate";
/// The scores of the good photographs, ascending; null for pixels.
pub const SCORES: &str = "scores";
/// The thresholds of the cost curve, ascending; null without costs.
pub const CURVE_THRESHOLDS: &str = "curve_thresholds";
/// The expected cost per photograph at each of them.
pub const CURVE_COSTS: &str = "curve_costs";

/// Returns the item of the lists of scores and thresholds.
pub fn score_item() -> FieldRef {
    Arc::new(Field::new_list_field(DataType::Float32, false))
}

/// Returns the item of the lists of costs.
pub fn cost_item() -> FieldRef {
    Arc::new(Field::new_list_field(DataType::Float64, false))
}

/// Returns the schema of thresholds.
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new(CLASS, DataType::Utf8, true),
        Field::new(LEVEL, DataType::Utf8, false),
        Field::new(RATE, DataType::Float64, true),
        Field::new(CONFIDENCE, DataType::Float64, true),
        Field::new(THRESHOLD, DataType::Float32, true),
        Field::new(PHOTOGRAPHS, DataType::Int64, false),
        Field::new(LEAST_RATE, DataType::Float64, true),
        Field::new(SCORES, DataType::List(score_item()), true),
        Field::new(CURVE_THRESHOLDS, DataType::List(score_item()), true),
        Field::new(CURVE_COSTS, DataType::List(cost_item()), true),
    ]))
}
