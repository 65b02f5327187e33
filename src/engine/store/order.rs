//! The order of rows by id.

use arrow::{
    array::{Array, AsArray, RecordBatch, StringArray},
    compute::{sort_to_indices, take_record_batch},
    datatypes::{Schema, SchemaRef},
};

use super::parquet::project;
use crate::engine::{Error, Result};

/// Reads chosen columns of a whole table with `read`. Rows with keys are returned in the order of their ids, because
/// their stored order is that in which they happened to be computed.
pub(in crate::engine) fn in_order(
    keyed: bool,
    schema: &Schema,
    columns: &[String],
    read: impl FnOnce(&[String], &SchemaRef) -> Result<RecordBatch>,
) -> Result<RecordBatch> {
    if !keyed {
        return read(columns, &project(schema, columns)?);
    }
    let id = schema.field(0).name();
    let others = columns.iter().filter(|name| *name != id).cloned();
    let with_id: Vec<String> = std::iter::once(id.clone()).chain(others).collect();
    let rows = sort_by_id(read(&with_id, &project(schema, &with_id)?)?)?;
    let wanted: Vec<usize> = columns.iter().map(|name| rows.schema_ref().index_of(name)).collect::<Result<_, _>>()?;
    Ok(rows.project(&wanted)?)
}

/// Sorts a batch by its first column, the ids.
pub(in crate::engine) fn sort_by_id(batch: RecordBatch) -> Result<RecordBatch> {
    let ids = ids_of(&batch)?;
    if (1..ids.len()).all(|row| ids.value(row - 1) <= ids.value(row)) {
        return Ok(batch);
    }
    let order = sort_to_indices(batch.column(0), None, None)?;
    Ok(take_record_batch(&batch, &order)?)
}

/// Returns the ids of rows: the text in the first column.
pub(in crate::engine) fn ids_of(batch: &RecordBatch) -> Result<StringArray> {
    let ids = batch.column(0).as_string_opt::<i32>();
    ids.cloned().ok_or_else(|| Error::Damaged("the first column of a table with ids is not text".into()))
}
