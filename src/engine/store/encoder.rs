//! Batches into Parquet parts.

use std::{
    collections::VecDeque,
    panic::resume_unwind,
    sync::mpsc::{self, Receiver, SyncSender},
    thread::{JoinHandle, spawn},
};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, FieldRef, Schema, SchemaRef},
};
use bytes::Bytes;
use parquet::{
    arrow::{
        ArrowWriter,
        arrow_writer::{ArrowColumnChunk, ArrowColumnWriter, compute_leaves},
    },
    basic::{Compression, ZstdLevel},
    file::{
        properties::{EnabledStatistics, WriterProperties},
        writer::SerializedFileWriter,
    },
    schema::types::ColumnPath,
};

use super::{objects::Store, parquet::rows_at_a_time, stored_columns::is_heavy};
use crate::engine::Result;

/// Rows of a row group without tensors. Several threads read a part by its row groups, and whoever looks for a few rows leaves
/// groups out by their statistics.
const GROUP_ROWS: usize = 32_768;

/// The bytes of the tensors of a row group, which one thread encodes.
const GROUP_BYTES: usize = 8 << 20;

/// The fewest rows of a row group: whoever plans reads the ends of all groups.
const LEAST_GROUP_ROWS: usize = 16;

/// The most row groups that are encoded at a time.
const AT_ONCE: usize = 4;

/// The batches that wait to be encoded as rows of a group.
const WAITING: usize = 2;

/// Encodes a batch as a Parquet file.
pub fn encode_part(batch: &RecordBatch) -> Result<Bytes> {
    encode(&batch.schema(), GROUP_ROWS, [batch.clone()])
}

/// Encodes batches as they come, on threads of its own, while the next ones are made.
pub(in crate::engine) struct Encoder {
    batches: SyncSender<RecordBatch>,
    thread: JoinHandle<Result<Bytes>>,
}

impl Encoder {
    /// Starts an encoder of a part of a store.
    ///
    /// On this machine's disk, tensors are cut into several row groups, each encoded by a thread. In a remote store, the light
    /// columns of each group would be requests of their own whenever the table is planned.
    pub(in crate::engine) fn start(store: &Store, schema: SchemaRef) -> Self {
        let bytes = if store.folder.is_some() { tensor_bytes(&schema) } else { 0 };
        let rows = (GROUP_BYTES / bytes.max(1)).clamp(LEAST_GROUP_ROWS, GROUP_ROWS);
        Self::in_groups(schema, rows)
    }

    /// Starts an encoder whose row groups have at most `rows` rows. A reader of few rows decodes only the groups with
    /// these rows.
    pub(in crate::engine) fn in_groups(schema: SchemaRef, rows: usize) -> Self {
        let (batches, received) = mpsc::sync_channel(1);
        Self { batches, thread: spawn(move || encode(&schema, rows, received)) }
    }

    pub(in crate::engine) fn write(&self, batch: RecordBatch) {
        // An encoder that has failed takes no more batches, and `finish` returns its error.
        let _ = self.batches.send(batch);
    }

    pub(in crate::engine) fn finish(self) -> Result<Bytes> {
        drop(self.batches);
        joined(self.thread)
    }
}

/// Returns what a thread returns, and panics as it does.
fn joined<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Returns the bytes of the tensors of a row.
fn tensor_bytes(schema: &Schema) -> usize {
    let bytes = |field: &FieldRef| match field.data_type() {
        DataType::FixedSizeList(item, size) => *size as usize * item.data_type().primitive_width().unwrap_or(0),
        _ => 0,
    };
    schema.fields().iter().map(bytes).sum()
}

/// Encodes batches as a file with groups of `rows` rows, several of which are encoded at a time.
fn encode(schema: &SchemaRef, rows: usize, batches: impl IntoIterator<Item = RecordBatch>) -> Result<Bytes> {
    let (mut file, columns) = writer(schema)?.into_serialized_writer()?;
    let at_once = rayon::current_num_threads().min(AT_ONCE);
    let mut groups = VecDeque::new();
    // The group that is being filled, and the number of rows that it lacks.
    let (mut filled, mut missing) = (None::<SyncSender<RecordBatch>>, 0);
    for batch in batches {
        let mut start = 0;
        while start < batch.num_rows() {
            if missing == 0 {
                if groups.len() == at_once {
                    append(&mut file, groups.pop_front())?;
                }
                let (send, received) = mpsc::sync_channel(WAITING);
                let columns = columns.create_column_writers(file.flushed_row_groups().len() + groups.len())?;
                groups.push_back(spawn(move || encode_group(columns, received)));
                (filled, missing) = (Some(send), rows);
            }
            let taken = missing.min(batch.num_rows() - start);
            if let Some(group) = &filled {
                // A group that has failed takes no more rows, and its thread returns its error.
                let _ = group.send(batch.slice(start, taken));
            }
            (start, missing) = (start + taken, missing - taken);
            if missing == 0 {
                filled = None;
            }
        }
    }
    drop(filled);
    while !groups.is_empty() {
        append(&mut file, groups.pop_front())?;
    }
    Ok(file.into_inner()?.into())
}

