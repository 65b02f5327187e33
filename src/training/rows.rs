//! The rows that a training reads again in every epoch, kept in a file.

use std::{
    fs::{self, File},
    io::{Error, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use tch::{Device, Kind, Tensor};

use super::error::TrainingError;

/// A column of tensors of one shape, read in any order. Only the requested rows are in memory, so that a training
/// over many images takes no more memory than one over few.
///
/// The values lie one after another in a temporary file. The file has no name, so that
/// it disappears with the process; the operating system keeps parts of it in its page cache if there is room.
#[derive(Debug)]
pub struct TrainingRows {
    file: File,
    /// The path of the file before it lost its name, for messages.
    path: PathBuf,
    rows: usize,
    /// The shape and type of a row; `None` before the first row.
    row: Option<(Vec<i64>, Kind)>,
}

impl TrainingRows {
    /// Makes an empty column, whose file lies in a folder.
    ///
    /// # Errors
    /// [`TrainingError::Rows`] if the folder cannot be written to.
    pub fn new(folder: &Path) -> Result<Self, TrainingError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{}-{number}.rows", std::process::id()));
        let open = || {
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        };
        let file = open().map_err(|source| TrainingError::Rows { path: path.clone(), source })?;
        Ok(Self { file, path, rows: 0, row: None })
    }

    /// Appends the rows of a tensor [B, shape…].
    ///
    /// # Errors
    /// [`TrainingError::Shape`] if earlier rows have another shape or type, [`TrainingError::Rows`] if the file cannot
    /// be written.
    pub fn push(&mut self, rows: &Tensor) -> Result<(), TrainingError> {
        let rows = rows.f_to_device(Device::Cpu)?.f_contiguous()?;
        let (row, kind) = (rows.size()[1..].to_vec(), rows.kind());
        if let Some((shape, of)) = self.row.as_ref().filter(|known| **known != (row.clone(), kind)) {
            return Err(TrainingError::Shape { before: format!("{of:?}{shape:?}"), found: format!("{kind:?}{row:?}") });
        }
        let mut bytes = vec![0; rows.numel() * kind.elt_size_in_bytes()];
        rows.f_copy_data_u8(&mut bytes, rows.numel())?;
        (&self.file).write_all(&bytes).map_err(|e| self.failed(e))?;
        self.rows += rows.size()[0] as usize;
        self.row = Some((row, kind));
        Ok(())
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Returns true if there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Returns the rows at these positions, [B, shape…], on the CPU.
    ///
    /// # Errors
    /// [`TrainingError::NoRows`] if there are none, [`TrainingError::Rows`] if a position is not that of a row.
    pub fn at(&self, positions: &[i64]) -> Result<Tensor, TrainingError> {
        let Some((shape, kind)) = &self.row else {
            return Err(TrainingError::NoRows);
        };
        let size = shape.iter().product::<i64>() as usize * kind.elt_size_in_bytes();
        let mut bytes = vec![0; positions.len() * size];
        for (position, row) in positions.iter().zip(bytes.chunks_exact_mut(size.max(1))) {
            let start = *position as u64 * size as u64;
            self.file.read_exact_at(row, start).map_err(|e| self.failed(e))?;
        }
        let shape: Vec<i64> = std::iter::once(positions.len() as i64).chain(shape.iter().copied()).collect();
        Ok(Tensor::f_from_data_size(&bytes, &shape, *kind)?)
    }

    fn failed(&self, source: Error) -> TrainingError {
        TrainingError::Rows { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_in_any_order_and_type() {
        for kind in [Kind::Uint8, Kind::Float, Kind::Half, Kind::Int64] {
            let all = Tensor::arange(24, (kind, Device::Cpu)).view([4, 2, 3]);
            let mut rows = TrainingRows::new(&std::env::temp_dir()).unwrap();
            rows.push(&all.narrow(0, 0, 3)).unwrap();
            rows.push(&all.narrow(0, 3, 1)).unwrap();
            assert_eq!(rows.len(), 4);
            let order = [3, 0, 3, 1];
            assert_eq!(rows.at(&order).unwrap(), all.index_select(0, &Tensor::from_slice(&order)), "{kind:?}");
        }
    }

    #[test]
    fn rows_of_another_shape_are_refused() {
        let mut rows = TrainingRows::new(&std::env::temp_dir()).unwrap();
        rows.push(&Tensor::zeros([2, 3], (Kind::Float, Device::Cpu))).unwrap();
        assert!(rows.push(&Tensor::zeros([2, 4], (Kind::Float, Device::Cpu))).is_err());
        assert!(rows.push(&Tensor::zeros([2, 3], (Kind::Double, Device::Cpu))).is_err());
    }
}
