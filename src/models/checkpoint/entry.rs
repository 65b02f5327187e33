//! A tensor that is still in its file.

use super::mapped::Mapped;
use bytes::Bytes;
use tch::{Device, Kind, TchError, Tensor};

/// The number of bytes that are copied at once and then given back. It is a multiple of every element's size.
const CHUNK: usize = 8 << 20;
/// The largest number of elements of a tensor, and of indices of a dimension; only damaged shapes have more.
const MOST: i64 = 1 << 48;

/// The place of one tensor in its file. It is cheap to clone, because the storage is shared.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// The storage, little-endian; more than one entry may view it.
    storage: Bytes,
    /// Index of the first element in the storage, in elements.
    offset: usize,
    /// Elements from one index to the next, per dimension.
    strides: Vec<i64>,
    pub(super) shape: Vec<i64>,
    /// The element type, or the name of one that libtorch cannot compute with.
    pub(super) kind: Result<Kind, String>,
}

impl Entry {
    /// Makes a dense row-major tensor that fills `storage`; None if the sizes disagree.
    pub(super) fn dense(storage: Bytes, shape: Vec<i64>, kind: Result<Kind, String>) -> Option<Self> {
        let strides = row_major(&shape)?;
        Self::view(storage, 0, shape, strides, kind)
    }

    /// Makes a strided view; None if it would reach outside of the storage, or no tensor can have its shape.
    pub(super) fn view(
        storage: Bytes,
        offset: usize,
        shape: Vec<i64>,
        strides: Vec<i64>,
        kind: Result<Kind, String>,
    ) -> Option<Self> {
        let elements = shape.iter().try_fold(1i64, |elements, &size| elements.checked_mul(size.max(1)));
        if elements.is_none_or(|elements| elements > MOST) || shape.iter().any(|&size| size < 0) {
            return None;
        }
        let entry = Self { storage, offset, strides, shape, kind };
        // A view of unknown elements cannot be read, but its name and shape are known.
        if let Ok(kind) = entry.kind {
            entry.span(kind)?;
        }
        Some(entry)
    }

    /// Splits the tensor into equal parts along the first dimension; None if it does not divide.
    pub(super) fn split(self, parts: usize) -> Option<Vec<Self>> {
        if parts == 1 {
            return Some(vec![self]);
        }
        let (&whole, &stride) = (self.shape.first()?, self.strides.first()?);
        let size = whole.checked_div(i64::try_from(parts).ok()?)?;
        if size * parts as i64 != whole {
            return None;
        }
        let shape = [&[size], &self.shape[1..]].concat();
        let part = |index: usize| {
            let step = usize::try_from(size).ok()?.checked_mul(usize::try_from(stride).ok()?)?;
            let offset = self.offset.checked_add(index.checked_mul(step)?)?;
            Self::view(self.storage.clone(), offset, shape.clone(), self.strides.clone(), self.kind.clone())
        };
        (0..parts).map(part).collect()
    }

    /// Returns the bytes from the first to the last element of the view.
    fn span(&self, kind: Kind) -> Option<&[u8]> {
        let width = kind.elt_size_in_bytes();
        let start = self.offset.checked_mul(width)?;
        let end = self.offset.checked_add(self.reach()?)?.checked_mul(width)?;
        self.storage.get(start..end)
    }

    /// Returns the number of elements of the storage that the view spans.
    fn reach(&self) -> Option<usize> {
        if self.shape.len() != self.strides.len() || self.shape.iter().chain(&self.strides).any(|&n| n < 0) {
            return None;
        }
        if self.shape.contains(&0) {
            return Some(0);
        }
        self.shape.iter().zip(&self.strides).try_fold(1usize, |reach, (&size, &stride)| {
            reach.checked_add(usize::try_from(size - 1).ok()?.checked_mul(usize::try_from(stride).ok()?)?)
        })
    }

    /// Returns the address of the first element in memory, which orders entries as in their file.
    pub(super) fn place(&self) -> usize {
        let width = self.kind.as_ref().map_or(1, |kind| kind.elt_size_in_bytes());
        (self.storage.as_ptr() as usize).saturating_add(self.offset.saturating_mul(width))
    }

    /// Copies the view out of its file, dense, on the CPU. `release` is called with the bytes that are no longer
    /// needed.
    pub(super) fn tensor(&self, kind: Kind, release: &dyn Fn(&[u8])) -> Result<Tensor, TchError> {
        let mut tensor = Tensor::f_empty(&self.shape, (kind, Device::Cpu))?;
        self.copy_to(kind, &mut tensor, release)?;
        Ok(tensor)
    }

    /// Copies the view into a tensor with as many elements, of any type and on any device.
    pub(super) fn copy_to(&self, kind: Kind, to: &mut Tensor, release: &dyn Fn(&[u8])) -> Result<(), TchError> {
        let outside = || TchError::Shape("outside of its storage".to_owned());
        let bytes = self.span(kind).ok_or_else(outside)?;
        if !(self.is_dense() && to.is_contiguous()) {
            let size = to.size();
            lend(bytes, &self.shape, &self.strides, kind, |view| to.f_copy_(&view.f_reshape(&size)?))?;
            release(bytes);
            return Ok(());
        }
        let flat = to.f_view([-1i64])?;
        let mut at = 0;
        for chunk in bytes.chunks(CHUNK) {
            let len = (chunk.len() / kind.elt_size_in_bytes()) as i64;
            lend(chunk, &[len], &[1], kind, |view| flat.f_narrow(0, at, len)?.f_copy_(view))?;
            release(chunk);
            at += len;
        }
        Ok(())
    }

