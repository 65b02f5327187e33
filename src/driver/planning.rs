//! Plans: the rows that a run would compute, and why.

use std::collections::BTreeSet;

use crate::engine::{
    Error, Result,
    pipeline::Pipeline,
    plan::{self, Overrides, Planner, TablePlan},
    source::Sources,
    store::{Inventory, Store},
};

/// Makes the plan of the selected tables, from top to bottom.
pub fn plan(
    pipeline: &Pipeline,
    store: &Store,
    sources: &Sources,
    (tables, overrides): (&BTreeSet<String>, &Overrides),
) -> Result<Vec<TablePlan>> {
    let planner = Planner { store, sources, overrides, inventory: &Inventory::default() };
    plan::plan(&planner, pipeline, tables).map_err(|error| match error {
        Error::Lost { digest, message } => Error::lost(digest, format!("{message}; `vlmdiff run` computes it again")),
        other => other,
    })
}
