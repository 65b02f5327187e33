//! Splits of tables, which formats of machine learning keep in files of their own.

use std::collections::BTreeMap;

use arrow::{
    array::{BooleanArray, RecordBatch},
    compute::filter_record_batch,
};

use crate::{
    engine::{Error, Result},
    tables::{
        column::text,
        images::{SPLIT, TRAIN},
    },
};

/// The split of rows whose table has splits, but not for them.
const NONE: &str = "none";

/// Returns rows by their split. A table without a column of splits is one, [`TRAIN`], as other programs have it.
pub(super) fn by_split(rows: RecordBatch) -> Result<Vec<(String, RecordBatch)>> {
    if rows.schema_ref().field_with_name(SPLIT).is_err() {
        return Ok(vec![(TRAIN.to_owned(), rows)]);
    }
    let splits = text(&rows, SPLIT)?;
    let mut found: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
    for (row, split) in splits.iter().enumerate() {
        found.entry(split.unwrap_or(NONE)).or_insert_with(|| vec![false; rows.num_rows()])[row] = true;
    }
    let of_split = |(split, chosen): (&str, Vec<bool>)| {
        let is_name = !split.is_empty() && split.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            return Err(Error::Input(format!(
                "`{SPLIT}` has the value `{split}`, of which files cannot be named; letters, digits and `_` would work"
            )));
        }
        Ok((split.to_owned(), filter_record_batch(&rows, &BooleanArray::from(chosen))?))
    };
    found.into_iter().map(of_split).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray};

    use super::*;

    #[test]
    fn rows_are_parted_by_split() {
        let batch = |name: &str, values: &[Option<&str>]| {
            let column: ArrayRef = Arc::new(StringArray::from(values.to_vec()));
            RecordBatch::try_from_iter([(name, column)]).unwrap()
        };
        let parted = |name: &str, values: &[Option<&str>]| {
            let parted = by_split(batch(name, values))?.into_iter();
            Ok::<_, Error>(parted.map(|(split, rows)| (split, rows.num_rows())).collect::<Vec<_>>())
        };
        let values = [Some("train"), None, Some("test"), Some("train")];
        let named = |split: &str, rows| (split.to_owned(), rows);
        assert_eq!(parted(SPLIT, &values).unwrap(), [named("none", 1), named("test", 1), named("train", 2)]);
        assert_eq!(parted("x", &values).unwrap(), [named("train", 4)]);
        let error = parted(SPLIT, &[Some("a/b")]).unwrap_err().to_string();
        assert!(error.contains("the value `a/b`"), "{error}");
    }
}
