//! `vlmdiff diff`

use anyhow::Result;
use clap::Args;

use super::{EXIT_DONE, StoreArgs, progress::count};
use crate::engine::{
    diff::{TableDiff, diff},
    history,
};

/// Say what changed from one run to another: in the pipeline, and in the results.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff diff baseline last
  vlmdiff diff 1790000000000-4711 last --json")]
pub(super) struct Diff {
    /// A run, by id or tag.
    a: String,
    /// Another; `last` is the newest.
    #[arg(default_value = "last")]
    b: String,
    /// Print one JSON object per table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

impl Diff {
    pub(super) fn run(self) -> Result<u8> {
        let store = self.store.open()?;
        let (a, b) = (history::find(&store, &self.a)?, history::find(&store, &self.b)?);
        for table in diff(&store, &a, &b)? {
            if self.json {
                println!("{}", serde_json::to_string(&table)?);
            } else {
                describe(&table);
            }
        }
        Ok(EXIT_DONE)
    }
}

fn describe(diff: &TableDiff) {
    let state = match diff {
        TableDiff { rows: [None, Some(rows)], .. } => format!("only in the second run, {}", count(*rows, "row")),
        TableDiff { rows: [Some(rows), None], .. } => format!("only in the first run, {}", count(*rows, "row")),
        TableDiff { rows: [None, None], .. } => "in neither run".into(),
        TableDiff { same: true, .. } => "same rows".into(),
        TableDiff { changes: Some(changes), .. } => format!("{changes}"),
        TableDiff { rows: [Some(a), Some(b)], .. } if a != b => format!("{a} -> {}", count(*b, "row")),
        TableDiff { .. } => "other content".into(),
    };
    println!("{:<16} {state}", diff.table);
    diff.causes.iter().for_each(|cause| println!("    {cause}"));
    let number = |value: Option<f64>| match value {
        None => "none".into(),
        Some(value) if value.fract() == 0. => format!("{value}"),
        Some(value) => format!("{value:.4}"),
    };
    for value in &diff.values {
        let row = if value.row.is_empty() { String::new() } else { format!("{}: ", value.row) };
        println!("    {row}{} {} -> {}", value.column, number(value.from), number(value.to));
    }
}
