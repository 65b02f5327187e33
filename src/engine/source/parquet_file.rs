//! Parquet files that other programs wrote. The library panics on some damaged ones, which are errors here.

use std::{fs::File, path::Path};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection},
};

use crate::engine::caught;

/// The message about a file on which the library panics.
const DAMAGED: &str = "it is damaged; write it again, or download it again";

/// A Parquet file of which the footer has been read. Errors do not name the file.
pub struct ParquetFile(ParquetRecordBatchReaderBuilder<File>);

/// Returns what code of the library returns, or the error of a damaged file if it panics.
fn checked<T, E: ToString>(read: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    caught(read).ok_or_else(|| DAMAGED.to_owned())?.map_err(|e| e.to_string())
}

impl ParquetFile {
    /// Opens a file on this machine.
    pub fn open(path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|e| e.to_string())?;
        checked(|| ParquetRecordBatchReaderBuilder::try_new(file)).map(Self)
    }

    /// Returns the columns.
    pub fn schema(&self) -> &SchemaRef {
        self.0.schema()
    }

    /// Leaves out all columns but these. `RECORD.FIELD` names a field of a column of records.
    pub fn columns<'c>(self, names: impl IntoIterator<Item = &'c str>) -> Self {
        let mask = ProjectionMask::columns(self.0.parquet_schema(), names);
        Self(self.0.with_projection(mask))
    }

    /// Leaves out all rows but these.
    pub fn rows(self, selection: RowSelection) -> Self {
        Self(self.0.with_row_selection(selection))
    }

    /// Returns the rows, at most so many at a time. They end at the first error.
    pub fn read(self, at_a_time: usize) -> Result<Batches, String> {
        checked(|| self.0.with_batch_size(at_a_time).build()).map(|reader| Batches(Some(reader)))
    }
}

/// The rows of a file.
pub struct Batches(Option<ParquetRecordBatchReader>);

impl Iterator for Batches {
    type Item = Result<RecordBatch, String>;

    fn next(&mut self) -> Option<Self::Item> {
        let reader = self.0.as_mut()?;
        let next = checked(|| reader.next().transpose()).transpose();
        if !matches!(next, Some(Ok(_))) {
            self.0 = None;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{ArrayRef, AsArray, Int64Array, StringArray, TimestampMillisecondArray},
        datatypes::Int64Type,
    };
    use parquet::arrow::{ArrowWriter, arrow_reader::RowSelector};

    use super::*;

    /// A file of 50 rows.
    fn whole() -> Vec<u8> {
        let ids: ArrayRef = Arc::new(StringArray::from_iter_values((0..50).map(|row| format!("row {row}"))));
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..50));
        let times: ArrayRef = Arc::new(TimestampMillisecondArray::from_iter_values(0..50));
        let rows = RecordBatch::try_from_iter([("id", ids), ("number", numbers), ("time", times)]).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), None).unwrap();
        writer.write(&rows).unwrap();
        writer.into_inner().unwrap()
    }

    fn open(bytes: &[u8]) -> Result<ParquetFile, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        ParquetFile::open(file.path())
    }

    fn count(bytes: &[u8]) -> Result<usize, String> {
        open(bytes)?.read(16)?.map(|batch| Ok(batch?.num_rows())).sum()
    }

    #[test]
    fn chosen_columns_and_rows_are_read() {
        let opened = open(&whole()).unwrap();
        assert_eq!(opened.schema().fields().len(), 3);
        let chosen = opened.columns(["number"]).rows(vec![RowSelector::skip(7), RowSelector::select(3)].into());
        let batches: Vec<RecordBatch> = chosen.read(2).unwrap().collect::<Result<_, _>>().unwrap();
        let numbers = batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec());
        assert_eq!(numbers.collect::<Vec<_>>(), [7, 8, 9]);
    }

    #[test]
    fn damaged_file_is_read_or_an_error_and_never_a_panic() {
        let whole = whole();
        assert_eq!(count(&whole), Ok(50));
        let mut panics = 0;
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            panics += usize::from(count(&bytes).is_err_and(|error| error == DAMAGED));
        }
        assert!(panics > 0, "the library panics on no damaged file any more");
        assert!(count(&whole[..whole.len() / 2]).is_err());
    }
}
