//! Ranges of large parts of a remote store.
//!
//! Planning, SQL and stages that read scores want the ids, digests and light columns of parts whose other columns hold
//! pixels. The groups of bytes that cover a range are fetched and checked by the hashes beside the part (see
//! [`Groups`]), and are kept in the folder of copies under the offset of their first byte: `parts/DIGEST.OFFSET`.
//!
//! A part without such hashes, as earlier builds wrote them, is fetched whole. So is a part whose bytes do not match
//! them, because the whole part shows whether it is damaged or its hashes are.

use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt, stream};
use object_store::{
    Attributes, GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt, path::Path,
};

use super::{Cached, Immutable};
use crate::engine::{
    Digest,
    store::{
        checked::groups_name,
        groups::{GROUP, Groups},
    },
};

/// The size in bytes up to which a part is fetched whole, which takes about as long as one more request. Larger parts
/// have their hashes beside them.
pub(in crate::engine) const SMALL: u64 = 1 << 20;

/// Bytes at the beginning of a part, which are fetched first because the answer tells its size. Its ids lie there.
const BEGINNING: u64 = 2 * GROUP;

/// Bytes at the end of a part, which are fetched with its hashes: Parquet's footer, and before it the digests of heavy
/// columns.
const END: u64 = 2 * GROUP;

/// A part is fetched whole if a range has more than one in so many of its bytes.
const SHARE: u64 = 4;

impl Cached {
    /// Reads a range of a large part without the rest. `None` if the part has to be fetched whole, or is here already.
    pub(super) async fn range(&self, object: &Immutable<'_>, range: &GetRange) -> Option<GetResult> {
        if object.copy.extension() != Some("parquet") || self.has_copy(object).await {
            return None;
        }
        let groups = self.groups(object).await?;
        let size = groups.size();
        let range = range.as_range(size).ok()?;
        let covered = range.start / GROUP * GROUP..(range.end.div_ceil(GROUP) * GROUP).min(size);
        if (covered.end - covered.start) * SHARE > size {
            return None;
        }
        let bytes = self.covering(object, &groups, covered.clone()).await?;
        let bytes = bytes.slice((range.start - covered.start) as usize..(range.end - covered.start) as usize);
        let meta = ObjectMeta {
            location: object.location.clone(),
            last_modified: Default::default(),
            size,
            e_tag: None,
            version: None,
        };
        let payload = GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed());
        Some(GetResult { payload, meta, range, attributes: Attributes::default() })
    }

    /// Returns true if the whole object is in the folder of copies.
    async fn has_copy(&self, object: &Immutable<'_>) -> bool {
        let is_checked = self.checked().get(&object.copy).is_some_and(|size| size.initialized());
        is_checked || self.local.head(&object.copy).await.is_ok()
    }

    /// Returns the hashes of a large part's groups; `None` if it is small or has none.
    async fn groups(&self, object: &Immutable<'_>) -> Option<Groups> {
        if let Some(groups) = self.kept_groups(object).await {
            return Some(groups);
        }
        let begun = self.begun().entry(object.copy.clone()).or_default().clone();
        begun.get_or_init(|| self.begin(object)).await;
        self.kept_groups(object).await
    }

    async fn kept_groups(&self, object: &Immutable<'_>) -> Option<Groups> {
        Groups::read(&self.kept(&object.beside()).await?, object.digest)
    }

    /// Fetches the beginning of a part, and of a large one its hashes and its end. A request that fails is left to
    /// whoever fetches the whole part.
    async fn begin(&self, object: &Immutable<'_>) {
        let options = GetOptions { range: Some((0..BEGINNING).into()), ..GetOptions::default() };
        let Ok(found) = self.remote.get_opts(object.location, options).await else { return };
        let size = found.meta.size;
        let Ok(beginning) = found.bytes().await else { return };
        if size <= SMALL {
            let whole = if size <= BEGINNING { Some(beginning) } else { self.download(object).await.ok() };
            if let Some(whole) = whole.filter(|whole| Digest::of(whole) == object.digest) {
                self.keep(&object.copy, whole).await;
            }
            return;
        }
        let start = end_of(size);
        let beside = self.beside(object);
        let (hashes, end) =
            futures::join!(self.remote.get(&beside), self.remote.get_range(object.location, start..size));
        let Ok(hashes) = hashes else { return };
        let Ok(hashes) = hashes.bytes().await else { return };
        let Some(groups) = Groups::from_bytes(&hashes, size, object.digest) else { return };
        for (at, bytes) in [(0, Some(beginning)), (start, end.ok())] {
            if let Some(bytes) = bytes.filter(|bytes| groups.fit(at / GROUP, bytes)) {
                self.keep(&object.at(at), bytes).await;
            }
        }
        self.keep(&object.beside(), hashes).await;
    }

    /// Returns groups of a part, which are fetched unless they are here; `None` if they cannot be fetched or do not match
    /// their hashes.
    async fn covering(&self, object: &Immutable<'_>, groups: &Groups, covered: Range<u64>) -> Option<Bytes> {
        let mut starts = vec![covered.start, end_of(groups.size()), 0];
        starts.retain(|start| *start <= covered.start);
        for start in starts {
            let Some(bytes) = self.kept(&object.at(start)).await else { continue };
            let (from, to) = ((covered.start - start) as usize, (covered.end - start) as usize);
            if to <= bytes.len() && groups.fit(covered.start / GROUP, &bytes[from..to]) {
                return Some(bytes.slice(from..to));
            }
        }
        let bytes = self.remote.get_range(object.location, covered.clone()).await.ok()?;
        let is_whole = bytes.len() as u64 == covered.end - covered.start;
        if !is_whole || !groups.fit(covered.start / GROUP, &bytes) {
            return None;
        }
        self.keep(&object.at(covered.start), bytes.clone()).await;
        Some(bytes)
    }

    /// Reads a file in the folder of copies.
    async fn kept(&self, file: &Path) -> Option<Bytes> {
        self.local.get(file).await.ok()?.bytes().await.ok()
    }

    /// Writes a file in the folder of copies. If it cannot be written, it is fetched when it is read again.
    async fn keep(&self, file: &Path, bytes: Bytes) {
        self.local.put(file, bytes.into()).await.ok();
    }

    /// Returns the place in the store of the hashes beside a part.
    fn beside(&self, object: &Immutable<'_>) -> Path {
        self.prefix.parts().chain(object.beside().parts()).collect()
    }
}

