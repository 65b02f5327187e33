//! Rows out of Parquet parts.

use std::{collections::BTreeMap, fmt::Display, sync::Arc};

use arrow::{
    array::RecordBatch,
    compute::{concat_batches, interleave_record_batch},
    datatypes::{DataType, FieldRef, Schema, SchemaRef},
};
use futures::{StreamExt, TryStreamExt, stream};
use parquet::{
    arrow::{
        ParquetRecordBatchStreamBuilder, ProjectionMask,
        arrow_reader::{ArrowReaderBuilder, ParquetRecordBatchReaderBuilder},
    },
    errors::ParquetError,
    file::reader::ChunkReader,
};
use rayon::prelude::*;

use super::{
    manifest::{PartRef, runs, selection},
    objects::Store,
    remote_part::RemotePart,
    stored_columns::has_heavy,
};
use crate::engine::{Digest, Error, Mismatch, Result, caught};

/// The number of parts whose light columns are fetched at a time.
const LIGHT_READS: usize = 64;

/// The number of list items that are encoded or decoded at a time, because writer and reader keep up to twelve bytes
/// about each beside its value.
const ITEMS: usize = 1 << 18;

/// Returns the number of rows with at most [`ITEMS`] items in each list, at least one.
pub(super) fn rows_at_a_time<'a>(fields: impl IntoIterator<Item = &'a FieldRef>) -> usize {
    let widths = fields.into_iter().filter_map(|field| match field.data_type() {
        DataType::FixedSizeList(_, size) => Some(*size as usize),
        _ => None,
    });
    ITEMS / widths.max().unwrap_or_default().clamp(1, ITEMS)
}

/// Decodes columns of a part, in the given order. `chosen` are the runs of rows to return; `None` means all.
fn decode(part: impl ChunkReader + 'static, columns: &[String], chosen: Option<&[(u64, u64)]>) -> Result<RecordBatch> {
    let (builder, read_schema) = reading(ParquetRecordBatchReaderBuilder::try_new(part)?, columns, chosen)?;
    let batches = builder.build()?.collect::<Result<Vec<_>, _>>()?;
    all_of(chosen, in_order_of(columns, &read_schema, batches)?)
}

/// Does as [`decode`] for light columns of a part in a remote store, whose other columns are not fetched.
async fn decode_remote(part: RemotePart, columns: &[String], chosen: Option<&[(u64, u64)]>) -> Result<RecordBatch> {
    let (builder, read_schema) = reading(ParquetRecordBatchStreamBuilder::new(part).await?, columns, chosen)?;
    let batches = builder.build()?.try_collect::<Vec<_>>().await?;
    all_of(chosen, in_order_of(columns, &read_schema, batches)?)
}

/// Makes a reader return chosen rows of columns, and returns it with the schema of its batches.
pub(super) fn reading<T>(
    mut builder: ArrowReaderBuilder<T>,
    columns: &[String],
    chosen: Option<&[(u64, u64)]>,
) -> Result<(ArrowReaderBuilder<T>, SchemaRef)> {
    let schema = builder.schema().clone();
    let total = builder.metadata().file_metadata().num_rows() as usize;
    let roots: Vec<usize> = columns.iter().map(|name| schema.index_of(name)).collect::<Result<_, _>>()?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots.iter().copied());
    let rows = rows_at_a_time(roots.iter().map(|root| &schema.fields()[*root]));
    builder = builder.with_projection(mask).with_batch_size(rows.min(total.max(1)));
    if let Some(runs) = chosen {
        // Row groups without chosen rows are left out: skipping their rows would still decode their dictionaries.
        let sizes = builder.metadata().row_groups().iter().map(|group| group.num_rows() as u64);
        let (groups, runs, rows) = in_row_groups(sizes, runs);
        builder = builder.with_row_groups(groups).with_row_selection(selection(&runs, rows));
    }
    Ok((builder, Arc::new(Schema::new(reader_fields(&schema, &roots)))))
}

