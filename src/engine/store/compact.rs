//! Small parts of a table, rewritten into one.
//!
//! Every run that computes a few rows adds a part and a record of it. Where a table has many that are small, their rows
//! are written once more, into one part with one record that takes their place: keys, contents and notes stay. The old
//! parts and records stay too, for the versions that are made of them, until a clean-up finds that none is left. Such a
//! record is skipped as long as the record that replaces it is there.

use std::collections::HashSet;

use arrow::datatypes::SchemaRef;
use bytes::Bytes;

use super::{
    computed::ComputedRows,
    encoder::Encoder,
    manifest::{Entry, PartRef},
    objects::Store,
    parquet::read_table,
};
use crate::engine::{Digest, Result, clock::now_ms};

/// The number of small parts that a table may have before they are rewritten.
const MANY: usize = 32;

/// The number of rows from which a part is not small: a task that is not cut short writes as many, so that the parts of
/// a first run stay as they are.
const FULL: u64 = 256;

/// The size in bytes from which a part is not small, however few its rows.
const LARGE: u64 = 1 << 20;

/// Bytes of small parts that become one part. Whoever reads a few rows of a part reads what its end says of all of
/// them.
const TOGETHER: u64 = 4 << 20;

/// Rows of a row group: the tasks of tables below read a few rows each.
const GROUP_ROWS: usize = 4096;

/// Parts that are read at a time: decoded, they are larger.
const AT_A_TIME: usize = 4;

/// Parts that were rewritten, and the entries that take their place.
#[derive(Debug, Default)]
pub struct Compacted {
    /// The new entries, which are recorded.
    pub entries: Vec<Entry>,
    /// The parts whose rows they hold.
    pub replaced: HashSet<Digest>,
}

impl Store {
    /// Rewrites the small parts of a table whose rows are cached one by one, if it has many; `known` is what is
    /// recorded under `stage`.
    pub(in crate::engine) fn compact(
        &self,
        stage: Digest,
        known: &ComputedRows,
        parts: &[PartRef],
        schema: &SchemaRef,
    ) -> Result<Compacted> {
        let small: Vec<PartRef> = parts.iter().filter(|part| part.rows < FULL && part.bytes < LARGE).cloned().collect();
        if small.len() <= MANY {
            return Ok(Compacted::default());
        }
        let mut compacted = Compacted::default();
        for group in groups(small) {
            let Some(mut entry) = known.merged(&group)? else { continue };
            let bytes = self.rewritten(&group, schema)?;
            entry.bytes = bytes.len() as u64;
            entry.part = Some(self.put_part(bytes)?);
            entry.recorded_ms = entry.recorded_ms.max(now_ms());
            self.record(stage, &entry)?;
            compacted.entries.push(entry);
            compacted.replaced.extend(group.iter().map(|part| part.part));
        }
        Ok(compacted)
    }

    /// The rows of parts, one after another, as the bytes of one part.
    fn rewritten(&self, parts: &[PartRef], schema: &SchemaRef) -> Result<Bytes> {
        let columns: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        let encoder = Encoder::in_groups(schema.clone(), GROUP_ROWS);
        for some in parts.chunks(AT_A_TIME) {
            encoder.write(read_table(self, some, &columns, schema)?);
        }
        encoder.finish()
    }
}

