//! Captions of images, and the notes on missing and on too long ones.

use std::sync::Arc;

use arrow::{
    array::StringArray,
    datatypes::{DataType, Field, Schema, SchemaRef},
};

pub use super::images::CAPTION;
use super::{anomaly_maps::SCORE, images::image_id};
use crate::engine::stage::{Column, Sink};

/// Returns the schema of captions.
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![image_id(), Field::new(CAPTION, DataType::Utf8, false)]))
}

/// The number of tokens that a language model wrote.
pub const TOKENS: &str = "tokens";
/// The reason why a language model stopped.
pub const FINISH_REASON: &str = "finish_reason";
/// The text that a language model was asked with.
pub const PROMPT: &str = "prompt";
/// The name of the language model.
pub const MODEL: &str = "model";

/// The probability that the first token of an answer says yes, among those that say yes or no.
pub const YES_PROBABILITY: &str = "yes_probability";

/// Returns the schema of captions that a language model wrote. Captions without a model lack these columns: the columns of a
/// stage are part of its identity, and tables of earlier versions would be stale.
pub fn generated_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        image_id(),
        Field::new(CAPTION, DataType::Utf8, false),
        Field::new(TOKENS, DataType::UInt32, true),
        Field::new(FINISH_REASON, DataType::Utf8, true),
        Field::new(PROMPT, DataType::Utf8, true),
        Field::new(MODEL, DataType::Utf8, false),
        Field::new(YES_PROBABILITY, DataType::Float32, true),
    ]))
}

/// The verdict of an answer to a yes/no question.
pub const VERDICT: &str = "verdict";

/// Returns the schema of answers to a yes/no question that are read as verdicts.
pub fn verdict_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        image_id(),
        Field::new(SCORE, DataType::Float32, false),
        Field::new(VERDICT, DataType::Boolean, true),
        Field::new(CAPTION, DataType::Utf8, false),
    ]))
}

/// Returns the column of captions, as a stage reads it.
pub fn caption_column() -> Column {
    Column::new(CAPTION, DataType::Utf8)
}

/// Notes the rows that have no caption; `instead` describes the text that takes its place.
pub fn note_missing_captions(out: &mut Sink<'_>, ids: &[String], captions: &StringArray, instead: &str) {
    let missing = ids.iter().zip(captions).filter(|(_, caption)| caption.is_none());
    missing.for_each(|(id, _)| out.note(&format!("the image has no caption, and {instead} stands for it"), id));
}

/// Returns the note on a caption with more tokens than a text encoder takes.
pub fn cut_caption(tokens: usize) -> String {
    format!("the caption is longer than the encoder's {tokens} tokens and is cut")
}
