//! Files and URLs outside the store: datasets, weights. They are identified by their content.
//!
//! An address is a path or a URL that `object_store` supports (`s3://`, `gs://`, `az://`, `http(s)://`), also of a member of an
//! archive. A content is hashed once and recognized later by what the file system or the server reports about the file; see
//! [`tree`] for what that trusts.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use rayon::prelude::*;

use super::{
    archive::{self, Archives, Member, Place},
    cache_folder::cache_folder,
    files::{cannot_read, hash_file, is_file, retry},
    memory::Memory,
    remote::Remote,
    tree::{self, Found, Stamp, Tree},
};
use crate::engine::{
    Digest, Error, Result,
    address::{absolute, is_url, local_path, url_of},
};

/// Nanoseconds that must lie between the last change of a file and its reading. Within less, a second change might
/// get the same time, because clocks have limited resolution.
const SETTLED: i64 = 2_000_000_000;

/// Access to files and URLs outside the store. Cheap to make and to clone, because connections are opened when a URL
/// is first used.
#[derive(Clone, Debug)]
pub struct Sources {
    /// True if every file is hashed, including those that seem unchanged.
    pub verify: bool,
    pub(super) cache: PathBuf,
    pub(super) now: fn() -> i64,
    pub(super) remote: Arc<Remote>,
    pub(super) archives: Arc<Archives>,
}

impl Default for Sources {
    fn default() -> Self {
        Self::new(false)
    }
}

impl Sources {
    /// Makes access that trusts what the file system reports, or with `verify` hashes every file.
    pub fn new(verify: bool) -> Self {
        Self { verify, cache: cache_folder(), now, remote: Arc::default(), archives: Arc::default() }
    }

    /// Lists every file below a folder or URL, or in an archive.
    pub fn tree(&self, root: &str) -> Result<Tree> {
        let path = local_path(root);
        let is_file = is_url(root) || path.is_file();
        if let Some(advice) = archive::advice(root).filter(|_| is_file) {
            return Err(cannot_read(root, advice));
        }
        if is_file && archive::is_archive(root) {
            return Ok(Tree::new(root, self.members(root, "")?, Vec::new()));
        }
        if let Some(url) = url_of(root)? {
            let (found, hidden) = self.remote.list(&url)?;
            return Ok(Tree::new(root, found, hidden));
        }
        Ok(Tree::local(root, retry(|| tree::walk(&path)).map_err(|e| cannot_read(root, e))?))
    }

    /// Does as [`tree`](Self::tree), and lists archives below a folder or URL as if each were unpacked where it lies. A file
    /// that is there is taken before one in an archive.
    pub fn unpacked_tree(&self, root: &str) -> Result<Tree> {
        let tree = self.tree(root)?;
        if archive::is_archive(root) && (is_url(root) || local_path(root).is_file()) {
            return Ok(tree);
        }
        let archives: Vec<&str> = tree.paths().filter(|path| archive::is_archive(path)).collect();
        let members = archives.iter().map(|path| self.members(root, path)).collect::<Result<Vec<_>>>()?;
        Ok(tree.with_members(members.into_iter().flatten()))
    }

    /// Returns the digest of a local file or of a member of an archive.
    fn hash(&self, path: &Path) -> io::Result<Digest> {
        match archive::split(path) {
            Some((archive, name)) => self.member_digest(&Member::new(Place::File(archive.to_owned()), name)),
            None => hash_file(path),
        }
    }

    /// Returns the digests of files of a tree, by their paths in it. A file that cannot be read gets a digest that
    /// stands for the reason and equals that of no content. The error is reported where the file is read, and the
    /// digest changes as soon as the file is readable.
    pub fn digests(&self, tree: &Tree, paths: &[&str]) -> Result<Vec<Digest>> {
        let wanted: Vec<&Found> = paths
            .par_iter()
            .map(|path| tree.find(path).ok_or_else(|| Error::Input(format!("no `{path}` in {}", tree.root))))
            .collect::<Result<_>>()?;
        let hash = |missing: &[&Found]| match url_of(&tree.root)? {
            Some(_) => {
                let addresses = missing.iter().map(|found| tree.address(&found.path)).collect::<Result<Vec<_>>>()?;
                self.url_digests(&addresses)
            }
            None => {
                let folder = local_path(&tree.root);
                let hash = |found: &&Found| self.hash(&folder.join(found.stored())).map_err(|error| error.to_string());
                Ok(missing.par_iter().map(hash).collect())
            }
        };
        let digests = self.known_or(&tree.root, tree.stamps(), &wanted, hash)?.into_iter();
        Ok(digests.map(|digest| digest.unwrap_or_else(|reason| Digest::unreadable(&reason))).collect())
    }

    /// Returns the digest of the content of a file or URL.
    pub fn digest(&self, address: &str) -> Result<Digest> {
        if let Some(member) = self.member(address)? {
            return self.member_digest(&member).map_err(|e| cannot_read(address, e));
        }
        let url = url_of(address)?;
        let stamp = match &url {
            Some(url) => self.remote.stamp(url)?,
            None => tree::stamp("", &local_path(address)),
        };
        let found = Found { path: "".into(), stamp, stored: None };
        let local = || hash_file(&local_path(address)).map_err(|e| cannot_read(address, e));
        let hash = || url.as_ref().map_or_else(local, |url| self.download(url));
        let digests = self.known_or(address, found.stamp.iter(), &[&found], |_| Ok(vec![Ok(hash()?)]))?;
        let digest = digests.into_iter().next().unwrap_or_else(|| Err("it has no content".into()));
        digest.map_err(|reason: String| cannot_read(address, reason))
    }

    /// Reads the content of a file or URL.
    pub fn read(&self, address: &str) -> Result<Bytes> {
        if let Some(member) = self.member(address)? {
            return self.content(&member).map(Bytes::from).map_err(|e| cannot_read(address, e));
        }
        match url_of(address)? {
            Some(url) => self.remote.read(&url),
            None => {
                let path = local_path(address);
                let read = || is_file(&path).and_then(|()| std::fs::read(&path));
                retry(read).map(Bytes::from).map_err(|e| cannot_read(address, e))
            }
        }
    }

    /// Reads the contents of several files or URLs concurrently.
    pub fn read_all(&self, addresses: &[String]) -> Vec<Result<Bytes>> {
        match addresses.first().is_some_and(|first| is_url(first)) {
            true => self.read_urls(addresses),
            false => addresses.par_iter().map(|address| self.read(address)).collect(),
        }
    }

    /// Returns the path of the file that remembers the digests below a root.
    fn memory(&self, root: &str) -> PathBuf {
        self.cache.join("digests").join(Digest::of(absolute(root).as_bytes()).to_string())
    }

    /// Returns the digests that are remembered for `root`, and computes those of the other files by `hash`, which are
    /// then remembered too. Reasons why a file cannot be read are not remembered.
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
        // If the cache cannot be written, the files are hashed again next time.
        known.replace(&file, stamps, settled).unwrap_or(());
        let mut hashed = hashed.into_iter();
        Ok(recalled.into_iter().filter_map(|digest| digest.map(Ok).or_else(|| hashed.next())).collect())
    }
}

/// The digest of a file's content, or the reason why it cannot be read.
pub(super) type Readable = Result<Digest, String>;

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

#[cfg(test)]
mod tests;
