//! Light columns that a server has read, kept in memory for the statements that follow.
//!
//! Finding, decompressing and decoding columns is most of what a plain `select` costs. The rows of a part never change, so those that
//! one statement has read and checked are the rows that the next one would read. Rows are kept of tables that a statement reads to
//! the end without a condition; a condition leaves parts out, and is then answered from these rows.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::{
    datasource::memory::MemorySourceConfig,
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_plan::{
        ExecutionPlan, ExecutionPlanProperties,
        stream::RecordBatchStreamAdapter,
        streaming::{PartitionStream, StreamingTableExec},
    },
};
use futures::StreamExt;

use crate::engine::Digest;

/// The bytes that a table counts beside its rows.
const TABLE: usize = 4096;

/// Tables in memory, up to a number of bytes. A table that was not read for longest gives way to others.
pub struct Kept {
    most: usize,
    tables: Mutex<Tables>,
    /// The bytes of rows that statements are collecting, to be kept once a table is complete. `most` bounds them too.
    collected: AtomicUsize,
}

#[derive(Default)]
struct Tables {
    /// By the digest of their parts. Of a table there may be several with different columns.
    by_parts: HashMap<Digest, Vec<Table>>,
    bytes: usize,
    reads: u64,
}

/// Columns of a table.
struct Table {
    /// Their positions among all columns.
    columns: Vec<usize>,
    batches: Vec<RecordBatch>,
    bytes: usize,
    /// The number of the last read.
    read: u64,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kept({} of {} bytes)", self.tables().bytes, self.most)
    }
}

impl Kept {
    /// Keeps tables up to so many bytes; 0 for none.
    pub fn new(most: usize) -> Self {
        Self { most, tables: Mutex::default(), collected: AtomicUsize::new(0) }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns columns of the table with these parts, if they are kept.
    fn get(&self, parts: Digest, columns: &[usize]) -> Option<Vec<RecordBatch>> {
        let mut tables = self.tables();
        tables.reads += 1;
        let reads = tables.reads;
        let place = |table: &Table, column: &usize| table.columns.iter().position(|other| other == column);
        let (table, places) = tables.by_parts.get_mut(&parts)?.iter_mut().find_map(|table| {
            let places: Vec<usize> = columns.iter().map(|column| place(table, column)).collect::<Option<_>>()?;
            Some((table, places))
        })?;
        table.read = reads;
        table.batches.iter().map(|batch| batch.project(&places).ok()).collect()
    }

    /// Keeps columns of a table, in place of fewer columns of it.
    fn put(&self, parts: Digest, columns: Vec<usize>, batches: Vec<RecordBatch>) {
        let bytes = TABLE + batches.iter().map(RecordBatch::get_array_memory_size).sum::<usize>();
        if bytes > self.most {
            return;
        }
        let mut tables = self.tables();
        tables.remove(|of, table| of == parts && table.columns.iter().all(|column| columns.contains(column)));
        while tables.bytes + bytes > self.most {
            let oldest = tables.by_parts.values().flatten().map(|table| table.read).min();
            tables.remove(|_, table| Some(table.read) == oldest);
        }
        tables.reads += 1;
        tables.bytes += bytes;
        let table = Table { columns, batches, bytes, read: tables.reads };
        tables.by_parts.entry(parts).or_default().push(table);
    }

    /// Returns a scan of columns of the table with these parts from memory, in so many partitions at most; `None` if they are not
    /// kept.
    pub(super) fn scan(
        &self,
        parts: Digest,
        columns: &[usize],
        schema: &SchemaRef,
        most: usize,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(batches) = self.get(parts, columns) else { return Ok(None) };
        let together = batches.len().div_ceil(most.max(1)).max(1);
        let mut partitions: Vec<Vec<RecordBatch>> = batches.chunks(together).map(<[_]>::to_vec).collect();
        if partitions.is_empty() {
            partitions.push(Vec::new());
        }
        Ok(Some(MemorySourceConfig::try_new_exec(&partitions, schema.clone(), None)?))
    }

    /// Returns true if so many rows of so many bytes each can be kept.
    pub(super) fn has_room_for(&self, rows: u64, bytes: usize) -> bool {
        rows.saturating_mul(bytes as u64) <= self.most as u64
    }

    /// Returns a plan with the rows of `scan`, which reads columns of the table with these parts and can be executed several times.
    /// Rows that are read to the end are kept.
    pub(super) fn keeping(
        self: Arc<Self>,
        parts: Digest,
        columns: Vec<usize>,
        scan: Arc<dyn ExecutionPlan>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let partitions = scan.output_partitioning().partition_count();
        let read = Mutex::new(vec![None; partitions]);
        let reading = Arc::new(Reading { kept: self, parts, columns, read, bytes: AtomicUsize::new(0) });
        let partition = |number| {
            let partition = Partition { scan: scan.clone(), schema: scan.schema(), number, reading: reading.clone() };
            Arc::new(partition) as Arc<dyn PartitionStream>
        };
        let schema = scan.schema();
        Ok(Arc::new(StreamingTableExec::try_new(
            schema,
            (0..partitions).map(partition).collect(),
            None,
            [],
            false,
            None,
        )?))
    }
}

impl Tables {
    /// Removes the tables that are chosen by their parts and columns.
    fn remove(&mut self, is_chosen: impl Fn(Digest, &Table) -> bool) {
        let Self { by_parts, bytes, .. } = self;
        for (parts, tables) in by_parts.iter_mut() {
            tables.retain(|table| {
                let stays = !is_chosen(*parts, table);
                *bytes -= if stays { 0 } else { table.bytes };
                stays
            });
        }
        by_parts.retain(|_, tables| !tables.is_empty());
    }
}

/// A table that is being read.
struct Reading {
    kept: Arc<Kept>,
    parts: Digest,
    columns: Vec<usize>,
    /// The rows of each partition that was read to its end; without partitions if the table is too large to be kept.
    read: Mutex<Vec<Option<Vec<RecordBatch>>>>,
    /// The bytes of the rows that were collected.
    bytes: AtomicUsize,
}

impl Reading {
    fn read(&self) -> MutexGuard<'_, Vec<Option<Vec<RecordBatch>>>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts rows, and returns true if they may be collected. If those of all statements together are more than are kept, this
    /// table is given up.
    fn collects(&self, batch: &RecordBatch) -> bool {
        let mut read = self.read();
        if read.is_empty() {
            return false;
        }
        let bytes = batch.get_array_memory_size();
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = self.kept.collected.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.kept.most;
        if !fits {
            read.clear();
        }
        fits
    }