/// Cuts parts into groups that are not too large for one part.
fn groups(small: Vec<PartRef>) -> Vec<Vec<PartRef>> {
    let mut groups: Vec<Vec<PartRef>> = Vec::new();
    let mut bytes = 0;
    for part in small {
        bytes += part.bytes;
        match groups.last_mut().filter(|_| bytes <= TOGETHER) {
            Some(group) => group.push(part),
            None => {
                bytes = part.bytes;
                groups.push(vec![part]);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{ArrayRef, AsArray, RecordBatch, StringArray},
        datatypes::{DataType, Field, Schema},
    };

    use super::*;
    use crate::engine::store::{EntryNote, encode_part, row_digests};

    fn known(store: &Store, stage: Digest) -> ComputedRows {
        let mut known = ComputedRows::default();
        known.extend(store.computed(stage).unwrap().entries);
        known
    }

    /// So many entries of two rows; every tenth row has a note.
    fn fill(store: &Store, stage: Digest, schema: &SchemaRef, entries: u64) -> Vec<Digest> {
        let mut all = Vec::new();
        for at in 0..entries {
            let ids = [format!("row-{}", 2 * at), format!("row-{}", 2 * at + 1)];
            let keys = ids.each_ref().map(|id| Digest::of(id.as_bytes()));
            let column: ArrayRef = Arc::new(StringArray::from_iter_values(&ids));
            let batch = RecordBatch::try_new(schema.clone(), vec![column]).unwrap();
            let bytes = encode_part(&batch).unwrap();
            let note = EntryNote { what: "odd".into(), keys: vec![keys[1]], count: 0, names: vec![ids[1].clone()] };
            let entry = Entry {
                bytes: bytes.len() as u64,
                part: Some(store.put_part(bytes).unwrap()),
                keys: keys.to_vec(),
                contents: row_digests(&batch).unwrap(),
                errors: Vec::new(),
                blobs: vec![Digest::of(&at.to_le_bytes())],
                notes: if at % 5 == 0 { vec![note] } else { Vec::new() },
                replaces: Vec::new(),
                recorded_ms: at,
            };
            store.record(stage, &entry).unwrap();
            all.extend(keys);
        }
        all
    }

    #[test]
    fn rewritten_rows_are_the_same_rows_at_every_step() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let stage = Digest::of(b"stage");
        let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("id", DataType::Utf8, false)]));
        let mut keys = fill(&store, stage, &schema, 40);
        // One row of a part is not in the table.
        keys.remove(7);
        let of = keys.len() as u64;
        let before = known(&store, stage).choose(&[], &keys, of);
        assert_eq!(before.parts.len(), 40);
        let columns = ["id".to_owned()];
        let read = |parts: &[PartRef]| {
            let batch = read_table(&store, parts, &columns, &schema).unwrap();
            let ids = batch.column(0).as_string::<i32>().clone();
            let mut ids: Vec<String> = ids.iter().flatten().map(str::to_owned).collect();
            ids.sort();
            ids
        };
        let rows = read(&before.parts);
        let compacted = store.compact(stage, &known(&store, stage), &before.parts, &schema).unwrap();
        assert_eq!((compacted.entries.len(), compacted.replaced.len()), (1, 40));
        let blobs = |blobs: &[Digest]| blobs.iter().copied().collect::<HashSet<_>>();
        let is_same = || {
            let after = known(&store, stage).choose(&[], &keys, of);
            assert_eq!((after.content, blobs(&after.blobs)), (before.content, blobs(&before.blobs)));
            assert_eq!(after.notes, before.notes);
            assert_eq!((read(&after.parts), read(&before.parts)), (rows.clone(), rows.clone()));
            after.parts.len()
        };
        assert_eq!(is_same(), 1);
        // Beside the new record only that of the row that is not in the table is read.
        assert_eq!(store.computed(stage).unwrap().entries.len(), 2);
        // A clean-up may take either the new record or the old ones.
        let merged =
            store.list(&format!("computed/{stage}")).unwrap().into_iter().find(|name| name.ends_with("merged"));
        let merged = format!("computed/{stage}/{}", merged.unwrap());
        let bytes = store.get(&merged).unwrap().unwrap();
        store.delete(&merged).unwrap();
        assert_eq!(is_same(), 40);
        store.put(&merged, bytes).unwrap();
        let again = store.compact(stage, &known(&store, stage), &before.parts, &schema).unwrap();
        assert!(again.entries.is_empty(), "their records are replaced");
        // Few parts stay as they are.
        let few = store.compact(stage, &known(&store, stage), &before.parts[..MANY], &schema).unwrap();
        assert!(few.entries.is_empty());
    }

    #[test]
    fn parts_are_put_together_up_to_a_size() {
        let part = |bytes| PartRef { part: Digest::of(b""), bytes, rows: 1, chosen: None };
        let half = TOGETHER / 2;
        let sizes = |parts: Vec<PartRef>| groups(parts).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(vec![part(half), part(half), part(1), part(1)]), [2, 2]);
        assert_eq!(sizes(Vec::new()), [0; 0]);
    }
}
