//! Toy stages on integers, and a store in memory on which tests of the engine plan and run them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef},
};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Executor, Options, Update, run};
use crate::engine::{
    Error, Result,
    pipeline::{Pipeline, Selection, Table, parse},
    plan::{Memory, Overrides, Planner, State, TablePlan, TableStates, TableWork, plan, published},
    source::Sources,
    stage::{
        Column, Context, Listing, Misfit, Open, Operator, Output, Port, Ports, Rows, SOURCE, Schemas, Sink, Stage,
        StageKind, Task,
    },
    store::{Event, Inventory, Store},
};

/// The toy stages; `plus` is `add` under another name.
const KINDS: &[StageKind] = &[
    StageKind::in_driver::<List>("list"),
    StageKind::in_driver::<Add>("add"),
    StageKind::in_driver::<Add>("plus"),
    StageKind::in_driver::<Sum>("sum"),
    StageKind::in_driver::<Sorted>("sorted"),
    StageKind::in_driver::<Whole>("whole"),
];

/// Listed rows, rows made from them one by one, and a table made of all of these.
pub(in crate::engine) const CHAIN: &str = "
tables:
  numbers: { stage: list, with: { rows: { a: 1, b: 2, c: 3 } } }
  more: { stage: add, from: [numbers], with: { plus: 10 } }
  total: { stage: sum, from: [more] }
";

/// Rows, and the sum of each with its pieces: `b` has none, and those of `d` have no row.
pub(in crate::engine) const PIECES: &str = "
tables:
  numbers: { stage: list, with: { rows: { a: 1, b: 2, c: 3 } } }
  pieces: { stage: list, with: { rows: { a@1: 10, a@2: 20, c@1: 30, d@1: 40 } } }
  sums: { stage: whole, from: [numbers, pieces] }
";

/// Replaces a part of a text, which must be there.
pub(in crate::engine) fn edited(text: &str, part: &str, by: &str) -> String {
    assert!(text.contains(part), "there is no `{part}` in{text}");
    text.replace(part, by)
}

/// Reads a pipeline of toy stages, with assignments as of `--set`.
pub(in crate::engine) fn read(text: &str, sets: &[&str]) -> Result<Pipeline, String> {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    parse("toy.yaml", "toy", text, KINDS, &[], &sets, &|_| None).map_err(|error| error.to_string())
}

/// Reads a pipeline file of toy stages.
pub(in crate::engine) fn load(path: &std::path::Path) -> Result<Pipeline, String> {
    crate::engine::pipeline::load(path, KINDS, &[], &[]).map_err(|error| error.to_string())
}

/// A store in memory.
pub(in crate::engine) struct World {
    pub(in crate::engine) store: Store,
}

impl World {
    pub(in crate::engine) fn new() -> Self {
        Self { store: Store::in_memory() }
    }

    /// Makes a store in which a pipeline has run.
    pub(in crate::engine) fn after(text: &str) -> Self {
        let world = Self::new();
        world.run(text).unwrap();
        world
    }

    /// Runs a pipeline in tasks of two rows. Returns each table that was not fresh, with its computed rows.
    pub(in crate::engine) fn run(&self, text: &str) -> Result<Vec<String>, String> {
        self.run_some(text, &Selection::default())
    }

    /// Runs some tables, as [`World::run`] does.
    pub(in crate::engine) fn run_some(&self, text: &str, selection: &Selection) -> Result<Vec<String>, String> {
        let pipeline = read(text, &[])?;
        let tables = selection.of(&pipeline).map_err(|error| error.to_string())?;
        let options = Options { task_rows: Some(2), tables, ..Options::default() };
        let mut computed = Vec::new();
        let mut listen = |event: &Event| {
            if let Event::TablePublished { table, computed: rows, .. } = event {
                computed.push(format!("{table} {rows}"));
            }
        };
        let ran = run(&pipeline, &self.store, &Sources::default(), &options, &NoWorkers, &mut listen);
        ran.map(|_| computed).map_err(|error| error.to_string())
    }

    /// Plans a pipeline. Returns the state of each table with its causes.
    pub(in crate::engine) fn plan(&self, text: &str) -> Vec<String> {
        self.plan_with(text, &Overrides::default())
    }

    pub(in crate::engine) fn plan_with(&self, text: &str, overrides: &Overrides) -> Vec<String> {
        let state = |state: &State| match state {
            State::Fresh { rows } => format!("fresh {rows}"),
            State::Blocked { on } => format!("blocked on {on}"),
            State::Stale { stale, rows, at_most, causes } => {
                let causes: Vec<String> = causes.iter().map(ToString::to_string).collect();
                format!("{}{stale} of {rows}: {}", if *at_most { "at most " } else { "" }, causes.join("; "))
            }
        };
        self.plans(text, overrides).iter().map(|plan| format!("{}: {}", plan.table, state(&plan.state))).collect()
    }

