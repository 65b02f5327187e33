//! URLs as local files, in the user's cache folder.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use url::Url;

use super::{
    files::{cannot_read, is_file},
    remote::name_of,
    sources::Sources,
    temporary::Temporary,
};
use crate::engine::{
    Digest, Error, Hasher, Result,
    address::{local_path, url_of},
};

impl Sources {
    /// Returns a local path that holds the content of a file or URL. A URL is fetched once, into the user's cache
    /// folder.
    pub fn local(&self, address: &str) -> Result<PathBuf> {
        if let Some(member) = self.member(address)? {
            return self.unpack(&member).map_err(|e| cannot_read(address, e));
        }
        let Some(url) = url_of(address)? else {
            let path = local_path(address);
            // A folder may contain the wanted file, and a missing path is reported by the code that reads it.
            return if path.exists() && !path.is_dir() {
                is_file(&path).map(|()| path).map_err(|e| cannot_read(address, e))
            } else {
                Ok(path)
            };
        };
        let digest = self.digest(address)?;
        let path = self.place(digest, &url);
        // A cached file that was truncated or changed since is fetched again.
        let whole = path.is_file() && self.digest(&path.to_string_lossy())? == digest;
        if !whole && self.download(&url)? != digest {
            return Err(Error::Input(format!("{address} changed while it was being read; run again")));
        }
        Ok(path)
    }

    /// Returns a local folder that holds files or URLs under their own names.
    pub fn local_folder(&self, addresses: &[String]) -> Result<PathBuf> {
        let files = addresses.iter().map(|address| self.local(address)).collect::<Result<Vec<_>>>()?;
        let mut hasher = Hasher::new("folder");
        files.iter().for_each(|file| {
            hasher.field(file.as_os_str().as_encoded_bytes());
        });
        let folder = self.cache.join("sources").join(hasher.finish().to_string());
        let link = |file: &PathBuf| -> io::Result<()> {
            let to = folder.join(file.file_name().unwrap_or_default());
            fs::create_dir_all(&folder)?;
            // An existing link may point to an earlier version of the file, so it is replaced.
            fs::remove_file(&to).unwrap_or(());
            match fs::hard_link(file, &to) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            }
        };
        files.iter().try_for_each(link).map_err(|e| cannot_write(&folder, e))?;
        Ok(folder)
    }

    fn place(&self, digest: Digest, url: &Url) -> PathBuf {
        self.cache.join("sources").join(digest.to_string()).join(name_of(url))
    }

    /// Fetches a URL to its place in the cache and returns the digest of its content.
    pub(in crate::engine) fn download(&self, url: &Url) -> Result<Digest> {
        let folder = self.cache.join("sources");
        let mut temporary = Temporary::beside(&folder.join(name_of(url))).map_err(|e| cannot_write(&folder, e))?;
        let digest = self.remote.fetch(url, &mut temporary).map_err(|e| cannot_read(url.as_str(), e))?;
        let place = self.place(digest, url);
        temporary.keep_as(&place).map_err(|e| cannot_write(&place, e))?;
        Ok(digest)
    }
}

fn cannot_write(path: &Path, error: io::Error) -> Error {
    Error::Input(format!("cannot write {}: {error}; `VLMDIFF_CACHE` names another folder", path.display()))
}
