//! Text files: opens CSV and JSON lines and guesses the types of their columns.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use arrow::{
    array::{Array, RecordBatch},
    csv,
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
    json,
};
use serde_json::Value;

use super::values::{self, BATCH_ROWS, Column};
use crate::{
    engine::{stage::Misfit, store::Note},
    tables::text_rows::{open_text, other_separator, separator_advice},
};

/// The number of rows from which the types of columns are guessed.
const GUESS_ROWS: usize = 10_000;
/// The separator between columns if the file's extension implies none.
const COMMA: char = ',';

/// A text file as a table.
pub(super) struct Text<'a> {
    /// The file as errors name it.
    pub(super) name: &'a str,
    pub(super) path: &'a Path,
    /// The column that identifies a row, which is text.
    pub(super) id: &'a str,
    /// The declared columns.
    pub(super) types: Vec<Field>,
}

/// A file that is open: its schema, its rows in the types of the table, and notes on what was guessed.
pub(super) struct Opened {
    pub(super) schema: SchemaRef,
    pub(super) rows: Batches,
    pub(super) notes: Vec<Note>,
}

/// Rows in the types of the table, or the error in the file.
pub(super) type Batches = Box<dyn Iterator<Item = Result<RecordBatch, Misfit>>>;

impl Text<'_> {
    fn failed(&self, error: impl std::fmt::Display) -> Misfit {
        Misfit::parameter("path", format!("cannot read {}: {error}", self.name))
    }

    fn open(&self) -> Result<BufReader<File>, Misfit> {
        open_text(self.path).map_err(|e| self.failed(e))
    }

    /// Opens CSV with a header; `separator` is the declared one, if any.
    pub(super) fn csv(&self, separator: Option<char>) -> Result<Opened, Misfit> {
        let between = separator.unwrap_or(COMMA);
        let delimiter = u8::try_from(between)
            .map_err(|_| Misfit::parameter("separator", format!("`{between}` is not in ASCII")))?;
        let format = csv::reader::Format::default().with_header(true).with_delimiter(delimiter);
        let guess = format.infer_schema(self.open()?, Some(GUESS_ROWS));
        let hint = |error: Misfit| {
            let other = if separator.is_none() { other_separator(self.path, between) } else { None };
            Misfit { message: error.message + &other.map(separator_advice).unwrap_or_default(), ..error }
        };
        let (guess, _) = guess.map_err(|e| hint(self.failed(e)))?;
        if guess.fields().is_empty() {
            return Err(self.failed("it is empty; a CSV file begins with the names of its columns"));
        }
        if guess.column_with_name(self.id).is_none() {
            return Err(hint(self.without_id(&guess)));
        }
        if let Some(given) = self.types.iter().find(|given| guess.column_with_name(given.name()).is_none()) {
            let names: Vec<&str> = guess.fields().iter().map(|field| field.name().as_str()).collect();
            let message = format!("{} has no column `{}`; it has {}", self.name, given.name(), names.join(", "));
            return Err(Misfit::parameter("types", message));
        }
        let mut columns = self.columns(&guess);
        let reader = |columns: &[Column], rows| {
            let format = csv::ReaderBuilder::new(values::as_read(columns)).with_header(true).with_delimiter(delimiter);
            format.with_batch_size(rows).build(self.open()?).map_err(|e| self.failed(e))
        };
        let mut notes = Vec::new();
        match reader(&columns, GUESS_ROWS)?.next() {
            Some(rows) => {
                let kept = values::refine(&mut columns, &rows.map_err(|e| self.failed(e))?);
                let what = "columns are text, since as numbers or times some values would be changed";
                notes.extend((!kept.is_empty()).then(|| Note::about(what, kept)));
                notes.extend(self.without_values(&guess));
            }
            None => notes.push(Note::new("the file has names of columns and no rows")),
        }
        let rows = reader(&columns, BATCH_ROWS)?;
        Ok(self.opened(columns, rows, notes))
    }

    /// Opens JSON lines.
    pub(super) fn json(&self) -> Result<Opened, Misfit> {
        let lines = self.lines()?.take(GUESS_ROWS);
        let guess =
            json::reader::infer_json_schema_from_iterator(lines.map(|line| line.map_err(ArrowError::JsonError)));
        let guess = guess.map_err(|e| match e {
            ArrowError::JsonError(what) => self.failed(what),
            other => self.failed(other),
        })?;
        let columns = self.columns(&guess);
        if columns.iter().all(|column| column.field.name() != self.id) {
            return Err(self.without_id(&values::schema(&columns)));
        }
        let reader = json::ReaderBuilder::new(values::as_read(&columns)).with_batch_size(BATCH_ROWS);
        // Numbers keep the text in which they are written, and a column that appears only later is an error instead
        // of being lost.
        let reader = reader.with_coerce_primitive(true).with_strict_mode(true);
        let rows = reader.build(self.open()?).map_err(|e| self.failed(e))?;
        let mut lines = self.lines()?;
        // The reader does not report the line of an error, so it is determined here.
        let rows = rows
            .map(move |rows| rows.map_err(|error| lines.find_map(Result::err).map_or(error, ArrowError::JsonError)));
        Ok(self.opened(columns, rows, self.without_values(&guess).into_iter().collect()))
    }

    fn opened(
        &self,
        columns: Vec<Column>,
        rows: impl Iterator<Item = Result<RecordBatch, ArrowError>> + 'static,
        notes: Vec<Note>,
    ) -> Opened {
        Opened { schema: values::schema(&columns), rows: converted(self.name, columns, rows), notes }
    }

    /// Returns a note on columns that are text because they have no value from which a type could be guessed.
    fn without_values(&self, guess: &Schema) -> Option<Note> {
        let is_declared = |name: &String| self.types.iter().any(|given| given.name() == name);
        let empty = guess.fields().iter().filter(|field| *field.data_type() == DataType::Null);
        let names: Vec<String> = empty.map(|field| field.name().clone()).filter(|name| !is_declared(name)).collect();
        (!names.is_empty()).then(|| Note::about("columns have no value in the first rows, and are text", names))
    }

    /// Returns the lines of a JSON-lines file. An error names the line that is not JSON.
    fn lines(&self) -> Result<impl Iterator<Item = Result<Value, String>> + use<>, Misfit> {
        let lines = self.open()?.lines().enumerate();
        let lines = lines.filter(|(_, line)| line.as_ref().map_or(true, |line| !line.trim().is_empty()));
        Ok(lines.map(|(at, line)| {
            let line = line.map_err(|e| format!("line {}: {e}", at + 1))?;
            serde_json::from_str(&line).map_err(|e| broken_line(at + 1, &line, &e))
        }))
    }

    /// Returns the columns of the table, as declared or else as guessed. Ids are text.
    fn columns(&self, guess: &Schema) -> Vec<Column> {
        let mut columns: Vec<Column> = Vec::new();
        for field in guess.fields() {
            columns.push(match self.types.iter().find(|given| given.name() == field.name()) {
                Some(given) => Column { field: given.clone(), is_guessed: false },
                None if field.name() == self.id && !field.data_type().is_nested() => {
                    Column { field: Field::new(self.id, DataType::Utf8, true), is_guessed: true }
                }
                None => {
                    let field = Field::new(field.name(), values::known(field.data_type()), true);
                    Column { field, is_guessed: true }
                }
            });
        }
        // Declared columns of a JSON file that none of the rows read for guessing has.
        let hidden = self.types.iter().filter(|given| guess.column_with_name(given.name()).is_none());
        columns.extend(hidden.map(|given| Column { field: given.clone(), is_guessed: false }));
        columns
    }

    fn without_id(&self, guess: &Schema) -> Misfit {
        values::without_id(self.name, self.id, guess)
    }
}

