//! Rows at addresses, read in their order and a few at a time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arrow::{
    array::{Array, RecordBatch, RecordBatchOptions},
    compute::interleave_record_batch,
    datatypes::SchemaRef,
};
use parquet::{
    arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
    file::reader::ChunkReader,
};

use super::{
    checked::Part,
    manifest::runs,
    objects::Store,
    parquet::{gather, in_order_of, in_part, lacks_rows, mismatch, reading},
    stored_columns::has_heavy,
    tensor_pages::TensorReader,
};
use crate::engine::{Digest, Result};

/// Reads rows at addresses `(part, row)` in their order, a few at a time.
///
/// A part is decoded once if the rows of every part ascend, which they do unless rows are repeated or sorted anew: each call
/// goes on where the one before it ended.
pub(in crate::engine) struct RowReader {
    store: Store,
    parts: Vec<Digest>,
    places: Vec<(u32, u64)>,
    columns: Vec<String>,
    schema: SchemaRef,
    /// The number of rows that were read.
    read: usize,
    /// The parts by number, if each is decoded once.
    decoders: Option<HashMap<u32, Decoder>>,
}

/// The rows of a part.
struct Decoder {
    rows: Vec<u64>,
    /// The number of rows that were read.
    read: usize,
    /// The part, if some of its rows were read and some were not.
    open: Option<Open>,
}

struct Open {
    part: Digest,
    /// The part, if it is a local file.
    local: Option<Part>,
    schema: SchemaRef,
    /// The readers of tensors that are read page by page, by column.
    tensors: Vec<Option<TensorReader>>,
    others: Option<Others>,
}

/// The other columns of a part.
struct Others {
    columns: Vec<String>,
    batches: ParquetRecordBatchReader,
    /// The columns in the order of the file, as they are decoded.
    read_schema: SchemaRef,
    /// Rows that were decoded and not read.
    left: Option<RecordBatch>,
}

impl RowReader {
    /// Starts to read columns, with the types of `schema`, of the rows at `places`.
    pub(in crate::engine) fn new(store: Store, parts: Vec<Digest>, places: Vec<(u32, u64)>, schema: SchemaRef) -> Self {
        let columns = schema.fields().iter().map(|field| field.name().clone()).collect();
        // Light columns of a remote store are few bytes, which are fetched without the others.
        let is_decoded_on = store.folder.is_some() || has_heavy(&schema);
        let decoders = ascending(&places)
            .filter(|_| is_decoded_on)
            .map(|parts| parts.into_iter().map(|(part, rows)| (part, Decoder { rows, read: 0, open: None })).collect());
        Self { store, parts, places, columns, schema, read: 0, decoders }
    }

    /// Returns true if each part is decoded once, however few rows are read at a time.
    pub(in crate::engine) fn decodes_once(&self) -> bool {
        self.decoders.is_some()
    }

    /// Reads the next rows.
    ///
    /// # Panics
    /// If there are fewer.
    pub(in crate::engine) fn next(&mut self, rows: usize) -> Result<RecordBatch> {
        let places = &self.places[self.read..self.read + rows];
        self.read += rows;
        let Some(decoders) = &mut self.decoders else {
            return gather(&self.store, &self.parts, places, &self.columns, &self.schema);
        };
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        places.iter().for_each(|(part, _)| *counts.entry(*part).or_default() += 1);
        let (mut batches, mut next) = (Vec::new(), HashMap::new());
        for (number, count) in counts {
            let part = self.parts[number as usize];
            // Every part of a place has its decoder.
            let Some(decoder) = decoders.get_mut(&number) else { return Err(lacks_rows()) };
            let batch = decoder.next(&self.store, part, &self.columns, count)?;
            next.insert(number, (batches.len(), 0));
            batches.push(batch.with_schema(self.schema.clone())?);
        }
        if let [only] = &batches[..] {
            return Ok(only.clone());
        }
        let in_turn = |(part, _): &(u32, u64)| {
            let place = next.get_mut(part)?;
            place.1 += 1;
            Some((place.0, place.1 - 1))
        };
        let order: Vec<(usize, usize)> = places.iter().filter_map(in_turn).collect();
        match batches.is_empty() {
            true => Ok(RecordBatch::new_empty(self.schema.clone())),
            false => Ok(interleave_record_batch(&batches.iter().collect::<Vec<_>>(), &order)?),
        }
    }
}

