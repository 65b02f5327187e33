//! Writes query results in formats for people and programs, as the rows are computed.

use std::{borrow::Cow, io::Write, path::Path, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, StringArray},
    datatypes::{DataType, Field, FieldRef, Float16Type, Float32Type, Float64Type, Schema, SchemaRef},
    error::ArrowError,
    json::{
        WriterBuilder,
        writer::{Encoder, EncoderFactory, EncoderOptions, LineDelimited, NullableEncoder},
    },
    util::{
        display::{ArrayFormatter, FormatOptions},
        pretty::pretty_format_batches,
    },
};
use parquet::arrow::ArrowWriter;

use crate::engine::{Error, Result, store::plain};

/// The maximum width of texts in a drawn table. Longer texts are cut.
const WIDEST: usize = 60;

/// The number of values of a list that a drawn table shows.
const LIST_SHOWN: usize = 4;

/// A format of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A drawn table; long values are cut and control characters escaped, while the other formats write values as
    /// they are.
    Table,
    /// A line for each value, as psql's expanded display.
    Vertical,
    /// Comma-separated values with a header.
    Csv,
    /// One JSON object per line, with every column. JSON has no numbers for NaN and infinity: they are the texts "NaN",
    /// "Infinity" and "-Infinity".
    Json,
    /// A Parquet file.
    Parquet,
}

impl Format {
    /// Returns the format for a file's extension: a drawn table for `.txt` and for no extension.
    pub fn of_file(path: &Path) -> Result<Self> {
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        match ending.as_deref() {
            None | Some("txt") => Ok(Self::Table),
            Some("csv") => Ok(Self::Csv),
            Some("json" | "jsonl" | "ndjson") => Ok(Self::Json),
            Some("parquet") => Ok(Self::Parquet),
            Some(other) => Err(Error::Input(format!(
                "`.{other}` of {} is not the extension of a format; name one with --format, or use .csv, .json, .jsonl, \
                 .ndjson, .parquet or .txt",
                path.display()
            ))),
        }
    }
}

/// Writes one result, batch by batch. Only a drawn table is kept in memory until its end, because its columns' widths
/// depend on all rows.
pub struct Writer<'a> {
    out: &'a mut dyn Write,
    schema: SchemaRef,
    kind: Kind,
    /// A table that is wider is written as [`Format::Vertical`].
    widest: Option<usize>,
}

enum Kind {
    /// The batches in the form in which they are drawn.
    Table(Vec<RecordBatch>),
    Vertical {
        rows: usize,
    },
    Csv {
        is_begun: bool,
    },
    Json,
    Parquet(Box<ArrowWriter<Vec<u8>>>),
}

impl<'a> Writer<'a> {
    /// Begins a result.
    pub fn new(out: &'a mut dyn Write, schema: &SchemaRef, format: Format) -> Result<Self> {
        let kind = match format {
            Format::Table => Kind::Table(Vec::new()),
            Format::Vertical => Kind::Vertical { rows: 0 },
            Format::Csv => Kind::Csv { is_begun: false },
            Format::Json => {
                check_names(schema, "a JSON object has")?;
                Kind::Json
            }
            Format::Parquet => {
                check_names(schema, "a Parquet file has")?;
                Kind::Parquet(Box::new(ArrowWriter::try_new(Vec::new(), schema.clone(), None)?))
            }
        };
        Ok(Self { out, schema: schema.clone(), kind, widest: None })
    }

    /// Makes a drawn table with lines of more than `widest` characters be written as [`Format::Vertical`].
    pub fn turned_beyond(self, widest: Option<usize>) -> Self {
        Self { widest, ..self }
    }

