//! The changes from one run to another, in the pipeline and in the results.

use std::collections::{BTreeSet, HashMap};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    datatypes::{DataType, Float64Type},
    util::display::{ArrayFormatter, FormatOptions},
};
use serde::Serialize;
use serde_json::{Map, Value};

use super::cause::{Cause, RowChanges, compare};
use crate::engine::{
    Digest, Error, Result,
    store::{KEY, Manifest, Provenance, Run, Store, ids_of, light_schema, project, read_table, row_digests},
};

/// The maximum number of rows of a table whose numbers are compared. Larger tables are compared by content digest
/// alone.
const VALUES_OF: u64 = 1000;

/// A table in two runs.
#[derive(Clone, Debug, Serialize)]
pub struct TableDiff {
    /// The table, with its swept values.
    pub table: String,
    /// Its name in the first run, if it is another one: a table is compared with the instance of a sweep that has its
    /// parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// The number of rows before and now; `None` if the run has no such table.
    pub rows: [Option<u64>; 2],
    /// The differences of its stage.
    pub causes: Vec<Cause>,
    /// The differences of its rows, if they have ids and differ.
    pub changes: Option<RowChanges>,
    /// The numbers, if the table is small, has no ids and differs; for a training, those of its last row.
    pub values: Vec<Number>,
    /// True if the content is the same.
    pub same: bool,
}

/// A number of a table in two runs.
#[derive(Clone, Debug, Serialize)]
pub struct Number {
    /// The values that distinguish the row from others, such as `"class": "gear"`.
    pub row: Map<String, Value>,
    /// The column.
    pub column: String,
    /// Before.
    pub from: Option<f64>,
    /// Now.
    pub to: Option<f64>,
}

/// A table of a run; without a manifest if the run did not reach it.
struct Reached {
    name: String,
    manifest: Option<Manifest>,
}

/// Compares the tables of two runs, in the order of the second.
pub fn diff(store: &Store, a: &Run, b: &Run) -> Result<Vec<TableDiff>> {
    let [a, b] = [tables(store, a)?, tables(store, b)?];
    let pairs = pairs(&a, &b);
    pairs.into_iter().map(|[a, b]| table_diff(store, a, b)).collect()
}

fn tables(store: &Store, run: &Run) -> Result<Vec<Reached>> {
    let manifest = |name: &str, slot: &str, version: u64| {
        let gone = || {
            Error::Input(format!(
                "`{name}` of run {} is no longer in the store; a tag keeps a run's tables from `vlmdiff gc`",
                run.run
            ))
        };
        store.version(&run.pipeline, slot, version)?.ok_or_else(gone)
    };
    let reached = run.tables.iter().map(|table| {
        let found = (table.version > 0).then(|| manifest(&table.table, &table.slot, table.version));
        Ok(Reached { name: table.table.clone(), manifest: found.transpose()? })
    });
    reached.collect()
}

/// Pairs the tables of two runs by name, in the order of the second run. A table whose name the other run lacks is
/// paired with the instance of it there, or the table without a sweep, from which it differs least.
fn pairs<'a>(a: &'a [Reached], b: &'a [Reached]) -> Vec<[Option<&'a Reached>; 2]> {
    let partner = |table: &'a Reached, own: &'a [Reached], others: &'a [Reached]| {
        let same = others.iter().find(|other| other.name == table.name);
        same.or_else(|| nearest(table, own, others))
    };
    let mut pairs: Vec<[Option<&Reached>; 2]> = b.iter().map(|table| [partner(table, b, a), Some(table)]).collect();
    for table in a {
        if !pairs.iter().any(|[before, _]| before.is_some_and(|before| before.name == table.name)) {
            pairs.push([Some(table), partner(table, a, b)]);
        }
    }
    pairs
}

/// Returns the table of the other run that makes the same as `table` by the parameters that differ least, its own and
/// those of the tables above it; `None` if there is none, or if several differ by as many.
fn nearest<'a>(table: &Reached, own: &[Reached], others: &'a [Reached]) -> Option<&'a Reached> {
    let is_alone = |other: &&Reached| own.iter().all(|table| table.name != other.name);
    let of_table = others.iter().filter(|other| declared(&other.name) == declared(&table.name)).filter(is_alone);
    let mut found: Vec<(usize, &Reached)> =
        of_table.filter_map(|other| Some((distance(table, own, other, others)?, other))).collect();
    found.sort_by_key(|(distance, _)| *distance);
    match found[..] {
        [(distance, nearest), ..] if found.get(1).is_none_or(|(other, _)| *other > distance) => Some(nearest),
        _ => None,
    }
}

/// Returns the number of differences between the stages of two tables and of all tables above them.
fn distance(a: &Reached, above_a: &[Reached], b: &Reached, above_b: &[Reached]) -> Option<usize> {
    let (made_a, made_b) = (&a.manifest.as_ref()?.made, &b.manifest.as_ref()?.made);
    let mut differences = stage_causes(made_a, made_b).len();
    for ((a, _), (b, _)) in made_a.inputs.iter().zip(&made_b.inputs) {
        let find = |tables: &'_ [Reached], name: &str| tables.iter().position(|table| table.name == *name);
        if let Some((a, b)) = find(above_a, a).zip(find(above_b, b)) {
            differences += distance(&above_a[a], above_a, &above_b[b], above_b).unwrap_or_default();
        }
    }
    Some(differences)
}

/// Returns the name under which a pipeline declares a table: without swept values.
fn declared(name: &str) -> &str {
    name.split_once('[').map_or(name, |(table, _)| table)
}

