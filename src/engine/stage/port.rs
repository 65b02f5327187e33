//! Ports: what a stage reads, and what it makes.

use std::{collections::BTreeMap, fmt::Debug};

use arrow::datatypes::SchemaRef;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::Result;

/// Whether a stage makes one row per row that it reads, or one table from all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// One row per joined input row, with the same id in the first column. Rows are cached one by one.
    RowPerRow,
    /// One table from all rows, with an id of its own in the first column of each row, so that other stages can read it row
    /// by row: filters, joins. Cached as a whole.
    Rows,
    /// One table from all rows, without ids: training, aggregates. Cached as a whole.
    Table,
}

impl Output {
    /// Whether the first column identifies a row.
    pub fn has_ids(self) -> bool {
        self != Self::Table
    }
}

/// How a stage reads an input table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Row by row, joined with the stage's other `Rows` inputs on the id in the first column.
    Rows,
    /// As a whole, before the first row: weights.
    Table,
}

/// One input of a stage.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// What the input is to the stage; the standard pipeline calls the table so too.
    pub name: &'static str,
    /// The columns that the stage reads. Nothing else of the table can change its output.
    pub columns: &'static [&'static str],
    /// Columns that it reads too where the table has them.
    pub also: &'static [&'static str],
    /// Row by row or as a whole.
    pub reads: Reads,
    /// Whether `from:` may leave it out. Optional ports come last.
    pub optional: bool,
}

impl Port {
    /// An input read row by row.
    pub const fn rows(name: &'static str, columns: &'static [&'static str]) -> Self {
        Self { name, columns, also: &[], reads: Reads::Rows, optional: false }
    }

    /// An input read as a whole.
    pub const fn table(name: &'static str, columns: &'static [&'static str]) -> Self {
        Self { name, columns, also: &[], reads: Reads::Table, optional: false }
    }

    /// The same input, of which more columns are read where the table has them.
    pub const fn also(self, also: &'static [&'static str]) -> Self {
        Self { also, ..self }
    }

    /// The same input, where `from:` may leave it out.
    pub const fn optional(self) -> Self {
        Self { optional: true, ..self }
    }
}

/// What `from:` may name.
#[derive(Clone, Copy, Debug)]
pub enum Ports {
    /// These inputs, in this order or by name.
    Named(&'static [Port]),
    /// Any tables, each under its own name and with the columns that [`Stage::columns`] says. A stage that makes a row per row
    /// reads those that have ids row by row; all others are read whole.
    Any,
}

/// The declared schemas of a stage's inputs.
#[derive(Clone, Debug, Default)]
pub struct Schemas {
    /// The schemas by port.
    pub all: BTreeMap<String, SchemaRef>,
    /// The ports that are read row by row, in the order of `from:`.
    pub by_row: Vec<String>,
}

impl Schemas {
    /// The schema at a port, if `from:` names a table for it.
    pub fn get(&self, port: &str) -> Option<&SchemaRef> {
        self.all.get(port)
    }

    /// The field `column` at `port`; the pipeline loader has checked that it is there.
    pub fn field(&self, port: &str, column: &str) -> Result<&arrow::datatypes::Field, String> {
        let schema =
            self.get(port).ok_or_else(|| format!("the stage reads a table `{port}` and `from:` names none"))?;
        schema.field_with_name(column).map_err(|_| {
            let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
            format!("`{port}` has no column `{column}`; it has {}", names.join(", "))
        })
    }
}

/// The port of rows that a stage without inputs listed.
pub const SOURCE: &str = "source";