    /// Writes some rows.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        match &mut self.kind {
            Kind::Table(drawn) => drawn.push(readable(batch, true)?),
            Kind::Vertical { rows } => vertical(self.out, &readable(batch, true)?, rows)?,
            Kind::Csv { is_begun } => {
                // Rows go through a buffer, because Arrow's writer hides errors of the output.
                let mut text = Vec::new();
                let mut writer = arrow::csv::WriterBuilder::new().with_header(!*is_begun).build(&mut text);
                writer.write(&readable(batch, false)?)?;
                drop(writer);
                *is_begun = true;
                self.out.write_all(&text)?;
            }
            Kind::Json => {
                let mut text = Vec::new();
                let builder = WriterBuilder::new().with_explicit_nulls(true).with_encoder_factory(Arc::new(Floats));
                let mut writer = builder.build::<_, LineDelimited>(&mut text);
                writer.write(batch)?;
                writer.finish()?;
                self.out.write_all(&text)?;
            }
            Kind::Parquet(writer) => {
                writer.write(batch)?;
                flush(writer, self.out)?;
            }
        }
        Ok(())
    }

    /// Ends the result. A result without rows still has its header.
    pub fn finish(mut self) -> Result<()> {
        match &self.kind {
            Kind::Table(drawn) if drawn.is_empty() => self.write(&RecordBatch::new_empty(self.schema.clone()))?,
            Kind::Csv { is_begun: false } => self.write(&RecordBatch::new_empty(self.schema.clone()))?,
            _ => {}
        }
        match self.kind {
            Kind::Table(drawn) => {
                let table = pretty_format_batches(&drawn)?.to_string();
                let width = table.lines().next().map_or(0, |line| line.chars().count());
                let rows: usize = drawn.iter().map(RecordBatch::num_rows).sum();
                if rows > 0 && self.widest.is_some_and(|widest| width > widest) {
                    drawn.iter().try_fold(0, |mut rows, batch| vertical(self.out, batch, &mut rows).map(|()| rows))?;
                } else {
                    writeln!(self.out, "{table}")?;
                }
            }
            Kind::Vertical { rows: 0 } => writeln!(self.out, "(no rows)")?,
            Kind::Vertical { .. } => {}
            Kind::Parquet(mut writer) => {
                writer.finish()?;
                flush(&mut writer, self.out)?;
            }
            Kind::Csv { .. } | Kind::Json => {}
        }
        Ok(())
    }
}

/// Writes a line for each value of rows, of which `rows` were written before.
fn vertical(out: &mut dyn Write, batch: &RecordBatch, rows: &mut usize) -> Result<()> {
    let schema = batch.schema();
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or_default();
    let options = FormatOptions::default().with_display_error(true);
    let columns = batch.columns().iter().map(|column| Ok(ArrayFormatter::try_new(column, &options)?));
    let columns = columns.collect::<Result<Vec<_>>>()?;
    for row in 0..batch.num_rows() {
        *rows += 1;
        writeln!(out, "-[ row {rows} ]{:-<width$}", "")?;
        names
            .iter()
            .zip(&columns)
            .try_for_each(|(name, column)| writeln!(out, "{name:<width$} | {}", column.value(row)))?;
    }
    Ok(())
}

/// Writes the bytes that a Parquet writer has produced so far.
fn flush(writer: &mut ArrowWriter<Vec<u8>>, out: &mut dyn Write) -> std::io::Result<()> {
    out.write_all(&std::mem::take(writer.inner_mut()))
}

/// Refuses duplicate names, of which a reader would keep one.
fn check_names(schema: &Schema, what: &str) -> Result<()> {
    let names: Vec<&String> = schema.fields().iter().map(|field| field.name()).collect();
    match names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
        Some((_, twice)) => Err(Error::Input(format!(
            "two columns are called `{twice}`, and {what} each name once; name one otherwise: `… as other_{twice}`"
        ))),
        None => Ok(()),
    }
}

/// Escapes control characters, which a terminal would obey, and characters that change the direction of writing. Line
/// breaks and tabs stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_hidden = |c: char| {
        c.is_control() && !matches!(c, '\n' | '\t')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            c if !is_hidden(c) => shown.push(c),
            '\r' => shown.push_str("\\r"),
            c if u32::from(c) < 0x100 => shown.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => shown.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(shown)
}

/// Converts lists to text, because neither a drawn table nor CSV has lists. With `drawn`, texts are put on one line
/// and cut to the maximum width, and lists are shown by shape and first values.
fn readable(batch: &RecordBatch, drawn: bool) -> Result<RecordBatch> {
    // The plans of `explain` are not cut.
    let cut = drawn && batch.schema_ref().field_with_name("plan_type").is_err();
    let columns = batch.schema_ref().fields().iter().zip(batch.columns()).map(|(field, column)| {
        let mut shown: ArrayRef = match column.data_type() {
            kind if kind.is_nested() => Arc::new(lists(field, column, cut)?),
            kind if drawn && plain(kind) == DataType::Utf8 => arrow::compute::cast(column, &DataType::Utf8)?,
            _ => column.clone(),
        };
        let mut name = Cow::Borrowed(field.name().as_str());
        if drawn {
            name = Cow::Owned(printable(&one_line(&name)).into_owned());
            if let Some(text) = shown.as_string_opt::<i32>() {
                shown = Arc::new(text.iter().map(|text| text.map(|text| draw(text, cut))).collect::<StringArray>());
            }
        }
        Ok((Field::new(name, shown.data_type().clone(), true), shown))
    });
    rebuilt(columns.collect::<Result<_>>()?, batch.num_rows())
}

