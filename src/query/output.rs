//! Query results in the formats that people and programs read.

use std::io::Write;

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Schema, SchemaRef},
    util::pretty::pretty_format_batches,
};

use crate::engine::{Error, Result};

/// How a result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A drawn table; long values are cut.
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
    match format {
        Format::Table => {
            let batches = batches.iter().map(|batch| readable(batch, true)).collect::<Result<Vec<_>>>()?;
            let empty = [RecordBatch::new_empty(schema.clone())];
            writeln!(out, "{}", pretty_format_batches(if batches.is_empty() { &empty } else { &batches })?)?;
        }
        Format::Csv => {
            let mut writer = arrow::csv::WriterBuilder::new().with_header(true).build(out);
            for batch in batches {
                writer.write(&readable(batch, false)?)?;
            }
        }
        Format::Json => {
            let mut writer = arrow::json::LineDelimitedWriter::new(out);
            batches.iter().try_for_each(|batch| writer.write(&half_as_float(batch)?).map_err(Error::from))?;
            writer.finish()?;
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

/// Lists as text, since neither a drawn table nor CSV has them: all values, or with `cut` their number and the first few.
fn readable(batch: &RecordBatch, cut: bool) -> Result<RecordBatch> {
    let columns = batch.schema_ref().fields().iter().zip(batch.columns()).map(|(field, column)| {
        if !column.data_type().is_nested() {
            return Ok((field.name().clone(), column.clone()));
        }
        let options = arrow::util::display::FormatOptions::default().with_null("");
        let text = (0..column.len()).map(|row| {
            use arrow::array::AsArray;
            if let (true, Some(list)) = (cut, column.as_fixed_size_list_opt()) {
                let head = list.value(row).slice(0, (list.value_length() as usize).min(4));
                let shown = arrow::util::display::ArrayFormatter::try_new(&head, &options)?;
                let head: Vec<String> = (0..head.len()).map(|i| shown.value(i).to_string()).collect();
                let shape = crate::engine::tensor_shape(field).unwrap_or_else(|| vec![list.value_length() as usize]);
                return Ok(format!("{shape:?} [{}, …]", head.join(", ")));
            }
            Ok(arrow::util::display::ArrayFormatter::try_new(column, &options)?.value(row).to_string())
        });
        let text = text.collect::<Result<Vec<_>>>()?;
        Ok((field.name().clone(), std::sync::Arc::new(arrow::array::StringArray::from(text)) as arrow::array::ArrayRef))
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let fields: Vec<_> = columns
        .iter()
        .map(|(name, column)| arrow::datatypes::Field::new(name, column.data_type().clone(), true))
        .collect();
    let arrays = columns.into_iter().map(|(_, column)| column).collect();
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(std::sync::Arc::new(Schema::new(fields)), arrays, &options)?)
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
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let column = match target(column.data_type()) {
            Some(data_type) => arrow::compute::cast(column, &data_type)?,
            None => column.clone(),
        };
        fields.push(arrow::datatypes::Field::new(field.name(), column.data_type().clone(), true));
        columns.push(column);
    }
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(std::sync::Arc::new(Schema::new(fields)), columns, &options)?)
}
