//! Rows of text in a file that people made: JSON lines, CSV with a header, or Parquet.

use std::{
    fmt::Display,
    fs::File,
    io::{self, BufRead, BufReader, Read as _, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray},
    compute::cast,
    csv,
    datatypes::{DataType, Field, Schema},
};
use serde_json::{Map, Value};

use crate::engine::{
    source::{ParquetFile, Sources},
    stage::Misfit,
};

/// The number of rows of Parquet that are read at a time.
const BATCH_ROWS: usize = 1024;
/// Separators between the columns of CSV files.
const SEPARATORS: [char; 4] = [',', ';', '\t', '|'];

/// Opens a text file after the byte order mark with which some programs begin text. UTF-16 is an error that says so.
pub fn open_text(path: &Path) -> io::Result<BufReader<File>> {
    let mut file = File::open(path)?;
    let mut begin = Vec::new();
    file.by_ref().take(3).read_to_end(&mut begin)?;
    if begin.starts_with(&[0xFF, 0xFE]) || begin.starts_with(&[0xFE, 0xFF]) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is UTF-16; save it as UTF-8"));
    }
    let mark: u64 = if begin == [0xEF, 0xBB, 0xBF] { 3 } else { 0 };
    file.seek(SeekFrom::Start(mark))?;
    Ok(BufReader::new(file))
}

/// Returns the separator that the header of a CSV file has more often than `between` and than all others, if there is one.
pub fn other_separator(path: &Path, between: char) -> Option<char> {
    let mut header = String::new();
    open_text(path).ok()?.read_line(&mut header).ok()?;
    let count = |separator: &char| header.matches(*separator).count();
    SEPARATORS.into_iter().filter(|other| count(other) > count(&between)).max_by_key(count)
}

/// Returns the end of a message about a CSV file that is read by another separator than its header has.
pub fn separator_advice(separator: char) -> String {
    format!("; its columns seem to be separated by {separator:?}: write `separator: {:?}`", separator.to_string())
}

/// A file of rows, whose format follows from its ending. Errors are about the parameters `path` and `separator`.
#[derive(Clone, Copy, Debug)]
pub struct TextRows<'a> {
    /// The path or URL, which messages name.
    pub address: &'a str,
    /// The separator between the columns of a CSV file: by default a comma, in a `.tsv` file a tab.
    pub separator: Option<char>,
}

/// A row of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextRow {
    /// The line or row in which it stands, for messages.
    pub place: String,
    /// The values of the columns that were asked for. Numbers are as they are written; an empty cell is `None`.
    pub values: Vec<Option<String>>,
}

/// The format of a file, by its ending.
#[derive(Clone, Copy)]
enum Format {
    JsonLines,
    Csv(u8),
    Parquet,
}

