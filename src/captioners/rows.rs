//! Captions in a table: JSON lines, CSV or Parquet with a column of images and one of captions.

use std::{
    fmt::Display,
    fs::File,
    io::{BufRead, BufReader, Read as _, Seek, SeekFrom},
    path::Path,
    sync::Arc,
};

use arrow::{
    array::{AsArray, RecordBatch},
    compute::cast,
    csv,
    datatypes::{DataType, Field, Schema},
    error::ArrowError,
};
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
use serde_json::{Map, Value};

use crate::engine::{Result, source::Sources, stage::Misfit};

/// The caption of an image, as a file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// The line or row in which it stands, for messages.
    pub(super) place: String,
    pub(super) image: String,
    /// `None` if the file names the image and has no caption for it.
    pub(super) caption: Option<String>,
}

/// A file with captions, as the parameters of the captioner `file` describe it.
pub(super) struct CaptionFile<'a> {
    /// The path or URL, which messages name.
    pub(super) address: &'a str,
    /// The column of images.
    pub(super) id: &'a str,
    /// The column of captions.
    pub(super) caption: &'a str,
    /// The separator of columns, for CSV.
    pub(super) separator: Option<char>,
}

/// The format of a file, by its ending.
#[derive(Clone, Copy)]
enum Format {
    JsonLines,
    Csv(u8),
    Parquet,
}

impl CaptionFile<'_> {
    /// Checks that the file can be read and has both columns. Only its first row is looked at.
    pub(super) fn check(&self) -> Result<(), Misfit> {
        let (path, format) = (self.local(&Sources::default())?, self.format()?);
        let names = match format {
            Format::JsonLines => self.names_of_line(&path)?,
            Format::Csv(separator) => names(&self.header(&path, separator)?),
            Format::Parquet => names(self.parquet(&path)?.schema()),
        };
        [("id", self.id), ("caption", self.caption)].into_iter().try_for_each(|(parameter, column)| {
            let is_there = names.iter().any(|name| name == column);
            let message = || format!("{} has no column `{column}`; it has {}", self.address, names.join(", "));
            if is_there { Ok(()) } else { Err(Misfit::parameter(parameter, message())) }
        })
    }

    /// Reads all rows of the file, in its order.
    pub(super) fn rows(&self, sources: &Sources) -> Result<Vec<Row>, Misfit> {
        let path = self.local(sources)?;
        match self.format()? {
            Format::JsonLines => self.rows_of_lines(&path),
            Format::Csv(separator) => {
                let schema = Arc::new(self.header(&path, separator)?);
                let builder = csv::ReaderBuilder::new(schema).with_header(true).with_delimiter(separator);
                let reader = builder.build(self.open(&path)?).map_err(|e| self.unreadable(e))?;
                self.rows_of_batches(reader)
            }
            Format::Parquet => {
                let builder = self.parquet(&path)?;
                let wanted =
                    [self.id, self.caption].into_iter().filter_map(|name| builder.schema().index_of(name).ok());
                let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
                let reader = builder.with_projection(mask).build().map_err(|e| self.unreadable(e))?;
                self.rows_of_batches(reader)
            }
        }
    }

    fn local(&self, sources: &Sources) -> Result<std::path::PathBuf, Misfit> {
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

    /// Opens a text file after the byte order mark with which some programs begin text.
    fn open(&self, path: &Path) -> Result<BufReader<File>, Misfit> {
        let mut file = File::open(path).map_err(|e| self.unreadable(e))?;
        let mut begin = Vec::new();
        file.by_ref().take(3).read_to_end(&mut begin).map_err(|e| self.unreadable(e))?;
        let mark: u64 = if begin == [0xEF, 0xBB, 0xBF] { 3 } else { 0 };
        file.seek(SeekFrom::Start(mark)).map_err(|e| self.unreadable(e))?;
        Ok(BufReader::new(file))
    }

    fn parquet(&self, path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, Misfit> {
        let file = File::open(path).map_err(|e| self.unreadable(e))?;
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| self.unreadable(e))
    }

    /// Returns the columns of a CSV file, all as text.
    fn header(&self, path: &Path, separator: u8) -> Result<Schema, Misfit> {
        let format = csv::reader::Format::default().with_header(true).with_delimiter(separator);
        let (guess, _) = format.infer_schema(self.open(path)?, Some(0)).map_err(|e| self.unreadable(e))?;
        Ok(Schema::new(
            guess.fields().iter().map(|field| Field::new(field.name(), DataType::Utf8, true)).collect::<Vec<_>>(),
        ))
    }

    /// Returns the objects of a JSON-lines file that has no empty one, each with the number of its line.
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

    fn names_of_line(&self, path: &Path) -> Result<Vec<String>, Misfit> {
        let first = self.objects(path)?.next().transpose()?;
        let (_, first) = first.ok_or_else(|| self.unreadable("it is empty"))?;
        Ok(first.keys().cloned().collect())
    }

    fn rows_of_lines(&self, path: &Path) -> Result<Vec<Row>, Misfit> {
        let mut rows = Vec::new();
        for object in self.objects(path)? {
            let (number, object) = object?;
            let place = format!("line {number}");
            let image = match object.get(self.id) {
                Some(Value::String(image)) => image.clone(),
                Some(Value::Number(image)) => image.to_string(),
                _ => return Err(self.unreadable(format!("{place} has no text or number `{}`", self.id))),
            };
            let caption = match object.get(self.caption) {
                Some(Value::String(caption)) => Some(caption.clone()),
                Some(Value::Null) => None,
                _ => return Err(self.unreadable(format!("{place} has no text or null `{}`", self.caption))),
            };
            rows.push(Row { place, image, caption });
        }
        Ok(rows)
    }

    fn rows_of_batches(
        &self,
        batches: impl Iterator<Item = Result<RecordBatch, ArrowError>>,
    ) -> Result<Vec<Row>, Misfit> {
        let mut rows = Vec::new();
        for batch in batches {
            let batch = batch.map_err(|e| self.unreadable(e))?;
            let text = |column: &str| {
                let missing = || self.unreadable(format!("it has no column `{column}`"));
                let values = batch.column_by_name(column).ok_or_else(missing)?;
                cast(values, &DataType::Utf8).map_err(|e| self.unreadable(format!("column `{column}`: {e}")))
            };
            let (images, captions) = (text(self.id)?, text(self.caption)?);
            for (image, caption) in images.as_string::<i32>().iter().zip(captions.as_string::<i32>()) {
                let place = format!("row {}", rows.len() + 1);
                let Some(image) = image else {
                    return Err(self.unreadable(format!("{place} has no `{}`", self.id)));
                };
                rows.push(Row { place, image: image.to_owned(), caption: caption.map(str::to_owned) });
            }
        }
        Ok(rows)
    }
}

fn names(schema: &Schema) -> Vec<String> {
    schema.fields().iter().map(|field| field.name().clone()).collect()
}