/// Returns batches as one, with its columns in the given order.
pub(super) fn in_order_of(
    columns: &[String],
    read_schema: &SchemaRef,
    batches: Vec<RecordBatch>,
) -> Result<RecordBatch> {
    let with_schema = |batch: RecordBatch| batch.with_schema(read_schema.clone());
    let batches = batches.into_iter().map(with_schema).collect::<Result<Vec<_>, _>>()?;
    let batch = concat_batches(read_schema, &batches)?;
    let order: Vec<usize> = columns.iter().map(|name| batch.schema_ref().index_of(name)).collect::<Result<_, _>>()?;
    Ok(batch.project(&order)?)
}

/// Fails if rows of `chosen` are missing in a batch.
fn all_of(chosen: Option<&[(u64, u64)]>, batch: RecordBatch) -> Result<RecordBatch> {
    let rows = chosen.map(|runs| runs.iter().fold(0_u64, |rows, (_, count)| rows.saturating_add(*count)));
    if rows.is_some_and(|rows| rows != batch.num_rows() as u64) { Err(lacks_rows()) } else { Ok(batch) }
}

/// Makes the error of a part in which rows are missing.
pub(super) fn lacks_rows() -> Error {
    ParquetError::General("it lacks rows that its record names".into()).into()
}

/// Finds the row groups with rows of these runs; `sizes` are the numbers of rows of all groups. Returns the groups, the
/// runs as they lie in these groups one after another, and the number of rows of these groups.
fn in_row_groups(sizes: impl Iterator<Item = u64>, runs: &[(u64, u64)]) -> (Vec<usize>, Vec<(u64, u64)>, u64) {
    let (mut groups, mut chosen) = (Vec::new(), Vec::new());
    let (mut start, mut rows) = (0, 0);
    for (group, size) in sizes.enumerate() {
        let end = start + size;
        let next = runs.partition_point(|(first, count)| first + count <= start);
        let here = runs[next..].iter().take_while(|(first, _)| *first < end);
        let before = chosen.len();
        chosen.extend(here.map(|(first, count)| {
            let from = start.max(*first);
            (rows + from - start, end.min(first + count) - from)
        }));
        if chosen.len() > before {
            groups.push(group);
            rows += size;
        }
        start = end;
    }
    (groups, chosen, rows)
}

/// Returns the projected fields in file order, as the reader returns them.
fn reader_fields(schema: &SchemaRef, roots: &[usize]) -> Vec<Arc<arrow::datatypes::Field>> {
    let mut roots = roots.to_vec();
    roots.sort_unstable();
    roots.dedup();
    roots.into_iter().map(|i| schema.fields()[i].clone()).collect()
}

/// Addresses of rows: the parts, and `(part, row)` of each row.
pub(in crate::engine) type Addresses = (Vec<Digest>, Vec<(u32, u64)>);

/// Reads the rows at the addresses `(part, row)`, in that order.
pub(in crate::engine) fn gather(
    store: &Store,
    parts: &[Digest],
    places: &[(u32, u64)],
    columns: &[String],
    schema: &SchemaRef,
) -> Result<RecordBatch> {
    let mut wanted: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    places.iter().for_each(|(part, row)| wanted.entry(*part).or_default().push(*row));
    let mut batches = Vec::with_capacity(wanted.len());
    let mut found: BTreeMap<(u32, u64), (usize, usize)> = BTreeMap::new();
    for (part, mut rows) in wanted {
        rows.sort_unstable();
        rows.dedup();
        found.extend(rows.iter().enumerate().map(|(i, row)| ((part, *row), (batches.len(), i))));
        let part = parts[part as usize];
        batches.push(read_part(store, part, columns, schema, Some(&runs(&rows)))?);
    }
    match batches.as_slice() {
        [] => Ok(RecordBatch::new_empty(schema.clone())),
        // Ascending rows of a single part are in the order of decoding.
        [only] if places.is_sorted() && only.num_rows() == places.len() => Ok(only.clone()),
        _ => {
            let order: Vec<(usize, usize)> = places.iter().map(|place| found[place]).collect();
            Ok(interleave_record_batch(&batches.iter().collect::<Vec<_>>(), &order)?)
        }
    }
}