fn lists(field: &Field, column: &ArrayRef, cut: bool) -> Result<StringArray> {
    let options = FormatOptions::default().with_null("");
    let text = (0..column.len()).map(|row| {
        if let (true, Some(lists)) = (cut, column.as_fixed_size_list_opt()) {
            if lists.is_null(row) {
                return Ok(None);
            }
            let list = lists.value(row);
            let head = list.slice(0, list.len().min(LIST_SHOWN));
            let shown = ArrayFormatter::try_new(&head, &options)?;
            let mut values: Vec<String> = (0..head.len()).map(|i| shown.value(i).to_string()).collect();
            if list.len() > LIST_SHOWN {
                values.push("…".into());
            }
            let shape = crate::engine::store::tensor_shape(field).unwrap_or_else(|| vec![list.len()]);
            return Ok(Some(format!("{shape:?} [{}]", values.join(", "))));
        }
        Ok(Some(ArrayFormatter::try_new(column, &options)?.value(row).to_string()))
    });
    Ok(StringArray::from(text.collect::<Result<Vec<_>>>()?))
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r', '\t'], " ")
}

/// Returns a text as a drawn table shows it.
fn draw(text: &str, cut: bool) -> String {
    if !cut {
        return printable(text).into_owned();
    }
    let text = printable(&one_line(text)).into_owned();
    match text.char_indices().nth(WIDEST) {
        Some(_) => text.chars().take(WIDEST - 1).chain(['…']).collect(),
        None => text,
    }
}

/// Makes a batch of other columns, possibly of none.
fn rebuilt(columns: Vec<(Field, ArrayRef)>, rows: usize) -> Result<RecordBatch> {
    let (fields, arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)?)
}

/// Encodes floats in JSON, at any depth. Arrow's writer would write null for values that are not numbers in JSON.
#[derive(Debug)]
struct Floats;

impl EncoderFactory for Floats {
    fn make_default_encoder<'a>(
        &self,
        _: &'a FieldRef,
        array: &'a dyn Array,
        _: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder> = match array.data_type() {
            DataType::Float16 => Box::new(Float(array.as_primitive::<Float16Type>().values(), |v| json(v.to_f32()))),
            DataType::Float32 => Box::new(Float(array.as_primitive::<Float32Type>().values(), json)),
            DataType::Float64 => Box::new(Float(array.as_primitive::<Float64Type>().values(), json)),
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

/// Floats, and the function that formats one.
struct Float<'a, N>(&'a [N], fn(N) -> String);

impl<N: Copy> Encoder for Float<'_, N> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        out.extend_from_slice((self.1)(self.0[row]).as_bytes());
    }
}

