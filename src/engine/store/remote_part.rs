//! A part of a remote store as Parquet reads it, range by range.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt, TryFutureExt, future::BoxFuture};
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, coalesce_ranges, path::Path};
use parquet::{
    arrow::{
        arrow_reader::ArrowReaderOptions,
        async_reader::{AsyncFileReader, MetadataSuffixFetch},
    },
    errors::{ParquetError, Result},
    file::metadata::{ParquetMetaData, ParquetMetaDataReader},
};

/// Bytes at the end of a part that are read with its last ones, because most footers lie within them.
const FOOTER: usize = 32 << 10;

/// The number of unwanted bytes between two columns up to which they are read together. Digests of heavy columns are
/// neighbours; a heavy column between light ones is larger.
const GAP: u64 = 128 << 10;

/// A part of a remote store.
#[derive(Clone, Debug)]
pub(in crate::engine) struct RemotePart {
    objects: Arc<dyn ObjectStore>,
    path: Path,
}

impl RemotePart {
    pub(in crate::engine) fn new(objects: Arc<dyn ObjectStore>, path: Path) -> Self {
        Self { objects, path }
    }
}

/// Wraps an error so that it can be found in Parquet's.
fn external(error: object_store::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

impl AsyncFileReader for RemotePart {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        self.objects.get_range(&self.path, range).map_err(external).boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        let Self { objects, path } = self;
        async move { coalesce_ranges(&ranges, |range| objects.get_range(path, range), GAP).map_err(external).await }
            .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        let reader = ParquetMetaDataReader::new().with_arrow_reader_options(options).with_prefetch_hint(Some(FOOTER));
        reader.load_via_suffix_and_finish(self).map_ok(Arc::new).boxed()
    }
}

impl MetadataSuffixFetch for &mut RemotePart {
    fn fetch_suffix(&mut self, suffix: usize) -> BoxFuture<'_, Result<Bytes>> {
        let options = GetOptions { range: Some(GetRange::Suffix(suffix as u64)), ..GetOptions::default() };
        async move { self.objects.get_opts(&self.path, options).and_then(|found| found.bytes()).map_err(external).await }.boxed()
    }
}
