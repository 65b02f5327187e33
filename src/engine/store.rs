//! The store: content-addressed parts and blobs, results known by key, and published tables.
//!
//! ```text
//! parts/DIGEST.parquet              an immutable piece of a table
//! blobs/DIGEST                      bytes that a table names: weights, optimiser state
//! computed/STAGE/ENTRY.json         parts that a stage has computed, with the key of each row
//! state/KEY.json                    the last saved state of a stage that is not done
//! published/PIPELINE/TABLE/N.json   version N of a table; the highest is current
//! runs/RUN.jsonl                    the events of a run
//! tags/TAG.json                     a name for a run
//! locks/KEY                         held by the process that works on a stage's results; local stores only
//! ```
//!
//! Parts, blobs and records have names that their content fixes, and versions are written if absent, so any number of runs
//! may share a store, and a run killed at any moment leaves only whole objects behind.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, local::LocalFileSystem, path::Path};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::{Digest, Error, Result, sweep::Variant};

/// Objects read at the same time.
const READS: usize = 32;

/// A place for parts, blobs and tables: a folder, or any URL that `object_store` knows.
#[derive(Clone)]
pub struct Store {
    /// The address that opens this store again, in another process.
    pub url: String,
    /// The objects, relative to [`Store::prefix`].
    pub objects: Arc<dyn ObjectStore>,
    /// The folder, of a store on this machine's disk.
    pub(super) folder: Option<PathBuf>,
    prefix: Path,
    runtime: Arc<Runtime>,
    verified: Arc<Mutex<HashSet<Digest>>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

/// An object of a store.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// When it was written, in milliseconds since 1970.
    pub modified_ms: u64,
}

impl Object {
    /// The digest that its file name is.
    pub fn digest(&self) -> Option<Digest> {
        self.name.rsplit('/').next()?.split('.').next()?.parse().ok()
    }
}

/// One immutable piece of a table, as it was computed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The Parquet object; `None` where every row failed.
    pub part: Option<Digest>,
    /// Bytes of the part.
    pub bytes: u64,
    /// What each row was computed from, in the part's order; empty for a stage that makes a whole table.
    #[serde(with = "packed")]
    pub keys: Vec<Digest>,
    /// The content of each row, in the part's order.
    #[serde(with = "packed")]
    pub contents: Vec<Digest>,
    /// Rows that failed.
    pub errors: Vec<RowError>,
    /// Blobs that the rows name.
    pub blobs: Vec<Digest>,
    /// When, in milliseconds since 1970: of two results for one key the later counts.
    pub recorded_ms: u64,
}

/// Digests one after another in one text: many are read at once, and often.
mod packed {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Digest;

    pub(super) fn serialize<S: Serializer>(digests: &[Digest], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&digests.iter().map(ToString::to_string).collect::<String>())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Digest>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
        let bytes = text.as_bytes().chunks(2).map(|pair| match *pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        });
        let bytes: Vec<u8> = bytes.collect::<Option<_>>().ok_or_else(|| D::Error::custom("not hexadecimal"))?;
        bytes
            .chunks(Digest::LEN)
            .map(Digest::from_slice)
            .collect::<Option<_>>()
            .ok_or_else(|| D::Error::custom("a digest is cut short"))
    }
}

/// A row that could not be computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowError {
    /// The row's id.
    pub id: String,
    /// What it would have been computed from.
    pub key: Digest,
    /// What went wrong.
    pub message: String,
    /// The causes behind it, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<String>,
    /// The run in which it did.
    #[serde(default)]
    pub run: String,
}

/// A part of a published table: all of its rows, or runs of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartRef {
    /// The Parquet object.
    pub part: Digest,
    /// Bytes of the part.
    pub bytes: u64,
    /// Rows in the part.
    pub rows: u64,
    /// The chosen rows as runs `(first, count)`; `None` means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Vec<(u64, u64)>>,
}

impl PartRef {
    /// Rows of the table in this part.
    pub fn len(&self) -> u64 {
        self.chosen.as_ref().map_or(self.rows, |runs| runs.iter().map(|(_, count)| count).sum())
    }

    /// Whether no row is chosen.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The chosen row numbers, ascending.
    pub fn row_numbers(&self) -> Vec<u64> {
        match &self.chosen {
            None => (0..self.rows).collect(),
            Some(runs) => runs.iter().flat_map(|(first, count)| *first..first + count).collect(),
        }
    }
}

/// What a table is made from; equal origins make equal tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// The stage that makes it.
    pub stage: String,
    /// The stage kind's revision.
    pub revision: u32,
    /// Parameters, with defaults.
    pub params: Value,
    /// Files that parameters name, and their digests.
    pub files: Vec<(String, Digest)>,
    /// The stage's identity: kind, revision, parameters, content of the files, output schema.
    pub fingerprint: Digest,
    /// Content of each input as it was read: table (or `source`) and digest.
    pub inputs: Vec<(String, Digest)>,
    /// The `where:` predicate.
    pub filter: Option<String>,
}