/// Returns the rows of each part, if all of them ascend.
fn ascending(places: &[(u32, u64)]) -> Option<HashMap<u32, Vec<u64>>> {
    let mut rows: HashMap<u32, Vec<u64>> = HashMap::new();
    for (part, row) in places {
        let rows = rows.entry(*part).or_default();
        if rows.last().is_some_and(|last| last >= row) {
            return None;
        }
        rows.push(*row);
    }
    Some(rows)
}

impl Decoder {
    /// Decodes the next rows of a part.
    fn next(&mut self, store: &Store, part: Digest, columns: &[String], rows: usize) -> Result<RecordBatch> {
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(Open::new(store, part, columns, &self.rows, true)?),
        };
        let batch = match open.next(rows)? {
            Some(batch) => batch,
            None => {
                let left = &self.rows[self.read..];
                let open = self.open.insert(Open::new(store, part, columns, left, false)?);
                open.next(rows)?.ok_or_else(lacks_rows)?
            }
        };
        self.read += rows;
        if self.read == self.rows.len() {
            self.open = None;
        }
        Ok(batch)
    }
}

impl Open {
    /// Opens a part. If `by_page` is true, tensors are read page by page, and otherwise by the general reader too.
    fn new(store: &Store, part: Digest, columns: &[String], rows: &[u64], by_page: bool) -> Result<Self> {
        let (local, chosen) = (store.local_part(part)?, runs(rows));
        let open = || match local.clone() {
            Some(source) => readers(source, columns, &chosen, by_page),
            None => readers(store.part(part)?, columns, &chosen, by_page),
        };
        let (schema, tensors, others) = checked(part, local.as_ref(), open)?;
        Ok(Self { part, local, schema, tensors, others })
    }

    /// Reads the next rows. Returns `None` if tensors are not stored as this program stores them; the part has to be opened again
    /// then.
    fn next(&mut self, rows: usize) -> Result<Option<RecordBatch>> {
        let Self { part, local, schema, tensors, others } = self;
        checked(*part, local.as_ref(), || {
            let others = others.as_mut().map(|others| others.next(rows)).transpose()?;
            let mut others = others.iter().flat_map(RecordBatch::columns);
            let mut columns = Vec::new();
            for tensors in tensors {
                columns.push(match tensors {
                    None => others.next().ok_or_else(lacks_rows)?.clone(),
                    Some(tensors) => match tensors.next(rows)? {
                        None => return Ok(None),
                        Some(read) if read.len() < rows => return Err(lacks_rows()),
                        Some(read) => read,
                    },
                });
            }
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            Ok(Some(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?))
        })
    }
}

/// Returns the schema of columns of a part, their readers of tensors, and the reader of the others.
fn readers(
    source: impl ChunkReader + Clone + 'static,
    columns: &[String],
    chosen: &[(u64, u64)],
    by_page: bool,
) -> Result<(SchemaRef, Vec<Option<TensorReader>>, Option<Others>)> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(source.clone())?;
    let (schema, metadata, source) = (builder.schema().clone(), builder.metadata().clone(), Arc::new(source));
    let roots: Vec<usize> = columns.iter().map(|name| schema.index_of(name)).collect::<Result<_, _>>()?;
    let reader = |root: &usize| {
        let field = schema.fields().get(*root).filter(|_| by_page)?;
        TensorReader::new(&source, &metadata, *root, field, chosen)
    };
    let tensors: Vec<Option<TensorReader>> = roots.iter().map(reader).collect();
    let others = columns.iter().zip(&tensors).filter(|(_, tensors)| tensors.is_none());
    let columns: Vec<String> = others.map(|(name, _)| name.clone()).collect();
    let others = match columns.is_empty() {
        true => None,
        false => {
            let (builder, read_schema) = reading(builder, &columns, Some(chosen))?;
            Some(Others { columns, batches: builder.build()?, read_schema, left: None })
        }
    };
    Ok((Arc::new(schema.project(&roots)?), tensors, others))
}

