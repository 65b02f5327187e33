//! Memory-mapped files, of which pages are in memory only while they are read.

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
        // SAFETY: the file must not be shortened while it is mapped. Programs that write weights replace a file and do
        // not rewrite it in place; no lock enforces that.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self(Arc::new(map)))
    }

    /// Returns the content without a copy.
    pub(super) fn bytes(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }

    /// Gives back the memory of `part`, if it lies in this file. A later access reads it from the file again.
    pub(super) fn release(&self, part: &[u8]) {
        let offset = (part.as_ptr() as usize).wrapping_sub(self.0.as_ptr() as usize);
        if part.is_empty() || offset.checked_add(part.len()).is_none_or(|end| end > self.0.len()) {
            return;
        }
        // SAFETY: the map is of a file and never written to, so a page that is dropped comes back as it was.
        let released = unsafe { self.0.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, part.len()) };
        // If the system refuses, the memory stays taken until the map is closed.
        released.unwrap_or(());
    }
}
