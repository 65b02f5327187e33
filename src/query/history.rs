//! The history of runs as tables: `runs`, `stage_runs` and `errors`.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};

use super::{catalog::Lazy, manifests};
use crate::engine::{
    Result,
    store::{Run, Store, TableRun, history},
};

/// Makes the table `runs`.
pub(super) fn runs(store: &Store) -> Result<Lazy> {
    lazy(store, history::runs, of_runs)
}

/// Makes the table `stage_runs`.
pub(super) fn stage_runs(store: &Store) -> Result<Lazy> {
    lazy(store, table_runs, of_tables)
}

/// Makes the table `errors`.
pub(super) fn errors(store: &Store) -> Result<Lazy> {
    lazy(store, failures, of_failures)
}

fn lazy<T: 'static>(
    store: &Store,
    rows: fn(&Store) -> Result<Vec<T>>,
    table: fn(&[T]) -> Result<RecordBatch>,
) -> Result<Lazy> {
    let store = store.clone();
    // The schema is that of the table without rows, so that the runs are read only by queries.
    Ok(Lazy::new(table(&[])?.schema(), move || table(&rows(&store)?)))
}

fn batch<const N: usize>(columns: [(&str, ArrayRef); N]) -> Result<RecordBatch> {
    let columns = columns.into_iter().map(|(name, values)| (name, values, true));
    Ok(RecordBatch::try_from_iter_with_nullable(columns)?)
}

fn text<T>(rows: &[T], of: impl Fn(&T) -> Option<String>) -> ArrayRef {
    Arc::new(StringArray::from_iter(rows.iter().map(of)))
}

fn int<T>(rows: &[T], of: impl Fn(&T) -> u64) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| of(row) as i64)))
}

fn float<T>(rows: &[T], of: impl Fn(&T) -> Option<f64>) -> ArrayRef {
    Arc::new(Float64Array::from_iter(rows.iter().map(of)))
}

fn time<T>(rows: &[T], of: impl Fn(&T) -> u64) -> ArrayRef {
    let times = TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| of(row) as i64));
    Arc::new(times.with_timezone("UTC"))
}

/// Returns the table with a row per run, oldest first.
fn of_runs(runs: &[Run]) -> Result<RecordBatch> {
    let sum = |of: fn(&TableRun) -> u64| move |run: &Run| run.tables.iter().map(of).sum();
    batch([
        ("run", text(runs, |run| Some(run.run.clone()))),
        ("tags", text(runs, |run| (!run.tags.is_empty()).then(|| run.tags.join(" ")))),
        ("pipeline", text(runs, |run| Some(run.pipeline.clone()))),
        ("started", time(runs, |run| run.started_ms)),
        ("seconds", float(runs, |run| run.seconds)),
        ("status", text(runs, |run| Some(run.status().to_owned()))),
        ("error", text(runs, |run| run.error.clone())),
        ("computed", int(runs, sum(|table| table.computed))),
        ("errors", int(runs, sum(|table| table.errors))),
        ("bytes", int(runs, sum(|table| table.bytes))),
        ("pipeline_digest", text(runs, |run| Some(run.pipeline_digest.clone()))),
        ("git_commit", text(runs, |run| run.git_commit.clone())),
        ("host", text(runs, |run| Some(run.host.clone()))),
        ("device", text(runs, |run| (!run.device.is_empty()).then(|| run.device.clone()))),
        ("version", text(runs, |run| Some(run.version.clone()))),
    ])
}

/// Returns each run with its record of each table.
fn table_runs(store: &Store) -> Result<Vec<(Run, TableRun)>> {
    let of_run = |mut run: Run| {
        let tables = std::mem::take(&mut run.tables);
        tables.into_iter().map(move |table| (run.clone(), table))
    };
    Ok(history::runs(store)?.into_iter().flat_map(of_run).collect())
}

/// Returns the table with a row per run and table.
fn of_tables(rows: &[(Run, TableRun)]) -> Result<RecordBatch> {
    batch([
        ("run", text(rows, |(run, _)| Some(run.run.clone()))),
        ("pipeline", text(rows, |(run, _)| Some(run.pipeline.clone()))),
        ("table", text(rows, |(_, table)| Some(table.table.clone()))),
        ("stage", text(rows, |(_, table)| Some(table.stage.clone()))),
        ("version", int(rows, |(_, table)| table.version)),
        ("rows", int(rows, |(_, table)| table.rows)),
        ("computed", int(rows, |(_, table)| table.computed)),
        ("reused", int(rows, |(_, table)| table.rows.saturating_sub(table.computed))),
        ("errors", int(rows, |(_, table)| table.errors)),
        ("bytes", int(rows, |(_, table)| table.bytes)),
        ("seconds", float(rows, |(_, table)| Some(table.seconds))),
        ("reasons", text(rows, |(_, table)| (!table.reasons.is_empty()).then(|| table.reasons.join("; ")))),
    ])
}

/// A row that failed.
struct Failure {
    run: String,
    pipeline: String,
    table: String,
    id: String,
    message: String,
    chain: Vec<String>,
}

/// Returns rows that failed: those that the current tables leave out, and those that stopped the last run of a
/// pipeline.
fn failures(store: &Store) -> Result<Vec<Failure>> {
    let mut failures = Vec::new();
    for (pipeline, manifest) in manifests(store)? {
        let table = manifest.variant.name(&manifest.table);
        failures.extend(manifest.errors.into_iter().map(|error| {
            let (pipeline, table) = (pipeline.clone(), table.clone());
            Failure { run: error.run, pipeline, table, id: error.id, message: error.message, chain: error.chain }
        }));
    }
    let runs = history::runs(store)?;
    let is_last = |i: usize, run: &Run| !runs[i + 1..].iter().any(|later| later.pipeline == run.pipeline);
    for (_, run) in runs.iter().enumerate().filter(|(i, run)| is_last(*i, run)) {
        let published = |table: &str| run.tables.iter().any(|t| t.table == table && t.version > 0);
        let unpublished = run.failures.iter().filter(|failure| !published(&failure.table)).cloned();
        failures.extend(unpublished.map(|history::Failure { table, id, message, chain }| Failure {
            run: run.run.clone(),
            pipeline: run.pipeline.clone(),
            table,
            id,
            message,
            chain,
        }));
    }
    Ok(failures)
}

fn of_failures(rows: &[Failure]) -> Result<RecordBatch> {
    // The message names the row and often repeats causes. The column has the causes that the message lacks.
    let beyond = |row: &Failure| {
        let causes: Vec<&str> =
            row.chain.iter().map(String::as_str).filter(|cause| !row.message.contains(cause)).collect();
        (!causes.is_empty()).then(|| causes.join(": "))
    };
    batch([
        ("run", text(rows, |row| Some(row.run.clone()))),
        ("pipeline", text(rows, |row| Some(row.pipeline.clone()))),
        ("table", text(rows, |row| Some(row.table.clone()))),
        ("id", text(rows, |row| Some(row.id.clone()))),
        ("message", text(rows, |row| Some(row.message.clone()))),
        ("chain", text(rows, beyond)),
    ])
}