/// Returns a number in JSON, or a text for NaN and infinities, which JSON lacks.
fn json<N: Copy + Into<f64> + serde::Serialize>(value: N) -> String {
    let float: f64 = value.into();
    if float.is_nan() {
        "\"NaN\"".into()
    } else if float.is_infinite() {
        format!("\"{}Infinity\"", if float < 0. { "-" } else { "" })
    } else {
        serde_json::to_string(&value).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{FixedSizeListArray, Float16Array, Float64Array},
        datatypes::Int32Type,
    };

    use super::*;

    fn written(batch: &RecordBatch, format: Format) -> String {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out, batch.schema_ref(), format).unwrap();
        writer.write(&batch.slice(0, 1)).unwrap();
        writer.write(&batch.slice(1, batch.num_rows() - 1)).unwrap();
        writer.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_distinguishes_null_from_nan_and_infinity() {
        let floats = [Some(f64::NAN), Some(f64::INFINITY), Some(f64::NEG_INFINITY), None, Some(1.5), Some(2.)];
        let x: ArrayRef = Arc::new(Float64Array::from(floats.to_vec()));
        let h: ArrayRef = Arc::new(floats.iter().map(|v| v.map(half::f16::from_f64)).collect::<Float16Array>());
        let text = written(&RecordBatch::try_from_iter([("x", x), ("h", h)]).unwrap(), Format::Json);
        let values = ["\"NaN\"", "\"Infinity\"", "\"-Infinity\"", "null", "1.5", "2.0"];
        assert_eq!(text, values.map(|v| format!("{{\"x\":{v},\"h\":{v}}}\n")).concat());
    }

    #[test]
    fn drawn_tables_have_no_control_characters() {
        let text: ArrayRef = Arc::new(StringArray::from(vec!["one\u{1b}]0;title\u{7}two", "a\tb\nc\u{9b}\u{202e}d"]));
        let item = Arc::new(Field::new_list_field(DataType::Utf8, true));
        let offsets = arrow::buffer::OffsetBuffer::from_lengths([1, 1]);
        let list: ArrayRef = Arc::new(arrow::array::ListArray::new(item, offsets, text.clone(), None));
        let batch = RecordBatch::try_from_iter([("x\u{1b}[2J", text), ("list", list)]).unwrap();
        let drawn = written(&batch, Format::Table);
        assert!(drawn.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{drawn:?}");
        assert!(drawn.contains(r"one\x1b]0;title\x07two") && drawn.contains(r"a b c\x9b\u{202e}d"), "{drawn}");
        assert!(drawn.contains(r"x\x1b[2J"), "{drawn}");
        // Formats for programs contain values without changes.
        assert!(written(&batch, Format::Csv).contains("one\u{1b}]0;title\u{7}two"));
    }

    #[test]
    fn drawn_list_is_null_whole_or_cut() {
        let drawn = |lists: [Option<Vec<Option<i32>>>; 2], length| {
            let lists = FixedSizeListArray::from_iter_primitive::<Int32Type, _, _>(lists, length);
            written(&RecordBatch::try_from_iter([("x", Arc::new(lists) as ArrayRef)]).unwrap(), Format::Table)
        };
        let short = drawn([Some(vec![Some(1), None]), None], 2);
        assert!(short.contains("| [2] [1, ] |\n|           |\n"), "{short}");
        let long = drawn([Some((1..=5).map(Some).collect()), Some(vec![Some(0); 5])], 5);
        assert!(long.contains("| [5] [1, 2, 3, 4, …] |\n| [5] [0, 0, 0, 0, …] |\n"), "{long}");
    }

    #[test]
    fn table_that_is_too_wide_has_a_line_for_each_value() {
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("one"), None]));
        let numbers: ArrayRef = Arc::new(Float64Array::from(vec![0.5, 2.]));
        let batch = RecordBatch::try_from_iter_with_nullable([("name", texts, true), ("n", numbers, true)]).unwrap();
        let turned = "-[ row 1 ]----\nname | one\nn    | 0.5\n-[ row 2 ]----\nname | \nn    | 2.0\n";
        assert_eq!(written(&batch, Format::Vertical), turned);
        let drawn = |widest| {
            let mut out = Vec::new();
            let mut writer = Writer::new(&mut out, batch.schema_ref(), Format::Table).unwrap().turned_beyond(widest);
            writer.write(&batch).unwrap();
            writer.finish().unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(drawn(Some(13)), turned);
        assert!(drawn(Some(14)).starts_with("+------+-----+\n") && drawn(None) == drawn(Some(14)), "{}", drawn(None));
    }

    #[test]
    fn format_of_a_file_is_that_of_its_extension() {
        let of = |name: &str| Format::of_file(Path::new(name));
        assert_eq!(of("a/scores.CSV").unwrap(), Format::Csv);
        assert_eq!(of("scores.jsonl").unwrap(), Format::Json);
        assert_eq!(of("b.d/scores").unwrap(), Format::Table);
        assert_eq!(of("x.parquet").unwrap(), Format::Parquet);
        assert!(of("scores.xlsx").unwrap_err().to_string().contains("--format"));
    }

    #[test]
    fn duplicate_column_names_are_refused_in_json() {
        let schema: SchemaRef =
            Arc::new(Schema::new(vec![Field::new("id", DataType::Utf8, true), Field::new("id", DataType::Utf8, true)]));
        for (format, fits) in
            [(Format::Json, false), (Format::Parquet, false), (Format::Csv, true), (Format::Table, true)]
        {
            assert_eq!(Writer::new(&mut Vec::new(), &schema, format).is_ok(), fits, "{format:?}");
        }
    }
}
