//! YAML -> [`Pipeline`]: names resolved, parameters checked, schemas matched, before anything runs. Errors have line and column.

use std::{collections::BTreeSet, sync::Arc};

use arrow::datatypes::SchemaRef;
use serde_json::Value;

use super::{filter::Filter, sweep};
use crate::engine::{
    Digest, Result, Secrets, Variant,
    stage::{Output, Reads, Stage, StageKind},
};

/// A checked pipeline: tables from top to bottom, each made from tables above it.
#[derive(Debug)]
pub struct Pipeline {
    /// Its name: `name:`, or the file's.
    pub name: String,
    /// The store that the file asks for.
    pub store: Option<String>,
    /// The tables in file order; of a swept one every instance, in the order of the combinations.
    pub tables: Vec<Table>,
    /// Every combination of swept values; none without a sweep.
    pub(in crate::engine) combinations: Vec<Variant>,
    /// The slots of all tables that the file declares, whether or not they were chosen to run.
    pub(in crate::engine) slots: BTreeSet<String>,
    /// Names what the file says: equal pipelines have equal digests.
    pub digest: Digest,
    /// Values from the environment that are neither kept nor shown.
    pub secrets: Arc<Secrets>,
}

impl Pipeline {
    /// Keeps the tables of the combinations that `axis=value` choices fit: of one axis any, of several axes all.
    pub fn only(&mut self, choices: &[String]) -> Result<()> {
        if choices.is_empty() {
            return Ok(());
        }
        let chosen = sweep::choose(&self.combinations, choices)?;
        self.tables.retain(|table| chosen.iter().any(|combination| table.variant.is_part_of(combination)));
        Ok(())
    }

    /// Whether the file declares the table kept in this slot, chosen to run or not.
    pub fn declares(&self, slot: &str) -> bool {
        self.slots.contains(slot)
    }
}

/// The digest of all that tables say of themselves.
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
    /// What makes it.
    pub kind: StageKind,
    /// The stage with its parameters.
    pub stage: Arc<dyn Stage>,
    /// The inputs by port.
    pub inputs: Vec<Input>,
    /// Which rows of the first input take part.
    pub filter: Option<Filter>,
    /// What becomes of a row that fails.
    pub on_error: OnError,
    /// The declared schema of its rows.
    pub output: SchemaRef,
    /// Values from the environment that are neither kept nor shown.
    pub secrets: Arc<Secrets>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {:?}", self.name, self.stage)
    }
}

impl Table {
    /// Where the store keeps its versions.
    pub fn slot(&self) -> String {
        self.variant.slot(&self.declared)
    }

    /// What its stage makes.
    pub fn makes(&self) -> Output {
        self.stage.makes()
    }

    /// Whether its rows are cached one by one.
    pub fn is_keyed(&self) -> bool {
        self.makes() == Output::RowPerRow
    }
}

/// An input of a table.
#[derive(Clone, Debug)]
pub struct Input {
    /// What it is to the stage.
    pub port: String,
    /// The table's name.
    pub table: String,
    /// The columns that the stage reads.
    pub columns: Vec<String>,
    /// Row by row or whole.
    pub reads: Reads,
}

/// What becomes of a row that fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The table is not published; the rows that succeeded are kept for the next run.
    #[default]
    Fail,
    /// The row is left out and recorded in the `errors` table.
    Skip,
}