/// Reads all chosen rows of a table, in the order of its parts.
pub fn read_table(store: &Store, parts: &[PartRef], columns: &[String], schema: &SchemaRef) -> Result<RecordBatch> {
    let read = |part: &PartRef| read_part(store, part.part, columns, schema, part.chosen.as_deref());
    let batches = if store.folder.is_none() && !has_heavy(schema) {
        read_light(store, parts, columns, schema)?
    } else {
        parts.par_iter().map(read).collect::<Result<Vec<_>>>()?
    };
    Ok(concat_batches(schema, &batches)?)
}

/// Reads chosen rows of light columns from parts of a remote store, many parts at a time, because each of them is mostly
/// waited for.
fn read_light(store: &Store, parts: &[PartRef], columns: &[String], schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
    let columns: Arc<[String]> = columns.into();
    let runtime = store.runtime();
    let read = |part: &PartRef| {
        let (digest, remote, columns, chosen) =
            (part.part, store.remote_part(part.part), columns.clone(), part.chosen.clone());
        let task = runtime.spawn(async move { read_ranges(digest, remote, &columns, chosen.as_deref()).await });
        async move {
            let batch = task.await.unwrap_or_else(|_| Err(unreadable(digest, not_parquet())))?;
            Ok(batch.with_schema(schema.clone())?)
        }
    };
    // A task is started when its turn comes, since the iterator is lazy.
    runtime.block_on(stream::iter(parts.iter().map(read)).buffered(LIGHT_READS).try_collect())
}

/// Reads columns of a part, with the types of `schema`. The bytes of other columns are not read from this machine's
/// disk, and not fetched if all columns are light; all bytes that are read are checked.
fn read_part(
    store: &Store,
    part: Digest,
    columns: &[String],
    schema: &SchemaRef,
    chosen: Option<&[(u64, u64)]>,
) -> Result<RecordBatch> {
    let batch = match store.local_part(part)? {
        // Parquet and Arrow report a mismatched digest only as text, so the part itself is asked.
        Some(opened) => in_part(part, || decode(opened.clone(), columns, chosen))
            .map_err(|error| if opened.is_damaged() { mismatch(part) } else { error })?,
        None if has_heavy(schema) => in_part(part, || decode(store.part(part)?, columns, chosen))?,
        None => {
            let read = read_ranges(part, store.remote_part(part), columns, chosen);
            in_part(part, || store.runtime().block_on(read))?
        }
    };
    Ok(batch.with_schema(schema.clone())?)
}

/// Reads light columns of a part in a remote store, whose other columns are not fetched.
async fn read_ranges(
    part: Digest,
    remote: RemotePart,
    columns: &[String],
    chosen: Option<&[(u64, u64)]>,
) -> Result<RecordBatch> {
    decode_remote(remote, columns, chosen).await.map_err(|error| unreadable(part, error))
}

/// Reports a part that Parquet cannot read as damaged. Parquet returns an error, or panics on bytes that it never
/// writes.
pub(super) fn in_part<T>(part: Digest, read: impl FnOnce() -> Result<T>) -> Result<T> {
    caught(read).unwrap_or_else(|| Err(not_parquet())).map_err(|error| unreadable(part, error))
}

/// Makes the error of a part that Parquet or Arrow cannot read. A failure of the disk or the network is not damage to
/// the part.
fn unreadable(part: Digest, error: Error) -> Error {
    let damaged = |e: &dyn Display| Error::lost(part, format!("part {part} cannot be read: {e}"));
    match error {
        Error::Parquet(ParquetError::External(e)) => match e.downcast::<object_store::Error>() {
            Ok(e) if Mismatch::find(&*e).is_some() => mismatch(part),
            Ok(e) if matches!(*e, object_store::Error::NotFound { .. }) => {
                Error::lost(part, format!("part {part} is missing"))
            }
            Ok(e) => Error::Store(*e),
            Err(e) if e.is::<std::io::Error>() => Error::Stage(format!("part {part} cannot be read: {e}")),
            Err(e) => damaged(&e),
        },
        Error::Parquet(e) => damaged(&e),
        Error::Arrow(e) => damaged(&e),
        other => other,
    }
}

