//! Jobs: work that a driver hands to executors on other machines. A job is a folder of the store, to which the driver writes
//! tasks and from which it reads answers, so that neither needs to reach the other.

use std::{collections::BTreeMap, io::Read, ops::Range, path::Path as FilePath};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, buffered::BufWriter};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::AsyncWriteExt;

use super::{
    objects::{Store, blob_name},
    sealed,
};
use crate::engine::{Digest, Result};

/// The number of bytes of a file that are read at a time.
const CHUNK: usize = 1 << 20;

/// The folder of a job.
#[derive(Clone, Debug)]
pub struct JobFolder {
    store: Store,
    folder: String,
}

impl JobFolder {
    /// Makes the folder of a job.
    pub fn new(store: &Store, job: &str) -> Self {
        Self { store: store.clone(), folder: format!("jobs/{job}") }
    }

    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    /// Writes or replaces an object.
    pub fn put(&self, name: &str, bytes: impl Into<Bytes>) -> Result<()> {
        self.store.put(&self.name(name), bytes)
    }

    /// Reads an object; `None` if it does not exist.
    pub fn get(&self, name: &str) -> Result<Option<Bytes>> {
        self.store.get(&self.name(name))
    }

    /// Reads bytes of an object; `None` if it does not exist.
    pub fn range(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>> {
        let path = self.store.path(&self.name(name));
        match self.store.runtime().block_on(self.store.objects.get_range(&path, range)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes or replaces a JSON object with the digest of its text.
    pub fn seal(&self, name: &str, value: &impl Serialize) -> Result<()> {
        self.put(name, sealed::seal(value)?)
    }

    /// Writes a JSON object with the digest of its text, unless one of that name exists. Returns true if it was written.
    pub fn seal_once(&self, name: &str, value: &impl Serialize) -> Result<bool> {
        self.store.put_if_absent(&self.name(name), sealed::seal(value)?)
    }

    /// Reads and checks a JSON object; `None` if it does not exist.
    pub fn open<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        self.get(name)?.map(|text| sealed::open(&self.name(name), &text)).transpose()
    }

    /// Reads and checks JSON objects concurrently; `None` for each that does not exist.
    pub fn open_all<T: DeserializeOwned>(&self, names: &[String]) -> Result<Vec<Option<T>>> {
        let names: Vec<String> = names.iter().map(|name| self.name(name)).collect();
        let read = self.store.get_all(&names)?.into_iter().zip(&names);
        read.map(|(text, name)| text.map(|text| sealed::open(name, &text)).transpose()).collect()
    }

    /// Lists the objects below a folder of the job whose names come after `after`, by name.
    pub fn list_after(&self, folder: &str, after: &str) -> Result<Vec<String>> {
        let base = self.store.path(&self.name(folder));
        let listing = self.store.objects.list_with_offset(Some(&base), &base.clone().join(after));
        let found: Vec<_> = self.store.runtime().block_on(listing.try_collect())?;
        let mut names: Vec<String> =
            found.iter().filter_map(|meta| meta.location.filename().map(str::to_owned)).collect();
        names.sort();
        Ok(names)
    }

    /// Removes an object, which may be absent.
    pub fn delete(&self, name: &str) -> Result<()> {
        self.store.delete(&self.name(name))
    }

    /// Removes the job.
    pub fn remove(&self) -> Result<()> {
        if let Some(folder) = &self.store.folder {
            return match std::fs::remove_dir_all(folder.join(&self.folder)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            };
        }
        let base = self.store.path(&self.folder);
        let listed = self.store.objects.list(Some(&base)).map_ok(|meta| meta.location);
        let deleted = self.store.objects.delete_stream(Box::pin(listed));
        let ended = self.store.runtime().block_on(deleted.try_for_each(|_| std::future::ready(Ok(()))));
        match ended {
            // Another process, such as a clean-up, may remove the same objects.
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Store {
    /// Returns the names of all jobs, each with the number of its objects, their size in bytes, and the time at which the
    /// youngest was written, in milliseconds since 1970.
    pub(in crate::engine) fn jobs(&self) -> Result<BTreeMap<String, (u64, u64, u64)>> {
        let mut jobs = BTreeMap::new();
        for object in self.objects_in("jobs")? {
            let Some(job) = object.name.split('/').nth(1) else { continue };
            let (count, bytes, youngest) = jobs.entry(job.to_owned()).or_insert((0, 0, 0));
            *count += 1;
            *bytes += object.bytes;
            *youngest = object.modified_ms.max(*youngest);
        }
        Ok(jobs)
    }

    /// Stores a file of this machine as the blob with this digest, unless the store has it. The file is read piece by
    /// piece, because weights may be larger than memory; who reads the blob checks it.
    pub fn put_file(&self, digest: Digest, file: &FilePath) -> Result<()> {
        if self.has_blob(digest)? {
            return Ok(());
        }
        let mut file = std::fs::File::open(file)?;
        let mut writer = BufWriter::new(self.objects.clone(), self.path(&blob_name(digest)));
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = file.read(&mut chunk)?;
            if length == 0 {
                break;
            }
            self.runtime().block_on(writer.write_all(&chunk[..length]))?;
        }
        Ok(self.runtime().block_on(writer.shutdown())?)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Said {
        n: u32,
    }

    #[test]
    fn answer_is_written_once_and_removed_with_its_job() {
        let store = Store::in_memory();
        let (job, other) = (JobFolder::new(&store, "a"), JobFolder::new(&store, "b"));
        assert!(job.seal_once("answers/00000001", &Said { n: 1 }).unwrap());
        assert!(!job.seal_once("answers/00000001", &Said { n: 2 }).unwrap());
        other.seal("answers/00000001", &Said { n: 3 }).unwrap();
        assert_eq!(job.open::<Said>("answers/00000001").unwrap(), Some(Said { n: 1 }));
        job.remove().unwrap();
        assert_eq!(job.open::<Said>("answers/00000001").unwrap(), None);
        assert_eq!(other.open::<Said>("answers/00000001").unwrap(), Some(Said { n: 3 }));
    }

    #[test]
    fn answers_are_listed_from_a_name_on() {
        let store = Store::in_memory();
        let job = JobFolder::new(&store, "a");
        for name in ["answers/3", "answers/1", "answers/2", "said/1"] {
            job.put(name, "x").unwrap();
        }
        assert_eq!(job.list_after("answers", "1").unwrap(), ["2", "3"]);
        assert_eq!(job.list_after("answers", "").unwrap(), ["1", "2", "3"]);
    }

    #[test]
    fn changed_answer_is_an_error() {
        let store = Store::in_memory();
        let job = JobFolder::new(&store, "a");
        job.seal("answers/1", &Said { n: 1 }).unwrap();
        let text = String::from_utf8(job.get("answers/1").unwrap().unwrap().to_vec()).unwrap();
        job.put("answers/1", text.replace("\"n\":1", "\"n\":2")).unwrap();
        let told = job.open::<Said>("answers/1").unwrap_err().to_string();
        assert!(told.contains("jobs/a/answers/1 does not match"), "{told}");
    }

    #[test]
    fn file_becomes_a_blob_once() {
        let store = Store::in_memory();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "weights").unwrap();
        let digest = Digest::of(b"weights");
        store.put_file(digest, file.path()).unwrap();
        assert_eq!(store.blob(digest).unwrap(), "weights");
        std::fs::remove_file(file.path()).unwrap();
        store.put_file(digest, file.path()).unwrap();
    }
}
