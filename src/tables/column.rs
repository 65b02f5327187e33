//! Readers of columns, whatever table they are in.

use arrow::{
    array::{ArrayRef, AsArray, RecordBatch, StringArray},
    compute::cast,
    datatypes::{DataType, Float64Type, Schema},
};

use crate::engine::{Error, Result};

/// Returns true if a schema has a column of a type.
pub fn has(schema: &Schema, name: &str, wanted: &DataType) -> bool {
    schema.field_with_name(name).is_ok_and(|field| field.data_type() == wanted)
}

/// Makes the error of a row that has no value in a column that is needed.
pub fn missing(id: &str, port: &str, name: &str) -> Error {
    Error::Input(format!("{id}: `{port}` has no `{name}`; leave such rows out by `where:`"))
}

/// Returns a column of a batch.
pub fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| Error::Stage(format!("a table lacks the column `{name}`")))
}

/// Returns a column as text, whatever text type SQL has given it.
pub fn text(batch: &RecordBatch, name: &str) -> Result<StringArray> {
    Ok(cast(column(batch, name)?, &DataType::Utf8)?.as_string::<i32>().clone())
}

/// Returns a column as numbers; null stays null.
pub fn numbers(batch: &RecordBatch, name: &str) -> Result<Vec<Option<f64>>> {
    Ok(cast(column(batch, name)?, &DataType::Float64)?.as_primitive::<Float64Type>().iter().collect())
}
