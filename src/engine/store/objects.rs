//! The store: content-addressed parts and blobs, results known by key, and published tables.
//!
//! ```text
//! parts/DIGEST.parquet              an immutable piece of a table
//! parts/DIGEST.groups               hashes of a large part's groups of bytes; found anew where it is missing
//! blobs/DIGEST                      bytes that a table names: weights, optimiser state
//! computed/STAGE/ENTRY.rows         parts that a stage has computed, with the key of each row
//! computed/STAGE/ENTRY.merged       the same of rows that were rewritten; names the records that it replaces
//! state/KEY.json                    the last saved state of a stage that is not done
//! published/PIPELINE/TABLE/N.json   version N of a table; the highest is current
//! published/PIPELINE/TABLE/N.made   says that version N was published, should its manifest be lost
//! unfinished/PIPELINE/TABLE.json    the rows so far of a table that a run is making
//! runs/RUN.jsonl                    the events of a run
//! tags/TAG.json                     a name for a run
//! locks/KEY                         held by the process that works on a stage's results; local stores only
//! ```
//!
//! Parts, blobs and records have names that their content fixes, and versions are written if absent, so any number of runs
//! may share a store, and a run killed at any moment leaves only whole objects behind.
//!
//! Nothing is believed that is not what was written: parts, blobs and records are checked against the digests in their
//! names, manifests and tags against the digest in their text, a run's log against the digest in its first line.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, PutOptions, PutPayload, path::Path};
use tokio::runtime::Runtime;
use url::Url;

use super::{
    cache::Cached,
    checked::{Checked, GROUPS, Opened, Part},
    groups::Groups,
    manifest::Entry,
};
use crate::engine::{
    Digest, Error, Result,
    address::{local_path, url_of},
    connect::{PLACES, connect},
    source::make_private,
};

/// Objects read at the same time.
const READS: usize = 32;

/// The ending of a record.
const ROWS: &str = "rows";

/// The ending of a record that replaces others, which are not read then.
const MERGED: &str = "merged";

/// A place for parts, blobs and tables: a folder, or any URL that `object_store` knows.
#[derive(Clone)]
pub struct Store {
    /// The address that opens this store again, in another process.
    pub url: String,
    /// The objects, relative to [`Store::prefix`].
    pub objects: Arc<dyn ObjectStore>,
    /// The folder, of a store on this machine's disk.
    pub(in crate::engine) folder: Option<PathBuf>,
    prefix: Path,
    runtime: Arc<Runtime>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

/// An object of a store.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Object {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// When it was written, in milliseconds since 1970.
    pub modified_ms: u64,
}

impl Object {
    /// The digest that its file name is.
    pub(in crate::engine) fn digest(&self) -> Option<Digest> {
        self.name.rsplit('/').next()?.split('.').next()?.parse().ok()
    }
}

/// The objects at a URL, with copies of the immutable ones on this machine, and the prefix of the store.
fn remote_objects(url: &Url) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let (objects, prefix) = connect(url)?;
    if let Ok((ObjectStoreScheme::Http, _)) = ObjectStoreScheme::parse(url) {
        return Err(Error::Input(format!(
            "store {url}: a plain web server cannot publish a table atomically; {PLACES}"
        )));
    }
    let cached = Cached::new(objects, prefix.clone()).map_err(|e| Error::Input(format!("store {url}: {e}")))?;
    Ok((Arc::new(cached), prefix))
}

/// The records of what a stage has computed.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Those that are what was written, oldest first.
    pub entries: Vec<Entry>,
    /// The names of the others, whose rows count as not computed.
    pub damaged: Vec<String>,
}

/// Which parts and blobs a store has. A local store is asked for each, a remote one lists them once for
/// all clones.
#[derive(Clone, Debug, Default)]
pub struct Inventory(Arc<OnceLock<HashMap<String, u64>>>);

impl Inventory {
    /// Whether the store has an object, of this size where it is known.
    pub(in crate::engine) fn has(&self, store: &Store, name: &str, bytes: Option<u64>) -> Result<bool> {
        let fits = |size: Option<u64>| size.is_some_and(|size| bytes.is_none_or(|bytes| bytes == size));
        if store.folder.is_none() {
            if self.0.get().is_none() {
                let objects = ["parts", "blobs"].map(|folder| store.objects_in(folder));
                let mut listed = HashMap::new();
                for objects in objects {
                    listed.extend(objects?.into_iter().map(|object| (object.name, object.bytes)));
                }
                let _ = self.0.set(listed);
            }
            if fits(self.0.get().and_then(|listed| listed.get(name)).copied()) {
                return Ok(true);
            }
        }
        // Of a remote object this asks once more: it may have been written since the listing.
        Ok(fits(store.listed_size(name)?))
    }
}