    /// Returns the memory that the plan states for a table.
    pub(in crate::engine) fn memory(&self, text: &str, table: &str) -> Option<Memory> {
        let plans = self.plans(text, &Overrides::default());
        plans.into_iter().find(|plan| plan.table == table).unwrap().memory
    }

    fn plans(&self, text: &str, overrides: &Overrides) -> Vec<TablePlan> {
        let pipeline = read(text, &[]).unwrap();
        let all: BTreeSet<String> = pipeline.tables.iter().map(|table| table.name.clone()).collect();
        let (sources, inventory) = (Sources::default(), Inventory::default());
        let planner = Planner { store: &self.store, sources: &sources, overrides, inventory: &inventory };
        plan(&planner, &pipeline, &all).unwrap()
    }

    /// Calls `look` with the work on a table whose inputs are published.
    pub(in crate::engine) fn work<T>(
        &self,
        text: &str,
        table: &str,
        look: impl FnOnce(&TableWork<'_>, &TableStates) -> T,
    ) -> T {
        let pipeline = read(text, &[]).unwrap();
        let states = published(&pipeline, &self.store).unwrap().views;
        let (sources, inventory, overrides) = (Sources::default(), Inventory::default(), Overrides::default());
        let planner = Planner { store: &self.store, sources: &sources, overrides: &overrides, inventory: &inventory };
        let table: &Table = pipeline.tables.iter().find(|other| other.name == table).unwrap();
        let identified = planner.identify(table, &states).unwrap().unwrap();
        look(&identified.complete(&planner, &states).unwrap(), &states)
    }
}

/// Toy stages run in the driver.
struct NoWorkers;

impl Executor for NoWorkers {
    fn slots(&self) -> usize {
        1
    }

    fn run(&self, _: &mut dyn Iterator<Item = Result<Task>>, _: &mut dyn FnMut(Update) -> Result<()>) -> Result<()> {
        unreachable!("toy stages run in the driver")
    }
}

fn schema(fields: &[(&str, DataType, bool)]) -> SchemaRef {
    let fields: Vec<Field> = fields.iter().map(|(name, of, null)| Field::new(*name, of.clone(), *null)).collect();
    Arc::new(Schema::new(fields))
}

fn number() -> Column {
    Column::new("number", DataType::Int64)
}

fn integers(column: &ArrayRef) -> &Int64Array {
    column.as_primitive::<Int64Type>()
}

/// Rows with a number each, and a note on some.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
struct List {
    /// Numbers by id. They count as the content of a place.
    #[garde(skip)]
    rows: BTreeMap<String, i64>,
    /// Notes by id, as of `rows`.
    #[garde(skip)]
    #[serde(default)]
    notes: BTreeMap<String, String>,
}

impl Stage for List {
    fn revision(&self) -> u32 {
        1
    }

    fn ports(&self) -> Ports {
        Ports::Named(Vec::new())
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn output(&self, _: &Schemas) -> Result<SchemaRef, Misfit> {
        let number = ("number", DataType::Int64, false);
        Ok(schema(&[("id", DataType::Utf8, false), number, ("note", DataType::Utf8, true)]))
    }

    fn locations(&self) -> &'static [&'static str] {
        &["rows", "notes"]
    }

    fn list(&self, _: &Sources) -> Result<Option<Listing>> {
        let notes: Vec<Option<&String>> = self.rows.keys().map(|id| self.notes.get(id)).collect();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(self.rows.keys())),
            Arc::new(Int64Array::from_iter_values(self.rows.values().copied())),
            Arc::new(StringArray::from_iter(notes)),
        ];
        Ok(Some(RecordBatch::try_new(self.output(&Schemas::default())?, columns)?.into()))
    }
}

impl Open for List {
    fn open(self, _: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(self))
    }
}

impl Operator for List {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(usize::MAX)? {
            out.write_columns(batch.rows(SOURCE)?.columns().to_vec())?;
        }
        Ok(())
    }
}

/// Numbers plus a constant, plus those of other rows with the same ids, plus the number of a whole table.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default)]
struct Add {
    /// The constant.
    #[garde(skip)]
    plus: i64,
    /// A number whose rows fail.
    #[garde(skip)]
    fails: Option<i64>,
    /// The revision of the stage, which other stages have in their code.
    #[garde(skip)]
    revision: u32,
    /// True if the rows state their model.
    #[garde(skip)]
    states_model: bool,
    #[garde(skip)]
    #[serde(skip)]
    total: i64,
}

impl Default for Add {
    fn default() -> Self {
        Self { plus: 0, fails: None, revision: 1, states_model: false, total: 0 }
    }
}

impl Stage for Add {
    fn revision(&self) -> u32 {
        self.revision
    }

