//! `vlmdiff plan`

use std::collections::BTreeSet;

use anyhow::Result;
use clap::Args;

use super::{
    EXIT_DONE, PipelineArgs, SelectionArgs,
    text::{print, print_exactly, width},
};
use crate::{
    driver::{self, describe, describe_memory},
    engine::{pipeline::Pipeline, plan::Overrides, source::Sources, store::Store},
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
    let width = width(tables);
    for table in driver::plan(pipeline, store, sources, (tables, overrides))? {
        if json {
            print_exactly(serde_json::to_string(&table)?)?;
        } else {
            print(format!("{:<width$}  {}", table.table, describe(&table.state)))?;
            describe_memory(&table).map_or(Ok(()), |memory| print(format!("{:<width$}  {memory}", "")))?;
            table.notes.iter().try_for_each(|note| print(format!("{:<width$}  note: {note}", "")))?;
        }
    }
    Ok(EXIT_DONE)
}
