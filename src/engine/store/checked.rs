//! A local store whose immutable objects (parts, blobs, records) are checked against their digests whenever they are
//! read.
//!
//! The name of such an object is the digest of its bytes. A read of a range checks the groups of bytes that cover it
//! (see [`Groups`]), so that planning and SQL, which read a few columns of a large part, pay for these columns alone.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path as FilePath, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, local::LocalFileSystem, path::Path,
};
use parquet::{
    errors::{ParquetError, Result as ParquetResult},
    file::reader::{ChunkReader, Length},
};

use super::groups::{GROUP, Groups};
use crate::engine::{Digest, Mismatch};

/// Folders of a store whose objects are named by their digests.
pub(in crate::engine) const IMMUTABLE: [&str; 3] = ["parts", "blobs", "computed"];

/// The extension of the file with the groups of an object, which lies beside it.
pub(in crate::engine) const GROUPS: &str = "groups";

/// Returns the name of the groups beside a part.
pub(in crate::engine) fn groups_name(part: Digest) -> String {
    format!("parts/{part}.{GROUPS}")
}

/// Returns the digest that names an immutable object, below the store's prefix.
pub(in crate::engine) fn digest_in(folder: &str, file: &str) -> Option<Digest> {
    let (name, ending) = file.split_once('.').unwrap_or((file, ""));
    (IMMUTABLE.contains(&folder) && ending != GROUPS).then(|| name.parse().ok()).flatten()
}

/// An immutable object in a local file, whose ranges are read and checked.
#[derive(Debug)]
pub(in crate::engine) struct Opened {
    file: File,
    path: PathBuf,
    location: String,
    digest: Digest,
    size: u64,
    /// The groups, read or computed at the first read of a range.
    groups: OnceLock<Groups>,
    /// True if a read has found bytes that do not match the digest in the name.
    damaged: AtomicBool,
    /// The bytes that were checked last, and their offset, because small reads follow one another.
    last: Mutex<(u64, Bytes)>,
}

impl Opened {
    /// Opens the object of a digest; `location` names it in errors.
    pub(in crate::engine) fn open(path: PathBuf, location: String, digest: Digest) -> io::Result<Self> {
        let file = File::open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            file,
            path,
            location,
            digest,
            size,
            groups: OnceLock::new(),
            damaged: AtomicBool::new(false),
            last: Mutex::default(),
        })
    }

    fn mismatch(&self) -> io::Error {
        self.damaged.store(true, Ordering::Relaxed);
        io::Error::other(Mismatch { location: self.location.clone(), digest: self.digest })
    }

    /// Reads all bytes and checks them.
    fn whole(&self) -> io::Result<Bytes> {
        let bytes = self.bytes_at(0..self.size)?;
        if Groups::of(&bytes).0 == self.digest { Ok(bytes.into()) } else { Err(self.mismatch()) }
    }

    /// Returns the groups that are stored beside the object. If they are missing or damaged, the whole object is read
    /// and checked, and they are stored again.
    fn groups(&self) -> io::Result<&Groups> {
        if let Some(groups) = self.groups.get() {
            return Ok(groups);
        }
        let beside = beside(&self.path);
        let kept = fs::read(&beside).ok().and_then(|bytes| Groups::from_bytes(&bytes, self.size, self.digest));
        let groups = match kept {
            Some(groups) => groups,
            None => match Groups::of(&self.bytes_at(0..self.size)?) {
                (digest, Some(groups)) if digest == self.digest => {
                    // If the store cannot be written, later reads are slower.
                    let _ = replace(&beside, &groups.to_bytes());
                    groups
                }
                _ => return Err(self.mismatch()),
            },
        };
        Ok(self.groups.get_or_init(|| groups))
    }

    fn bytes_at(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.file.read_exact_at(&mut bytes, range.start).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => self.mismatch(),
            _ => e,
        })?;
        Ok(bytes)
    }

    /// Reads the bytes of a range and checks them.
    pub(in crate::engine) fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        if range.start > range.end || range.end > self.size {
            return Err(self.mismatch());
        }
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let within = |(start, bytes): &(u64, Bytes)| {
            let is_within = *start <= range.start && range.end <= start + bytes.len() as u64;
            is_within.then(|| bytes.slice((range.start - start) as usize..(range.end - start) as usize))
        };
        if let Some(bytes) = within(&last()) {
            return Ok(bytes);
        }
        let (first, end) = (range.start / GROUP, (range.end.div_ceil(GROUP) * GROUP).min(self.size));
        let is_whole = self.size <= GROUP || (first == 0 && end == self.size);
        let checked = if is_whole {
            (0, self.whole()?)
        } else {
            let bytes = self.bytes_at(first * GROUP..end.max(first * GROUP))?;
            if !self.groups()?.fit(first, &bytes) {
                return Err(self.mismatch());
            }
            (first * GROUP, Bytes::from(bytes))
        };
        let found = within(&checked);
        *last() = checked;
        Ok(found.unwrap_or_default())
    }
}

/// Returns the path of the file with the groups of an object.
pub(in crate::engine) fn beside(object: &FilePath) -> PathBuf {
    object.with_extension(GROUPS)
}

