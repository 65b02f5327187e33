//! Sources on servers, read concurrently.

use std::{
    collections::HashMap,
    fmt,
    io::{self, Write},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStore, ObjectStoreExt, ObjectStoreScheme, path::Path};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::runtime::{Builder, Runtime};
use url::Url;

use super::{
    files::cannot_read,
    tree::{Found, Stamp, cannot_list, remote_stamp},
    window::Object,
};
use crate::engine::{Digest, Error, Hasher, Result, address::url_of, connect::connect};

/// The number of objects that are read at the same time.
const READS: usize = 32;

/// Returns the last part of a URL's path.
pub(in crate::engine) fn name_of(url: &Url) -> String {
    let path = Path::from_url_path(url.path()).unwrap_or_default();
    path.filename().unwrap_or("content").to_owned()
}

/// Connections, opened when they are first needed.
#[derive(Default)]
pub(in crate::engine) struct Remote {
    runtime: OnceLock<Runtime>,
    /// Threads that wait for answers, of which there are more than the machine has cores.
    threads: OnceLock<ThreadPool>,
    servers: Mutex<HashMap<Url, Arc<dyn ObjectStore>>>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remote")
    }
}

impl Remote {
    pub(in crate::engine) fn runtime(&self) -> Result<&Runtime> {
        if let Some(runtime) = self.runtime.get() {
            return Ok(runtime);
        }
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        Ok(self.runtime.get_or_init(|| runtime))
    }

