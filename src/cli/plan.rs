//! `vlmdiff plan`

use std::collections::BTreeSet;

use anyhow::Result;
use clap::Args;

use super::{
    EXIT_DONE, PipelineArgs, SelectionArgs,
    text::{count, print, print_exactly, width},
};
use crate::engine::{
    Error,
    pipeline::Pipeline,
    plan::{Cause, Overrides, Planner, State, plan},
    source::Sources,
    store::{Inventory, Store},
};

/// Say what a run would compute, and why.
#[derive(Args)]
#[command(after_help = "Example:\n  vlmdiff plan pipelines/quickstart.yaml --set anomaly_maps.sigma=3")]
pub(super) struct Plan {
    #[command(flatten)]
    pipeline: PipelineArgs,
    #[command(flatten)]
    selection: SelectionArgs,
    /// Hash every source file, even if its size, times and inode have not changed.
    #[arg(long)]
    verify: bool,
    /// Print one JSON object per table.
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub(super) fn run(self) -> Result<u8> {
        let (pipeline, store) = self.pipeline.open()?;
        let (tables, overrides) = self.selection.resolve(&pipeline)?;
        let sources = Sources::new(self.verify);
        show(&pipeline, &store, &sources, &tables, &overrides, self.json)
    }
}

/// Prints the plan of the selected tables.
pub(super) fn show(
    pipeline: &Pipeline,
    store: &Store,
    sources: &Sources,
    tables: &BTreeSet<String>,
    overrides: &Overrides,
    json: bool,
) -> Result<u8> {
    let planner = Planner { store, sources, overrides, inventory: &Inventory::default() };
    let width = width(tables);
    let plans = plan(&planner, pipeline, tables).map_err(|error| match error {
        Error::Lost { digest, message } => Error::lost(digest, format!("{message}; `vlmdiff run` computes it again")),
        other => other,
    });
    for table in plans? {
        if json {
            print_exactly(serde_json::to_string(&table)?)?;
        } else {
            print(format!("{:<width$}  {}", table.table, describe(&table.state)))?;
            table.notes.iter().try_for_each(|note| print(format!("{:<width$}  note: {note}", "")))?;
        }
    }
    Ok(EXIT_DONE)
}

fn describe(state: &State) -> String {
    let why = |causes: &[Cause]| causes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    match state {
        State::Fresh { rows } => format!("fresh, {}", count(*rows, "row")),
        State::Blocked { on } => format!("waits for {on}"),
        State::Stale { stale: 0, causes, .. } => format!("to publish: {}", why(causes)),
        State::Stale { rows: 0, causes, .. } => format!("to compute: {}", why(causes)),
        State::Stale { stale, rows, at_most, causes } => {
            let at_most = if *at_most { "at most " } else { "" };
            format!("{at_most}{stale} of {} to compute: {}", count(*rows, "row"), why(causes))
        }
    }
}
