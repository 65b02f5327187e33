//! The store: content-addressed parts and blobs, results known by key, and published tables.
//!
//! ```text
//! parts/DIGEST.parquet              an immutable piece of a table
//! blobs/DIGEST                      bytes that a table names: weights, optimiser state
//! computed/STAGE/ENTRY.json         parts that a stage has computed, with the key of each row
//! state/KEY.json                    the last saved state of a stage that is not done
//! published/PIPELINE/TABLE/N.json   version N of a table; the highest is current
//! runs/RUN.jsonl                    the events of a run
//! ```
//!
//! Everything but `state/` is written once, if absent, under a name that its content fixes, so any number of runs may share
//! a store, and a run killed at any moment leaves only whole objects behind.

use std::{collections::HashSet, path::PathBuf, sync::Arc, sync::Mutex};

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
    prefix: Path,
    runtime: Arc<Runtime>,
    verified: Arc<Mutex<HashSet<Digest>>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.url)
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
    pub keys: Vec<Digest>,
    /// The content of each row, in the part's order.
    pub contents: Vec<Digest>,
    /// Rows that failed.
    pub errors: Vec<RowError>,
    /// Blobs that the rows name.
    pub blobs: Vec<Digest>,
}

/// A row that could not be computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowError {
    /// The row's id.
    pub id: String,
    /// What it would have been computed from.
    pub key: Digest,
    /// What went wrong, with its causes.
    pub message: String,
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

/// A published version of a table: what it holds and what it was made from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// The table's name in its pipeline.
    pub table: String,
    /// The swept values that it depends on.
    #[serde(default, skip_serializing_if = "Variant::is_empty")]
    pub variant: Variant,
    /// The stage that made it.
    pub stage: String,
    /// The stage kind's revision.
    pub revision: u32,
    /// Parameters, with defaults.
    pub params: Value,
    /// Files that parameters name, and their digests.
    pub files: Vec<(String, Digest)>,
    /// The stage's identity: kind, revision, parameters, files and output schema.
    pub fingerprint: Digest,
    /// Content of each input as it was read: table (or `source`) and digest.
    pub inputs: Vec<(String, Digest)>,
    /// The `where:` predicate.
    pub filter: Option<String>,
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
        Ok(Self { url, objects, prefix, runtime: Arc::new(runtime), verified: Arc::default() })
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

    /// The names of the objects below a folder, sorted, relative to it.
    pub fn list(&self, folder: &str) -> Result<Vec<String>> {
        let base = self.path(folder);
        let found: Vec<Path> =
            self.runtime.block_on(self.objects.list(Some(&base)).map_ok(|meta| meta.location).try_collect())?;
        let relative = |path: &Path| {
            path.prefix_match(&base).map(|parts| parts.map(|p| p.as_ref().to_owned()).collect::<Vec<_>>().join("/"))
        };
        let mut names: Vec<String> = found.iter().filter_map(relative).collect();
        names.sort();
        Ok(names)
    }

    /// Bytes below a folder.
    pub fn size(&self, folder: &str) -> Result<u64> {
        Ok(self.runtime.block_on(
            self.objects
                .list(Some(&self.path(folder)))
                .map_ok(|meta| meta.size)
                .try_fold(0, async |sum, size| Ok(sum + size)),
        )?)
    }

    /// Keeps bytes under their digest.
    pub fn put_blob(&self, bytes: impl Into<Bytes>) -> Result<Digest> {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        self.put_if_absent(&format!("blobs/{digest}"), bytes)?;
        Ok(digest)
    }

    /// The bytes with this digest, checked.
    pub fn blob(&self, digest: Digest) -> Result<Bytes> {
        let bytes =
            self.get(&format!("blobs/{digest}"))?.ok_or_else(|| Error::Damaged(format!("blob {digest} is missing")))?;
        self.check(digest, &bytes, "blob")?;
        Ok(bytes)
    }

    /// Keeps a Parquet file under its digest.
    pub fn put_part(&self, bytes: Bytes) -> Result<Digest> {
        let digest = Digest::of(&bytes);
        self.put_if_absent(&format!("parts/{digest}.parquet"), bytes)?;
        Ok(digest)
    }

    /// A part's bytes, checked against its digest the first time this process reads it.
    pub fn part(&self, digest: Digest) -> Result<Bytes> {
        let bytes = self
            .get(&format!("parts/{digest}.parquet"))?
            .ok_or_else(|| Error::Damaged(format!("part {digest} is missing")))?;
        self.check(digest, &bytes, "part")?;
        Ok(bytes)
    }

    fn check(&self, digest: Digest, bytes: &Bytes, what: &str) -> Result<()> {
        let mut verified = self.verified.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !verified.contains(&digest) {
            if Digest::of(bytes) != digest {
                return Err(Error::Damaged(format!(
                    "{what} {digest} does not match its digest; delete it and run again"
                )));
            }
            verified.insert(digest);
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

    /// All that a stage has computed, in a fixed order.
    pub fn computed(&self, stage: Digest) -> Result<Vec<Entry>> {
        let folder = format!("computed/{stage}");
        let names: Vec<String> = self.list(&folder)?.into_iter().map(|name| format!("{folder}/{name}")).collect();
        let parse = |(name, bytes): (&String, Option<Bytes>)| {
            bytes.map(|json| serde_json::from_slice(&json).map_err(|e| Error::Damaged(format!("{name}: {e}"))))
        };
        names.iter().zip(self.get_all(&names)?).filter_map(parse).collect()
    }

    /// A version of a published table.
    pub fn version(&self, pipeline: &str, slot: &str, version: u64) -> Result<Option<Manifest>> {
        self.get_json(&format!("published/{pipeline}/{slot}/{version:010}.json"))
    }

    /// The current version of a published table, with its number.
    pub fn published(&self, pipeline: &str, slot: &str) -> Result<Option<(u64, Manifest)>> {
        let folder = format!("published/{pipeline}/{slot}");
        let Some(name) = self.list(&folder)?.pop() else { return Ok(None) };
        let version = name
            .trim_end_matches(".json")
            .parse()
            .map_err(|_| Error::Damaged(format!("{folder}/{name} is no version")))?;
        Ok(self.get_json(&format!("{folder}/{name}"))?.map(|manifest| (version, manifest)))
    }

    /// Publishes a table as the version after the one it replaces, atomically: of two racing runs both versions stand, in turn.
    pub fn publish(&self, pipeline: &str, manifest: &Manifest) -> Result<u64> {
        let json = Bytes::from(serde_json::to_vec_pretty(manifest).map_err(std::io::Error::from)?);
        let slot = manifest.variant.slot(&manifest.table);
        let mut version = self.published(pipeline, &slot)?.map_or(0, |(version, _)| version);
        loop {
            version += 1;
            if self.put_if_absent(&format!("published/{pipeline}/{slot}/{version:010}.json"), json.clone())? {
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
