//! The user's own program as a stage, in any language, over Arrow or Parquet.

mod answer;
mod program;
mod rows;
mod table;

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::{Schema, SchemaRef};
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::types;
use crate::engine::{
    Result,
    stage::{Context, Misfit, Open, Operator, Output, Ports, Schemas, Stage},
    store::{is_volatile, volatile_misuse},
};

/// The name in `run` that stands for the file to which a program writes its table.
const OUTPUT: &str = "output";
/// The column with the reason why a row failed.
const ERROR: &str = "_error";

/// Runs a program of one's own, in any language: row by row over Arrow streams, or table by table over Parquet files.
///
/// `makes: row_per_row`: the program reads an Arrow IPC stream from its standard input: the id first, then `columns`
/// of the tables, joined on the id. For each batch it writes one batch to its standard output, an Arrow IPC stream
/// too, with the same ids in any order and the columns of `output`, and flushes. A text column `_error` may say why a
/// row failed.
///
/// `makes: table` or `rows`: each table it reads is a Parquet file, whose path stands in `run` as `{table}`; it
/// writes a Parquet file to `{output}`.
///
/// Its standard error is logged. The words of `run` and the files are part of the table's identity; the
/// environment and the programs on the `PATH` are not.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "run": "python3 histogram.py", "output": { "histogram": "float32[16]" } }]))]
pub struct Command {
    /// The program and its arguments: a list, or a line that is split as a shell does it. No shell is started.
    #[garde(skip)]
    pub run: Words,
    /// Files whose change reruns the stage beside those that `run` names: what the program imports, its weights.
    #[garde(skip)]
    #[serde(default)]
    pub files: Vec<String>,
    /// The columns that it reads, as `column` or `table.column`; by default all except those with the place or the
    /// time of a row (`uri`). Only a change of these columns reruns it.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<String>>,
    /// The columns it writes and their types, such as `score: float32`, `map: "float32[224,224]"`, `note: utf8?`. With
    /// `makes: row_per_row` the id stands before them by itself.
    #[garde(skip)]
    pub output: Map<String, Value>,
    /// The kind of table that it makes. With `rows` the first column identifies a row.
    #[garde(skip)]
    #[serde(default = "row_per_row")]
    pub makes: Output,
}

fn row_per_row() -> Output {
    Output::RowPerRow
}

/// A program and its arguments.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Line", into = "Vec<String>")]
#[schemars(with = "Line")]
pub struct Words(Vec<String>);

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a line of text or a list of words")]
enum Line {
    Line(String),
    Words(Vec<String>),
}

impl TryFrom<Line> for Words {
    type Error = String;

    fn try_from(line: Line) -> Result<Self, String> {
        let words = match line {
            Line::Words(words) => words,
            Line::Line(line) => shlex::split(&line).ok_or_else(|| format!("`{line}` has a quote without an end"))?,
        };
        if words.is_empty() { Err("names no program".into()) } else { Ok(Self(words)) }
    }
}

impl From<Words> for Vec<String> {
    fn from(words: Words) -> Self {
        words.0
    }
}

impl Command {
    /// Returns the columns that the program reads, as `(table, column)`, without the ids.
    fn reads(&self, inputs: &Schemas) -> Result<Vec<(String, String)>, Misfit> {
        let whole = inputs.all.keys().filter(|name| !inputs.by_row.contains(name));
        let all: Vec<(String, String)> = inputs
            .by_row
            .iter()
            .chain(whole)
            .filter_map(|table| Some((table, inputs.get(table)?)))
            .flat_map(|(table, schema)| schema.fields().iter().map(|field| (table.clone(), field.name().clone())))
            .collect();
        let is = |(table, column): &(String, String), name: &String| {
            name == column || name.split_once('.') == Some((table.as_str(), column.as_str()))
        };
        let is_volatile = |(table, column): &(String, String)| inputs.field(table, column).is_ok_and(is_volatile);
        for name in self.columns.iter().flatten() {
            if all.iter().any(|column| is(column, name) && is_volatile(column)) {
                return Err(Misfit::parameter("columns", volatile_misuse(name)));
            }
        }
        if let Some(name) = self.columns.iter().flatten().find(|name| !all.iter().any(|column| is(column, name))) {
            let all: Vec<String> = all.iter().map(|(table, column)| format!("{table}.{column}")).collect();
            return Err(Misfit::parameter(
                "columns",
                format!("no table has a column `{name}`; there are {}", all.join(", ")),
            ));
        }
        let chosen = |column: &(String, String)| {
            self.columns.as_ref().is_none_or(|names| names.iter().any(|name| is(column, name)))
        };
        let is_id = |(table, column): &(String, String)| {
            inputs.by_row.contains(table) && inputs.get(table).is_some_and(|schema| schema.field(0).name() == column)
        };
        Ok(all.into_iter().filter(|column| chosen(column) && !is_id(column) && !is_volatile(column)).collect())
    }

