//! Thresholds of scores and of the pixels of anomaly maps, by class and requested rate of false alarms.

use std::sync::Arc;

use arrow::{
    array::{Array, RecordBatch},
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
};

use super::column::{has, numbers, text};
pub use super::images::CLASS;
use crate::engine::Result;

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
/// The digest of the ids and scores of the photographs that were calibrated by.
pub const CALIBRATED_ON: &str = "calibrated_on";
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
        Field::new(CALIBRATED_ON, DataType::Utf8, false),
        Field::new(LEAST_RATE, DataType::Float64, true),
        Field::new(SCORES, DataType::List(score_item()), true),
        Field::new(CURVE_THRESHOLDS, DataType::List(score_item()), true),
        Field::new(CURVE_COSTS, DataType::List(cost_item()), true),
    ]))
}

/// A threshold, with the promise that it makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// The class; `None` for one of all classes.
    pub class: Option<String>,
    /// [`IMAGE`] or [`PIXEL`].
    pub level: String,
    /// The requested rate of false alarms.
    pub rate: Option<f64>,
    /// The confidence with which the rate is promised.
    pub confidence: Option<f64>,
    /// The threshold; `None` if there are too few photographs.
    pub threshold: Option<f64>,
    /// The number of good photographs that it was computed from.
    pub photographs: Option<f64>,
    /// The lowest rate that so many photographs allow.
    pub least_rate: Option<f64>,
}

impl Threshold {
    /// Returns true for the schema of a table of thresholds.
    pub fn is_table(schema: &Schema) -> bool {
        has(schema, LEVEL, &DataType::Utf8)
            && [RATE, CONFIDENCE, THRESHOLD, PHOTOGRAPHS, LEAST_RATE]
                .iter()
                .all(|name| schema.field_with_name(name).is_ok_and(|field| field.data_type().is_numeric()))
    }

    /// Reads the rows of a table of thresholds.
    pub fn all(batch: &RecordBatch) -> Result<Vec<Self>> {
        let (classes, levels) = (text(batch, CLASS)?, text(batch, LEVEL)?);
        let (rates, confidences) = (numbers(batch, RATE)?, numbers(batch, CONFIDENCE)?);
        let (thresholds, photographs) = (numbers(batch, THRESHOLD)?, numbers(batch, PHOTOGRAPHS)?);
        let least_rates = numbers(batch, LEAST_RATE)?;
        let threshold = |row: usize| Self {
            class: classes.is_valid(row).then(|| classes.value(row).to_owned()),
            level: levels.value(row).to_owned(),
            rate: rates[row],
            confidence: confidences[row],
            threshold: thresholds[row],
            photographs: photographs[row],
            least_rate: least_rates[row],
        };
        Ok((0..batch.num_rows()).map(threshold).collect())
    }
}