impl Others {
    fn next(&mut self, rows: usize) -> Result<RecordBatch> {
        let (mut found, mut missing) = (Vec::new(), rows);
        while missing > 0 {
            let batch = self.left.take().map_or_else(|| self.batches.next().transpose(), |left| Ok(Some(left)))?;
            let batch = batch.ok_or_else(lacks_rows)?;
            let taken = missing.min(batch.num_rows());
            self.left = (taken < batch.num_rows()).then(|| batch.slice(taken, batch.num_rows() - taken));
            found.push(batch.slice(0, taken));
            missing -= taken;
        }
        in_order_of(&self.columns, &self.read_schema, found)
    }
}

/// Decodes some of a part. Parquet and Arrow report a mismatched digest only as text, so the part itself is asked.
fn checked<T>(part: Digest, local: Option<&Part>, decode: impl FnOnce() -> Result<T>) -> Result<T> {
    in_part(part, decode).map_err(|error| if local.is_some_and(Part::is_damaged) { mismatch(part) } else { error })
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, AsArray, Int64Array},
        datatypes::{DataType, Field, Int64Type, Schema},
    };

    use super::*;
    use crate::engine::{Error, store::encode_part};

    /// A store with parts of these numbers, and their digests.
    fn parts(numbers: &[std::ops::Range<i64>]) -> (tempfile::TempDir, Store, Vec<Digest>, SchemaRef) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let part = |range: &std::ops::Range<i64>| {
            let column =
                |sign: i64| Arc::new(Int64Array::from_iter_values(range.clone().map(|n| sign * n))) as ArrayRef;
            let batch = RecordBatch::try_from_iter([("a", column(-1)), ("n", column(1))]).unwrap();
            store.put_part(encode_part(&batch).unwrap()).unwrap()
        };
        let digests = numbers.iter().map(part).collect();
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        (folder, store, digests, schema)
    }

    #[test]
    fn rows_come_in_their_order_however_many_are_read_at_a_time() {
        let (_folder, store, digests, schema) = parts(&[0..10, 10..20]);
        let ascending = [(0, 1), (1, 0), (0, 2), (0, 7), (1, 3), (1, 9)];
        let repeated = [(1, 2), (0, 3), (1, 2), (0, 1), (0, 1), (1, 5)];
        for (places, decodes_once) in [(ascending, true), (repeated, false)] {
            for at_a_time in [1, 2, 3, 6] {
                let mut reader = RowReader::new(store.clone(), digests.clone(), places.into(), schema.clone());
                assert_eq!(reader.decodes_once(), decodes_once);
                let mut read = Vec::new();
                for _ in 0..6 / at_a_time {
                    let batch = reader.next(at_a_time).unwrap();
                    read.extend_from_slice(batch.column(0).as_primitive::<Int64Type>().values());
                }
                let expected = places.map(|(part, row)| i64::from(part) * 10 + row as i64);
                assert_eq!(read, expected, "{at_a_time} at a time");
            }
        }
    }

    #[test]
    fn no_rows_are_an_empty_batch() {
        let (_folder, store, digests, schema) = parts(&[0..10]);
        let mut reader = RowReader::new(store, digests, Vec::new(), schema);
        assert_eq!(reader.next(0).unwrap().num_rows(), 0);
    }

    #[test]
    fn part_that_lacks_rows_or_is_damaged_is_lost() {
        let (folder, store, digests, schema) = parts(&[0..10]);
        let read = |places: &[(u32, u64)]| {
            let mut reader = RowReader::new(store.clone(), digests.clone(), places.into(), schema.clone());
            (0..places.len()).try_for_each(|_| reader.next(1).map(|_| ())).unwrap_err()
        };
        let error = read(&[(0, 3), (0, 12)]);
        assert!(error.to_string().contains("it lacks rows that its record names"), "{error}");
        assert!(matches!(error, Error::Lost { digest, .. } if digest == digests[0]));
        let path = folder.path().join(format!("parts/{}.parquet", digests[0]));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let error = read(&[(0, 3), (0, 4)]);
        assert!(error.to_string().contains("does not match its digest"), "{error}");
        assert!(matches!(error, Error::Lost { digest, .. } if digest == digests[0]));
    }
}