pub(super) fn mismatch(part: Digest) -> Error {
    Error::lost(part, format!("part {part} does not match its digest"))
}

fn not_parquet() -> Error {
    ParquetError::General("its bytes are not a Parquet file".into()).into()
}

/// Returns the fields of `schema` that `columns` names, in that order.
pub(in crate::engine) fn project(schema: &Schema, columns: &[String]) -> Result<SchemaRef> {
    let fields = columns.iter().map(|name| schema.field_with_name(name).cloned()).collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(Schema::new(fields)))
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, AsArray, Int64Array};
    use arrow::datatypes::Int64Type;

    use super::*;
    use crate::engine::store::{Encoder, encode_part};

    #[test]
    fn only_row_groups_with_chosen_rows_are_read() {
        let of = |runs: &[(u64, u64)]| in_row_groups([4, 4, 4, 2].into_iter(), runs);
        assert_eq!(of(&[]), (vec![], vec![], 0));
        assert_eq!(of(&[(5, 1)]), (vec![1], vec![(1, 1)], 4));
        assert_eq!(of(&[(1, 1), (3, 2), (13, 1)]), (vec![0, 1, 3], vec![(1, 1), (3, 1), (4, 1), (9, 1)], 10));
        assert_eq!(of(&[(0, 14)]), (vec![0, 1, 2, 3], vec![(0, 4), (4, 4), (8, 4), (12, 2)], 14));
        let (folder, rows) = (tempfile::tempdir().unwrap(), 1000..2000);
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(rows));
        let batch = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
        let encoder = Encoder::in_groups(batch.schema(), 100);
        encoder.write(batch.clone());
        let part = store.put_part(encoder.finish().unwrap()).unwrap();
        let chosen = PartRef { part, bytes: 1, rows: 1000, chosen: Some(vec![(99, 2), (350, 1), (999, 1)]) };
        let read = read_table(&store, &[chosen], &["n".into()], batch.schema_ref()).unwrap();
        assert_eq!(read.column(0).as_primitive::<Int64Type>().values(), &[1099, 1100, 1350, 1999]);
    }

    #[test]
    fn part_that_lacks_rows_of_its_record_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..10));
        let batch = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
        let part = store.put_part(encode_part(&batch).unwrap()).unwrap();
        let error = gather(&store, &[part], &[(0, 3), (0, 12)], &["n".into()], batch.schema_ref()).unwrap_err();
        assert!(matches!(&error, Error::Lost { digest, .. } if *digest == part), "{error}");
        assert!(error.to_string().contains("it lacks rows that its record names"), "{error}");
    }

    #[test]
    fn rows_come_back_in_the_order_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let part = |range: std::ops::Range<i64>| {
            let a: ArrayRef = Arc::new(Int64Array::from_iter_values(range.clone()));
            let b: ArrayRef = Arc::new(Int64Array::from_iter_values(range.map(|x| -x)));
            store.put_part(encode_part(&RecordBatch::try_from_iter([("a", a), ("b", b)]).unwrap()).unwrap()).unwrap()
        };
        let parts = [part(0..10), part(10..20)];
        let schema =
            Arc::new(Schema::new(vec![arrow::datatypes::Field::new("b", arrow::datatypes::DataType::Int64, true)]));
        let read = |places: &[(u32, u64)]| {
            let batch = gather(&store, &parts, places, &["b".into()], &schema).unwrap();
            batch.column(0).as_primitive::<Int64Type>().values().to_vec()
        };
        assert_eq!(read(&[(1, 2), (0, 3), (1, 2), (0, 1)]), [-12, -3, -12, -1]);
        assert_eq!(read(&[(0, 3), (0, 9)]), [-3, -9]);
        assert_eq!(read(&[]), [0; 0]);
    }
}