/// The name of a blob.
pub(in crate::engine) fn blob_name(blob: Digest) -> String {
    format!("blobs/{blob}")
}

/// The name of a part.
pub(in crate::engine) fn part_name(part: Digest) -> String {
    format!("parts/{part}.parquet")
}

/// The name of the saved state of a stage that is not done.
pub(in crate::engine) fn state_name(stage: Digest) -> String {
    format!("state/{stage}.bin")
}

/// Whether a name is one that a file has until it is whole: `NAME#1` of an object, `NAME.groups.PID.part` of what lies beside a
/// part.
fn is_half_written(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let process = name.strip_suffix(".part").and_then(|name| name.rsplit_once(&format!(".{GROUPS}.")));
    process.is_some_and(|(_, process)| is_number(process))
        || name.rsplit_once('#').is_some_and(|(_, number)| is_number(number))
}

/// The objects in a folder, which is made if absent, and the folder as it is named from everywhere.
fn local_objects(folder: PathBuf) -> Result<(PathBuf, Arc<dyn ObjectStore>)> {
    let named = |e| Error::Input(format!("store {}: {e}; name a folder that can be written", folder.display()));
    make_private(&folder).map_err(named)?;
    let folder = folder.canonicalize().map_err(named)?;
    let objects = Checked::new(&folder)?;
    Ok((folder, Arc::new(objects)))
}

/// Bytes of the stack of a thread that serves requests and runs queries, whose long expressions it goes down by recursion; what is
/// not used takes no memory.
const STACK: usize = 64 << 20;

impl Store {
    /// Opens a store at a folder, which is made if absent, or at a URL.
    pub fn open(address: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(std::thread::available_parallelism().map_or(2, usize::from))
            .thread_stack_size(STACK)
            .enable_all()
            .build()?;
        let (url, folder, (objects, prefix)) = match url_of(address)? {
            Some(url) => (address.to_owned(), None, remote_objects(&url)?),
            None => {
                let (folder, objects) = local_objects(local_path(address))?;
                (folder.to_string_lossy().into_owned(), Some(folder), (objects, Path::default()))
            }
        };
        Ok(Self { url, objects, folder, prefix, runtime: Arc::new(runtime) })
    }

    /// The runtime that serves this store's requests.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(in crate::engine) fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Where a part lies.
    pub fn part_path(&self, part: Digest) -> Path {
        self.path(&part_name(part))
    }

