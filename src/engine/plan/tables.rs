//! The plan of a pipeline: the state of each table, from top to bottom.

use std::{collections::BTreeSet, sync::Arc};

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

/// The plan of a table.
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

/// The state of a table: usable as it is, to be made, or unknown.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// The table is published and up to date.
    Fresh {
        /// The number of its rows.
        rows: u64,
    },
    /// Rows must be computed, or only chosen and published.
    Stale {
        /// The number of rows to compute; 1 for a table that is made as a whole.
        stale: u64,
        /// The number of rows that it will have; 0 if that is known only after it is computed.
        rows: u64,
        /// True if a table above is stale. If its new rows equal the old ones, fewer rows need computing here.
        at_most: bool,
        /// The causes, in order.
        causes: Vec<Cause>,
    },
    /// The rows of a table above are not known yet.
    Blocked {
        /// That table.
        on: String,
    },
}

/// Makes the plan of the tables that `chosen` names, from top to bottom.
pub fn plan(planner: &Planner<'_>, pipeline: &Pipeline, chosen: &BTreeSet<String>) -> Result<Vec<TablePlan>> {
    let Found { mut views, damaged } = published(pipeline, planner.store)?;
    let mut plans = Vec::new();
    // Tables that are not chosen are skipped, because no chosen table is made from them.
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
                    let view = TableState { version, manifest: Arc::new(work.outline()), pending, known, before: None };
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
