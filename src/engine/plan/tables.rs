//! The plan of a pipeline: the state of each table, from top to bottom.

use std::collections::BTreeSet;

use super::{
    cause::Cause,
    explain::explain,
    state::{Found, Pending, TableState, published},
    work::Planner,
};
use crate::engine::{
    Result,
    pipeline::{Input, Pipeline},
    stage::Reads,
    store::Note,
};

/// A table's state and why.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TablePlan {
    /// The table.
    pub table: String,
    /// The stage.
    pub stage: &'static str,
    /// Fresh, stale or blocked.
    #[serde(flatten)]
    pub state: State,
    /// Remarks on the table, as far as its rows are known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
}

/// Whether a table can be used as it is.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Published and up to date.
    Fresh {
        /// Its rows.
        rows: u64,
    },
    /// Rows must be computed, or only chosen and published.
    Stale {
        /// Rows to compute; of a table that is made as a whole 1.
        stale: u64,
        /// Rows it will have; 0 where they come out only when it is computed.
        rows: u64,
        /// A table above is stale: where its new rows come out equal to the old ones, fewer need computing.
        at_most: bool,
        /// Why, the first cause first.
        causes: Vec<Cause>,
    },
    /// Which rows a table above will have is not known yet.
    Blocked {
        /// That table.
        on: String,
    },
}

/// The plan of the tables that `chosen` names, from top to bottom.
pub fn plan(planner: &Planner<'_>, pipeline: &Pipeline, chosen: &BTreeSet<String>) -> Result<Vec<TablePlan>> {
    let Found { mut views, damaged } = published(pipeline, planner.store)?;
    let mut plans = Vec::new();
    // What is not chosen is not looked at: no chosen table is made from it.
    for table in pipeline.tables.iter().filter(|table| chosen.contains(&table.name)) {
        let reads_rows_of = |input: &&Input| match views.get(&input.table) {
            Some(view) => input.reads == Reads::Rows && view.pending == Pending::Everything,
            None => true,
        };
        let state = if let Some(input) = table.inputs.iter().find(reads_rows_of) {
            views.remove(&table.name);
            State::Blocked { on: input.table.clone() }
        } else {
            match planner.identify(table, &views)? {
                None => State::Fresh { rows: views[&table.name].manifest.rows },
                Some(draft) => {
                    let work = draft.complete(planner, &views)?;
                    let mut causes: Vec<Cause> = damaged.get(&table.name).map(|_| Cause::Damaged).into_iter().collect();
                    causes.extend(explain(&work, planner, &views)?);
                    let pending = work.pending();
                    let state = State::Stale {
                        stale: work.stale.len() as u64,
                        rows: work.total(),
                        at_most: table.inputs.iter().any(|input| views[&input.table].pending != Pending::Nothing),
                        causes,
                    };
                    let version = views.get(&table.name).map_or(0, |view| view.version);
                    let known = work.known_columns()?;
                    let view = TableState { version, manifest: work.outline(), pending, known, before: None };
                    TableState::replace(&mut views, &table.name, view);
                    state
                }
            }
        };
        let known = views.get(&table.name).filter(|_| !matches!(state, State::Blocked { .. }));
        let notes = known.map(|view| view.manifest.notes.clone()).unwrap_or_default();
        plans.push(TablePlan { table: table.name.clone(), stage: table.kind.name, state, notes });
    }
    Ok(plans)
}
