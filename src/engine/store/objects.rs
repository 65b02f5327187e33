//! The store: content-addressed parts and blobs, results known by key, and published tables.
//!
//! ```text
//! parts/DIGEST.parquet              an immutable piece of a table
//! parts/DIGEST.groups               hashes of a large part's groups of bytes; computed again if missing, in a remote store
//!                                   when the part is written again
//! blobs/DIGEST                      bytes that a table names: weights, optimiser state
//! computed/STAGE/ENTRY.rows         parts that a stage has computed, with the key of each row
//! computed/STAGE/ENTRY.merged       the same for rows that were rewritten; names the records that it replaces
//! state/KEY.bin                     the last saved state of a training that is not done
//! published/PIPELINE/TABLE/N.json   version N of a table; the highest is current
//! published/PIPELINE/TABLE/N.made   a marker that version N was published, in case its manifest is lost
//! unfinished/PIPELINE/TABLE.json    the rows so far of a table that a run is making
//! runs/RUN.jsonl                    the events of a run
//! tags/TAG.json                     a name for a run
//! jobs/JOB/…                        work that executors on other machines take, and their answers, while it runs
//! locks/KEY                         held by the process that works on a stage's results; local stores only
//! ```
//!
//! Parts, blobs and records are named by their content, and versions are written only if absent. Any number of runs may
//! therefore share a store, and a run that is killed at any moment leaves only complete objects.
//!
//! Everything that is read is checked: parts, blobs and records against the digests in their names, manifests and tags
//! against the digest in their text, a run's log against the digest in its first line.

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
    cache::{Cached, SMALL},
    checked::{Checked, GROUPS, Opened, Part, groups_name},
    groups::Groups,
    manifest::Entry,
    remote_part::RemotePart,
};
use crate::engine::{
    Digest, Error, Result,
    address::{local_path, url_of},
    connect::{PLACES, connect},
    source::make_private,
};

/// The number of objects that are read concurrently.
const READS: usize = 64;

/// The file name extension of a record.
const ROWS: &str = "rows";

/// The file name extension of a record that replaces others, which are then not read.
const MERGED: &str = "merged";

/// A place for parts, blobs and tables: a folder, or any URL that `object_store` knows.
#[derive(Clone)]
pub struct Store {
    /// The address that opens this store again, in another process.
    pub url: String,
    /// The objects, relative to [`Store::prefix`].
    pub objects: Arc<dyn ObjectStore>,
    /// The folder of a store on this machine's disk; `None` for a remote store.
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
    /// Its size in bytes.
    pub bytes: u64,
    /// The time at which it was written, in milliseconds since 1970.
    pub modified_ms: u64,
}

impl Object {
    /// Returns the digest in its file name.
    pub(in crate::engine) fn digest(&self) -> Option<Digest> {
        self.name.rsplit('/').next()?.split('.').next()?.parse().ok()
    }
}

/// Connects to a URL. Returns the objects, with copies of the immutable ones on this machine, and the prefix of the
/// store.
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

/// The records of a stage's results.
#[derive(Debug, Default)]
pub struct Recorded {
    /// The entries of undamaged records, oldest first.
    pub entries: Vec<Entry>,
    /// The names of damaged records, whose rows count as not computed.
    pub damaged: Vec<String>,
}

/// The parts and blobs that a store has. A local store is asked for each; those of a remote store are listed once for
/// all clones.
#[derive(Clone, Debug, Default)]
pub struct Inventory(Arc<OnceLock<HashMap<String, u64>>>);

impl Inventory {
    /// Returns true if the store has an object, of this size if one is given.
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
        // A remote object may have been written since the listing, so the store is asked again.
        Ok(fits(store.listed_size(name)?))
    }
}

/// Returns the name of a blob.
pub(in crate::engine) fn blob_name(blob: Digest) -> String {
    format!("blobs/{blob}")
}

/// Returns the name of a part.
pub(in crate::engine) fn part_name(part: Digest) -> String {
    format!("parts/{part}.parquet")
}