    /// Writes an object unless one of that name is there; says whether it was written.
    pub(in crate::engine) fn put_if_absent(&self, name: &str, bytes: impl Into<Bytes>) -> Result<bool> {
        let payload = PutPayload::from_bytes(bytes.into());
        let options = PutOptions::from(PutMode::Create);
        match self.runtime.block_on(self.objects.put_opts(&self.path(name), payload, options)) {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes or replaces an object.
    pub fn put(&self, name: &str, bytes: impl Into<Bytes>) -> Result<()> {
        self.put_pieces(name, [bytes.into()])
    }

    /// Writes or replaces an object that consists of these pieces.
    pub(in crate::engine) fn put_pieces(&self, name: &str, pieces: impl IntoIterator<Item = Bytes>) -> Result<()> {
        self.runtime.block_on(self.objects.put(&self.path(name), PutPayload::from_iter(pieces)))?;
        Ok(())
    }

    /// An object's bytes, or `None` where there is none.
    pub fn get(&self, name: &str) -> Result<Option<Bytes>> {
        self.runtime.block_on(self.fetch(name))
    }

    /// The bytes of several objects, read side by side; `None` where there is none.
    pub(in crate::engine) fn get_all(&self, names: &[String]) -> Result<Vec<Option<Bytes>>> {
        self.get_each(names).into_iter().collect()
    }

    /// [`Store::get_all`], with an error for each object that cannot be read.
    pub(in crate::engine) fn get_each(&self, names: &[String]) -> Vec<Result<Option<Bytes>>> {
        let reads = futures::stream::iter(names.iter().map(|name| self.fetch(name)));
        self.runtime.block_on(reads.buffered(READS).collect())
    }

    async fn fetch(&self, name: &str) -> Result<Option<Bytes>> {
        match self.objects.get(&self.path(name)).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes an object, if it is there.
    pub(in crate::engine) fn delete(&self, name: &str) -> Result<()> {
        match self.runtime.block_on(self.objects.delete(&self.path(name))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The objects below a folder, sorted by name.
    pub(in crate::engine) fn objects_in(&self, folder: &str) -> Result<Vec<Object>> {
        let base = self.path(folder);
        let found: Vec<_> = self.runtime.block_on(self.objects.list(Some(&base)).try_collect())?;
        let object = |meta: object_store::ObjectMeta| {
            let below = meta.location.prefix_match(&base)?.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>();
            let modified_ms = meta.last_modified.timestamp_millis().max(0) as u64;
            Some(Object { name: format!("{folder}/{}", below.join("/")), bytes: meta.size, modified_ms })
        };
        let mut objects: Vec<Object> = found.into_iter().filter_map(object).collect();
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(objects)
    }

    /// When an object was written, in milliseconds since 1970.
    pub(in crate::engine) fn modified_ms(&self, name: &str) -> Result<Option<u64>> {
        match self.runtime.block_on(self.objects.head(&self.path(name))) {
            Ok(meta) => Ok(Some(meta.last_modified.timestamp_millis().max(0) as u64)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Files of a local store that are being written, or were when a process was killed. No listing shows them as objects.
    pub(in crate::engine) fn half_written(&self) -> Result<Vec<Object>> {
        let Some(folder) = &self.folder else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for entry in walkdir::WalkDir::new(folder).sort_by_file_name() {
            // What is gone meanwhile was written or removed.
            let Ok(entry) = entry else { continue };
            let Ok(name) = entry.path().strip_prefix(folder) else { continue };
            let name = name.to_string_lossy().into_owned();
            let Some(meta) = entry.metadata().ok().filter(|meta| meta.is_file() && is_half_written(&name)) else {
                continue;
            };
            let age = meta.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            found.push(Object { name, bytes: meta.len(), modified_ms: age.as_millis() as u64 });
        }
        Ok(found)
    }

    /// Removes a file that [`Store::half_written`] found, if it is still there.
    pub(in crate::engine) fn remove_half_written(&self, object: &Object) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        match std::fs::remove_file(folder.join(&object.name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// The names of the objects below a folder, sorted, relative to it.
    pub fn list(&self, folder: &str) -> Result<Vec<String>> {
        let relative = |object: Object| object.name[folder.len() + 1..].to_owned();
        Ok(self.objects_in(folder)?.into_iter().map(relative).collect())
    }

    /// Bytes below a folder.
    pub fn size(&self, folder: &str) -> Result<u64> {
        Ok(self.objects_in(folder)?.iter().map(|object| object.bytes).sum())
    }

    /// Keeps bytes under their digest. What is there already is replaced by the same bytes: a damaged object is mended so, and
    /// one that a clean-up would take for old is new again.
    pub(in crate::engine) fn put_blob(&self, bytes: impl Into<Bytes>) -> Result<Digest> {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        self.put(&blob_name(digest), bytes)?;
        Ok(digest)
    }

    /// The bytes with this digest, checked.
    pub fn blob(&self, digest: Digest) -> Result<Bytes> {
        self.whole(digest, &blob_name(digest), "blob")
    }

    /// Keeps a Parquet file under its digest, as [`Store::put_blob`] does.
    pub fn put_part(&self, bytes: Bytes) -> Result<Digest> {
        let (digest, groups) = Groups::of(&bytes);
        self.put(&part_name(digest), bytes)?;
        // A remote part is fetched and checked whole.
        if let (Some(groups), Some(_)) = (groups, &self.folder) {
            self.put(&format!("parts/{digest}.{GROUPS}"), groups.to_bytes())?;
        }
        Ok(digest)
    }

    /// A part's bytes.
    pub fn part(&self, digest: Digest) -> Result<Bytes> {
        self.whole(digest, &part_name(digest), "part")
    }

    /// A part in a store on this machine's disk, of which ranges can be read.
    pub(in crate::engine) fn local_part(&self, part: Digest) -> Result<Option<Part>> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let name = part_name(part);
        match Opened::open(folder.join(&name), name, part) {
            Ok(opened) => Ok(Some(opened.into())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::lost(part, format!("part {part} is missing")))
            }
            Err(e) => Err(e.into()),
        }
    }

    fn whole(&self, digest: Digest, name: &str, what: &str) -> Result<Bytes> {
        match self.get(name) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(Error::lost(digest, format!("{what} {digest} is missing"))),
            Err(Error::Lost { .. }) => Err(Error::lost(digest, format!("{what} {digest} does not match its digest"))),
            Err(error) => Err(error),
        }
    }

    /// Removes a part that nothing names any more.
    pub(in crate::engine) fn delete_part(&self, part: Digest) -> Result<()> {
        self.delete(&part_name(part))?;
        self.delete(&format!("parts/{part}.{GROUPS}"))
    }

    /// The bytes of a part or blob as they are listed; `None` where there is none.
    pub(in crate::engine) fn listed_size(&self, name: &str) -> Result<Option<u64>> {
        if let Some(folder) = &self.folder {
            return match std::fs::metadata(folder.join(name)) {
                Ok(meta) => Ok(Some(meta.len())),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(e.into()),
            };
        }
        match self.runtime.block_on(self.objects.head(&self.path(name))) {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether a blob is there.
    pub(in crate::engine) fn has_blob(&self, blob: Digest) -> Result<bool> {
        Ok(self.listed_size(&blob_name(blob))?.is_some())
    }

    /// Removes a part or a blob, if it is damaged.
    pub(in crate::engine) fn discard(&self, digest: Digest) -> Result<()> {
        for name in [part_name(digest), blob_name(digest)] {
            match self.get(&name) {
                Err(Error::Lost { .. }) => self.delete(&name)?,
                other => _ = other?,
            }
        }
        Ok(())
    }

    /// Records what a stage has computed.
    pub fn record(&self, stage: Digest, entry: &Entry) -> Result<()> {
        let bytes = entry.to_bytes()?;
        let ending = if entry.replaces.is_empty() { ROWS } else { MERGED };
        let name = format!("computed/{stage}/{}.{ending}", Digest::of(&bytes));
        self.put_if_absent(&name, bytes)?;
        Ok(())
    }

    /// All that a stage has computed.
    pub fn computed(&self, stage: Digest) -> Result<Recorded> {
        let objects = self.objects_in(&format!("computed/{stage}"))?;
        let (merged, others): (Vec<_>, Vec<_>) = objects.into_iter().partition(|object| object.name.ends_with(MERGED));
        let mut recorded = Recorded::default();
        let merged = self.read_records(merged, &mut recorded.damaged)?;
        let replaced: HashSet<Digest> = merged.iter().flat_map(|(_, entry)| &entry.replaces).copied().collect();
        let is_replaced = |name: Option<Digest>| name.is_some_and(|name| replaced.contains(&name));
        let others = others.into_iter().filter(|object| !is_replaced(object.digest())).collect();
        let others = self.read_records(others, &mut recorded.damaged)?;
        let entries = merged.into_iter().filter(|(name, _)| !is_replaced(*name)).chain(others);
        recorded.entries = entries.map(|(_, entry)| entry).collect();
        recorded.entries.sort_by_key(|entry| entry.recorded_ms);
        Ok(recorded)
    }

    /// The entries in records, each with the digest that names it; damaged ones are named apart.
    fn read_records(&self, objects: Vec<Object>, damaged: &mut Vec<String>) -> Result<Vec<(Option<Digest>, Entry)>> {
        let names: Vec<String> = objects.iter().map(|object| object.name.clone()).collect();
        let mut entries = Vec::new();
        for (object, read) in objects.iter().zip(self.get_each(&names)) {
            match read {
                Ok(None) => {}
                Ok(Some(bytes)) => match Entry::from_bytes(&bytes) {
                    Some(entry) => entries.push((object.digest(), entry)),
                    None => damaged.push(object.name.clone()),
                },
                Err(Error::Lost { .. }) => damaged.push(object.name.clone()),
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        (folder, store)
    }

    #[test]
    fn an_object_is_written_once() {
        let (_folder, store) = store();
        assert!(store.put_if_absent("a/b", "first").unwrap());
        assert!(!store.put_if_absent("a/b", "second").unwrap());
        assert_eq!(store.get("a/b").unwrap().unwrap(), "first");
        assert_eq!(store.get("a/c").unwrap(), None);
        assert_eq!(store.list("a").unwrap(), ["b"]);
    }

    #[test]
    fn a_changed_blob_is_named() {
        let (folder, store) = store();
        let digest = store.put_blob("weights").unwrap();
        std::fs::write(folder.path().join(format!("blobs/{digest}")), "wrong").unwrap();
        assert!(store.blob(digest).unwrap_err().to_string().contains(&format!("blob {digest} does not match")));
    }
}