/// Converts rows to the types of the table.
fn converted(
    name: &str,
    columns: Vec<Column>,
    rows: impl Iterator<Item = Result<RecordBatch, ArrowError>> + 'static,
) -> Batches {
    let (name, schema, mut before) = (name.to_owned(), values::schema(&columns), 0);
    Box::new(rows.map(move |rows| {
        let failed = |what: String| Misfit::parameter("path", format!("cannot read {name}: {what}"));
        let types = "; `types` says what a column is, such as `zip: utf8?`";
        let rows = rows.map_err(|e| match e {
            ArrowError::JsonError(what) if what.starts_with("line ") => failed(what),
            other => failed(format!("{other}{types}")),
        })?;
        let given = columns.iter().zip(rows.columns());
        let arrays = given.map(|(column, values)| {
            let array = column.convert(values, before)?;
            let gap = (0..array.len()).find(|row| !column.field.is_nullable() && array.is_null(*row));
            match gap {
                Some(row) => Err(format!(
                    "row {}, column `{1}` has no value; `types: {{ {1}: {2}? }}` says that values may be missing",
                    before + row + 1,
                    column.field.name(),
                    crate::stages::types::name_of(column.field.data_type())
                )),
                None => Ok(array),
            }
        });
        let arrays = arrays.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        before += rows.num_rows();
        RecordBatch::try_new(schema.clone(), arrays).map_err(|e| failed(e.to_string()))
    }))
}

/// Returns the message about an invalid line of JSON.
fn broken_line(number: usize, line: &str, error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    let rest = line.get(error.column().saturating_sub(1)..).unwrap_or_default().trim_start_matches([' ', ':', '-']);
    let what = match ["NaN", "Infinity"].into_iter().find(|constant| rest.starts_with(constant)) {
        Some(constant) => format!("`{constant}` is no JSON, which has null where there is no number"),
        None => what.to_owned(),
    };
    format!("line {number}, column {}: {what}", error.column())
}