/// Writes a file that gets its name atomically, when it is complete.
fn replace(path: &FilePath, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_added_extension(format!("{}.part", std::process::id()));
    fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// An opened object as Parquet reads it.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Part(Arc<Opened>);

impl From<Opened> for Part {
    fn from(opened: Opened) -> Self {
        Self(Arc::new(opened))
    }
}

impl Part {
    /// Returns true if a read has found bytes that do not match the digest in the name.
    pub(in crate::engine) fn is_damaged(&self) -> bool {
        self.0.damaged.load(Ordering::Relaxed)
    }
}

impl Length for Part {
    fn len(&self) -> u64 {
        self.0.size
    }
}

impl ChunkReader for Part {
    type T = Onwards;

    fn get_read(&self, start: u64) -> ParquetResult<Onwards> {
        Ok(Onwards { object: self.0.clone(), at: start })
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        self.0.read(start..start.saturating_add(length as u64)).map_err(|e| ParquetError::External(Box::new(e)))
    }
}

/// Reads an object from an offset on.
#[derive(Debug)]
pub(in crate::engine) struct Onwards {
    object: Arc<Opened>,
    at: u64,
}

impl Read for Onwards {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let end = ((self.at / GROUP + 1) * GROUP).min(self.object.size).min(self.at + buffer.len() as u64);
        if self.at >= end {
            return Ok(0);
        }
        let bytes = self.object.read(self.at..end)?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        self.at = end;
        Ok(bytes.len())
    }
}

/// Objects in a folder; immutable ones are checked when they are read.
#[derive(Debug)]
pub(in crate::engine) struct Checked(LocalFileSystem);

impl Checked {
    /// Opens the objects in a folder that exists.
    pub(in crate::engine) fn new(folder: &FilePath) -> Result<Self> {
        Ok(Self(LocalFileSystem::new_with_prefix(folder)?))
    }

    /// Returns the digest that names an object, if it is immutable.
    fn digest(location: &Path) -> Option<Digest> {
        digest_in(location.parts().next()?.as_ref(), location.filename()?)
    }
}

/// Reads the requested range of an object.
fn read(path: PathBuf, location: Path, digest: Digest, options: &GetOptions) -> Result<GetResult> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Error::NotFound { path: location.to_string(), source: Box::new(e) },
        _ => Error::Generic { store: "local", source: Box::new(e) },
    };
    let object = Opened::open(path, location.to_string(), digest).map_err(failed)?;
    let modified = object.file.metadata().and_then(|meta| meta.modified()).map_err(failed)?;
    let meta = ObjectMeta {
        location: location.clone(),
        last_modified: modified.into(),
        size: object.size,
        e_tag: None,
        version: None,
    };
    options.check_preconditions(&meta)?;
    let range = match &options.range {
        Some(range) => range.as_range(object.size).map_err(|_| failed(object.mismatch()))?,
        None => 0..object.size,
    };
    let bytes = if options.head { Bytes::new() } else { object.read(range.clone()).map_err(failed)? };
    let payload = GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed());
    Ok(GetResult { payload, meta, range, attributes: Attributes::default() })
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Checked {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let Some(digest) = Self::digest(location).filter(|_| !options.head) else {
            return self.0.get_opts(location, options).await;
        };
        let (path, location) = (self.0.path_to_filesystem(location)?, location.clone());
        tokio::task::spawn_blocking(move || read(path, location, digest, &options)).await?
    }

    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.0.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;

    use super::*;

    /// Makes a folder with one part of four groups.
    fn fixture() -> (tempfile::TempDir, Checked, Path, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..3 * GROUP + 100).map(|i| (i % 251) as u8).collect();
        let location = Path::from(format!("parts/{}.parquet", Digest::of(&bytes)));
        let file = folder.path().join(location.to_string());
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, bytes).unwrap();
        let checked = Checked::new(folder.path()).unwrap();
        (folder, checked, location, file)
    }

    fn is_mismatch<T>(answer: Result<T>) -> bool {
        answer.is_err_and(|error| Mismatch::find(&error).is_some())
    }

    #[tokio::test]
    async fn ranges_of_a_part_are_checked_with_and_without_groups_beside_it() {
        let (_folder, checked, location, file) = fixture();
        for _ in 0..2 {
            let range = checked.get_range(&location, 2 * GROUP - 3..2 * GROUP + 5).await.unwrap();
            assert_eq!(range, fs::read(&file).unwrap()[2 * GROUP as usize - 3..2 * GROUP as usize + 5]);
            assert!(beside(&file).is_file());
        }
        fs::write(beside(&file), "damaged").unwrap();
        assert_eq!(checked.get_range(&location, 0..9).await.unwrap(), fs::read(&file).unwrap()[..9]);
        assert_ne!(fs::read(beside(&file)).unwrap(), b"damaged");
    }

    #[tokio::test]
    async fn reading_a_changed_or_truncated_part_is_a_mismatch() {
        let (_folder, checked, location, file) = fixture();
        checked.get_range(&location, 0..1).await.unwrap();
        let whole = fs::read(&file).unwrap();
        let mut changed = whole.clone();
        changed[GROUP as usize + 9] ^= 4;
        fs::write(&file, &changed).unwrap();
        assert!(checked.get_range(&location, 0..20).await.is_ok());
        assert!(is_mismatch(checked.get_range(&location, GROUP..GROUP + 1).await));
        assert!(is_mismatch(checked.get(&location).await));
        for length in [0, 7, GROUP as usize, whole.len() - 1] {
            fs::write(&file, &whole[..length]).unwrap();
            assert!(
                is_mismatch(checked.get_range(&location, 0..1).await.and(checked.get(&location).await)),
                "{length}"
            );
        }
        fs::remove_file(&file).unwrap();
        assert!(matches!(checked.get(&location).await, Err(Error::NotFound { .. })));
    }

    #[test]
    fn parquet_reads_across_the_ends_of_groups() {
        let (_folder, _, location, file) = fixture();
        let digest = Checked::digest(&location).unwrap();
        let part = Part::from(Opened::open(file.clone(), location.to_string(), digest).unwrap());
        let mut read = Vec::new();
        part.get_read(GROUP - 2).unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, fs::read(&file).unwrap()[GROUP as usize - 2..]);
        assert!(part.get_bytes(3 * GROUP, 101).is_err_and(|error| Mismatch::find(&error).is_some()));
    }
}