    /// Returns the view where it lies. None if its elements are not aligned, or are bools, which have to be checked.
    pub(super) fn mapped(&self, kind: Kind) -> Option<Result<Mapped, TchError>> {
        let start = self.span(kind)?.as_ptr();
        if kind == Kind::Bool || !(start as usize).is_multiple_of(kind.elt_size_in_bytes()) {
            return None;
        }
        // SAFETY: `span` has checked that the strides stay inside of the storage, which `Mapped` keeps alive. That no
        // view outlives it and nothing writes to it is up to the callers of `Mapped::tensor`.
        let tensor = unsafe { Tensor::f_from_blob(start, &self.shape, &self.strides, kind, Device::Cpu) };
        Some(tensor.map(|tensor| Mapped::lent(tensor, self.storage.clone())))
    }

    /// Calls `release` with the bytes of the view.
    pub(super) fn give_back(&self, kind: Kind, release: &dyn Fn(&[u8])) {
        self.span(kind).into_iter().for_each(release);
    }

    fn is_dense(&self) -> bool {
        let dense = row_major(&self.shape).unwrap_or_default();
        let mut dims = self.shape.iter().zip(&self.strides).zip(&dense);
        dims.all(|((&size, stride), dense)| size == 1 || stride == dense)
    }
}

/// Returns true if two shapes are the same but for dimensions of 1 at the end.
pub(super) fn same_shape(a: &[i64], b: &[i64]) -> bool {
    let (short, long) = if a.len() < b.len() { (a, b) } else { (b, a) };
    long.starts_with(short) && long[short.len()..].iter().all(|&size| size == 1)
}

/// Calls `f` with a tensor over `bytes`, without a copy if they are aligned.
fn lend<T>(
    bytes: &[u8],
    shape: &[i64],
    strides: &[i64],
    kind: Kind,
    f: impl FnOnce(&Tensor) -> Result<T, TchError>,
) -> Result<T, TchError> {
    // A byte that is neither 0 nor 1 is not a valid bool, so bools are read as numbers and compared with 0.
    let stored = if kind == Kind::Bool { Kind::Uint8 } else { kind };
    let mut aligned: Vec<u64> = Vec::new();
    let mut start = bytes.as_ptr();
    if !(start as usize).is_multiple_of(kind.elt_size_in_bytes().min(8)) {
        aligned.resize(bytes.len().div_ceil(8), 0);
        // SAFETY: `aligned` was resized to at least as many bytes, and does not overlap with `bytes`.
        unsafe { std::ptr::copy_nonoverlapping(start, aligned.as_mut_ptr().cast(), bytes.len()) };
        start = aligned.as_ptr().cast();
    }
    // SAFETY: the callers pass strides that stay inside of `bytes`, which was checked by `span` or is one dense row.
    // `bytes` and `aligned` outlive the tensor: `f` only borrows it, and copies.
    let view = unsafe { Tensor::f_from_blob(start, shape, strides, stored, Device::Cpu) }?;
    if kind == stored { f(&view) } else { f(&view.f_ne(0)?) }
}

/// Returns the strides of a dense tensor; None if the number of elements overflows.
fn row_major(shape: &[i64]) -> Option<Vec<i64>> {
    let mut strides = vec![1; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = shape[dim].max(1).checked_mul(strides[dim])?;
    }
    Some(strides)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(bytes: usize, offset: usize, shape: &[i64], strides: &[i64]) -> Option<Entry> {
        let storage = Bytes::from((0..bytes as u8).collect::<Vec<_>>());
        Entry::view(storage, offset, shape.to_vec(), strides.to_vec(), Ok(Kind::Int16))
    }

    #[test]
    fn a_view_stays_inside_its_storage() {
        assert!(view(12, 0, &[2, 3], &[3, 1]).is_some());
        assert!(view(12, 1, &[2, 3], &[3, 1]).is_none(), "one element too far");
        assert!(view(11, 0, &[2, 3], &[3, 1]).is_none(), "half an element short");
        assert!(view(12, 0, &[2, i64::MAX], &[i64::MAX, 2]).is_none(), "overflow");
        assert!(view(12, usize::MAX, &[1], &[1]).is_none(), "overflow");
        assert!(view(12, 0, &[-1], &[1]).is_none());
        assert!(view(12, 0, &[2], &[-1]).is_none());
        assert!(view(12, 0, &[2], &[]).is_none());
        assert!(view(0, 0, &[0, 3], &[3, 1]).is_some(), "an empty tensor needs no bytes");
        for size in [[1 << 40, 1 << 40], [0, 1 << 62], [-1, 3]] {
            assert!(view(12, 0, &size, &[0, 0]).is_none(), "{size:?} is no size");
            let unknown = Entry::view(Bytes::new(), 0, size.to_vec(), vec![0, 0], Err("F4".to_owned()));
            assert!(unknown.is_none(), "{size:?} is no size, of whatever elements");
        }
    }

    #[test]
    fn strides_and_offset_pick_the_elements() {
        let transposed = view(14, 1, &[3, 2], &[1, 3]).unwrap().tensor(Kind::Int16, &|_| ()).unwrap();
        let want: Vec<i64> = [1, 4, 2, 5, 3, 6].map(|i: i64| 2 * i + ((2 * i + 1) << 8)).to_vec();
        assert_eq!(Vec::<i64>::try_from(transposed.flatten(0, -1).to_kind(Kind::Int64)).unwrap(), want);
    }
}
