//! Tensors that stay in the map of their file.

use bytes::Bytes;
use tch::{Device, Kind, TchError, Tensor};

/// A tensor for reading. If it lies in the map of its file, it takes no memory of its own: the system reads its pages
/// when they are needed, and may drop them again.
///
/// It keeps the map alive. The tensor is shared only inside of `models`, where no view of it outlives this value and no
/// operation writes to it: the map is read-only, and ends with this value.
#[derive(Debug)]
pub struct Mapped {
    tensor: Tensor,
    /// The part of the map in which the tensor lies; None if the tensor has memory of its own.
    storage: Option<Bytes>,
}

impl Mapped {
    /// Takes a tensor with memory of its own.
    pub(in crate::models) fn owned(tensor: Tensor) -> Self {
        Self { tensor, storage: None }
    }

    /// Takes a tensor that lies in `storage`.
    pub(super) fn lent(tensor: Tensor, storage: Bytes) -> Self {
        Self { tensor, storage: Some(storage) }
    }

    /// Returns the tensor, which must not be written to, and of which no view may outlive `self`.
    pub(in crate::models) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Returns the size of each dimension.
    pub fn size(&self) -> Vec<i64> {
        self.tensor.size()
    }

    /// Copies `length` rows from the row `start` on, in another type and to a device.
    ///
    /// # Errors
    /// The tensor has no such rows, or libtorch refuses the copy.
    pub fn rows(&self, start: i64, length: i64, kind: Kind, device: Device) -> Result<Tensor, TchError> {
        let rows = self.tensor.f_narrow(0, start, length)?;
        let mut copy = Tensor::f_empty(rows.size(), (kind, device))?;
        copy.f_copy_(&rows)?;
        Ok(copy)
    }

    /// Copies the rows at positions `[N]`, in another type.
    ///
    /// # Errors
    /// The tensor has no such rows, or libtorch refuses the copy.
    pub fn rows_at(&self, positions: &Tensor, kind: Kind) -> Result<Tensor, TchError> {
        self.tensor.f_index_select(0, positions)?.f_to_kind(kind)
    }

    /// Returns true if the tensor lies in the map of its file.
    pub fn is_in_file(&self) -> bool {
        self.storage.is_some()
    }
}
