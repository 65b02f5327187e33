//! Some rows of a table that is about to be published, with what they were made from: what a stage's review looks at.

use arrow::datatypes::Schema;

use super::{
    Digest, Result, Store,
    manifest::Manifest,
    parts::{gather, project},
    plan::{Views, Work},
    task::Batch,
};

/// The port of the table's own rows.
pub const ITSELF: &str = "itself";
/// A sample is this many stretches of neighbouring rows: parts hold neighbours, and each part that is touched is read whole.
const STRETCHES: usize = 8;

/// A table that is about to be published.
pub struct Sample<'a> {
    store: &'a Store,
    views: &'a Views,
    work: &'a Work<'a>,
    manifest: &'a Manifest,
}

impl<'a> Sample<'a> {
    /// Of a table with the tables above it.
    pub(super) fn new(store: &'a Store, views: &'a Views, work: &'a Work<'a>, manifest: &'a Manifest) -> Self {
        Self { store, views, work, manifest }
    }

    /// The number of rows of the table.
    pub fn len(&self) -> usize {
        self.manifest.rows as usize
    }

    /// Whether the table has no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// At most `most` rows of a table whose rows are cached one by one, spread over their ids and always the same: of each port
    /// the columns asked for, [`ITSELF`] being the table. Ports that are not read row by row and columns that are not there are
    /// left out.
    pub fn rows(&self, most: usize, wanted: &[(&str, &[&str])]) -> Result<Batch> {
        let Work { keys, known, joined, .. } = self.work;
        let there: Vec<usize> = (0..keys.len()).filter(|row| known.has(&keys[*row])).collect();
        let rows: Vec<usize> = spread(there.len(), most).into_iter().map(|at| there[at]).collect();
        let mut ports = Vec::new();
        for (port, columns) in wanted {
            let (schema, parts, places) = if *port == ITSELF {
                let (parts, places) = known.places(rows.iter().map(|row| &keys[*row]));
                (self.manifest.schema()?, parts, places)
            } else {
                let input = self.work.table.inputs.iter().find(|input| input.port == *port);
                let (Some(input), Some(places)) = (input, joined.places.iter().find(|places| places.port == *port))
                else {
                    continue;
                };
                let at = rows.iter().map(|row| places.at[*row]).collect();
                (self.views[&input.table].manifest.schema()?, places.parts.clone(), at)
            };
            let columns = present(&schema, columns);
            let batch = gather(self.store, &parts, &places, &columns, &project(&schema, &columns)?)?;
            ports.push(((*port).to_owned(), batch));
        }
        let ids = rows.iter().map(|row| joined.ids.value(*row).to_owned()).collect();
        Ok(Batch::new(ids, ports))
    }
}

fn present(schema: &Schema, columns: &[&str]) -> Vec<String> {
    let is_there = |name: &&&str| schema.field_with_name(name).is_ok();
    columns.iter().filter(is_there).map(|name| (*name).to_owned()).collect()
}

/// At most `most` of so many rows: all of them, or stretches of neighbours that begin at equal distances.
fn spread(total: usize, most: usize) -> Vec<usize> {
    if total <= most {
        return (0..total).collect();
    }
    let stretches = STRETCHES.min(most).max(1);
    let length = (most / stretches).max(1);
    (0..stretches).flat_map(|i| (0..length).map(move |at| i * total / stretches + at)).collect()
}

/// Where rows lie: parts, and `(part, row)` of each.
pub(super) type Addresses = (Vec<Digest>, Vec<(u32, u64)>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_spread_and_has_no_row_twice() {
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
