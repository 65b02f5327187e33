//! A sample of the rows of a table that is about to be published, with their inputs, for the review by the stage.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use arrow::{
    array::{RecordBatch, StringArray},
    datatypes::{Schema, SchemaRef},
};

use super::rows::Batch;
use crate::engine::{
    Digest, Result,
    store::{ComputedRows, Manifest, Store, declared_schema, gather, project, read_table},
};

/// The port of the table's own rows.
pub const ITSELF: &str = "itself";

/// The number of runs of neighbouring rows in a sample. Neighbours lie in the same part, and each part that is
/// touched is read whole.
const STRETCHES: usize = 8;

/// A table that is about to be published.
pub struct Sample<'a> {
    pub(in crate::engine) store: &'a Store,
    pub(in crate::engine) manifest: &'a Manifest,
    /// The inputs that the table reads whole, by port.
    pub(in crate::engine) whole: BTreeMap<&'a str, &'a Manifest>,
    /// Finds its rows; few stages ask for them.
    pub(in crate::engine) all: Box<dyn Fn() -> Result<SampledRows<'a>> + 'a>,
}

/// The rows of a table that is about to be published, ascending by id.
pub(in crate::engine) struct SampledRows<'a> {
    /// Their ids and keys, and what is computed of them.
    pub(in crate::engine) ids: StringArray,
    pub(in crate::engine) keys: Cow<'a, [Digest]>,
    pub(in crate::engine) known: Cow<'a, ComputedRows>,
    /// The inputs that the table reads row by row.
    pub(in crate::engine) inputs: Vec<SampledInput<'a>>,
}

/// An input of a table, read row by row.
pub(in crate::engine) struct SampledInput<'a> {
    pub(in crate::engine) port: String,
    /// The stored schema of the whole input.
    pub(in crate::engine) schema: SchemaRef,
    pub(in crate::engine) parts: Cow<'a, [Digest]>,
    /// `(part, row)` of each row of the table.
    pub(in crate::engine) at: Cow<'a, [(u32, u64)]>,
}

impl Sample<'_> {
    /// Returns the number of rows of the table.
    pub fn len(&self) -> usize {
        self.manifest.rows as usize
    }

    /// Returns true if the table has no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns at most `most` rows of a table whose rows are cached one by one, evenly spread over their ids and
    /// always the same. `wanted` names the columns by port, where [`ITSELF`] is the table itself. Ports that are not
    /// read row by row and missing columns are left out.
    pub fn rows(&self, most: usize, wanted: &[(&str, &[&str])]) -> Result<Batch> {
        let SampledRows { ids, keys, known, inputs } = (self.all)()?;
        let there: Vec<usize> = (0..keys.len()).filter(|row| known.has(&keys[*row])).collect();
        let rows: Vec<usize> = spread(there.len(), most).into_iter().map(|at| there[at]).collect();
        let mut ports = Vec::new();
        for (port, columns) in wanted {
            let (schema, parts, places) = if *port == ITSELF {
                let (parts, places) = known.places(rows.iter().map(|row| &keys[*row]));
                (self.manifest.schema()?, parts, places)
            } else {
                let Some(input) = inputs.iter().find(|input| input.port == *port) else { continue };
                (input.schema.clone(), input.parts.to_vec(), rows.iter().map(|row| input.at[*row]).collect())
            };
            let columns = present(&schema, columns);
            let batch = gather(self.store, &parts, &places, &columns, &project(&schema, &columns)?)?;
            ports.push(((*port).to_owned(), batch));
        }
        let ids = rows.iter().map(|row| ids.value(*row).to_owned()).collect();
        Ok(Batch::new(ids, ports))
    }

    /// Returns all rows of an input that is read as a whole; `None` if `from:` names none for the port.
    pub fn table(&self, port: &str) -> Result<Option<RecordBatch>> {
        let Some(manifest) = self.whole.get(port) else { return Ok(None) };
        let schema = Arc::new(declared_schema(&*manifest.schema()?));
        let columns: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        Ok(Some(read_table(self.store, &manifest.parts, &columns, &schema)?))
    }
}

fn present(schema: &Schema, columns: &[&str]) -> Vec<String> {
    let is_there = |name: &&&str| schema.field_with_name(name).is_ok();
    columns.iter().filter(is_there).map(|name| (*name).to_owned()).collect()
}

/// Returns at most `most` of `total` rows: all of them, or runs of neighbours that begin at equal distances.
fn spread(total: usize, most: usize) -> Vec<usize> {
    if total <= most {
        return (0..total).collect();
    }
    let stretches = STRETCHES.min(most).max(1);
    let length = (most / stretches).max(1);
    (0..stretches).flat_map(|i| (0..length).map(move |at| i * total / stretches + at)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_is_spread_and_has_no_row_twice() {
        assert_eq!(spread(3, 32), [0, 1, 2]);
        assert_eq!(spread(0, 32), [0; 0]);
        let of_many = spread(1000, 16);
        assert_eq!(of_many, [0, 1, 125, 126, 250, 251, 375, 376, 500, 501, 625, 626, 750, 751, 875, 876]);
        for total in 33..200 {
            let rows = spread(total, 32);
            assert!(
                rows.len() == 32 && rows.windows(2).all(|pair| pair[0] < pair[1]) && rows[31] < total,
                "{total}: {rows:?}"
            );
        }
    }
}