    /// Takes the rows of a partition. With those of the last one the table is kept.
    fn take(&self, number: usize, batches: Vec<RecordBatch>) {
        let mut read = self.read();
        let Some(partition) = read.get_mut(number) else { return };
        *partition = Some(batches);
        if read.iter().all(Option::is_some) {
            let batches = read.iter_mut().filter_map(Option::take).flatten().collect();
            self.kept.put(self.parts, self.columns.clone(), batches);
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.kept.collected.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

/// One partition of a table that is being read.
struct Partition {
    scan: Arc<dyn ExecutionPlan>,
    schema: SchemaRef,
    number: usize,
    reading: Arc<Reading>,
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Partition({})", self.number)
    }
}

impl PartitionStream for Partition {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let rows = match self.scan.execute(self.number, context) {
            Ok(rows) => rows,
            Err(error) => {
                let failed = futures::stream::once(async move { Err(error) });
                return Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), failed));
            }
        };
        let (reading, number) = (self.reading.clone(), self.number);
        // After an error, or if there is no room for the table, no rows are collected any more.
        let begin = (rows, Some(Vec::<RecordBatch>::new()));
        let read = futures::stream::unfold(begin, move |(mut rows, mut batches)| {
            let reading = reading.clone();
            async move {
                let Some(next) = rows.next().await else {
                    batches.into_iter().for_each(|batches| reading.take(number, batches));
                    return None;
                };
                batches = batches.filter(|_| next.as_ref().is_ok_and(|batch| reading.collects(batch)));
                if let (Ok(batch), Some(batches)) = (&next, &mut batches) {
                    batches.push(batch.clone());
                }
                Some((next, (rows, batches)))
            }
        });
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), read))
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, AsArray, Int64Array},
        datatypes::Int64Type,
    };
    use datafusion::physical_plan::collect;

    use super::*;

    /// Makes a batch with a column for each letter, of so many rows.
    fn batch(columns: &str, rows: i64) -> RecordBatch {
        let column = |name: char| {
            let values: ArrayRef = Arc::new(Int64Array::from_iter_values((0..rows).map(|row| row * name as i64)));
            (name.to_string(), values)
        };
        RecordBatch::try_from_iter(columns.chars().map(column)).unwrap()
    }

    fn parts(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    #[test]
    fn columns_are_found_among_those_that_are_kept() {
        let kept = Kept::new(1 << 20);
        kept.put(parts("t"), vec![4, 2], vec![batch("ab", 10), batch("ab", 5)]);
        let found = kept.get(parts("t"), &[2]).unwrap();
        assert_eq!(found.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [10, 5]);
        assert_eq!(found[0].column(0).as_primitive::<Int64Type>().value(1), 'b' as i64);
        assert_eq!(kept.get(parts("t"), &[]).unwrap()[0].num_rows(), 10);
        assert!(kept.get(parts("t"), &[2, 3]).is_none() && kept.get(parts("u"), &[2]).is_none());
        // More columns take the place of fewer.
        kept.put(parts("t"), vec![2, 3, 4], vec![batch("bca", 15)]);
        assert_eq!(kept.get(parts("t"), &[4]).unwrap().len(), 1);
        assert_eq!(kept.tables().by_parts[&parts("t")].len(), 1);
    }

    #[test]
    fn table_that_was_not_read_for_longest_gives_way() {
        let size = TABLE + batch("a", 1000).get_array_memory_size();
        let kept = Kept::new(2 * size);
        let put = |name| kept.put(parts(name), vec![0], vec![batch("a", 1000)]);
        let has = |name| kept.tables().by_parts.contains_key(&parts(name));
        put("first");
        put("second");
        kept.get(parts("first"), &[0]).unwrap();
        put("third");
        assert_eq!(["first", "second", "third"].map(has), [true, false, true]);
        kept.put(parts("large"), vec![0], vec![batch("a", 3000)]);
        assert_eq!(["first", "third", "large"].map(has), [true, true, false]);
        assert_eq!(kept.tables().bytes, 2 * size);
    }

    #[tokio::test]
    async fn rows_are_kept_when_all_partitions_were_read_to_their_end() {
        let kept = Arc::new(Kept::new(1 << 20));
        let rows = [vec![batch("a", 3)], vec![batch("a", 4), batch("a", 5)]];
        let schema = rows[0][0].schema();
        let scan = MemorySourceConfig::try_new_exec(&rows, schema.clone(), None).unwrap();
        let reading = kept.clone().keeping(parts("t"), vec![0], scan).unwrap();
        let context = Arc::new(TaskContext::default());
        let mut second = reading.execute(1, context.clone()).unwrap();
        second.next().await.unwrap().unwrap();
        drop(second);
        let first = reading.execute(0, context.clone()).unwrap();
        assert_eq!(first.count().await, 1);
        assert!(kept.scan(parts("t"), &[0], &schema, 2).unwrap().is_none());
        let sizes = |batches: &[RecordBatch]| batches.iter().map(RecordBatch::num_rows).collect::<Vec<_>>();
        // Partitions are read side by side, and kept in their order.
        let sorted = |batches: &[RecordBatch]| {
            let mut sizes = sizes(batches);
            sizes.sort_unstable();
            sizes
        };
        assert_eq!(sorted(&collect(reading, context.clone()).await.unwrap()), [3, 4, 5]);
        assert_eq!(sizes(&kept.get(parts("t"), &[0]).unwrap()), [3, 4, 5]);
        let again = kept.scan(parts("t"), &[0], &schema, 2).unwrap().unwrap();
        assert_eq!(again.output_partitioning().partition_count(), 2);
        assert_eq!(sorted(&collect(again, context).await.unwrap()), [3, 4, 5]);
    }

    #[tokio::test]
    async fn tables_that_are_read_at_once_share_the_room_in_which_rows_are_collected() {
        let size = batch("a", 1000).get_array_memory_size();
        let kept = Arc::new(Kept::new(TABLE + 2 * size));
        let reading = |name| {
            let rows = [vec![batch("a", 1000)], vec![batch("a", 1000)]];
            let scan = MemorySourceConfig::try_new_exec(&rows, rows[0][0].schema(), None).unwrap();
            kept.clone().keeping(parts(name), vec![0], scan).unwrap()
        };
        let context = Arc::new(TaskContext::default());
        let (first, second) = (reading("first"), reading("second"));
        let begun = second.execute(0, context.clone()).unwrap();
        assert_eq!(begun.count().await, 1);
        // Two partitions and that one are too many, so that the table that is read then is given up, and not its rows.
        let rows = collect(first, context.clone()).await.unwrap();
        assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 2000);
        assert!(kept.get(parts("first"), &[0]).is_none());
        drop(second);
        assert_eq!(kept.collected.load(Ordering::Relaxed), 0);
        collect(reading("first"), context).await.unwrap();
        assert_eq!(kept.get(parts("first"), &[0]).unwrap().len(), 2);
    }
}
