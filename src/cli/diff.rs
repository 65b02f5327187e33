//! `vlmdiff diff`

use anyhow::Result;
use clap::Args;

use super::{
    EXIT_DONE, StoreArgs,
    text::{count, print, print_exactly, width},
};
use crate::engine::{
    Error,
    plan::{TableDiff, diff},
    store::{Run, Store, history},
};

/// Say what changed from one run to another: in the pipeline, and in the results.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff diff                       the last two runs that were done
  vlmdiff diff baseline              that run and the last one that was done
  vlmdiff diff last~3 last --json

A run is named by a tag, its id or the beginning of one, `last`, or `last~1` for the one before.")]
pub(super) struct Diff {
    /// A run. Without one, the last two done runs of the pipeline that ran last are compared.
    a: Option<String>,
    /// Another run of the same pipeline; by default the last one that was done.
    b: Option<String>,
    /// Print one JSON object per table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

impl Diff {
    pub(super) fn run(self) -> Result<u8> {
        let store = self.store.open()?;
        let runs = match (&self.a, &self.b) {
            (Some(a), Some(b)) => [history::find(&store, a)?, history::find(&store, b)?],
            (Some(a), None) => with_last(&store, history::find(&store, a)?)?,
            (None, _) => last_two(&store)?,
        };
        let [a, b] = &runs;
        if a.pipeline != b.pipeline {
            return Err(Error::Input(format!(
                "{} is a run of the pipeline `{}` and {} of `{}`; diff compares runs of one pipeline",
                a.run, a.pipeline, b.run, b.pipeline
            ))
            .into());
        }
        let tables = diff(&store, a, b)?;
        if self.json {
            tables
                .iter()
                .try_for_each(|table| Ok::<_, anyhow::Error>(print_exactly(serde_json::to_string(table)?)?))?;
        } else {
            describe(&runs, &tables)?;
        }
        Ok(EXIT_DONE)
    }
}

/// Returns the done runs of a pipeline, oldest first.
fn done(store: &Store, pipeline: &str) -> Result<Vec<Run>> {
    let is_done = |run: &Run| run.pipeline == pipeline && run.status() == "done";
    Ok(history::runs(store)?.into_iter().filter(is_done).collect())
}

/// Returns a run and the last done one of its pipeline, the older one first.
fn with_last(store: &Store, run: Run) -> Result<[Run; 2]> {
    match done(store, &run.pipeline)?.pop() {
        Some(last) if last.run > run.run => Ok([run, last]),
        Some(last) if last.run < run.run => Ok([last, run]),
        Some(_) => Err(Error::Input(format!(
            "{} is itself the last done run of `{}`; name a second run to compare it with, such as last~1",
            run.run, run.pipeline
        ))
        .into()),
        None => Err(Error::Input(format!("no run of `{}` was done yet; name two runs", run.pipeline)).into()),
    }
}

fn last_two(store: &Store) -> Result<[Run; 2]> {
    let pipeline = history::find(store, "last")?.pipeline;
    let mut runs = done(store, &pipeline)?;
    match (runs.pop(), runs.pop()) {
        (Some(last), Some(before)) => Ok([before, last]),
        (found, _) => Err(Error::Input(format!(
            "there {} of `{pipeline}`, the pipeline that ran last; name two runs (vlmdiff runs)",
            if found.is_some() { "is only one done run" } else { "are no done runs" }
        ))
        .into()),
    }
}

fn describe(runs: &[Run; 2], tables: &[TableDiff]) -> Result<()> {
    let [a, b] = runs.each_ref().map(|run| {
        let names = run.tags.iter().chain([&run.run]).map(String::as_str).collect::<Vec<_>>().join(" ");
        format!("{names} ({}, {})", run.pipeline, run.status())
    });
    print(format!("{a} -> {b}"))?;
    if tables.iter().all(|table| table.same && table.causes.is_empty()) {
        return Ok(print("nothing differs")?);
    }
    let width = width(tables.iter().map(|table| &table.table));
    for table in tables {
        print(format!("{:<width$}  {}", table.table, state(table, runs)))?;
        table.causes.iter().try_for_each(|cause| print(format!("    {cause}")))?;
        for value in &table.values {
            let row = if value.row.is_empty() { String::new() } else { format!("{}: ", value.row) };
            print(format!("    {row}{} {} -> {}", value.column, number(value.from), number(value.to)))?;
        }
    }
    Ok(())
}

fn state(table: &TableDiff, [a, b]: &[Run; 2]) -> String {
    match table {
        TableDiff { rows: [None, None], .. } => "reached by neither run".into(),
        TableDiff { rows: [Some(rows), None], .. } => only_in("first", *rows, "second", b),
        TableDiff { rows: [None, Some(rows)], .. } => only_in("second", *rows, "first", a),
        TableDiff { same: true, .. } => "same rows".into(),
        TableDiff { changes: Some(changes), .. } => changes.to_string(),
        TableDiff { rows: [Some(a), Some(b)], .. } if a != b => format!("{a} -> {}", count(*b, "row")),
        TableDiff { .. } => "other content".into(),
    }
}

/// Returns the line about a table that one of the runs lacks.
fn only_in(one: &str, rows: u64, other: &str, lacking: &Run) -> String {
    match lacking.status() {
        "done" => format!("only in the {one} run, {}", count(rows, "row")),
        "failed" => format!("not reached by the {other} run, which failed"),
        _ => format!("not reached by the {other} run, which did not finish"),
    }
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "none".into(),
        Some(value) if value.fract() == 0. => format!("{value}"),
        Some(value) => format!("{value:.4}"),
    }
}