/// A published version of a table: what it holds and what it was made from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// The table's name in its pipeline.
    pub table: String,
    /// The swept values that it depends on.
    #[serde(default, skip_serializing_if = "Variant::is_empty")]
    pub variant: Variant,
    /// What it was made from.
    #[serde(flatten)]
    pub made: Made,
    /// The stored Arrow schema, as Parquet carries it.
    pub schema: String,
    /// The first column identifies a row.
    pub keyed: bool,
    /// The rows.
    pub parts: Vec<PartRef>,
    /// Number of rows.
    pub rows: u64,
    /// The content of all rows, in no order.
    pub content: Digest,
    /// Rows that failed and were left out.
    pub errors: Vec<RowError>,
    /// Blobs that the rows name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<Digest>,
    /// The pipeline no longer declares it, so SQL does not see it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retired: bool,
    /// The run that published it.
    pub run: String,
    /// When, in milliseconds since 1970.
    pub published_ms: u64,
}

impl Manifest {
    /// The stored schema.
    pub fn schema(&self) -> Result<arrow::datatypes::SchemaRef> {
        decode_schema(&self.schema)
    }
}

/// The name of the saved state of a stage that is not done.
pub fn state_name(stage: Digest) -> String {
    format!("state/{stage}.bin")
}

/// The name of a version of a published table.
pub fn version_name(pipeline: &str, slot: &str, version: u64) -> String {
    format!("published/{pipeline}/{slot}/{version:010}.json")
}

/// An Arrow schema as the text that Parquet footers carry.
pub fn encode_schema(schema: &arrow::datatypes::Schema) -> String {
    parquet::arrow::encode_arrow_schema(schema)
}

/// The schema in [`encode_schema`]'s text.
pub fn decode_schema(text: &str) -> Result<arrow::datatypes::SchemaRef> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|e| Error::Damaged(format!("a schema is not base64: {e}")))?;
    // The first eight bytes are the IPC continuation marker and the length.
    let body = bytes.get(8..).ok_or_else(|| Error::Damaged("a schema is cut short".into()))?;
    let message =
        arrow::ipc::root_as_message(body).map_err(|e| Error::Damaged(format!("a schema is not Arrow IPC: {e}")))?;
    let schema = message.header_as_schema().ok_or_else(|| Error::Damaged("a schema holds another message".into()))?;
    Ok(Arc::new(arrow::ipc::convert::fb_to_schema(schema)))
}

impl Store {
    /// Opens a store at a folder, which is made if absent, or at a URL.
    pub fn open(address: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(std::thread::available_parallelism().map_or(2, usize::from))
            .enable_all()
            .build()?;
        let (objects, prefix, url): (Arc<dyn ObjectStore>, Path, String) = match url::Url::parse(address) {
            Ok(url) if url.scheme().len() > 1 && url.scheme() != "file" => {
                let (objects, prefix) = super::remote::open(&url)?;
                (objects, prefix, address.to_owned())
            }
            parsed => {
                let folder =
                    parsed.ok().and_then(|url| url.to_file_path().ok()).unwrap_or_else(|| PathBuf::from(address));
                let named =
                    |e| Error::Input(format!("store {}: {e}; name a folder that can be written", folder.display()));
                std::fs::create_dir_all(&folder).map_err(named)?;
                let folder = folder.canonicalize().map_err(named)?;
                let objects = LocalFileSystem::new_with_prefix(&folder)?;
                (Arc::new(objects), Path::default(), folder.to_string_lossy().into_owned())
            }
        };
        let folder = (!url.contains("://")).then(|| PathBuf::from(&url));
        Ok(Self { url, objects, folder, prefix, runtime: Arc::new(runtime), verified: Arc::default() })
    }

    /// The runtime that serves this store's requests.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Where a part lies.
    pub fn part_path(&self, part: Digest) -> Path {
        self.path(&format!("parts/{part}.parquet"))
    }

    /// Writes an object unless one of that name is there; says whether it was written.
    pub fn put_if_absent(&self, name: &str, bytes: impl Into<Bytes>) -> Result<bool> {
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
        self.runtime.block_on(self.objects.put(&self.path(name), PutPayload::from_bytes(bytes.into())))?;
        Ok(())
    }

