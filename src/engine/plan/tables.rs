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
    /// Notes on the table, as far as its rows are known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
    /// The memory that making it takes, if it must be made and its stage knows that beforehand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
}

/// The most memory that making a table takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// The number of bytes.
    pub bytes: u64,
    /// The number of rows that it is made from: of a blocked table, whose number is not known yet, [`SOME_ROWS`].
    pub rows: u64,
}

/// The number of rows for which the memory of a table is stated whose rows are not known.
const SOME_ROWS: u64 = 1000;

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
        /// The table above.
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
            Some(view) => input.reads != Reads::Table && view.pending == Pending::Everything,
            None => true,
        };
        let mut read_rows = None;
        let state = if let Some(input) = table.inputs.iter().find(reads_rows_of) {
            views.remove(&table.name);
            read_rows = Some(SOME_ROWS);
            State::Blocked { on: input.table.clone() }
        } else {
            let (identified, absent) = match planner.identify_absent(table, &views)? {
                Some((identified, absent)) => (identified, Some(absent)),
                None => (planner.identify(table, &views)?, None),
            };
            match identified {
                None => State::Fresh { rows: views[&table.name].manifest.rows },
                Some(draft) => {
                    let work = draft.complete(planner, &views)?;
                    let mut causes: Vec<Cause> = damaged.get(&table.name).map(|_| Cause::Damaged).into_iter().collect();
                    causes.extend(absent.map(|message| Cause::Absent { message }));
                    causes.extend(explain(&work, planner, &views)?);
                    let pending = work.pending();
                    read_rows = Some(work.read_rows()).filter(|_| pending != Pending::Nothing);
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
        let memory = read_rows.and_then(|rows| {
            let whole = table.inputs.iter().filter(|input| input.reads == Reads::Table);
            let whole = whole.filter_map(|input| {
                let view = views.get(&input.table).filter(|view| view.pending != Pending::Everything)?;
                Some((&*input.port, view.rows()))
            });
            let bytes = table.stage.memory(&pipeline.schemas(table), rows, &whole.collect())?;
            Some(Memory { bytes, rows })
        });
        plans.push(TablePlan { table: table.name.clone(), stage: table.kind.name, state, notes, memory });
    }
    Ok(plans)
}

#[cfg(test)]
mod tests {
    use super::SOME_ROWS;
    use crate::engine::{
        pipeline::Selection,
        plan::Overrides,
        run::toys::{CHAIN, World, edited},
        store::part_name,
    };

    /// Plans an edited [`CHAIN`] where the unedited one has run.
    fn plan_after_edit(part: &str, by: &str) -> Vec<String> {
        World::after(CHAIN).plan(&edited(CHAIN, part, by))
    }

    #[test]
    fn table_that_was_never_published_is_new() {
        let new = ["numbers: 3 of 3", "more: at most 3 of 3", "total: at most 1 of 0"];
        assert_eq!(World::new().plan(CHAIN), new.map(|table| format!("{table}: not computed yet")));
    }

    #[test]
    fn tables_that_have_run_are_fresh() {
        assert_eq!(World::after(CHAIN).plan(CHAIN), ["numbers: fresh 3", "more: fresh 3", "total: fresh 1"]);
    }

    #[test]
    fn rows_that_state_their_model_are_stale_with_it_alone() {
        // Another total and another constant make equal numbers in `more`, by another model.
        let pipeline = |total: i64, plus: i64, states_model: bool| {
            format!(
                "
tables:
  numbers: {{ stage: list, with: {{ rows: {{ a: 1, b: 2, c: 3 }} }} }}
  others: {{ stage: list, with: {{ rows: {{ x: {total} }} }} }}
  total: {{ stage: sum, from: [others] }}
  more: {{ stage: add, from: {{ numbers: numbers, total: total }}, with: {{ plus: {plus} }} }}
  last: {{ stage: add, from: [more], with: {{ states_model: {states_model} }} }}
"
            )
        };
        for (states_model, last) in [(false, "last: fresh 3"), (true, "last: 3 of 3: the model has changed")] {
            let world = World::after(&pipeline(10, 0, states_model));
            let now = pipeline(11, -1, states_model);
            world.run_some(&now, &Selection { targets: vec!["more".into()], until: Vec::new() }).unwrap();
            assert_eq!(world.plan(&now).last().unwrap(), last);
            let computed = world.run(&now).unwrap();
            assert_eq!(computed, if states_model { vec!["last 3".to_owned()] } else { Vec::new() });
            assert!(world.plan(&now).iter().all(|table| table.contains("fresh")), "{:?}", world.plan(&now));
        }
    }

    #[test]
    fn changed_parameter_makes_every_row_stale() {
        let below = "total: at most 1 of 0: 3 rows of more are computed first";
        assert_eq!(
            plan_after_edit("plus: 10", "plus: 20"),
            ["numbers: fresh 3", "more: 3 of 3: plus: 10 -> 20", below]
        );
    }

    #[test]
    fn changed_row_is_the_only_stale_one() {
        let below = "more: at most 1 of 3: 1 row of numbers is computed first";
        assert_eq!(
            plan_after_edit("b: 2", "b: 5")[..2],
            ["numbers: 1 of 3: the source has changed (1 changed: b)", below]
        );
    }

    #[test]
    fn new_row_is_the_only_stale_one() {
        let below = "more: at most 1 of 4: 1 row of numbers is computed first";
        assert_eq!(
            plan_after_edit("c: 3", "c: 3, d: 4")[..2],
            ["numbers: 1 of 4: the source has changed (1 new: d)", below]
        );
    }

    #[test]
    fn removed_row_makes_no_other_row_stale() {
        let expected = [
            "numbers: 0 of 2: the source has changed (1 removed: c)",
            "more: 0 of 2: numbers has changed (1 removed: c)",
            "total: 1 of 0: more has changed",
        ];
        assert_eq!(plan_after_edit(", c: 3", ""), expected);
    }

    #[test]
    fn rows_of_another_pipeline_are_known() {
        let other = format!("name: other{CHAIN}");
        let known = ["numbers: 0 of 3", "more: 0 of 3", "total: 0 of 1"];
        assert_eq!(World::after(CHAIN).plan(&other), known.map(|table| format!("{table}: all rows are known")));
    }

    #[test]
    fn rows_of_an_earlier_parameter_are_known() {
        let world = World::after(CHAIN);
        world.run(&edited(CHAIN, "plus: 10", "plus: 20")).unwrap();
        assert_eq!(world.plan(CHAIN)[1..], ["more: 0 of 3: plus: 20 -> 10", "total: 0 of 1: more has changed"]);
    }

    #[test]
    fn new_revision_is_named() {
        assert_eq!(
            plan_after_edit("plus: 10", "plus: 10, revision: 2")[1],
            "more: 3 of 3: stage `add` has a new revision: 1 -> 2"
        );
    }

    #[test]
    fn other_stage_is_named() {
        assert_eq!(plan_after_edit("stage: add", "stage: plus")[1], "more: 3 of 3: stage: add -> plus");
    }

    #[test]
    fn recomputed_rows_that_are_equal_leave_the_tables_below_fresh() {
        let world = World::after(CHAIN);
        assert_eq!(world.run(&edited(CHAIN, "plus: 10", "plus: 10, revision: 2")).unwrap(), ["more 3"]);
    }

    #[test]
    fn column_that_no_stage_reads_makes_no_row_stale_below() {
        let world = World::after(CHAIN);
        let noted = edited(CHAIN, "c: 3 }", "c: 3 }, notes: { b: x }");
        assert_eq!(world.run(&noted).unwrap(), ["numbers 1", "more 0"]);
    }

    #[test]
    fn table_that_is_read_whole_makes_every_row_stale() {
        let whole = edited(CHAIN, "  more:", "  first: { stage: sum, from: [numbers] }\n  more:");
        let whole =
            edited(&whole, "stage: add, from: [numbers]", "stage: add, from: { numbers: numbers, total: first }");
        let world = World::after(&whole);
        assert_eq!(world.run(&edited(&whole, "b: 2", "b: 5")).unwrap(), ["numbers 1", "first 1", "more 3", "total 1"]);
    }

    #[test]
    fn other_tables_are_named() {
        let others =
            edited(CHAIN, "  more:", "  others: { stage: list, with: { rows: { b: 1, c: 1, d: 1 } } }\n  more:");
        let joined = edited(&others, "from: [numbers]", "from: [numbers, others]");
        assert_eq!(World::after(&others).plan(&joined)[2], "more: 2 of 2: from: numbers -> numbers, others");
    }

    #[test]
    fn changed_predicate_is_named_with_its_rows() {
        let expected = "more: 0 of 2: where: all rows -> `number > 1` (1 removed: a)";
        assert_eq!(plan_after_edit("from: [numbers]", "from: [numbers], where: number > 1")[1], expected);
    }

    #[test]
    fn rows_that_a_predicate_will_not_choose_are_not_stale() {
        let filtered = edited(CHAIN, "from: [numbers]", "from: [numbers], where: number > 1");
        let world = World::after(&filtered);
        let first = "1 row of numbers is computed first";
        assert_eq!(world.plan(&edited(&filtered, "a: 1", "a: 0"))[1], format!("more: at most 0 of 2: {first}"));
        assert_eq!(world.plan(&edited(&filtered, "a: 1", "a: 5"))[1], format!("more: at most 1 of 3: {first}"));
    }

    #[test]
    fn predicate_on_a_column_that_is_not_computed_yet_may_choose_every_row() {
        let filtered = format!("{CHAIN}  large: {{ stage: add, from: [more], where: number > 11 }}\n");
        assert_eq!(World::new().plan(&filtered)[3], "large: at most 3 of 3: not computed yet");
        assert_eq!(World::after(&filtered).plan(&filtered)[3], "large: fresh 2");
    }

    #[test]
    fn forced_table_is_stale_and_those_above_are_not() {
        let overrides = Overrides { force: vec!["more".into()], ..Overrides::default() };
        let planned = World::after(CHAIN).plan_with(CHAIN, &overrides);
        assert_eq!(planned[..2], ["numbers: fresh 3", "more: 3 of 3: forced"]);
    }

    #[test]
    fn rows_of_a_lost_part_are_stale() {
        let world = World::after(CHAIN);
        // Tasks have two rows, so the first part has two.
        let manifest = world.store.published("toy", "more").unwrap().whole().unwrap().unwrap().1;
        assert_eq!(manifest.parts[0].rows, 2);
        world.store.delete(&part_name(manifest.parts[0].part)).unwrap();
        assert_eq!(world.plan(CHAIN)[1], "more: 2 of 3: a part of it is damaged or missing");
        assert_eq!(world.run(CHAIN).unwrap(), ["more 2"]);
    }

    #[test]
    fn failed_rows_that_are_skipped_are_stale_only_if_they_are_retried() {
        let skips = edited(CHAIN, "with: { plus: 10 }", "with: { plus: 10, fails: 2 }, on_error: skip");
        let world = World::after(&skips);
        assert_eq!(world.plan(&skips)[1..], ["more: fresh 2", "total: fresh 1"]);
        let overrides = Overrides { retry_errors: true, ..Overrides::default() };
        assert_eq!(world.plan_with(&skips, &overrides)[1], "more: 1 of 3: 1 row failed before");
    }

    #[test]
    fn failed_row_leaves_its_table_unpublished_and_keeps_the_others() {
        let fails = edited(CHAIN, "plus: 10", "plus: 10, fails: 2");
        let world = World::new();
        let error = world.run(&fails).unwrap_err();
        assert!(error.starts_with("table `more`: 1 row failed\n  b: it is to fail"), "{error}");
        assert_eq!(world.plan(&fails)[1], "more: 1 of 3: not computed yet");
    }

    #[test]
    fn table_below_one_whose_rows_are_unknown_is_blocked() {
        let blocked = edited(CHAIN, "  more:", "  sorted: { stage: sorted, from: [numbers] }\n  more:");
        let blocked = edited(&blocked, "from: [numbers], with", "from: [sorted], with");
        let planned = World::new().plan(&blocked);
        assert_eq!(planned[1..3], ["sorted: at most 1 of 0: not computed yet", "more: blocked on sorted"]);
        assert_eq!(World::after(&blocked).plan(&blocked)[1..3], ["sorted: fresh 3", "more: fresh 3"]);
    }

    #[test]
    fn memory_is_stated_for_the_rows_that_a_table_is_made_from() {
        let memory = |world: &World, text: &str| world.memory(text, "total").map(|found| (found.rows, found.bytes));
        assert_eq!(memory(&World::new(), CHAIN), Some((3, 24)));
        let world = World::after(CHAIN);
        assert_eq!(memory(&world, CHAIN), None, "nothing is made");
        assert_eq!(memory(&world, &edited(CHAIN, "c: 3", "c: 3, d: 4")), Some((4, 32)));
        let blocked = edited(CHAIN, "  total:", "  sorted: { stage: sorted, from: [more] }\n  total:");
        let blocked = edited(&blocked, "sum, from: [more]", "sum, from: [sorted]");
        assert_eq!(memory(&World::new(), &blocked), Some((SOME_ROWS, 8 * SOME_ROWS)));
        assert_eq!(World::new().memory(CHAIN, "more"), None, "its stage does not say");
    }

    #[test]
    fn memory_is_stated_for_the_rows_of_a_table_that_is_read_whole() {
        let whole = "  others: { stage: list, with: { rows: { x: 1, y: 2, z: 3, u: 4 } } }\n  more:";
        let reads = |total: &str| format!("from: {{ numbers: numbers, total: {total} }}");
        let known = edited(&edited(CHAIN, "  more:", whole), "from: [numbers]", &reads("others"));
        let bytes = |world: &World, text: &str, table: &str| world.memory(text, table).map(|found| found.bytes);
        assert_eq!(bytes(&World::new(), &known, "more"), Some(4 * 8));
        let unknown = format!("{CHAIN}  last: {{ stage: add, {} }}\n", reads("total"));
        assert_eq!(bytes(&World::new(), &unknown, "last"), None);
        assert_eq!(bytes(&World::after(CHAIN), &unknown, "last"), Some(8));
    }

    #[test]
    fn table_that_is_declared_again_is_known() {
        let world = World::after(CHAIN);
        world.run(CHAIN.split("  total").next().unwrap()).unwrap();
        assert_eq!(world.plan(CHAIN)[2], "total: 0 of 1: all rows are known");
    }

    #[test]
    fn table_that_is_read_twice_is_named_once_and_only_if_it_changed() {
        let twice = edited(CHAIN, "from: [numbers]", "from: [numbers, numbers]");
        let world = World::after(&twice);
        assert_eq!(world.plan(&edited(&twice, "plus: 10", "plus: 20"))[1], "more: 3 of 3: plus: 10 -> 20");
        let pending = "more: at most 1 of 3: 1 row of numbers is computed first";
        assert_eq!(world.plan(&edited(&twice, "b: 2", "b: 5"))[1], pending);
        let removed = "more: 0 of 2: numbers has changed (1 removed: c)";
        assert_eq!(world.plan(&edited(&twice, ", c: 3", ""))[1], removed);
    }
}
