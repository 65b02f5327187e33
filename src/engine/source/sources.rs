//! Files and URLs outside the store: datasets, weights. What they hold is identified by content.
//!
//! An address is a path, or a URL that `object_store` knows (`s3://`, `gs://`, `az://`, `http(s)://`). Contents are hashed once and
//! known again by what the file system or the server says of the file; see [`tree`] for what that trusts.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use backon::{BlockingRetryable, ExponentialBuilder};
use bytes::Bytes;
use rayon::prelude::*;

use super::{
    cache_folder::cache_folder,
    memory::Memory,
    remote::Remote,
    tree::{self, At, Found, Stamp, Tree},
};
use crate::engine::{
    Digest, Error, Result,
    address::{local_path, url_of},
};

/// A file whose change lies less than this before its reading may change again unseen, within the resolution of a clock.
const SETTLED: i64 = 2_000_000_000;

/// Access to files and URLs outside the store. Cheap to make and to clone: connections are made when a URL is first used.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Hash every file, also those that seem unchanged.
    pub verify: bool,
    pub(super) cache: PathBuf,
    pub(super) now: fn() -> i64,
    pub(super) remote: Arc<Remote>,
}

impl Default for Sources {
    fn default() -> Self {
        Self::new(false)
    }
}

impl Sources {
    /// Access that trusts what the file system says, or hashes every file.
    pub fn new(verify: bool) -> Self {
        Self { verify, cache: cache_folder(), now, remote: Arc::default() }
    }

    /// Every file below a folder or URL.
    pub fn tree(&self, root: &str) -> Result<Tree> {
        Ok(match url_of(root)? {
            Some(url) => {
                let (found, hidden) = self.remote.list(&url)?;
                Tree::new(root, found, hidden)
            }
            None => Tree::local(root, retry(|| tree::walk(&local_path(root))).map_err(|e| cannot_read(root, e))?),
        })
    }

    /// The digests of files of a tree, by their paths in it. A file that cannot be read gets a digest that stands for the reason,
    /// which no content has: it fails where it is read, and is another one as soon as it can be read.
    pub fn digests(&self, tree: &Tree, paths: &[&str]) -> Result<Vec<Digest>> {
        let wanted: Vec<&Found> = paths
            .par_iter()
            .map(|path| tree.find(path).ok_or_else(|| Error::Input(format!("no `{path}` in {}", tree.root))))
            .collect::<Result<_>>()?;
        let hash = |missing: &[&Found]| match url_of(&tree.root)? {
            Some(_) => {
                let addresses = missing.iter().map(|found| tree.address(&found.path)).collect::<Result<Vec<_>>>()?;
                self.remote.digests(&addresses)
            }
            None => {
                let folder = local_path(&tree.root);
                let hash = |found: &&Found| hash_file(&folder.join(&*found.path)).map_err(|error| error.to_string());
                Ok(missing.par_iter().map(hash).collect())
            }
        };
        let digests = self.known_or(&tree.root, tree.stamps(), &wanted, hash)?.into_iter();
        Ok(digests.map(|digest| digest.unwrap_or_else(|reason| Digest::unreadable(&reason))).collect())
    }

    /// The digest of the content of a file or URL.
    pub fn digest(&self, address: &str) -> Result<Digest> {
        let url = url_of(address)?;
        let stamp = match &url {
            Some(url) => self.remote.stamp(url)?,
            None => tree::stamp("", &local_path(address)),
        };
        let found = Found { path: "".into(), stamp };
        let local = || hash_file(&local_path(address)).map_err(|e| cannot_read(address, e));
        let hash = || url.as_ref().map_or_else(local, |url| self.download(url));
        let digests = self.known_or(address, found.stamp.iter(), &[&found], |_| Ok(vec![Ok(hash()?)]))?;
        let digest = digests.into_iter().next().unwrap_or_else(|| Err("it has no content".into()));
        digest.map_err(|reason: String| cannot_read(address, reason))
    }

