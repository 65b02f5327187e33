//! `vlmdiff plan`

use std::collections::BTreeSet;

use anyhow::Result;
use clap::Args;

use super::{EXIT_DONE, PipelineArgs, SelectionArgs, progress::count};
use crate::engine::{
    Sources, Store,
    pipeline::Pipeline,
    plan::{Doubts, Planner, State, TablePlan, plan},
    reason::Cause,
};

/// Say what a run would compute, and why.
#[derive(Args)]
#[command(after_help = "Example:\n  vlmdiff plan pipelines/quickstart.yaml --set anomaly_maps.sigma=3")]
pub(super) struct Plan {
    #[command(flatten)]
    pipeline: PipelineArgs,
    #[command(flatten)]
    selection: SelectionArgs,
    /// Print one JSON object per table.
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub(super) fn run(self) -> Result<u8> {
        let (pipeline, store) = self.pipeline.open()?;
        let (tables, doubts) = self.selection.resolve(&pipeline)?;
        let sources = Sources { verify: self.selection.verify, ..Sources::default() };
        show(&pipeline, &store, &sources, &tables, &doubts, self.json)
    }
}

/// Prints the plan of the selected tables.
pub(super) fn show(
    pipeline: &Pipeline,
    store: &Store,
    sources: &Sources,
    tables: &BTreeSet<String>,
    doubts: &Doubts,
    json: bool,
) -> Result<u8> {
    let planner = Planner { store, sources, doubts };
    for table in plan(&planner, pipeline, tables)? {
        if json {
            println!("{}", serde_json::to_string(&table)?);
        } else {
            println!("{}", describe(&table));
        }
    }
    Ok(EXIT_DONE)
}

fn describe(plan: &TablePlan) -> String {
    let why = |causes: &[Cause]| causes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let state = match &plan.state {
        State::Fresh { rows } => format!("fresh, {}", count(*rows, "row")),
        State::Blocked { on } => format!("waits for {on}"),
        State::Stale { stale: 0, causes, .. } => format!("to publish: {}", why(causes)),
        State::Stale { rows: 0, causes, .. } => format!("to compute: {}", why(causes)),
        State::Stale { stale, rows, at_most, causes } => {
            let at_most = if *at_most { "at most " } else { "" };
            format!("{at_most}{stale} of {} to compute: {}", count(*rows, "row"), why(causes))
        }
    };
    format!("{:<16} {state}", plan.table)
}
