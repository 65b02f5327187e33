//! `vlmdiff diff`

use std::collections::HashMap;

use anyhow::Result;
use clap::Args;

use super::{
    EXIT_DONE, StoreArgs,
    text::{columns, count, print, print_exactly, width},
};
use crate::{
    engine::{
        Error, distinct,
        plan::{Number, TableDiff, diff},
        store::{Run, Store, history},
        value_text,
    },
    tables::metrics::{CLASS, MEAN},
};

/// The values that distinguish a row of a table from its others.
type Row = serde_json::Map<String, serde_json::Value>;

/// Say what changed from one run to another: in the pipeline, and in the results.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff diff                       the last two runs that were done, of one pipeline
  vlmdiff diff baseline              that run and the last one that was done
  vlmdiff diff last~3 last --json

A run is named by a tag, its id or the beginning of one, `last`, or `last~1` for the one before. A swept table is set \
beside the table without the sweep, `TABLE -> TABLE[AXIS=VALUE]`, and numbers beside their change.")]
pub(super) struct Diff {
    /// A run. Without one, the last two done runs of the pipeline whose run was done last are compared.
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

/// Returns the last two done runs of the pipeline whose run was done last.
fn last_two(store: &Store) -> Result<[Run; 2]> {
    let last = history::runs(store)?.into_iter().rfind(|run| run.status() == "done");
    let Some(last) = last else {
        return Err(Error::Input("no run was done yet, so there is nothing to compare (vlmdiff runs)".into()).into());
    };
    let mut before = done(store, &last.pipeline)?;
    before.pop();
    before.pop().map(|before| [before, last.clone()]).ok_or_else(|| {
        Error::Input(format!(
            "there is only one done run of `{}`, the pipeline whose run was done last; name two runs (vlmdiff runs)",
            last.pipeline
        ))
        .into()
    })
}

fn describe(runs: &[Run; 2], tables: &[TableDiff]) -> Result<()> {
    let [a, b] = runs.each_ref().map(|run| {
        let names = run.tags.iter().chain([&run.run]).map(String::as_str).collect::<Vec<_>>().join(" ");
        format!("{names} ({}, {})", run.pipeline, run.status())
    });
    print(format!("{a} -> {b}"))?;
    let is_equal = |table: &TableDiff| table.same && table.causes.is_empty() && table.before.is_none();
    if tables.iter().all(is_equal) {
        return Ok(print("nothing differs")?);
    }
    let name = |table: &TableDiff| match &table.before {
        Some(before) => format!("{before} -> {}", table.table),
        None => table.table.clone(),
    };
    let width = width(tables.iter().map(name));
    for table in tables {
        print(format!("{:<width$}  {}", name(table), state(table, runs)))?;
        table.causes.iter().try_for_each(|cause| print(format!("    {cause}")))?;
        let values = without_mean_of_one(&table.values);
        let rows = distinct(values.iter().map(|value| &value.row));
        if rows.len() > 1 {
            grid(&values, &rows, columns())?;
            continue;
        }
        for value in values.iter().filter(|value| value.from != value.to) {
            let row = value.row.iter().map(|(name, text)| format!("{name}={}", value_text(text)));
            let row = row.collect::<Vec<_>>().join(", ");
            let row = if row.is_empty() { row } else { format!("{row}: ") };
            print(format!(
                "    {row}{} {} -> {}{}",
                value.column,
                number(value.from),
                number(value.to),
                change(value)
            ))?;
        }
    }
    Ok(())
}

/// Leaves out the mean over classes where it is that of a single class.
fn without_mean_of_one(values: &[Number]) -> Vec<&Number> {
    let is_mean = |row: &Row| row.get(CLASS).is_some_and(|class| class == MEAN);
    let others = |row: &Row| {
        let mut others = row.clone();
        others.shift_remove(CLASS);
        others
    };
    let rows = distinct(values.iter().map(|value| &value.row));
    let is_kept = |row: &Row| {
        let namesakes = rows.iter().filter(|other| !is_mean(other) && others(other) == others(row));
        !is_mean(row) || namesakes.count() != 1
    };
    values.iter().filter(|value| is_kept(&value.row)).collect()
}

/// Prints numbers as a table: a row for each row, a column for each column that differs somewhere, and in the cells the
/// number of the second run with its change. Columns that do not fit into `width` follow below.
fn grid(values: &[&Number], rows: &[&Row], width: Option<usize>) -> Result<()> {
    let differing = values.iter().filter(|value| value.from != value.to).map(|value| &value.column);
    let keys: Vec<&String> = rows.first().map(|row| row.keys().collect()).unwrap_or_default();
    let label = |key: &String| {
        let texts = rows.iter().map(|row| row.get(key).map(value_text).unwrap_or_default());
        std::iter::once(key.clone()).chain(texts).collect::<Vec<_>>()
    };
    let at = |row: &Row, column: &str| (value_text(&row.clone().into()), column.to_owned());
    let found: HashMap<(String, String), &Number> =
        values.iter().map(|value| (at(&value.row, &value.column), *value)).collect();
    let cell = |row: &Row, column: &String| {
        found.get(&at(row, column)).map_or_else(String::new, |value| match (value.from, value.to) {
            (Some(_), Some(_)) => format!("{}{}", number(value.to), change(value)),
            (None, None) => number(None),
            (from, to) => format!("{} -> {}", number(from), number(to)),
        })
    };
    let numbers = |column: &String| {
        let cells = rows.iter().map(|row| cell(row, column));
        std::iter::once(column.clone()).chain(cells).collect::<Vec<_>>()
    };
    let wide = |cells: &Vec<String>| cells.iter().map(|cell| cell.chars().count()).max().unwrap_or_default();
    let labels: Vec<Vec<String>> = keys.into_iter().map(label).collect();
    let indent = 4 + labels.iter().map(|cells| wide(cells) + 2).sum::<usize>();
    let mut columns: Vec<Vec<String>> = distinct(differing).into_iter().map(numbers).collect();
    while !columns.is_empty() {
        let mut used = indent;
        let fits = columns.iter().take_while(|cells| {
            used += wide(cells) + 2;
            width.is_none_or(|width| used <= width + 2)
        });
        let rest = columns.split_off(fits.count().max(1));
        for line in 0..=rows.len() {
            let mut text = " ".repeat(4);
            labels.iter().for_each(|cells| text += &format!("{:<width$}  ", cells[line], width = wide(cells)));
            columns.iter().for_each(|cells| text += &format!("{:>width$}  ", cells[line], width = wide(cells)));
            print(text.trim_end())?;
        }
        columns = rest;
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

/// Returns the change of a number with its sign; empty if it did not change, or was or is none.
fn change(value: &Number) -> String {
    match (value.from, value.to) {
        (Some(from), Some(to)) if from != to => format!(" {:+.4}", to - from),
        _ => String::new(),
    }
}
