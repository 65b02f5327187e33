//! The rows of a listing.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, UInt32Array},
    compute::take_record_batch,
    datatypes::{DataType, Field, Schema},
};

use crate::{
    engine::{
        Result,
        stage::{Batch, SOURCE},
    },
    tables::images::LABEL,
};

/// Makes the rows of a listing, as they are outside the store.
pub(super) fn listing(columns: Vec<(Field, ArrayRef)>) -> Result<RecordBatch> {
    let (fields, arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
}

/// Adds columns to a listing.
pub(super) fn appended(
    rows: &RecordBatch,
    columns: impl IntoIterator<Item = (Field, ArrayRef)>,
) -> Result<RecordBatch> {
    let fields = rows.schema_ref().fields().iter().map(|field| field.as_ref().clone());
    listing(fields.zip(rows.columns().iter().cloned()).chain(columns).collect())
}

/// Makes a column of text of a listing.
pub(super) fn text<'a>(name: &str, values: impl Iterator<Item = Option<&'a str>>) -> (Field, ArrayRef) {
    (Field::new(name, DataType::Utf8, true), Arc::new(values.collect::<StringArray>()))
}

/// Makes the column of labels: true for an anomalous image, null for an unlabelled one.
pub(super) fn labels(values: impl Iterator<Item = Option<bool>>) -> (Field, ArrayRef) {
    (Field::new(LABEL, DataType::Boolean, true), Arc::new(values.collect::<BooleanArray>()))
}

/// Returns some rows of a listing.
pub(super) fn batch_of(listed: &RecordBatch, rows: &[u32]) -> Result<Batch> {
    let rows = take_record_batch(listed, &UInt32Array::from(rows.to_vec()))?;
    let ids = rows.column(0).as_string::<i32>().iter().map(|id| id.unwrap_or_default().to_owned()).collect();
    Ok(Batch::new(ids, vec![(SOURCE.to_owned(), rows)]))
}