    fn names(&self, placeholder: &str) -> bool {
        let placeholder = format!("{{{placeholder}}}");
        self.run.0.iter().any(|word| word.contains(&placeholder))
    }

    /// Returns the words of `run` with names replaced by paths.
    fn words(&self, paths: &[(String, String)]) -> Vec<String> {
        let fill = |word: &String| {
            paths.iter().fold(word.clone(), |word, (name, path)| word.replace(&format!("{{{name}}}"), path))
        };
        self.run.0.iter().map(fill).collect()
    }

    fn check(&self, inputs: &Schemas) -> Result<(), Misfit> {
        if self.output.is_empty() {
            return Err(Misfit::parameter("output", "a table has at least one column"));
        }
        if self.output.contains_key(ERROR) {
            return Err(Misfit::parameter(
                "output",
                format!("`{ERROR}` is where a program says why a row failed, and is not declared"),
            ));
        }
        if self.makes == Output::RowPerRow && inputs.by_row.is_empty() {
            return Err(Misfit::parameter(
                "makes",
                "a row per row needs a table with row ids in `from:`; write `makes: table` for a program \
                        that makes a whole table",
            ));
        }
        if self.makes == Output::RowPerRow && self.names(OUTPUT) {
            return Err(Misfit::parameter(
                "run",
                "a program that makes a row per row answers on its standard output; `{output}` goes with \
                        `makes: table` and `makes: rows`",
            ));
        }
        if self.makes != Output::RowPerRow && !self.names(OUTPUT) {
            return Err(Misfit::parameter(
                "run",
                "a program that makes a table is told by `{output}` where to write its Parquet file",
            ));
        }
        let whole = inputs.all.keys().filter(|name| !inputs.by_row.contains(name));
        let columns = self.reads(inputs)?;
        for table in whole {
            if table == OUTPUT {
                return Err(Misfit::input(
                    OUTPUT,
                    "`{output}` is where the program writes; give the table that it reads another name: \
                            `from: {name: output}`",
                ));
            }
            if !self.names(table) {
                return Err(Misfit::parameter(
                    "run",
                    format!("the program reads `{table}` as a Parquet file; `{{{table}}}` stands for its path"),
                ));
            }
            if !columns.iter().any(|(of, _)| of == table) {
                return Err(Misfit::parameter(
                    "columns",
                    format!("none is of `{table}`, which the program reads as a Parquet file"),
                ));
            }
        }
        Ok(())
    }
}

impl Stage for Command {
    fn revision(&self) -> u32 {
        1
    }

    fn ports(&self) -> Ports {
        Ports::Any
    }

    fn locations(&self) -> &'static [&'static str] {
        &["files"]
    }

    fn is_bound(&self) -> bool {
        true
    }

    fn makes(&self) -> Output {
        self.makes
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        self.check(inputs)?;
        let mut fields = types::fields(&self.output).map_err(|e| Misfit::parameter("output", e))?;
        if self.makes == Output::RowPerRow {
            let id = inputs.by_row.first().and_then(|table| inputs.get(table)).map(|schema| schema.field(0).clone());
            if let Some(id) = &id
                && self.output.contains_key(id.name())
            {
                return Err(Misfit::parameter(
                    "output",
                    format!("the id `{}` stands before the columns by itself", id.name()),
                ));
            }
            fields.splice(0..0, id);
        }
        Ok(Arc::new(Schema::new(fields)))
    }

    fn columns(&self, inputs: &Schemas) -> Result<BTreeMap<String, Vec<String>>, Misfit> {
        let mut columns: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (table, schema) in inputs.by_row.iter().filter_map(|table| Some((table, inputs.get(table)?))) {
            columns.insert(table.clone(), vec![schema.field(0).name().clone()]);
        }
        self.reads(inputs)?.into_iter().for_each(|(table, column)| columns.entry(table).or_default().push(column));
        Ok(columns)
    }

    /// Returns the files in `files` and the words of `run` that are files, so that a change of the program changes
    /// the stage.
    fn files(&self) -> Result<Vec<String>, Misfit> {
        let mut files = self.files.clone();
        for word in &self.run.0 {
            if !files.contains(word) && std::path::Path::new(word).is_file() {
                files.push(word.clone());
            }
        }
        Ok(files)
    }
}

impl Open for Command {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        Ok(match self.makes {
            Output::RowPerRow => Box::new(rows::RowByRow::open(&self, context)?),
            Output::Rows | Output::Table => Box::new(table::Whole::open(&self, context)?),
        })
    }
}
