//! Fitted methods: one row per class with what is kept of its images, or one row for all classes; of a method that is
//! trained, one row per logged step.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use serde::Serialize;

use super::{
    features::NETWORK,
    images::CLASS,
    training_log,
    weights::{weights_column, weights_field},
};
use crate::engine::stage::Column;

/// The classes of the images.
pub const CLASSES: &str = "classes";
/// The number of images.
pub const IMAGES: &str = "images";
/// The number of vectors that an image's patches are compared with.
pub const VECTORS: &str = "vectors";
/// The digest of the ids of the images, and of what was read of each: its patches, or its pixels.
pub const FITTED_ON: &str = "fitted_on";

/// Returns the item of the lists of classes.
pub fn class_item() -> FieldRef {
    Arc::new(Field::new_list_field(DataType::Utf8, false))
}

/// Returns the schema of what a method keeps. `config` is all that scoring needs to know.
///
/// `class` is null in a row for all classes. `weights` is the file with the tensors of the fit, and `network` the files
/// of the extractor.
pub fn schema(config: &impl Serialize) -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new(CLASS, DataType::Utf8, true),
        Field::new(CLASSES, DataType::List(class_item()), false),
        Field::new(IMAGES, DataType::Int64, false),
        Field::new(VECTORS, DataType::Int64, false),
        Field::new(FITTED_ON, DataType::Utf8, false),
        Field::new(NETWORK, DataType::Utf8, false),
        weights_field(config),
    ]))
}

/// Returns the schema of what a method has learned: what it was trained on, and the log of its training. The steps of
/// separate classes are counted on, from one class to the next.
///
/// The last row of a class, or of all classes, that names `weights` counts.
pub fn trained_schema(config: &impl Serialize) -> SchemaRef {
    let mut fields = vec![
        Field::new(CLASS, DataType::Utf8, true),
        Field::new(CLASSES, DataType::List(class_item()), false),
        Field::new(IMAGES, DataType::Int64, false),
        Field::new(FITTED_ON, DataType::Utf8, false),
        Field::new(NETWORK, DataType::Utf8, false),
    ];
    fields.extend(training_log::schema(&[], &[], config).fields().iter().map(|field| field.as_ref().clone()));
    Arc::new(Schema::new(fields))
}

/// Returns the columns of a fit, as a stage reads them.
pub fn columns() -> [Column; 3] {
    [Column::new(CLASS, DataType::Utf8), Column::new(NETWORK, DataType::Utf8), weights_column()]
}
