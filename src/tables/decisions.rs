//! Decisions: the verdict on each image, and the thresholds that it follows from.

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema, SchemaRef},
};

pub use super::{
    anomaly_maps::SCORE,
    images::CLASS,
    thresholds::{RATE, THRESHOLD},
};
use super::{
    column::{numbers, text},
    images::{IMAGE_ID, image_id},
};
use crate::engine::Result;

/// The conformal p-value: a good photograph has one of at most p with a probability of at most p. Null if no good
/// photograph of its class is known.
pub const P_VALUE: &str = "p_value";
/// The verdict: true if the score is above the threshold. Null if no threshold is known.
pub const ANOMALOUS: &str = "anomalous";
/// The threshold of the pixels of its map; null if none is known.
pub const PIXEL_THRESHOLD: &str = "pixel_threshold";

/// The digest of the model by which it was judged: of the tables that its score and its thresholds follow from, such as a
/// bank, weights and the thresholds themselves.
pub const MODEL: &str = "model";

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
        Field::new(MODEL, DataType::Utf8, false),
    ]))
}

/// The decision on an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The image.
    pub image_id: String,
    /// Its class.
    pub class: String,
    /// Its score.
    pub score: Option<f64>,
    /// The conformal p-value of the score.
    pub p_value: Option<f64>,
    /// The rate of false alarms that the threshold promises.
    pub rate: Option<f64>,
    /// The threshold.
    pub threshold: Option<f64>,
    /// The verdict.
    pub anomalous: Option<bool>,
    /// The threshold of the pixels of its map.
    pub pixel_threshold: Option<f64>,
}

impl Decision {
    /// Reads the rows of a table of decisions.
    pub fn all(batch: &RecordBatch) -> Result<Vec<Self>> {
        let (ids, classes) = (text(batch, IMAGE_ID)?, text(batch, CLASS)?);
        let (scores, p_values) = (numbers(batch, SCORE)?, numbers(batch, P_VALUE)?);
        let (rates, thresholds) = (numbers(batch, RATE)?, numbers(batch, THRESHOLD)?);
        let verdicts = numbers(batch, ANOMALOUS)?;
        // A table that a query made may lack it.
        let pixels = batch.column_by_name(PIXEL_THRESHOLD).map(|_| numbers(batch, PIXEL_THRESHOLD)).transpose()?;
        let decision = |row: usize| Self {
            image_id: ids.value(row).to_owned(),
            class: classes.value(row).to_owned(),
            score: scores[row],
            p_value: p_values[row],
            rate: rates[row],
            threshold: thresholds[row],
            anomalous: verdicts[row].map(|verdict| verdict > 0.),
            pixel_threshold: pixels.as_ref().and_then(|pixels| pixels[row]),
        };
        Ok((0..batch.num_rows()).map(decision).collect())
    }
}
