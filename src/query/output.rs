//! Query results in the formats that people and programs read.

use std::{io::Write, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
    util::{
        display::{ArrayFormatter, FormatOptions},
        pretty::pretty_format_batches,
    },
};

use crate::engine::Result;

/// Longer texts are cut in a drawn table.
const WIDEST: usize = 60;

/// How a result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A drawn table; long values are cut, which the other formats write whole.
    Table,
    /// Comma-separated values with a header.
    Csv,
    /// One JSON object per line.
    Json,
    /// A Parquet file.
    Parquet,
}

/// Writes a result.
pub fn write(out: &mut dyn Write, schema: &SchemaRef, batches: &[RecordBatch], format: Format) -> Result<()> {
    // No rows have columns, too.
    let empty = [RecordBatch::new_empty(schema.clone())];
    let batches = if batches.is_empty() { &empty } else { batches };
    match format {
        Format::Table => {
            let batches = batches.iter().map(|batch| readable(batch, true)).collect::<Result<Vec<_>>>()?;
            writeln!(out, "{}", pretty_format_batches(&batches)?)?;
        }
        Format::Csv => {
            // Each batch by way of a buffer: Arrow's writer hides what the output said.
            for (i, batch) in batches.iter().enumerate() {
                let mut text = Vec::new();
                let mut writer = arrow::csv::WriterBuilder::new().with_header(i == 0).build(&mut text);
                writer.write(&readable(batch, false)?)?;
                drop(writer);
                out.write_all(&text)?;
            }
        }
        Format::Json => {
            for batch in batches {
                let mut text = Vec::new();
                let mut writer = arrow::json::LineDelimitedWriter::new(&mut text);
                writer.write(&half_as_float(batch)?)?;
                writer.finish()?;
                out.write_all(&text)?;
            }
        }
        Format::Parquet => {
            let mut bytes = Vec::new();
            let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, schema.clone(), None)?;
            batches.iter().try_for_each(|batch| writer.write(batch))?;
            writer.close()?;
            out.write_all(&bytes)?;
        }
    }
    Ok(())
}

/// Lists as text, since neither a drawn table nor CSV has them. With `cut` texts on one line and no longer than fits, and of
/// lists their shape and the first few values.
fn readable(batch: &RecordBatch, cut: bool) -> Result<RecordBatch> {
    // The plans of `explain` are read as they are.
    let cut = cut && batch.schema_ref().field_with_name("plan_type").is_err();
    let columns = batch.schema_ref().fields().iter().zip(batch.columns()).map(|(field, column)| {
        let shown: ArrayRef = match column.data_type() {
            kind if kind.is_nested() => Arc::new(lists(field, column, cut)?),
            kind if kind.is_string() && cut => Arc::new(one_line(column)?),
            _ => column.clone(),
        };
        Ok((Field::new(field.name(), shown.data_type().clone(), true), shown))
    });
    rebuilt(columns.collect::<Result<_>>()?, batch.num_rows())
}

fn lists(field: &Field, column: &ArrayRef, cut: bool) -> Result<StringArray> {
    let options = FormatOptions::default().with_null("");
    let text = (0..column.len()).map(|row| {
        if let (true, Some(list)) = (cut, column.as_fixed_size_list_opt()) {
            let head = list.value(row).slice(0, (list.value_length() as usize).min(4));
            let shown = ArrayFormatter::try_new(&head, &options)?;
            let head: Vec<String> = (0..head.len()).map(|i| shown.value(i).to_string()).collect();
            let shape = crate::engine::tensor_shape(field).unwrap_or_else(|| vec![list.value_length() as usize]);
            return Ok(format!("{shape:?} [{}, …]", head.join(", ")));
        }
        Ok(ArrayFormatter::try_new(column, &options)?.value(row).to_string())
    });
    Ok(StringArray::from(text.collect::<Result<Vec<_>>>()?))
}

fn one_line(column: &ArrayRef) -> Result<StringArray> {
    let text = arrow::compute::cast(column, &DataType::Utf8)?;
    let shorter = |text: &str| match text.char_indices().nth(WIDEST) {
        Some(_) => text.chars().take(WIDEST - 1).chain(['…']).collect(),
        None => text.to_owned(),
    };
    Ok(text.as_string::<i32>().iter().map(|text| text.map(|text| shorter(&text.replace(['\n', '\r'], " ")))).collect())
}

/// A batch of other columns; there may be none.
fn rebuilt(columns: Vec<(Field, ArrayRef)>, rows: usize) -> Result<RecordBatch> {
    let (fields, arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)?)
}

/// Arrow's JSON writer has no half-precision numbers.
fn half_as_float(batch: &RecordBatch) -> Result<RecordBatch> {
    let target = |data_type: &DataType| match data_type {
        DataType::Float16 => Some(DataType::Float32),
        DataType::FixedSizeList(item, size) if *item.data_type() == DataType::Float16 => {
            Some(DataType::new_fixed_size_list(DataType::Float32, *size, item.is_nullable()))
        }
        _ => None,
    };
    let columns = batch.schema_ref().fields().iter().zip(batch.columns()).map(|(field, column)| {
        let column = match target(column.data_type()) {
            Some(data_type) => arrow::compute::cast(column, &data_type)?,
            None => column.clone(),
        };
        Ok((Field::new(field.name(), column.data_type().clone(), true), column))
    });
    rebuilt(columns.collect::<Result<_>>()?, batch.num_rows())
}