    /// An object's bytes, or `None` where there is none.
    pub fn get(&self, name: &str) -> Result<Option<Bytes>> {
        self.runtime.block_on(async {
            match self.objects.get(&self.path(name)).await {
                Ok(found) => Ok(Some(found.bytes().await?)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(e) => Err(e.into()),
            }
        })
    }

    /// The bytes of several objects, read side by side; `None` where there is none.
    pub fn get_all(&self, names: &[String]) -> Result<Vec<Option<Bytes>>> {
        let get = |name: &String| {
            let (objects, path) = (self.objects.clone(), self.path(name));
            async move {
                match objects.get(&path).await {
                    Ok(found) => Ok(Some(found.bytes().await?)),
                    Err(object_store::Error::NotFound { .. }) => Ok(None),
                    Err(e) => Err(e.into()),
                }
            }
        };
        let reads = futures::stream::iter(names.iter().map(get)).buffered(READS);
        self.runtime.block_on(reads.try_collect())
    }

    /// Removes an object, if it is there.
    pub fn delete(&self, name: &str) -> Result<()> {
        match self.runtime.block_on(self.objects.delete(&self.path(name))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// An object read as JSON.
    pub fn get_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let parse = |bytes: Bytes| serde_json::from_slice(&bytes).map_err(|e| Error::Damaged(format!("{name}: {e}")));
        self.get(name)?.map(parse).transpose()
    }

    /// The objects below a folder, sorted by name.
    pub fn objects_in(&self, folder: &str) -> Result<Vec<Object>> {
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
    pub fn modified_ms(&self, name: &str) -> Result<Option<u64>> {
        match self.runtime.block_on(self.objects.head(&self.path(name))) {
            Ok(meta) => Ok(Some(meta.last_modified.timestamp_millis().max(0) as u64)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
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
    pub fn put_blob(&self, bytes: impl Into<Bytes>) -> Result<Digest> {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        self.put(&format!("blobs/{digest}"), bytes)?;
        Ok(digest)
    }

    /// The bytes with this digest, checked.
    pub fn blob(&self, digest: Digest) -> Result<Bytes> {
        self.checked(digest, &format!("blobs/{digest}"), "blob")
    }

    /// Keeps a Parquet file under its digest, as [`Store::put_blob`] does.
    pub fn put_part(&self, bytes: Bytes) -> Result<Digest> {
        let digest = Digest::of(&bytes);
        self.put(&format!("parts/{digest}.parquet"), bytes)?;
        Ok(digest)
    }

    /// A part's bytes, checked against its digest the first time this process reads it.
    pub fn part(&self, digest: Digest) -> Result<Bytes> {
        self.checked(digest, &format!("parts/{digest}.parquet"), "part")
    }

    /// The file of a part, in a store on this machine's disk.
    pub fn part_file(&self, part: Digest) -> Result<Option<std::fs::File>> {
        let Some(folder) = &self.folder else { return Ok(None) };
        match std::fs::File::open(folder.join(format!("parts/{part}.parquet"))) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::lost(part, format!("part {part} is missing")))
            }
            Err(e) => Err(e.into()),
        }
    }

    fn checked(&self, digest: Digest, name: &str, what: &str) -> Result<Bytes> {
        let bytes = self.get(name)?.ok_or_else(|| Error::lost(digest, format!("{what} {digest} is missing")))?;
        let mut verified = self.verified.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !verified.contains(&digest) {
            if Digest::of(&bytes) != digest {
                return Err(Error::lost(digest, format!("{what} {digest} does not match its digest")));
            }
            verified.insert(digest);
        }
        Ok(bytes)
    }

    /// Removes a part or a blob, if it is damaged.
    pub fn discard(&self, digest: Digest) -> Result<()> {
        for name in [format!("parts/{digest}.parquet"), format!("blobs/{digest}")] {
            if self.get(&name)?.is_some_and(|bytes| Digest::of(&bytes) != digest) {
                self.delete(&name)?;
            }
        }
        Ok(())
    }

    /// Records what a stage has computed.
    pub fn record(&self, stage: Digest, entry: &Entry) -> Result<()> {
        let json = serde_json::to_vec(entry).map_err(std::io::Error::from)?;
        let name = format!("computed/{stage}/{}.json", Digest::of(&json));
        self.put_if_absent(&name, json)?;
        Ok(())
    }

    /// All that a stage has computed, oldest first. A record that a failing disk cut short counts as never written.
    pub fn computed(&self, stage: Digest) -> Result<Vec<Entry>> {
        let folder = format!("computed/{stage}");
        let names: Vec<String> = self.list(&folder)?.iter().map(|name| format!("{folder}/{name}")).collect();
        let read = |bytes: Option<Bytes>| serde_json::from_slice::<Entry>(&bytes?).ok();
        let mut entries: Vec<Entry> = self.get_all(&names)?.into_iter().filter_map(read).collect();
        entries.sort_by_key(|entry| entry.recorded_ms);
        Ok(entries)
    }

    /// A version of a published table.
    pub fn version(&self, pipeline: &str, slot: &str, version: u64) -> Result<Option<Manifest>> {
        self.get_json(&version_name(pipeline, slot, version))
    }

    /// The versions of a pipeline's published tables, ascending, by slot.
    pub fn versions(&self, pipeline: &str) -> Result<BTreeMap<String, Vec<u64>>> {
        let mut versions: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for name in self.list(&format!("published/{pipeline}"))? {
            let parsed =
                name.rsplit_once('/').and_then(|(slot, file)| Some((slot, file.strip_suffix(".json")?.parse().ok()?)));
            if let Some((slot, version)) = parsed {
                versions.entry(slot.to_owned()).or_default().push(version);
            }
        }
        Ok(versions)
    }

    /// The pipelines that have published something.
    pub fn pipelines(&self) -> Result<Vec<String>> {
        let listed = self.runtime.block_on(self.objects.list_with_delimiter(Some(&self.path("published"))))?;
        let name = |path: &Path| path.filename().map(str::to_owned);
        Ok(listed.common_prefixes.iter().filter_map(name).collect())
    }

    /// Versions of a table, read side by side; those that cannot be read are left out.
    pub fn manifests(&self, pipeline: &str, slot: &str, versions: &[u64]) -> Result<Vec<Manifest>> {
        let names: Vec<String> = versions.iter().map(|version| version_name(pipeline, slot, *version)).collect();
        let read = |bytes: Option<Bytes>| serde_json::from_slice(&bytes?).ok();
        Ok(self.get_all(&names)?.into_iter().filter_map(read).collect())
    }

    /// The current versions of several tables, read side by side.
    pub fn current(&self, pipeline: &str, slots: &[String]) -> Result<Vec<Option<(u64, Manifest)>>> {
        let versions = self.versions(pipeline)?;
        let last: Vec<Option<u64>> = slots.iter().map(|slot| versions.get(slot)?.last().copied()).collect();
        let name = |(slot, version): (&String, &Option<u64>)| {
            version.map_or_else(String::new, |version| version_name(pipeline, slot, version))
        };
        let names: Vec<String> = slots.iter().zip(&last).map(name).collect();
        let wanted: Vec<String> = names.iter().filter(|name| !name.is_empty()).cloned().collect();
        let mut bytes = wanted.iter().zip(self.get_all(&wanted)?).collect::<HashMap<_, _>>();
        let read = |((slot, version), name): ((&String, Option<u64>), &String)| {
            let Some(version) = version else { return Ok(None) };
            match bytes.remove(name).flatten().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
                Some(manifest) => Ok(Some((version, manifest))),
                // It cannot be read: there may be one before it that can.
                None => self.published(pipeline, slot),
            }
        };
        slots.iter().zip(last).zip(&names).map(read).collect()
    }

    /// The current version of a published table, with its number: the last one that can be read.
    pub fn published(&self, pipeline: &str, slot: &str) -> Result<Option<(u64, Manifest)>> {
        let folder = format!("published/{pipeline}/{slot}");
        for name in self.list(&folder)?.iter().rev() {
            let Ok(version) = name.trim_end_matches(".json").parse() else { continue };
            match self.version(pipeline, slot, version) {
                Ok(Some(manifest)) => return Ok(Some((version, manifest))),
                // A manifest that a failing disk cut short: the version before it is still whole.
                Ok(None) | Err(Error::Damaged(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Publishes a table as a new version, atomically: of two racing runs both versions stand, in turn. Returns its number.
    pub fn publish(&self, pipeline: &str, manifest: &Manifest) -> Result<u64> {
        let json = Bytes::from(serde_json::to_vec(manifest).map_err(std::io::Error::from)?);
        let folder = format!("published/{pipeline}/{}", manifest.variant.slot(&manifest.table));
        let last = self.list(&folder)?.iter().rev().find_map(|name| name.trim_end_matches(".json").parse::<u64>().ok());
        let mut version = last.unwrap_or(0);
        loop {
            version += 1;
            if self.put_if_absent(&format!("{folder}/{version:010}.json"), json.clone())? {
                return Ok(version);
            }
        }
    }

    /// The published tables of every pipeline: pipeline, table.
    pub fn tables(&self) -> Result<Vec<(String, String)>> {
        let split = |name: String| name.rsplit_once('/')?.0.split_once('/').map(|(p, t)| (p.to_owned(), t.to_owned()));
        let mut tables: Vec<_> = self.list("published")?.into_iter().filter_map(split).collect();
        tables.dedup();
        Ok(tables)
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

    #[test]
    fn a_schema_survives_its_text() {
        use arrow::datatypes::{DataType, Field, Schema};
        let schema = Schema::new(vec![
            Field::new("id", DataType::Utf8, false),
            crate::engine::tensor_field("x", DataType::Float16, &[2, 3], true),
        ]);
        assert_eq!(*decode_schema(&encode_schema(&schema)).unwrap(), schema);
        assert!(decode_schema("AAAA").is_err());
    }
}
