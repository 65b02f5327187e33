//! A local copy of the immutable objects of a remote store: parts, blobs and records, whose names are the digests of
//! their bytes.
//!
//! An object is fetched once, whole, and checked against its name. From then on it is served from a folder of this
//! machine, to every process and for every store. The folder may be deleted at any time. A large part of which only a
//! few columns are read is not fetched whole, but the bytes around these (`ranges`).

mod ranges;

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, local::LocalFileSystem, memory::InMemory,
    path::Path,
};
use tokio::sync::{OnceCell, Semaphore};

pub(in crate::engine) use self::ranges::SMALL;
use super::checked::digest_in;
use crate::engine::{
    Digest, Mismatch,
    source::{cache_folder, make_private},
};

/// The number of parts that are fetched whole at a time for readers of ranges. Many more ranges are read at a time, since
/// a whole part is in memory until it is written to the folder.
const WHOLE: usize = 8;

/// A remote store with its immutable objects kept in a local folder.
#[derive(Debug)]
pub(in crate::engine) struct Cached {
    remote: Arc<dyn ObjectStore>,
    prefix: Path,
    local: LocalFileSystem,
    /// The sizes of the copies that this process has fetched or checked.
    sizes: Mutex<HashMap<Path, Arc<OnceCell<u64>>>>,
    /// The parts of which the beginning was fetched, for a reader of a range.
    begun: Mutex<HashMap<Path, Arc<OnceCell<()>>>>,
    /// The turns of readers of ranges at parts that are fetched whole.
    turns: Semaphore,
}

/// An immutable object: its place in the store, its place in the folder of copies, and the digest of its bytes.
struct Immutable<'a> {
    location: &'a Path,
    copy: Path,
    digest: Digest,
}

/// A fetched object.
enum Fetched {
    /// The object is in a copy of this size.
    Copy(u64),
    /// The object is in memory only, because no copy could be written.
    Bytes(Bytes),
}

impl Cached {
    /// Makes the store below `prefix` of `remote`, with copies in the user's cache folder.
    pub(in crate::engine) fn new(remote: Arc<dyn ObjectStore>, prefix: Path) -> std::io::Result<Self> {
        Self::in_folder(remote, prefix, cache_folder().join("objects"))
    }

    fn in_folder(remote: Arc<dyn ObjectStore>, prefix: Path, folder: PathBuf) -> std::io::Result<Self> {
        let named = |e: &dyn fmt::Display| {
            let advice = "set VLMDIFF_CACHE to a folder that can be written";
            std::io::Error::other(format!("the cache folder {}: {e}; {advice}", folder.display()))
        };
        make_private(&folder).map_err(|e| named(&e))?;
        let local = LocalFileSystem::new_with_prefix(&folder).map_err(|e| named(&e))?;
        let (sizes, begun, turns) = (Mutex::default(), Mutex::default(), Semaphore::new(WHOLE));
        Ok(Self { remote, prefix, local, sizes, begun, turns })
    }

    fn immutable<'a>(&self, location: &'a Path) -> Option<Immutable<'a>> {
        let copy: Path = location.prefix_match(&self.prefix)?.collect();
        let digest = digest_in(copy.parts().next()?.as_ref(), copy.filename()?)?;
        Some(Immutable { location, copy, digest })
    }

    fn checked(&self) -> MutexGuard<'_, HashMap<Path, Arc<OnceCell<u64>>>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begun(&self) -> MutexGuard<'_, HashMap<Path, Arc<OnceCell<()>>>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that there is a copy, which is checked at its first use in this process. If the disk is full, the
    /// bytes are kept in memory instead.
    async fn fetch(&self, object: &Immutable<'_>) -> Result<Fetched> {
        let cell = self.checked().entry(object.copy.clone()).or_default().clone();
        let fetch = async || {
            if let Ok(found) = self.local.get(&object.copy).await
                && let Ok(bytes) = found.bytes().await
                && Digest::of(&bytes) == object.digest
            {
                return Ok(bytes.len() as u64);
            }
            let bytes = self.download(object).await.map_err(Err)?;
            match self.local.put(&object.copy, bytes.clone().into()).await {
                Ok(_) => Ok(bytes.len() as u64),
                Err(_) => Err(Ok(bytes)),
            }
        };
        let copy: Result<&u64, Result<Bytes>> = cell.get_or_try_init(fetch).await;
        copy.map_or_else(|bytes| bytes.map(Fetched::Bytes), |size| Ok(Fetched::Copy(*size)))
    }

    /// Reads the bytes from the remote store and checks them.
    async fn download(&self, object: &Immutable<'_>) -> Result<Bytes> {
        let bytes = self.remote.get(object.location).await?.bytes().await?;
        if Digest::of(&bytes) == object.digest {
            return Ok(bytes);
        }
        let mismatch = Mismatch { location: object.location.to_string(), digest: object.digest };
        Err(Error::Generic { store: "remote", source: Box::new(mismatch) })
    }

    /// Reads from a fetched object, unless its copy has changed since it was checked.
    async fn read(&self, object: &Immutable<'_>, fetched: Fetched, options: GetOptions) -> Result<GetResult> {
        let size = match fetched {
            Fetched::Copy(size) => size,
            Fetched::Bytes(bytes) => {
                let memory = InMemory::new();
                memory.put(object.location, bytes.into()).await?;
                return memory.get_opts(object.location, options).await;
            }
        };
        let found = self.local.get_opts(&object.copy, options).await?;
        if found.meta.size != size {
            let source = format!("the copy of {} has another size", object.location);
            return Err(Error::Generic { store: "cache", source: source.into() });
        }
        Ok(GetResult { meta: ObjectMeta { location: object.location.clone(), ..found.meta }, ..found })
    }
}

