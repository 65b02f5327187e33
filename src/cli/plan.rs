//! `vlmdiff plan`

use anyhow::Result;
use clap::Args;

use super::{EXIT_DONE, PipelineArgs, progress::count};
use crate::engine::{
    Sources,
    plan::{State, TablePlan, plan},
};

/// Say what a run would compute, and why.
#[derive(Args)]
#[command(after_help = "Example:\n  vlmdiff plan pipelines/quickstart.yaml --set anomaly_maps.sigma=3")]
pub(super) struct Plan {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Print one JSON object per table.
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub(super) fn run(self) -> Result<u8> {
        let (pipeline, store) = self.pipeline.open()?;
        for table in plan(&pipeline, &store, &Sources::default())? {
            if self.json {
                println!("{}", serde_json::to_string(&table)?);
            } else {
                println!("{}", describe(&table));
            }
        }
        Ok(EXIT_DONE)
    }
}

fn describe(plan: &TablePlan) -> String {
    let state = match &plan.state {
        State::Fresh { rows } => format!("fresh, {}", count(*rows, "row")),
        State::Blocked { on } => format!("waits for {on}"),
        State::Stale { stale: 0, reasons, .. } => format!("to publish: {}", reasons.join("; ")),
        State::Stale { rows: 0, reasons, .. } => format!("stale: {}", reasons.join("; ")),
        State::Stale { stale, rows, reasons } => {
            format!("{stale} of {} stale: {}", count(*rows, "row"), reasons.join("; "))
        }
    };
    format!("{:<16} {state}", plan.table)
}
