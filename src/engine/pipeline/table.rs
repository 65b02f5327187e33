//! The result of reading YAML: a [`Pipeline`] whose names are resolved, parameters checked and schemas matched before
//! anything runs. Errors have line and column.

use std::{borrow::Borrow, collections::BTreeSet, sync::Arc};

use arrow::datatypes::SchemaRef;
use serde_json::Value;

use super::{filter::Filter, sweep};
use crate::engine::{
    Digest, Result, Secrets, Variant,
    stage::{Output, Reads, Schemas, Stage, StageKind},
};

/// A checked pipeline: tables from top to bottom, each made from tables above it.
#[derive(Debug)]
pub struct Pipeline {
    /// Its name: `name:`, or the file's.
    pub name: String,
    /// The store that the file asks for.
    pub store: Option<String>,
    /// The tables in file order. A swept table is represented by all its instances, in the order of the combinations.
    pub tables: Vec<Table>,
    /// All combinations of swept values; empty without a sweep.
    pub(in crate::engine) combinations: Vec<Variant>,
    /// The slots of all tables that the file declares, including those that were not chosen to run.
    pub(in crate::engine) slots: BTreeSet<String>,
    /// The digest of the declared tables. Equal pipelines have equal digests.
    pub digest: Digest,
    /// Values from the environment, which are neither stored nor shown.
    pub secrets: Arc<Secrets>,
}

impl Pipeline {
    /// Keeps the tables of the combinations that match the `axis=value` choices: any of the given values of one axis,
    /// and all of the given axes.
    pub fn only(&mut self, choices: &[String]) -> Result<()> {
        if choices.is_empty() {
            return Ok(());
        }
        let chosen = sweep::choose(&self.combinations, choices)?;
        self.tables.retain(|table| chosen.iter().any(|combination| table.variant.is_part_of(combination)));
        Ok(())
    }

    /// Returns the declared schemas that a table of the pipeline is made from.
    pub fn schemas(&self, table: &Table) -> Schemas {
        schemas(&table.inputs, &self.tables)
    }

    /// Returns true if the file declares the table kept in this slot, even if it was not chosen to run.
    pub fn declares(&self, slot: &str) -> bool {
        self.slots.contains(slot)
    }
}

/// Returns the digest of the declarations of tables.
pub(in crate::engine) fn digest(tables: &[Table]) -> Digest {
    let says = |table: &Table| {
        serde_json::json!({
            "table": table.name,
            "stage": table.kind.name,
            "revision": table.stage.revision(),
            "from": table.inputs.iter().map(|input| (&input.port, &input.table)).collect::<Vec<_>>(),
            "with": table.stage.identity(),
            "where": table.filter.as_ref().map(|f| &f.text),
            "on_error": table.on_error,
        })
    };
    Digest::of(Value::from_iter(tables.iter().map(says)).to_string().as_bytes())
}

/// A table as its pipeline declares it.
pub struct Table {
    /// The name, with the swept values that it depends on.
    pub name: String,
    /// The name as declared, which SQL sees.
    pub declared: String,
    /// The swept values that it depends on.
    pub variant: Variant,
    /// The kind of stage that makes it.
    pub kind: StageKind,
    /// The stage with its parameters.
    pub stage: Arc<dyn Stage>,
    /// The inputs by port.
    pub inputs: Vec<Input>,
    /// The names of the tables that make up its model, such as weights and thresholds: those that its stage reads whole, and
    /// those that the stages on the way to its rows do.
    pub model: BTreeSet<String>,
    /// The predicate that selects rows of the first input; `None` selects all.
    pub filter: Option<Filter>,
    /// The handling of rows that fail.
    pub on_error: OnError,
    /// The declared schema of its rows.
    pub output: SchemaRef,
    /// Values from the environment, which are neither stored nor shown.
    pub secrets: Arc<Secrets>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {:?}", self.name, self.stage)
    }
}

impl Table {
    /// Returns the name under which the store keeps the table's versions.
    pub fn slot(&self) -> String {
        self.variant.slot(&self.declared)
    }

    /// Returns the kind of output that its stage makes.
    pub fn makes(&self) -> Output {
        self.stage.makes()
    }

    /// Returns true if its rows are cached one by one.
    pub fn is_keyed(&self) -> bool {
        self.makes() == Output::RowPerRow
    }
}

/// An input of a table.
#[derive(Clone, Debug)]
pub struct Input {
    /// The name of the port, under which the stage reads it.
    pub port: String,
    /// The table's name.
    pub table: String,
    /// The columns that the stage reads.
    pub columns: Vec<String>,
    /// The way it is read: row by row, by the pieces of rows, or whole.
    pub reads: Reads,
}

/// Returns the declared schemas that a stage reads from inputs, of which each is one of the tables.
pub(super) fn schemas<T: Borrow<Table>>(inputs: &[Input], tables: &[T]) -> Schemas {
    let named = |input: &Input| tables.iter().map(T::borrow).find(|table| table.name == input.table);
    let schema = |input: &Input| Some((input.port.clone(), named(input)?.output.clone()));
    let by_row = inputs.iter().filter(|input| input.reads == Reads::Rows).map(|input| input.port.clone());
    Schemas { all: inputs.iter().filter_map(schema).collect(), by_row: by_row.collect() }
}

/// Returns the names of the tables that make up the model of a table with these inputs; see [`Table::model`].
pub(super) fn model(makes: Output, inputs: &[Input], above: &[&Table]) -> BTreeSet<String> {
    let mut model = BTreeSet::new();
    for input in inputs {
        let Some(read) = above.iter().find(|table| table.name == input.table) else { continue };
        // A stage that makes its table as a whole, such as a query, combines the rows of the tables with ids that it reads.
        let gives_rows = input.reads != Reads::Table || (makes != Output::RowPerRow && read.makes().has_ids());
        if gives_rows {
            model.extend(read.model.iter().cloned());
        } else {
            model.insert(read.name.clone());
        }
    }
    model
}

/// The handling of rows that fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The table is not published; the rows that succeeded are kept for the next run.
    #[default]
    Fail,
    /// The row is left out and recorded in the `errors` table.
    Skip,
}

#[cfg(test)]
mod tests {
    use crate::engine::run::toys::{CHAIN, read};

    /// Adds tables to [`CHAIN`]. Returns the model of the table `last`.
    fn model(tables: &str) -> Vec<String> {
        let pipeline = read(&format!("{CHAIN}{tables}"), &[]).unwrap();
        let last = pipeline.tables.into_iter().find(|table| table.name == "last").unwrap();
        last.model.into_iter().collect()
    }

    #[test]
    fn model_has_the_tables_that_are_read_whole_on_the_way() {
        let shifted = "  shifted: { stage: add, from: { numbers: more, total: total } }\n";
        assert_eq!(model("  last: { stage: add, from: [more] }\n"), [""; 0]);
        assert_eq!(model("  last: { stage: add, from: { numbers: more, total: total } }\n"), ["total"]);
        assert_eq!(model(&format!("{shifted}  last: {{ stage: add, from: [shifted] }}\n")), ["total"]);
        let other = "  other: { stage: sum, from: [shifted] }\n  last: { stage: add, from: { numbers: shifted, total: other } }\n";
        assert_eq!(model(&format!("{shifted}{other}")), ["other", "total"]);
    }

    #[test]
    fn rows_that_a_whole_table_combines_are_no_model() {
        let tables = "
  shifted: { stage: add, from: { numbers: more, total: total } }
  sorted: { stage: sorted, from: [shifted] }
  last: { stage: add, from: [sorted] }
";
        assert_eq!(model(tables), ["total"]);
    }
}