impl Immutable<'_> {
    /// Returns the place of the groups of bytes from an offset on, in the folder of copies.
    fn at(&self, offset: u64) -> Path {
        Path::from(format!("parts/{}.{offset}", self.digest))
    }

    /// Returns the place of the hashes, in the folder of copies.
    fn beside(&self) -> Path {
        Path::from(groups_name(self.digest))
    }
}

/// Returns the offset of the first group of a large part's end.
fn end_of(size: u64) -> u64 {
    (size - END).div_ceil(GROUP) * GROUP
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, sync::Arc};

    use object_store::memory::InMemory;

    use super::*;
    use crate::engine::Mismatch;

    /// A large part in a store, and the folder of copies.
    struct Fixture {
        folder: tempfile::TempDir,
        remote: Arc<InMemory>,
        part: Path,
        bytes: Vec<u8>,
    }

    /// The part's bytes, which are many groups and end within one.
    const SIZE: u64 = 2 * SMALL + 5 * GROUP + 77;

    async fn fixture() -> Fixture {
        let bytes: Vec<u8> = (0..SIZE).map(|i| (i % 251) as u8).collect();
        let (digest, groups) = Groups::of(&bytes);
        let (folder, remote) = (tempfile::tempdir().unwrap(), Arc::new(InMemory::new()));
        let part = Path::from(format!("a/parts/{digest}.parquet"));
        remote.put(&part, bytes.clone().into()).await.unwrap();
        let beside = Path::from(format!("a/{}", groups_name(digest)));
        remote.put(&beside, groups.unwrap().to_bytes().into()).await.unwrap();
        Fixture { folder, remote, part, bytes }
    }

    impl Fixture {
        /// Opens the store as a new process does.
        fn open(&self) -> Cached {
            Cached::in_folder(self.remote.clone(), Path::from("a"), self.folder.path().into()).unwrap()
        }

        /// Returns true if a range is read, and its bytes are right.
        async fn reads(&self, range: Range<u64>) -> bool {
            let read = self.open().get_range(&self.part, range.clone()).await;
            read.is_ok_and(|bytes| bytes == self.bytes[range.start as usize..range.end as usize])
        }

        fn copies(&self) -> Vec<PathBuf> {
            let files = std::fs::read_dir(self.folder.path().join("parts")).unwrap();
            files.map(|file| file.unwrap().path()).collect()
        }

        fn has_whole_copy(&self) -> bool {
            self.copies().iter().any(|copy| copy.extension() == Some("parquet".as_ref()))
        }

        /// Replaces a byte of the part in the store.
        async fn change(&self, at: u64) {
            let mut changed = self.bytes.clone();
            changed[at as usize] ^= 1;
            self.remote.put(&self.part, changed.into()).await.unwrap();
        }
    }

    /// Ranges at the beginning, in the middle and at the end, some across the ends of groups.
    const RANGES: [Range<u64>; 5] =
        [0..9, GROUP - 3..GROUP + 5, 9 * GROUP + 1..12 * GROUP, SIZE - 8..SIZE, SIZE - 5 * GROUP..SIZE - GROUP];

    #[tokio::test]
    async fn ranges_of_a_large_part_are_read_without_the_rest_and_kept() {
        let at = fixture().await;
        for range in RANGES {
            assert!(at.reads(range.clone()).await, "{range:?}");
        }
        let suffix = GetOptions { range: Some(GetRange::Suffix(100)), ..GetOptions::default() };
        let found = at.open().get_opts(&at.part, suffix).await.unwrap();
        assert_eq!((found.meta.size, found.range.clone()), (SIZE, SIZE - 100..SIZE));
        assert_eq!(found.bytes().await.unwrap(), at.bytes[SIZE as usize - 100..]);
        assert!(!at.has_whole_copy());
        let kept: u64 = at.copies().iter().map(|copy| copy.metadata().unwrap().len()).sum();
        assert!(kept < SIZE / 4, "{kept} of {SIZE} bytes");
        at.remote.delete(&at.part).await.unwrap();
        for range in RANGES {
            assert!(at.reads(range.clone()).await, "{range:?} again");
        }
    }

    #[tokio::test]
    async fn damage_is_an_error_of_the_ranges_that_it_lies_in() {
        let at = fixture().await;
        at.change(10 * GROUP).await;
        assert!(at.reads(0..9).await && at.reads(SIZE - 8..SIZE).await);
        assert!(at.reads(9 * GROUP..9 * GROUP + 1).await, "the group before it");
        let error = at.open().get_range(&at.part, 10 * GROUP + 5..10 * GROUP + 6).await.unwrap_err();
        assert!(Mismatch::find(&error).is_some(), "{error}");
        assert!(!at.has_whole_copy());
        // The first and the last group are fetched with the hashes.
        for group in [0, SIZE / GROUP] {
            let at = fixture().await;
            at.change(group * GROUP).await;
            let error = at.open().get_range(&at.part, group * GROUP + 1..group * GROUP + 2).await.unwrap_err();
            assert!(Mismatch::find(&error).is_some(), "{error}");
        }
    }

    #[tokio::test]
    async fn part_without_hashes_or_with_damaged_ones_is_fetched_whole() {
        for damaged in [None, Some("damaged")] {
            let at = fixture().await;
            let digest: Digest = at.part.filename().unwrap().split('.').next().unwrap().parse().unwrap();
            let beside = Path::from(format!("a/{}", groups_name(digest)));
            match damaged {
                Some(bytes) => _ = at.remote.put(&beside, bytes.into()).await.unwrap(),
                None => at.remote.delete(&beside).await.unwrap(),
            }
            assert!(at.reads(SIZE - 8..SIZE).await);
            assert!(at.has_whole_copy());
            at.remote.delete(&at.part).await.unwrap();
            assert!(at.reads(0..SIZE).await);
        }
    }

    #[tokio::test]
    async fn part_is_fetched_whole_if_most_of_it_is_read() {
        let at = fixture().await;
        assert!(at.reads(GROUP..SIZE - GROUP).await);
        assert!(at.has_whole_copy());
    }

    #[tokio::test]
    async fn changed_copy_of_a_range_is_fetched_again() {
        let at = fixture().await;
        for range in RANGES {
            assert!(at.reads(range).await);
        }
        for cut in [false, true] {
            for copy in at.copies() {
                let mut bytes = std::fs::read(&copy).unwrap();
                let middle = bytes.len() / 2;
                if cut {
                    bytes.truncate(middle)
                } else {
                    bytes[middle] ^= 1
                }
                std::fs::write(&copy, bytes).unwrap();
            }
            for range in RANGES {
                assert!(at.reads(range.clone()).await, "{range:?}");
            }
            assert!(!at.has_whole_copy());
        }
    }

    #[tokio::test]
    async fn ranges_are_read_without_a_writable_folder_of_copies() {
        let at = fixture().await;
        std::fs::write(at.folder.path().join("parts"), "no folder").unwrap();
        for range in RANGES {
            assert!(at.reads(range.clone()).await, "{range:?}");
        }
    }

    #[tokio::test]
    async fn small_part_is_fetched_once() {
        let at = fixture().await;
        for size in [100, BEGINNING as usize + 9] {
            let bytes = at.bytes[..size].to_vec();
            let part = Path::from(format!("a/parts/{}.parquet", Digest::of(&bytes)));
            at.remote.put(&part, bytes.clone().into()).await.unwrap();
            assert_eq!(at.open().get_range(&part, 5..90).await.unwrap(), bytes[5..90]);
            at.remote.delete(&part).await.unwrap();
            assert_eq!(at.open().get(&part).await.unwrap().bytes().await.unwrap(), bytes);
        }
    }
}