/// Returns the name of the saved state of a training that is not done.
pub(in crate::engine) fn state_name(stage: Digest) -> String {
    format!("state/{stage}.bin")
}

/// Returns true for a name that a file has until it is complete: `NAME#1` for an object, `NAME.groups.PID.part` for the
/// groups beside a part.
fn is_half_written(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let process = name.strip_suffix(".part").and_then(|name| name.rsplit_once(&format!(".{GROUPS}.")));
    process.is_some_and(|(_, process)| is_number(process))
        || name.rsplit_once('#').is_some_and(|(_, number)| is_number(number))
}

/// Opens a folder, which is made if absent. Returns its canonical path and its objects.
fn local_objects(folder: PathBuf) -> Result<(PathBuf, Arc<dyn ObjectStore>)> {
    let named = |e| Error::Input(format!("store {}: {e}; name a folder that can be written", folder.display()));
    make_private(&folder).map_err(named)?;
    let folder = folder.canonicalize().map_err(named)?;
    let objects = Checked::new(&folder)?;
    Ok((folder, Arc::new(objects)))
}

/// Bytes of the stack of a thread that serves requests and runs queries, because long expressions are walked by
/// recursion. Unused parts take no memory.
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

    /// Makes an empty store in memory, which its clones share and nothing opens again.
    #[cfg(test)]
    pub(in crate::engine) fn in_memory() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self {
            url: "memory".into(),
            objects: Arc::new(object_store::memory::InMemory::new()),
            folder: None,
            prefix: Path::default(),
            runtime: Arc::new(runtime),
        }
    }

    /// Returns the runtime that serves this store's requests.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(in crate::engine) fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Returns the path of a part.
    pub fn part_path(&self, part: Digest) -> Path {
        self.path(&part_name(part))
    }

    /// Writes an object unless one of that name exists. Returns true if it was written.
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

    /// Reads an object; `None` if it does not exist.
    pub fn get(&self, name: &str) -> Result<Option<Bytes>> {
        self.runtime.block_on(self.fetch(name))
    }

    /// Reads several objects concurrently; `None` for each that does not exist.
    pub(in crate::engine) fn get_all(&self, names: &[String]) -> Result<Vec<Option<Bytes>>> {
        self.get_each(names).into_iter().collect()
    }

    /// Does as [`Store::get_all`], with an error for each object that cannot be read.
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

    /// Removes an object, if it exists.
    pub(in crate::engine) fn delete(&self, name: &str) -> Result<()> {
        match self.runtime.block_on(self.objects.delete(&self.path(name))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Lists the objects below a folder, sorted by name.
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

    /// Returns the time at which an object was written, in milliseconds since 1970; `None` if it does not exist.
    pub(in crate::engine) fn modified_ms(&self, name: &str) -> Result<Option<u64>> {
        match self.runtime.block_on(self.objects.head(&self.path(name))) {
            Ok(meta) => Ok(Some(meta.last_modified.timestamp_millis().max(0) as u64)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Returns files of a local store that are being written, or were when a process was killed. Listings of objects do
    /// not contain them.
    pub(in crate::engine) fn half_written(&self) -> Result<Vec<Object>> {
        let Some(folder) = &self.folder else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for entry in walkdir::WalkDir::new(folder).sort_by_file_name() {
            // An entry that is gone meanwhile was completed or removed.
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

    /// Removes a file that [`Store::half_written`] found, if it still exists.
    pub(in crate::engine) fn remove_half_written(&self, object: &Object) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        match std::fs::remove_file(folder.join(&object.name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Returns the names of the objects below a folder, relative to it, sorted.
    pub fn list(&self, folder: &str) -> Result<Vec<String>> {
        let relative = |object: Object| object.name[folder.len() + 1..].to_owned();
        Ok(self.objects_in(folder)?.into_iter().map(relative).collect())
    }

    /// Returns the number of bytes below a folder.
    pub fn size(&self, folder: &str) -> Result<u64> {
        Ok(self.objects_in(folder)?.iter().map(|object| object.bytes).sum())
    }

    /// Stores bytes under their digest. An existing object is replaced, which repairs it if it is damaged, and makes it
    /// young, so that a clean-up keeps it.
    pub(in crate::engine) fn put_blob(&self, bytes: impl Into<Bytes>) -> Result<Digest> {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        self.put(&blob_name(digest), bytes)?;
        Ok(digest)
    }

    /// Reads and checks the blob with this digest.
    pub fn blob(&self, digest: Digest) -> Result<Bytes> {
        self.whole(digest, &blob_name(digest), "blob")
    }

    /// Checks the blob with this digest and returns its path, in a store on this machine's disk; `None` in a remote
    /// store. A program that maps the file has in memory only what it reads.
    pub fn blob_file(&self, digest: Digest) -> Result<Option<PathBuf>> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let path = folder.join(blob_name(digest));
        match Digest::of_file(&path) {
            Ok(found) if found == digest => Ok(Some(path)),
            Ok(_) => Err(Error::lost(digest, format!("blob {digest} does not match its digest"))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::lost(digest, format!("blob {digest} is missing")))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Stores a Parquet file under its digest, as [`Store::put_blob`] does.
    pub fn put_part(&self, bytes: Bytes) -> Result<Digest> {
        let (digest, groups) = Groups::of(&bytes);
        // A small remote part needs no groups, because it is fetched and checked whole.
        let has_groups = self.folder.is_some() || bytes.len() as u64 > SMALL;
        self.put(&part_name(digest), bytes)?;
        if let Some(groups) = groups.filter(|_| has_groups) {
            self.put(&groups_name(digest), groups.to_bytes())?;
        }
        Ok(digest)
    }

    /// Reads and checks a part.
    pub fn part(&self, digest: Digest) -> Result<Bytes> {
        self.whole(digest, &part_name(digest), "part")
    }

    /// Opens a part in a store on this machine's disk, so that ranges of it can be read; `None` in a remote store.
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

    /// Returns a part of a remote store, of which ranges can be read.
    pub(in crate::engine) fn remote_part(&self, part: Digest) -> RemotePart {
        RemotePart::new(self.objects.clone(), self.part_path(part))
    }

    fn whole(&self, digest: Digest, name: &str, what: &str) -> Result<Bytes> {
        match self.get(name) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(Error::lost(digest, format!("{what} {digest} is missing"))),
            Err(Error::Lost { .. }) => Err(Error::lost(digest, format!("{what} {digest} does not match its digest"))),
            Err(error) => Err(error),
        }
    }

    /// Removes a part that no record and no manifest names any more.
    pub(in crate::engine) fn delete_part(&self, part: Digest) -> Result<()> {
        self.delete(&part_name(part))?;
        self.delete(&groups_name(part))
    }

    /// Returns the size of a part or blob in bytes; `None` if it does not exist.
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

    /// Returns true if a blob exists.
    pub(in crate::engine) fn has_blob(&self, blob: Digest) -> Result<bool> {
        Ok(self.listed_size(&blob_name(blob))?.is_some())
    }

    /// Removes the part and the blob with this digest, if they are damaged.
    pub(in crate::engine) fn discard(&self, digest: Digest) -> Result<()> {
        for name in [part_name(digest), blob_name(digest)] {
            match self.get(&name) {
                Err(Error::Lost { .. }) => self.delete(&name)?,
                other => _ = other?,
            }
        }
        Ok(())
    }

    /// Records results of a stage.
    pub fn record(&self, stage: Digest, entry: &Entry) -> Result<()> {
        let bytes = entry.to_bytes()?;
        let ending = if entry.replaces.is_empty() { ROWS } else { MERGED };
        let name = format!("computed/{stage}/{}.{ending}", Digest::of(&bytes));
        self.put_if_absent(&name, bytes)?;
        Ok(())
    }

    /// Returns all recorded results of a stage.
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

    /// Reads records, and returns their entries with the digests that name them. The names of damaged records are added
    /// to `damaged`.
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