/// Returns the differences between two stages. Another instance of a swept input is none.
fn stage_causes(a: &Provenance, b: &Provenance) -> Vec<Cause> {
    let mut causes = compare(a, b);
    causes.retain(|cause| match cause {
        Cause::From { from, to } => !from.iter().map(|name| declared(name)).eq(to.iter().map(|name| declared(name))),
        _ => true,
    });
    if a.filter != b.filter {
        causes.push(Cause::Where { from: a.filter.clone(), to: b.filter.clone(), rows: None });
    }
    causes
}

fn table_diff(store: &Store, a: Option<&Reached>, b: Option<&Reached>) -> Result<TableDiff> {
    let name = |table: Option<&Reached>| table.map(|table| table.name.clone());
    let (before, table) = (name(a), name(b).or_else(|| name(a)).unwrap_or_default());
    let manifests = [a, b].map(|table| table.and_then(|table| table.manifest.as_ref()));
    let mut diff = TableDiff {
        before: before.filter(|before| *before != table),
        table,
        rows: manifests.map(|manifest| manifest.map(|m| m.rows)),
        causes: Vec::new(),
        changes: None,
        values: Vec::new(),
        same: false,
    };
    let [Some(a), Some(b)] = manifests else { return Ok(diff) };
    diff.causes = stage_causes(&a.made, &b.made);
    diff.same = a.content == b.content;
    if diff.same {
        return Ok(diff);
    }
    let (before, now) = (light(store, a)?, light(store, b)?);
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

/// Reads all columns that planning may read, except the keys and the names of blobs.
fn light(store: &Store, manifest: &Manifest) -> Result<RecordBatch> {
    let stored = manifest.schema()?;
    let columns: Vec<String> = light_schema(&stored).into_iter().filter(|name| name != KEY).collect();
    let rows = read_table(store, &manifest.parts, &columns, &project(&stored, &columns)?)?;
    let blobs: BTreeSet<String> = manifest.blobs.iter().map(ToString::to_string).collect();
    let names_blobs = |column: &ArrayRef| {
        let mut texts = column.as_string_opt::<i32>().into_iter().flatten().flatten().peekable();
        texts.peek().is_some() && texts.all(|text| blobs.contains(text))
    };
    let kept: Vec<usize> = (0..rows.num_columns()).filter(|at| !names_blobs(rows.column(*at))).collect();
    Ok(rows.project(&kept)?)
}

/// Returns the numbers of rows that are otherwise equal. If the other columns do not distinguish the rows, as in the log
/// of a training, the last row alone counts.
fn values(before: &RecordBatch, now: &RecordBatch) -> Result<Vec<Number>> {
    let last = |batch: &RecordBatch| batch.slice(batch.num_rows().saturating_sub(1), batch.num_rows().min(1));
    let found = match numbers(before)?.zip(numbers(now)?) {
        Some(found) => Some(found),
        None => numbers(&last(before))?.zip(numbers(&last(now))?),
    };
    let Some((before, now)) = found else { return Ok(Vec::new()) };
    let [from, to] = [&before, &now].map(|cells| {
        cells.iter().map(|cell| (cell.key(), cell.value)).collect::<HashMap<(String, String), Option<f64>>>()
    });
    let gone = before.into_iter().filter(|cell| !to.contains_key(&cell.key()));
    let all = now.iter().cloned().chain(gone);
    let number = |cell: Cell| Number {
        from: from.get(&cell.key()).copied().flatten(),
        to: to.get(&cell.key()).copied().flatten(),
        row: cell.row,
        column: cell.column,
    };
    Ok(all.map(number).collect())
}

/// A number of a table.
#[derive(Clone)]
struct Cell {
    row: Map<String, Value>,
    column: String,
    value: Option<f64>,
}

impl Cell {
    fn key(&self) -> (String, String) {
        (serde_json::to_string(&self.row).unwrap_or_default(), self.column.clone())
    }
}

/// Returns the numbers, row by row; `None` if the other columns do not distinguish the rows.
fn numbers(batch: &RecordBatch) -> Result<Option<Vec<Cell>>> {
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns());
    let (values, others): (Vec<_>, Vec<_>) = columns.partition(|(_, column)| column.data_type().is_numeric());
    let options = FormatOptions::default().with_null("");
    let shown = others
        .iter()
        .map(|(field, column)| Ok((field.name(), ArrayFormatter::try_new(column.as_ref(), &options)?)))
        .collect::<Result<Vec<_>>>()?;
    let label = |row| shown.iter().map(move |(name, values)| ((*name).clone(), values.value(row).to_string().into()));
    let rows: Vec<Map<String, Value>> = (0..batch.num_rows()).map(|row| label(row).collect()).collect();
    let texts: BTreeSet<String> = rows.iter().map(|row| serde_json::to_string(row).unwrap_or_default()).collect();
    if texts.len() < rows.len() {
        return Ok(None);
    }
    let floats = values.iter().map(|(field, column)| Ok((field, arrow::compute::cast(column, &DataType::Float64)?)));
    let floats = floats.collect::<Result<Vec<_>>>()?;
    let mut cells = Vec::new();
    for (i, row) in rows.into_iter().enumerate() {
        for (field, column) in &floats {
            let value = column.is_valid(i).then(|| column.as_primitive::<Float64Type>().value(i));
            cells.push(Cell { row: row.clone(), column: field.name().clone(), value });
        }
    }
    Ok(Some(cells))
}