/// Encodes the batches of a row group.
fn encode_group(mut columns: Vec<ArrowColumnWriter>, batches: Receiver<RecordBatch>) -> Result<Vec<ArrowColumnChunk>> {
    for batch in batches {
        let schema = batch.schema();
        let rows = rows_at_a_time(schema.fields());
        for start in (0..batch.num_rows()).step_by(rows) {
            let some = batch.slice(start, rows.min(batch.num_rows() - start));
            let mut writers = columns.iter_mut();
            for (field, column) in schema.fields().iter().zip(some.columns()) {
                for (leaf, writer) in compute_leaves(field, column)?.iter().zip(&mut writers) {
                    writer.write(leaf)?;
                }
            }
        }
    }
    Ok(columns.into_iter().map(ArrowColumnWriter::close).collect::<Result<_, _>>()?)
}

/// Waits for a row group and writes it behind the others.
fn append(
    file: &mut SerializedFileWriter<Vec<u8>>,
    group: Option<JoinHandle<Result<Vec<ArrowColumnChunk>>>>,
) -> Result<()> {
    let Some(group) = group else { return Ok(()) };
    let mut writer = file.next_row_group()?;
    for column in joined(group)? {
        column.append_to_row_group(&mut writer)?;
    }
    writer.close()?;
    Ok(())
}

fn writer(schema: &SchemaRef) -> Result<ArrowWriter<Vec<u8>>> {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_created_by("vlmdiff".into());
    // Dictionaries and statistics of heavy columns, such as pixels, would cost time and are not used.
    for field in schema.fields().iter().filter(|f| is_heavy(f)) {
        let leaf = if field.data_type().is_nested() {
            vec![field.name().clone(), "list".into(), "item".into()]
        } else {
            vec![field.name().clone()]
        };
        let column = ColumnPath::new(leaf);
        properties = properties
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_statistics_enabled(column, EnabledStatistics::None);
    }
    Ok(ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties.build()))?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{ArrayRef, AsArray, Int64Array},
        datatypes::{Field, Int64Type},
    };
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;
    use crate::engine::store::tensor_field;

    fn numbers(range: std::ops::Range<i64>) -> RecordBatch {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(range));
        RecordBatch::try_from_iter([("n", column)]).unwrap()
    }

    #[test]
    fn batches_of_any_size_become_groups_of_one_size_in_their_order() {
        let encoder = Encoder::in_groups(numbers(0..0).schema(), 3);
        [0..2, 2..2, 2..6, 6..7, 7..17].into_iter().for_each(|range| encoder.write(numbers(range)));
        let reader = ParquetRecordBatchReaderBuilder::try_new(encoder.finish().unwrap()).unwrap();
        let rows: Vec<i64> = reader.metadata().row_groups().iter().map(|group| group.num_rows()).collect();
        assert_eq!(rows, [3, 3, 3, 3, 3, 2]);
        let read = reader.build().unwrap().flat_map(|batch| {
            let batch = batch.unwrap();
            batch.column(0).as_primitive::<Int64Type>().values().to_vec()
        });
        assert!(read.eq(0..17));
    }

    #[test]
    fn part_without_rows_has_its_columns() {
        let part = encode_part(&numbers(0..0)).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(part).unwrap();
        assert_eq!((reader.schema().fields().len(), reader.metadata().num_row_groups()), (1, 0));
    }

    #[test]
    fn tensors_are_counted_in_bytes() {
        let pixels = tensor_field("pixels", DataType::UInt8, &[4, 5, 3], false);
        let map = tensor_field("map", DataType::Float16, &[4, 5], true);
        let schema = Schema::new(vec![Field::new("id", DataType::Utf8, false), pixels, map]);
        assert_eq!(tensor_bytes(&schema), 60 + 40);
    }
}
