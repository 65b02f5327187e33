//! The changes from one run to another, in the pipeline and in the results.

use std::collections::{BTreeMap, BTreeSet};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Float64Type},
    util::display::{ArrayFormatter, FormatOptions},
};
use serde::Serialize;

use super::cause::{Cause, RowChanges, compare};
use crate::engine::{
    Digest, Error, Result,
    store::{KEY, Manifest, Run, Store, ids_of, light_schema, project, read_table, row_digests},
};

/// The maximum number of rows of a table whose numbers are compared. Larger tables are compared by content digest
/// alone.
const VALUES_OF: u64 = 1000;

/// A table in two runs.
#[derive(Clone, Debug, Serialize)]
pub struct TableDiff {
    /// The table, with its swept values.
    pub table: String,
    /// The number of rows before and now; `None` if the run has no such table.
    pub rows: [Option<u64>; 2],
    /// The differences of its stage.
    pub causes: Vec<Cause>,
    /// The differences of its rows, if they have ids and differ.
    pub changes: Option<RowChanges>,
    /// The numbers that differ, if the table is small and has no ids.
    pub values: Vec<Value>,
    /// True if the content is the same.
    pub same: bool,
}

/// A number that differs.
#[derive(Clone, Debug, Serialize)]
pub struct Value {
    /// The values that distinguish the row from others, such as `class=gear`.
    pub row: String,
    /// The column.
    pub column: String,
    /// Before.
    pub from: Option<f64>,
    /// Now.
    pub to: Option<f64>,
}

/// Compares the tables of two runs, in the order of the second.
pub fn diff(store: &Store, a: &Run, b: &Run) -> Result<Vec<TableDiff>> {
    let mut names: Vec<&str> = b.tables.iter().map(|t| t.table.as_str()).collect();
    names.extend(a.tables.iter().map(|t| t.table.as_str()).filter(|name| !b.tables.iter().any(|t| t.table == *name)));
    names
        .into_iter()
        .map(|name| table_diff(store, name, manifest(store, a, name)?, manifest(store, b, name)?))
        .collect()
}

fn manifest(store: &Store, run: &Run, table: &str) -> Result<Option<Manifest>> {
    let Some(found) = run.tables.iter().find(|t| t.table == table && t.version > 0) else { return Ok(None) };
    let manifest = store.version(&run.pipeline, &found.slot, found.version)?;
    let gone = || {
        Error::Input(format!(
            "`{table}` of run {} is no longer in the store; a tag keeps a run's tables from `vlmdiff gc`",
            run.run
        ))
    };
    manifest.map(Some).ok_or_else(gone)
}

fn table_diff(store: &Store, table: &str, a: Option<Manifest>, b: Option<Manifest>) -> Result<TableDiff> {
    let rows = [&a, &b].map(|manifest| manifest.as_ref().map(|m| m.rows));
    let mut diff =
        TableDiff { table: table.into(), rows, causes: Vec::new(), changes: None, values: Vec::new(), same: false };
    let (Some(a), Some(b)) = (a, b) else { return Ok(diff) };
    diff.causes = compare(&a.made, &b.made);
    if a.made.filter != b.made.filter {
        diff.causes.push(Cause::Where { from: a.made.filter.clone(), to: b.made.filter.clone(), rows: None });
    }
    diff.same = a.content == b.content;
    if diff.same {
        return Ok(diff);
    }
    let (before, now) = (light(store, &a)?, light(store, &b)?);
    if a.keyed && b.keyed {
        let rows = |batch: &RecordBatch| Ok::<_, Error>((ids_of(batch)?, row_digests(batch)?));
        let ((ids_a, rows_a), (ids_b, rows_b)) = (rows(&before)?, rows(&now)?);
        fn pairs<'a>(
            ids: &'a arrow::array::StringArray,
            rows: &'a [Digest],
        ) -> impl Iterator<Item = (&'a str, &'a [u8])> {
            ids.iter().flatten().zip(rows.iter().map(|row| row.as_bytes().as_slice()))
        }
        diff.changes = Some(RowChanges::between(pairs(&ids_a, &rows_a), pairs(&ids_b, &rows_b)));
    } else if a.rows.max(b.rows) <= VALUES_OF {
        diff.values = values(&before, &now)?;
    }
    Ok(diff)
}

/// Reads all columns that planning may read, except the keys.
fn light(store: &Store, manifest: &Manifest) -> Result<RecordBatch> {
    let stored = manifest.schema()?;
    let columns: Vec<String> = light_schema(&stored).into_iter().filter(|name| name != KEY).collect();
    read_table(store, &manifest.parts, &columns, &project(&stored, &columns)?)
}

/// Returns the numbers that differ between rows that are otherwise equal. If the other columns do not distinguish the
/// rows, integers do too, such as the steps of a training.
fn values(before: &RecordBatch, now: &RecordBatch) -> Result<Vec<Value>> {
    let numeric = |kind: &DataType| kind.is_numeric();
    let floating = |kind: &DataType| kind.is_floating();
    let read =
        |is_value: &dyn Fn(&DataType) -> bool| Ok::<_, Error>(numbers(before, is_value)?.zip(numbers(now, is_value)?));
    let Some((before, now)) = read(&numeric)?.map_or_else(|| read(&floating), |found| Ok(Some(found)))? else {
        return Ok(Vec::new());
    };
    let mut all: BTreeMap<&(String, String), [Option<f64>; 2]> = BTreeMap::new();
    before.iter().for_each(|(key, value)| all.entry(key).or_default()[0] = *value);
    now.iter().for_each(|(key, value)| all.entry(key).or_default()[1] = *value);
    let differs = all.into_iter().filter(|(_, [from, to])| from != to);
    Ok(differs
        .map(|((row, column), [from, to])| Value { row: row.clone(), column: column.clone(), from, to })
        .collect())
}

/// Returns the numbers by row and column; `None` if the other columns do not distinguish the rows.
fn numbers(
    batch: &RecordBatch,
    is_value: &dyn Fn(&DataType) -> bool,
) -> Result<Option<BTreeMap<(String, String), Option<f64>>>> {
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns());
    let (values, others): (Vec<_>, Vec<_>) = columns.partition(|(_, column)| is_value(column.data_type()));
    let options = FormatOptions::default().with_null("");
    let shown = others
        .iter()
        .map(|(field, column)| Ok((field.name(), ArrayFormatter::try_new(column.as_ref(), &options)?)))
        .collect::<Result<Vec<_>>>()?;
    let rows: Vec<String> = (0..batch.num_rows())
        .map(|row| {
            shown.iter().map(|(name, values)| format!("{name}={}", values.value(row))).collect::<Vec<_>>().join(", ")
        })
        .collect();
    if rows.iter().collect::<BTreeSet<_>>().len() < rows.len() {
        return Ok(None);
    }
    let mut numbers = BTreeMap::new();
    for (field, column) in values {
        let column = arrow::compute::cast(column, &DataType::Float64)?;
        let column = column.as_primitive::<Float64Type>();
        for (i, row) in rows.iter().enumerate() {
            numbers.insert((row.clone(), field.name().clone()), column.is_valid(i).then(|| column.value(i)));
        }
    }
    Ok(Some(numbers))
}