    /// The content of a file or URL.
    pub fn read(&self, address: &str) -> Result<Bytes> {
        match url_of(address)? {
            Some(url) => self.remote.read(&url),
            None => {
                let read = |path: PathBuf| is_file(&path).and_then(|()| std::fs::read(path));
                retry(|| read(local_path(address))).map(Bytes::from).map_err(|e| cannot_read(address, e))
            }
        }
    }

    /// The contents of several files or URLs, read side by side.
    pub fn read_all(&self, addresses: &[String]) -> Vec<Result<Bytes>> {
        match addresses.first().map(|first| url_of(first)) {
            Some(Ok(Some(_))) => self.remote.read_all(addresses),
            _ => addresses.par_iter().map(|address| self.read(address)).collect(),
        }
    }

    /// Where the digests of a root's files are remembered.
    fn memory(&self, root: &str) -> PathBuf {
        self.cache.join("digests").join(Digest::of(absolute(root).as_bytes()).to_string())
    }

    /// Digests that are remembered for `root`, and of the other files by `hash`, which are then remembered too. Why a file cannot be
    /// read is not.
    fn known_or<'a>(
        &self,
        root: &str,
        stamps: impl Iterator<Item = &'a Stamp>,
        wanted: &[&Found],
        hash: impl FnOnce(&[&Found]) -> Result<Vec<Readable>>,
    ) -> Result<Vec<Readable>> {
        let file = self.memory(root);
        let known = Memory::load(&file);
        let recall = |found: &&Found| found.stamp.as_ref().and_then(|stamp| known.get(stamp)).filter(|_| !self.verify);
        let recalled: Vec<Option<Digest>> = wanted.par_iter().map(recall).collect();
        let missing: Vec<&Found> =
            wanted.iter().zip(&recalled).filter(|(_, digest)| digest.is_none()).map(|(found, _)| *found).collect();
        if missing.is_empty() {
            return Ok(recalled.into_iter().flatten().map(Ok).collect());
        }
        let began = (self.now)();
        let hashed = hash(&missing)?;
        let fresh = missing.iter().zip(&hashed);
        let fresh = fresh.filter_map(|(found, digest)| Some((found.stamp.as_ref()?, *digest.as_ref().ok()?)));
        let settled = fresh.filter(|(stamp, _)| stamp.changed <= began - SETTLED);
        // Nothing is lost but time where the cache cannot be written.
        known.replace(&file, stamps, settled).unwrap_or(());
        let mut hashed = hashed.into_iter();
        Ok(recalled.into_iter().filter_map(|digest| digest.map(Ok).or_else(|| hashed.next())).collect())
    }
}

/// The digest of a file's content, or why it cannot be read.
type Readable = Result<Digest, String>;

/// The address as it is named from everywhere.
pub(in crate::engine) fn absolute(address: &str) -> String {
    match url_of(address) {
        Ok(Some(url)) => url.into(),
        _ => local_path(address).canonicalize().map_or_else(|_| address.into(), |p| p.to_string_lossy().into_owned()),
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

pub(in crate::engine) fn cannot_read(address: &str, error: impl std::fmt::Display) -> Error {
    Error::Input(format!("cannot read {address}: {error}"))
}

fn hash_file(path: &Path) -> io::Result<Digest> {
    retry(|| is_file(path).and_then(|()| Digest::of_file(path)))
}

/// Refuses what is no file: a pipe would wait for somebody to write, and gives its content only once; a device may have no end.
pub(in crate::engine) fn is_file(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path)?.is_file() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file, but a folder, pipe, socket or device"))
}

/// Tries again after errors that pass by themselves, as network file systems have them.
fn retry<T>(read: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let waits = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_factor(4.)
        .with_max_times(3)
        .with_jitter();
    read.retry(waits).when(passes).call()
}

/// The operating systems' number of an input or output error, which has no kind.
const EIO: i32 = 5;

fn passes(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, StaleNetworkFileHandle, TimedOut, WouldBlock};
    let error = error.get_ref().and_then(|inner| inner.downcast_ref::<At>()).map_or(error, |at| &at.error);
    matches!(error.kind(), Interrupted | StaleNetworkFileHandle | TimedOut | WouldBlock)
        || error.raw_os_error() == Some(EIO)
}

#[cfg(test)]
mod tests;