impl TextRows<'_> {
    /// Returns the names of the columns: of JSON lines those of all lines, since each may lack some.
    pub fn columns(&self, sources: &Sources) -> Result<Vec<String>, Misfit> {
        let (path, format) = (self.local(sources)?, self.format()?);
        Ok(match format {
            Format::JsonLines => self.names_of_lines(&path)?,
            Format::Csv(separator) => names(&self.header(&path, separator)?),
            Format::Parquet => names(self.parquet(&path)?.schema()),
        })
    }

    /// Reads all rows, in the order of the file. A line of JSON may lack a column. Of Parquet, `RECORD.FIELD` names a
    /// field of a column of records.
    pub fn rows(&self, sources: &Sources, columns: &[&str]) -> Result<Vec<TextRow>, Misfit> {
        let path = self.local(sources)?;
        match self.format()? {
            Format::JsonLines => self.rows_of_lines(&path, columns),
            Format::Csv(separator) => {
                let schema = Arc::new(self.header(&path, separator)?);
                let builder = csv::ReaderBuilder::new(schema).with_header(true).with_delimiter(separator);
                let reader = builder.build(self.open(&path)?).map_err(|e| self.unreadable(e))?;
                self.rows_of_batches(reader, columns)
            }
            Format::Parquet => {
                let file = self.parquet(&path)?.columns(columns.iter().copied());
                self.rows_of_batches(file.read(BATCH_ROWS).map_err(|e| self.unreadable(e))?, columns)
            }
        }
    }

    /// Returns the separator that the header of a CSV file seems to have in place of that of its ending; `None` if a separator
    /// is given.
    pub fn other_separator(&self, sources: &Sources) -> Option<char> {
        match (self.separator, self.format().ok()?) {
            (None, Format::Csv(between)) => other_separator(&self.local(sources).ok()?, between.into()),
            _ => None,
        }
    }

    fn local(&self, sources: &Sources) -> Result<PathBuf, Misfit> {
        sources.local(self.address).map_err(|e| Misfit::parameter("path", e))
    }

    fn unreadable(&self, error: impl Display) -> Misfit {
        Misfit::parameter("path", format!("cannot read {}: {error}", self.address))
    }

    fn format(&self) -> Result<Format, Misfit> {
        let place = self.address.split('?').next().unwrap_or(self.address);
        let ending = place.rsplit('.').next().unwrap_or_default().to_lowercase();
        let between = self.separator.unwrap_or(if ending == "tsv" { '\t' } else { ',' });
        let separator = u8::try_from(between)
            .ok()
            .filter(u8::is_ascii)
            .ok_or_else(|| Misfit::parameter("separator", format!("`{between}` is not in ASCII")))?;
        match ending.as_str() {
            "csv" | "tsv" => Ok(Format::Csv(separator)),
            _ if self.separator.is_some() => {
                Err(Misfit::parameter("separator", format!("{} is no CSV file", self.address)))
            }
            "jsonl" | "ndjson" => Ok(Format::JsonLines),
            "parquet" => Ok(Format::Parquet),
            _ => {
                let message = format!("{} ends in none of .jsonl, .ndjson, .csv, .tsv and .parquet", self.address);
                Err(Misfit::parameter("path", message))
            }
        }
    }

    fn open(&self, path: &Path) -> Result<BufReader<File>, Misfit> {
        open_text(path).map_err(|e| self.unreadable(e))
    }

    fn parquet(&self, path: &Path) -> Result<ParquetFile, Misfit> {
        ParquetFile::open(path).map_err(|e| self.unreadable(e))
    }

    /// Returns the columns of a CSV file, all as text.
    fn header(&self, path: &Path, separator: u8) -> Result<Schema, Misfit> {
        let format = csv::reader::Format::default().with_header(true).with_delimiter(separator);
        let (guess, _) = format.infer_schema(self.open(path)?, Some(0)).map_err(|e| self.unreadable(e))?;
        Ok(Schema::new(
            guess.fields().iter().map(|field| Field::new(field.name(), DataType::Utf8, true)).collect::<Vec<_>>(),
        ))
    }

    /// Returns the objects of a JSON-lines file without its empty lines, each with the number of its line.
    fn objects(
        &self,
        path: &Path,
    ) -> Result<impl Iterator<Item = Result<(usize, Map<String, Value>), Misfit>>, Misfit> {
        let lines = self.open(path)?.lines().zip(1..);
        let lines = lines.filter(|(line, _)| line.as_ref().map_or(true, |line| !line.trim().is_empty()));
        Ok(lines.map(|(line, number)| {
            let line = line.map_err(|e| self.unreadable(format!("line {number}: {e}")))?;
            let object: Result<Map<String, Value>, _> = serde_json::from_str(&line);
            object.map(|object| (number, object)).map_err(|e| {
                let text = e.to_string();
                let what = text.split(" at line ").next().unwrap_or(&text).to_owned();
                self.unreadable(format!("line {number}, character {}: {what}; a line is a JSON object", e.column()))
            })
        }))
    }

    fn names_of_lines(&self, path: &Path) -> Result<Vec<String>, Misfit> {
        let mut names: Vec<String> = Vec::new();
        for object in self.objects(path)? {
            let (_, object) = object?;
            names.extend(
                object.into_iter().map(|(name, _)| name).filter(|name| !names.contains(name)).collect::<Vec<_>>(),
            );
        }
        if names.is_empty() { Err(self.unreadable("it is empty")) } else { Ok(names) }
    }

    fn rows_of_lines(&self, path: &Path, columns: &[&str]) -> Result<Vec<TextRow>, Misfit> {
        let mut rows = Vec::new();
        for object in self.objects(path)? {
            let (number, object) = object?;
            let place = format!("line {number}");
            let value = |column: &&str| match object.get(*column) {
                Some(Value::String(text)) => Ok(Some(text.clone())),
                Some(Value::Number(number)) => Ok(Some(number.to_string())),
                Some(Value::Bool(truth)) => Ok(Some(truth.to_string())),
                None | Some(Value::Null) => Ok(None),
                Some(_) => Err(self.unreadable(format!("{place}: `{column}` is no text, number or null"))),
            };
            rows.push(TextRow { values: columns.iter().map(value).collect::<Result<_, _>>()?, place });
        }
        Ok(rows)
    }

    fn rows_of_batches(
        &self,
        batches: impl Iterator<Item = Result<RecordBatch, impl Display>>,
        columns: &[&str],
    ) -> Result<Vec<TextRow>, Misfit> {
        let mut rows = Vec::new();
        for batch in batches {
            let batch = batch.map_err(|e| self.unreadable(e))?;
            let text = |column: &&str| {
                let missing = || self.unreadable(format!("it has no column `{column}`"));
                let values = find(&batch, column).ok_or_else(missing)?;
                cast(values, &DataType::Utf8).map_err(|e| self.unreadable(format!("column `{column}`: {e}")))
            };
            let columns = columns.iter().map(text).collect::<Result<Vec<_>, _>>()?;
            let columns: Vec<_> = columns.iter().map(|column| column.as_string::<i32>()).collect();
            for row in 0..batch.num_rows() {
                let value = |column: &&StringArray| column.is_valid(row).then(|| column.value(row).to_owned());
                rows.push(TextRow {
                    place: format!("row {}", rows.len() + 1),
                    values: columns.iter().map(value).collect(),
                });
            }
        }
        Ok(rows)
    }
}

/// Returns a column, or a field of a column of records.
fn find<'a>(batch: &'a RecordBatch, column: &str) -> Option<&'a ArrayRef> {
    let field = |(record, field): (&str, &str)| batch.column_by_name(record)?.as_struct_opt()?.column_by_name(field);
    batch.column_by_name(column).or_else(|| field(column.split_once('.')?))
}

fn names(schema: &Schema) -> Vec<String> {
    schema.fields().iter().map(|field| field.name().clone()).collect()
}
