//! What runs did, as tables: `runs`, `stage_runs` and `errors`.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray},
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
};

use super::manifests;
use crate::engine::{
    Result, Store,
    history::{self, Failure, Run, TableRun},
};

const TEXT: DataType = DataType::Utf8;

fn schema(fields: &[(&str, DataType)]) -> SchemaRef {
    Arc::new(Schema::new(fields.iter().map(|(name, kind)| Field::new(*name, kind.clone(), true)).collect::<Vec<_>>()))
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

fn started() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

/// The columns of `runs`.
pub(super) fn runs_schema() -> SchemaRef {
    schema(&[
        ("run", TEXT),
        ("tags", TEXT),
        ("pipeline", TEXT),
        ("started", started()),
        ("seconds", DataType::Float64),
        ("status", TEXT),
        ("error", TEXT),
        ("computed", DataType::Int64),
        ("errors", DataType::Int64),
        ("bytes", DataType::Int64),
        ("pipeline_digest", TEXT),
        ("git_commit", TEXT),
        ("host", TEXT),
    ])
}

/// A row per run, oldest first.
pub(super) fn runs(store: &Store) -> Result<RecordBatch> {
    let runs = history::runs(store)?;
    let sum = |of: fn(&TableRun) -> u64| move |run: &Run| run.tables.iter().map(of).sum();
    let began = TimestampMillisecondArray::from_iter_values(runs.iter().map(|run| run.started_ms as i64));
    let columns = vec![
        text(&runs, |run| Some(run.run.clone())),
        text(&runs, |run| (!run.tags.is_empty()).then(|| run.tags.join(" "))),
        text(&runs, |run| Some(run.pipeline.clone())),
        Arc::new(began.with_timezone("UTC")),
        float(&runs, |run| run.seconds),
        text(&runs, |run| Some(run.status().to_owned())),
        text(&runs, |run| run.error.clone()),
        int(&runs, sum(|table| table.computed)),
        int(&runs, sum(|table| table.errors)),
        int(&runs, sum(|table| table.bytes)),
        text(&runs, |run| Some(run.pipeline_digest.clone())),
        text(&runs, |run| run.git_commit.clone()),
        text(&runs, |run| Some(run.host.clone())),
    ];
    Ok(RecordBatch::try_new(runs_schema(), columns)?)
}

/// The columns of `stage_runs`.
pub(super) fn stage_runs_schema() -> SchemaRef {
    schema(&[
        ("run", TEXT),
        ("pipeline", TEXT),
        ("table", TEXT),
        ("stage", TEXT),
        ("version", DataType::Int64),
        ("rows", DataType::Int64),
        ("computed", DataType::Int64),
        ("reused", DataType::Int64),
        ("errors", DataType::Int64),
        ("bytes", DataType::Int64),
        ("seconds", DataType::Float64),
        ("reasons", TEXT),
    ])
}

/// A row per run and table.
pub(super) fn stage_runs(store: &Store) -> Result<RecordBatch> {
    let runs = history::runs(store)?;
    let rows: Vec<(&Run, &TableRun)> = runs.iter().flat_map(|run| run.tables.iter().map(move |t| (run, t))).collect();
    let columns = vec![
        text(&rows, |(run, _)| Some(run.run.clone())),
        text(&rows, |(run, _)| Some(run.pipeline.clone())),
        text(&rows, |(_, table)| Some(table.table.clone())),
        text(&rows, |(_, table)| Some(table.stage.clone())),
        int(&rows, |(_, table)| table.version),
        int(&rows, |(_, table)| table.rows),
        int(&rows, |(_, table)| table.computed),
        int(&rows, |(_, table)| table.rows.saturating_sub(table.computed)),
        int(&rows, |(_, table)| table.errors),
        int(&rows, |(_, table)| table.bytes),
        float(&rows, |(_, table)| Some(table.seconds)),
        text(&rows, |(_, table)| (!table.reasons.is_empty()).then(|| table.reasons.join("; "))),
    ];
    Ok(RecordBatch::try_new(stage_runs_schema(), columns)?)
}

/// The columns of `errors`.
pub(super) fn errors_schema() -> SchemaRef {
    schema(&[("run", TEXT), ("pipeline", TEXT), ("table", TEXT), ("id", TEXT), ("message", TEXT), ("chain", TEXT)])
}

/// Rows that failed: those that the current tables leave out, and those that stopped the last run of a pipeline.
pub(super) fn errors(store: &Store) -> Result<RecordBatch> {
    // A message names the row and often repeats the causes; the chain adds the others.
    let beyond = |message: &str, chain: &[String]| {
        chain.iter().filter(|cause| !message.contains(*cause)).cloned().collect::<Vec<_>>().join(": ")
    };
    let mut rows: Vec<[String; 6]> = Vec::new();
    for (pipeline, manifest) in manifests(store)? {
        let table = manifest.variant.name(&manifest.table);
        rows.extend(manifest.errors.into_iter().map(|error| {
            let chain = beyond(&error.message, &error.chain);
            [error.run, pipeline.clone(), table.clone(), error.id, error.message, chain]
        }));
    }
    let runs = history::runs(store)?;
    let is_last = |i: usize, run: &Run| !runs[i + 1..].iter().any(|later| later.pipeline == run.pipeline);
    for (_, run) in runs.iter().enumerate().filter(|(i, run)| is_last(*i, run)) {
        let published = |table: &str| run.tables.iter().any(|t| t.table == table && t.version > 0);
        for failure in run.failures.iter().filter(|failure| !published(&failure.table)) {
            let (run, pipeline) = (run.run.clone(), run.pipeline.clone());
            let Failure { table, id, message, chain } = failure;
            rows.push([run, pipeline, table.clone(), id.clone(), message.clone(), beyond(message, chain)]);
        }
    }
    let columns = (0..6).map(|i| text(&rows, |row| (!row[i].is_empty()).then(|| row[i].clone()))).collect();
    Ok(RecordBatch::try_new(errors_schema(), columns)?)
}