impl fmt::Display for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.remote.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Cached {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let Some(object) = self.immutable(location).filter(|_| !options.head) else {
            return self.remote.get_opts(location, options).await;
        };
        let mut turn = None;
        if let Some(range) = &options.range {
            if let Some(found) = self.range(&object, range).await {
                return Ok(found);
            }
            turn = self.turns.acquire().await.ok();
        }
        let fetched = self.fetch(&object).await?;
        drop(turn);
        if let Ok(found) = self.read(&object, fetched, options.clone()).await {
            return Ok(found);
        }
        // The copy was deleted or changed since this process checked it.
        self.checked().remove(&object.copy);
        let fetched = self.fetch(&object).await?;
        self.read(&object, fetched, options).await
    }

    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let put = self.remote.put_opts(location, payload.clone(), options).await?;
        if let Some(object) = self.immutable(location) {
            // If the copy cannot be written, the object is fetched when it is read.
            self.local.put(&object.copy, payload).await.ok();
        }
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.remote.put_multipart_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.remote.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.remote.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.remote.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.remote.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.remote.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        folder: tempfile::TempDir,
        remote: Arc<InMemory>,
        part: Path,
        copy: PathBuf,
    }

    const BYTES: &[u8] = b"bytes of a part";

    async fn fixture() -> Fixture {
        let (folder, remote) = (tempfile::tempdir().unwrap(), Arc::new(InMemory::new()));
        let name = format!("parts/{}.parquet", Digest::of(BYTES));
        let (part, copy) = (Path::from(format!("a/b/{name}")), folder.path().join(name));
        remote.put(&part, BYTES.into()).await.unwrap();
        Fixture { folder, remote, part, copy }
    }

    impl Fixture {
        /// Opens the store as a new process does.
        fn open(&self) -> Cached {
            Cached::in_folder(self.remote.clone(), Path::from("a/b"), self.folder.path().into()).unwrap()
        }
    }

    #[tokio::test]
    async fn part_is_fetched_once_and_served_in_ranges() {
        let at = fixture().await;
        assert_eq!(at.open().get_range(&at.part, 6..8).await.unwrap(), "of");
        at.remote.delete(&at.part).await.unwrap();
        let cached = at.open();
        let found = cached.get(&at.part).await.unwrap();
        assert_eq!(found.meta.location, at.part);
        assert_eq!(found.bytes().await.unwrap(), BYTES);
        assert_eq!(cached.get_ranges(&at.part, &[0..5, 11..15]).await.unwrap(), ["bytes", "part"]);
    }

    #[tokio::test]
    async fn written_immutable_objects_are_kept_and_others_are_not() {
        let at = fixture().await;
        let blob = Path::from(format!("a/b/blobs/{}", Digest::of(b"weights")));
        let state = Path::from("a/b/state/one");
        for (location, bytes) in [(&blob, "weights"), (&state, "state")] {
            at.open().put(location, bytes.into()).await.unwrap();
            at.remote.delete(location).await.unwrap();
        }
        assert_eq!(at.open().get(&blob).await.unwrap().bytes().await.unwrap(), "weights");
        assert!(matches!(at.open().get(&state).await, Err(Error::NotFound { .. })));
    }

    #[tokio::test]
    async fn broken_copy_is_fetched_again() {
        let at = fixture().await;
        let cached = at.open();
        cached.get(&at.part).await.unwrap();
        // The copy is truncated and deleted while a process runs, and changed before a new one starts.
        std::fs::write(&at.copy, &BYTES[..3]).unwrap();
        assert_eq!(cached.get(&at.part).await.unwrap().bytes().await.unwrap(), BYTES);
        std::fs::remove_dir_all(at.copy.parent().unwrap()).unwrap();
        assert_eq!(cached.get_range(&at.part, 6..8).await.unwrap(), "of");
        std::fs::write(&at.copy, b"BYTES of a part").unwrap();
        assert_eq!(at.open().get(&at.part).await.unwrap().bytes().await.unwrap(), BYTES);
    }

    #[tokio::test]
    async fn objects_are_read_without_a_writable_folder_of_copies() {
        let at = fixture().await;
        let cached = at.open();
        ["parts", "blobs"].iter().for_each(|name| std::fs::write(at.folder.path().join(name), "no folder").unwrap());
        for _ in 0..2 {
            assert_eq!(cached.get(&at.part).await.unwrap().bytes().await.unwrap(), BYTES);
            assert_eq!(cached.get_range(&at.part, 6..8).await.unwrap(), "of");
        }
        let blob = Path::from(format!("a/b/blobs/{}", Digest::of(b"weights")));
        cached.put(&blob, "weights".into()).await.unwrap();
        assert_eq!(cached.get(&blob).await.unwrap().bytes().await.unwrap(), "weights");
    }

    #[tokio::test]
    async fn damage_in_the_store_is_an_error_and_is_not_copied() {
        let at = fixture().await;
        at.remote.put(&at.part, "damaged".into()).await.unwrap();
        let error = crate::engine::Error::from(at.open().get(&at.part).await.unwrap_err());
        assert!(matches!(error, crate::engine::Error::Lost { digest, .. } if digest == Digest::of(BYTES)), "{error}");
        assert!(error.to_string().contains(&format!("{} does not match its digest", at.part)), "{error}");
        assert!(!at.copy.exists());
        at.remote.delete(&at.part).await.unwrap();
        assert!(matches!(at.open().get(&at.part).await, Err(Error::NotFound { .. })));
    }
}
