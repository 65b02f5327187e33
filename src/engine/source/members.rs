//! Members of archives by their addresses, on this machine and on servers.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use rayon::prelude::*;
use url::Url;

use super::{
    archive::{self, Archive, Member, Place, Places, State},
    files::{cannot_read, retry},
    sources::{Readable, Sources},
    temporary::Temporary,
    tree::{self, Found, remote_stamp},
    window::{Changed, cause},
};
use crate::engine::{
    Digest, Error, Hasher, Result,
    address::{is_url, join, local_path, url_of},
};

/// The number of bytes that are copied at a time.
const CHUNK: usize = 1 << 20;

/// The kind of facts that members of archives on servers are remembered as.
const PLACES: &str = "archives";

impl Sources {
    /// Lists the members of an archive below a root, which is the archive itself if its path is empty.
    pub(super) fn members(&self, root: &str, path: &str) -> Result<Vec<Found>> {
        let address = if path.is_empty() { root.to_owned() } else { join(root, path)? };
        let place = url_of(&address)?.map_or_else(|| Place::File(local_path(&address)), Place::Object);
        let opened = self.opened(&place, true).map_err(|error| cannot_open(&address, &error))?;
        let folder = path.rfind('/').map_or("", |slash| &path[..=slash]);
        let found = |name: Box<str>| {
            let stored = (!path.is_empty()).then(|| format!("{path}/{name}").into());
            let path: Box<str> = format!("{folder}{name}").into();
            let stamp = match (&place, &opened.state) {
                (_, State::Object(meta)) => remote_stamp(&path, meta),
                (Place::File(file), _) => tree::stamp(&path, file),
                (Place::Object(_), _) => None,
            };
            Found { stamp, path, stored }
        };
        Ok(opened.names().into_par_iter().map(found).collect())
    }

    /// Returns the member of an archive that lies at an address; `None` outside of archives.
    pub(super) fn member(&self, address: &str) -> Result<Option<Member>> {
        let Some(url) = url_of(address)? else {
            let path = local_path(address);
            let member =
                archive::split(&path).map(|(archive, name)| Member::new(Place::File(archive.to_owned()), name));
            return Ok(member);
        };
        for (archive, name) in archive::candidates(&url) {
            let place = Place::Object(archive);
            match self.opened(&place, false) {
                Ok(_) => return Ok(Some(Member::new(place, &name))),
                // A folder may be called so.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(cannot_open(address, &error)),
            }
        }
        Ok(None)
    }

    /// Opens an archive. Whether one on a server has changed since it was opened is asked with `check` alone; otherwise a
    /// change is noticed by what reads it.
    fn opened(&self, place: &Place, check: bool) -> io::Result<Arc<Archive>> {
        let url = match place {
            Place::File(path) => return self.archives.open_file(path),
            Place::Object(url) => url,
        };
        let is_same = |known: &State| match check {
            true => Ok(*known == State::Object(self.remote.object(url)?.meta)),
            false => Ok(true),
        };
        self.archives.open(place, is_same, || self.open_object(url))
    }

    /// Opens an archive on a server. The members of a TAR file, between which its headers lie, are remembered.
    fn open_object(&self, url: &Url) -> io::Result<Archive> {
        let object = self.remote.object(url)?;
        if archive::is_zip(url.path()) {
            return Archive::of_zip_object(object);
        }
        let stamp = remote_stamp(url.as_str(), &object.meta).map(|stamp| stamp.id);
        let mut remembered: BTreeMap<Digest, Places> = match stamp {
            Some(_) if !self.verify => self.recall(PLACES, url.as_str()),
            _ => BTreeMap::new(),
        };
        let known = stamp.and_then(|stamp| remembered.remove(&stamp));
        let is_known = known.is_some();
        let archive = Archive::of_tar_object(object, known)?;
        if let (Some(stamp), Some(places), false) = (stamp, archive.places(), is_known) {
            self.remember(PLACES, url.as_str(), &BTreeMap::from([(stamp, places)]));
        }
        Ok(archive)
    }