    fn ports(&self) -> Ports {
        let (others, total) = (Port::rows("others", [number()]), Port::table("total", [number()]));
        Ports::Named(vec![Port::rows("numbers", [number()]), others.optional(), total.optional()])
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn output(&self, _: &Schemas) -> Result<SchemaRef, Misfit> {
        Ok(schema(&[("id", DataType::Utf8, false), ("number", DataType::Int64, false)]))
    }

    fn states_model(&self) -> bool {
        self.states_model
    }

    fn memory(&self, _: &Schemas, _: u64, whole: &BTreeMap<&str, u64>) -> Option<u64> {
        Some(whole.get("total")? * size_of::<i64>() as u64)
    }

    // A revision is no parameter, so it is kept out of their identity.
    fn locations(&self) -> &'static [&'static str] {
        &["revision"]
    }
}

impl Open for Add {
    fn open(mut self, context: &Context) -> Result<Box<dyn Operator>> {
        let total = context.tables.get("total").and_then(|total| total.column_by_name("number"));
        self.total = total.map_or(0, |total| integers(total).value(0));
        assert_eq!(context.model.is_some(), self.states_model);
        Ok(Box::new(self))
    }
}

impl Operator for Add {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(1)? {
            let number = integers(batch.column("numbers", "number")?).value(0);
            if self.fails == Some(number) {
                out.fail(&batch.ids[0], "it is to fail")?;
                continue;
            }
            let other = batch.port("others").and_then(|others| others.column_by_name("number"));
            let other = other.map_or(0, |other| integers(other).value(0));
            out.write_rows(&batch, vec![Arc::new(Int64Array::from(vec![number + self.plus + self.total + other]))])?;
        }
        Ok(())
    }
}

/// The sum of all numbers.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
struct Sum {}

impl Stage for Sum {
    fn revision(&self) -> u32 {
        1
    }

    fn ports(&self) -> Ports {
        Ports::Named(vec![Port::rows("numbers", [number()])])
    }

    fn makes(&self) -> Output {
        Output::Table
    }

    fn memory(&self, _: &Schemas, rows: u64, _: &BTreeMap<&str, u64>) -> Option<u64> {
        Some(rows * size_of::<i64>() as u64)
    }

    fn output(&self, _: &Schemas) -> Result<SchemaRef, Misfit> {
        Ok(schema(&[("number", DataType::Int64, false)]))
    }
}

impl Open for Sum {
    fn open(self, _: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(self))
    }
}

impl Operator for Sum {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let mut sum = 0;
        while let Some(batch) = rows.next(usize::MAX)? {
            sum += integers(batch.column("numbers", "number")?).values().iter().sum::<i64>();
        }
        out.write_columns(vec![Arc::new(Int64Array::from(vec![sum]))])
    }
}

/// The rows of a table that is read whole.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
struct Sorted {}

impl Stage for Sorted {
    fn revision(&self) -> u32 {
        1
    }

    fn ports(&self) -> Ports {
        Ports::Named(vec![Port::table("numbers", [Column::new("id", DataType::Utf8), number()])])
    }

    fn makes(&self) -> Output {
        Output::Rows
    }

    fn output(&self, _: &Schemas) -> Result<SchemaRef, Misfit> {
        Ok(schema(&[("id", DataType::Utf8, false), ("number", DataType::Int64, false)]))
    }
}

impl Open for Sorted {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Copied(context.tables["numbers"].clone())))
    }
}

/// The opened [`Sorted`].
struct Copied(RecordBatch);

impl Operator for Copied {
    fn run(&mut self, _: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        out.write_columns(self.0.columns().to_vec())
    }
}

/// Numbers plus those of their pieces.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
struct Whole {}

impl Stage for Whole {
    fn revision(&self) -> u32 {
        1
    }

    fn ports(&self) -> Ports {
        let others = Port::pieces("others", [number()]).optional();
        Ports::Named(vec![Port::rows("numbers", [number()]), Port::pieces("pieces", [number()]), others])
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn output(&self, _: &Schemas) -> Result<SchemaRef, Misfit> {
        Ok(schema(&[("id", DataType::Utf8, false), ("number", DataType::Int64, false)]))
    }
}

impl Open for Whole {
    fn open(self, _: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(self))
    }
}

impl Operator for Whole {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        while let Some(batch) = rows.next(1)? {
            let number = integers(batch.column("numbers", "number")?).value(0);
            let pieces = batch.pieces()?;
            let sum = |port: &str| {
                let read = pieces.read(port, pieces.of(0))?;
                Ok::<i64, Error>(integers(read.column(0)).values().iter().sum())
            };
            let sum = number + sum("pieces")? + sum("others").unwrap_or(0);
            out.write_rows(&batch, vec![Arc::new(Int64Array::from(vec![sum]))])?;
        }
        Ok(())
    }
}
