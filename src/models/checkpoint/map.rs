//! Files in memory, page by page as they are read.

use bytes::Bytes;
use memmap2::{Mmap, UncheckedAdvice};
use std::{fs::File, io, path::Path, sync::Arc};

/// A mapped file, which tensors point into.
#[derive(Debug, Clone)]
pub(super) struct Map(Arc<Mmap>);

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Map {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: as with any mapped file, nobody may shorten it meanwhile. Weights are replaced, not rewritten in place.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self(Arc::new(map)))
    }

    /// The content, without a copy.
    pub(super) fn bytes(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }

    /// Gives back the memory of `part`, if it is a part of this file: it is read again should somebody ask.
    pub(super) fn release(&self, part: &[u8]) {
        let offset = (part.as_ptr() as usize).wrapping_sub(self.0.as_ptr() as usize);
        if part.is_empty() || offset.checked_add(part.len()).is_none_or(|end| end > self.0.len()) {
            return;
        }
        // SAFETY: the map is of a file and never written to, so a page that is dropped comes back as it was.
        let released = unsafe { self.0.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, part.len()) };
        // Where the system refuses, the memory stays taken until the map is closed.
        released.unwrap_or(());
    }
}