    /// Reads a member as a stream.
    fn read_member<T>(&self, member: &Member, read: impl FnOnce(&mut dyn Read) -> io::Result<T>) -> io::Result<T> {
        let result = self.opened(&member.archive, false)?.read(&member.name, read);
        // The next one to list or read it opens the archive that is there then.
        if result.as_ref().is_err_and(|error| cause::<Changed>(error).is_some()) {
            self.archives.forget(&member.archive);
        }
        result
    }

    /// Returns the content of a member.
    pub(super) fn content(&self, member: &Member) -> io::Result<Vec<u8>> {
        retry(|| {
            self.read_member(member, |reader| {
                let mut content = Vec::new();
                reader.read_to_end(&mut content).map(|_| content)
            })
        })
    }

    /// Returns the digest of the content of a member.
    pub(super) fn member_digest(&self, member: &Member) -> io::Result<Digest> {
        self.content(member).map(|content| Digest::of(&content))
    }

    /// Reads URLs concurrently, of which some may be members of archives.
    pub(super) fn read_urls(&self, addresses: &[String]) -> Vec<Result<Bytes>> {
        if !addresses.iter().any(|address| archive::is_below_archive(address)) {
            return self.remote.read_all(addresses);
        }
        let read = || addresses.par_iter().map(|address| self.read(address)).collect();
        let failed = |error: Error| addresses.iter().map(|address| Err(cannot_read(address, &error))).collect();
        self.remote.at_once(read).unwrap_or_else(failed)
    }

    /// Returns the digests of URLs, of which some may be members of archives; see [`Remote::digests`](super::remote::Remote::digests).
    pub(super) fn url_digests(&self, addresses: &[String]) -> Result<Vec<Readable>> {
        if !addresses.iter().any(|address| archive::is_below_archive(address)) {
            return self.remote.digests(addresses);
        }
        let digest = |address: &String| {
            let Some(member) = self.member(address)? else {
                let digests = self.remote.digests(std::slice::from_ref(address))?;
                return Ok(digests.into_iter().next().unwrap_or_else(|| Err("it has no content".into())));
            };
            match self.member_digest(&member) {
                Ok(digest) => Ok(Ok(digest)),
                Err(error) if is_of_server(&error) => Err(cannot_read(address, error)),
                Err(error) => Ok(Err(error.to_string())),
            }
        };
        self.remote.at_once(|| addresses.par_iter().map(digest).collect())?
    }

    /// Writes the content of a member into the cache and returns its path.
    pub(super) fn unpack(&self, member: &Member) -> io::Result<PathBuf> {
        let name = member.name.rsplit('/').next().unwrap_or(&member.name);
        let mut temporary = Temporary::beside(&self.cache.join("sources").join(name))?;
        let digest = self.read_member(member, |content| {
            let mut hasher = Hasher::default();
            let mut chunk = vec![0; CHUNK];
            loop {
                let length = content.read(&mut chunk)?;
                if length == 0 {
                    return Ok(hasher.finish());
                }
                hasher.raw(&chunk[..length]);
                temporary.write_all(&chunk[..length])?;
            }
        })?;
        let place = self.cache.join("sources").join(digest.to_string()).join(name);
        temporary.keep_as(&place)?;
        Ok(place)
    }
}

/// Returns true for an error of the server or of the object as a whole, and not of one of its members.
fn is_of_server(error: &io::Error) -> bool {
    cause::<object_store::Error>(error).is_some() || cause::<Changed>(error).is_some()
}

fn cannot_open(address: &str, error: &io::Error) -> Error {
    match is_url(address) && is_of_server(error) {
        true => cannot_read(
            address,
            format!("{error}; an archive is read by parts, for which a web server has to know HTTP's `Range`"),
        ),
        false => cannot_read(address, error),
    }
}