    /// Does work on the threads that wait for answers.
    pub(in crate::engine) fn at_once<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        if let Some(threads) = self.threads.get() {
            return Ok(threads.install(work));
        }
        let threads = ThreadPoolBuilder::new().num_threads(READS).build().map_err(io::Error::other)?;
        Ok(self.threads.get_or_init(|| threads).install(work))
    }

    /// Returns the connection to the server of a URL, and the path of the URL on it.
    pub(in crate::engine) fn open(&self, url: &Url) -> Result<(Arc<dyn ObjectStore>, Path)> {
        let (_, path) = ObjectStoreScheme::parse(url).map_err(|e| cannot_read(url.as_str(), e))?;
        // In some URLs the path begins with the bucket. Each bucket is a connection of its own.
        let segments: Vec<&str> = url.path().split('/').filter(|segment| !segment.is_empty()).collect();
        let bucket = segments.len().saturating_sub(path.parts().count());
        let mut server = url.clone();
        server.set_path(&segments[..bucket].join("/"));
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(objects) = servers.get(&server) {
            return Ok((objects.clone(), path));
        }
        let (objects, _) = connect(&server)?;
        servers.insert(server, objects.clone());
        Ok((objects, path))
    }

    /// Lists the objects below a URL, and the paths of hidden ones up to the name that hides them.
    pub(in crate::engine) fn list(&self, url: &Url) -> Result<(Vec<Found>, Vec<Box<str>>)> {
        let (store, root) = self.open(url)?;
        let listing = store.list(Some(&root)).try_collect::<Vec<_>>();
        let objects = self.runtime()?.block_on(listing).map_err(|e| match url.scheme() {
            "http" | "https" => cannot_list(url.as_str(), format!("{e}; a web server lists its files by WebDAV only")),
            _ => cannot_list(url.as_str(), e),
        })?;
        let (mut found, mut hidden) = (Vec::new(), Vec::new());
        for meta in objects {
            let Some(names) = meta.location.prefix_match(&root) else { continue };
            let names: Vec<String> = names.map(|name| name.as_ref().to_owned()).collect();
            let path = names.join("/");
            if let Some(at) = names.iter().position(|name| name.starts_with('.')) {
                let slash = if at + 1 < names.len() { "/" } else { "" };
                hidden.push(format!("{}{slash}", names[..=at].join("/")).into());
            } else if !path.is_empty() {
                found.push(Found { stamp: remote_stamp(&path, &meta), path: path.into(), stored: None });
            }
        }
        Ok((found, hidden))
    }

    pub(in crate::engine) fn stamp(&self, url: &Url) -> Result<Option<Stamp>> {
        let (store, path) = self.open(url)?;
        let meta = self.runtime()?.block_on(store.head(&path)).map_err(|e| cannot_read(url.as_str(), e))?;
        Ok(remote_stamp(url.as_str(), &meta))
    }

    /// Finds the object at a URL, to read parts of it.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is none.
    pub(in crate::engine) fn object(&self, url: &Url) -> io::Result<Object> {
        let (store, path) = self.open(url).map_err(io::Error::other)?;
        let runtime = self.runtime().map_err(io::Error::other)?;
        let meta = runtime.block_on(store.head(&path)).map_err(|error| match error {
            object_store::Error::NotFound { .. } => io::Error::new(io::ErrorKind::NotFound, "it does not exist"),
            other => io::Error::other(other),
        })?;
        Ok(Object::new(meta, store, runtime.handle().clone()))
    }

    pub(in crate::engine) fn read(&self, url: &Url) -> Result<Bytes> {
        let (store, path) = self.open(url)?;
        let read = async { store.get(&path).await?.bytes().await };
        self.runtime()?.block_on(read).map_err(|e| cannot_read(url.as_str(), e))
    }

    pub(in crate::engine) fn read_all(&self, addresses: &[String]) -> Vec<Result<Bytes>> {
        self.each(addresses, async |store, path| store.get(&path).await?.bytes().await)
    }

    /// Returns the digest of each object, or the reason why it cannot be read. If the server does not answer, the
    /// whole call fails.
    pub(in crate::engine) fn digests(&self, addresses: &[String]) -> Result<Vec<Result<Digest, String>>> {
        use object_store::Error::{NotFound, PermissionDenied};
        let read =
            async |store: Arc<dyn ObjectStore>, path: Path| match content(&*store, &path, &mut std::io::sink()).await {
                Ok(digest) => Ok(Ok(digest)),
                Err(NotFound { .. }) => Ok(Err("it does not exist".to_owned())),
                Err(PermissionDenied { .. }) => Ok(Err("permission denied".to_owned())),
                Err(error) => Err(error),
            };
        self.each(addresses, read).into_iter().collect()
    }

    /// Writes the content of a URL and returns its digest.
    pub(in crate::engine) fn fetch(&self, url: &Url, to: &mut impl Write) -> Result<Digest> {
        let (store, path) = self.open(url)?;
        Ok(self.runtime()?.block_on(content(&*store, &path, to))?)
    }

    /// Reads many URLs concurrently.
    fn each<T>(
        &self,
        addresses: &[String],
        read: impl AsyncFn(Arc<dyn ObjectStore>, Path) -> object_store::Result<T>,
    ) -> Vec<Result<T>> {
        let one = async |address: &String| {
            let url = url_of(address)?.ok_or_else(|| Error::Input(format!("`{address}` is no URL")))?;
            let (store, path) = self.open(&url)?;
            read(store, path).await.map_err(|e| cannot_read(address, e))
        };
        match self.runtime() {
            Ok(runtime) => runtime.block_on(futures::stream::iter(addresses).map(one).buffered(READS).collect()),
            Err(error) => addresses.iter().map(|address| Err(cannot_read(address, &error))).collect(),
        }
    }
}

/// Copies an object's content and returns its digest.
async fn content(store: &dyn ObjectStore, path: &Path, to: &mut impl Write) -> object_store::Result<Digest> {
    let failed = |source: std::io::Error| object_store::Error::Generic { store: "cache", source: source.into() };
    let mut hasher = Hasher::default();
    let mut chunks = store.get(path).await?.into_stream();
    while let Some(chunk) = chunks.try_next().await? {
        hasher.raw(&chunk);
        to.write_all(&chunk).map_err(failed)?;
    }
    Ok(hasher.finish())
}
