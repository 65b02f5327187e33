//! The files below a root, and what says that one has not changed.
//!
//! **What a stamp trusts.** Of a local file the stamp covers its path, size, times of modification and of change (to the
//! nanosecond) and inode. A program cannot set the time of change, so a replaced, rewritten or renamed file has another stamp,
//! even with the same size and a modification time set back. Three things are not trusted, and such files are hashed
//! every time: a change less than two seconds old, which the same clock tick may hide; a time of change in whole seconds, as
//! file system images and FAT have, where all files may share one; and systems other than Unix. Two things are trusted: that
//! a program which writes through a memory map lets the system note the time (it does when the pages are written back), and
//! that a network file system shows changes made elsewhere (NFS may be a minute late). Reading all with `verify` trusts nothing.
//!
//! Of a URL the stamp covers its size, entity tag, version and time of modification; where the server gives neither a strong tag
//! nor a time, the content is read.

use std::{fs, io, path::Path};

use object_store::ObjectMeta;
use rayon::prelude::*;
use walkdir::{DirEntry, WalkDir};

use super::{Error, Hasher, Result, join, local_path};
use crate::engine::Digest;

/// Every file below a folder or URL, sorted by path. Hidden ones are left out, links are followed.
#[derive(Debug)]
pub struct Tree {
    /// The folder or URL, as it was named.
    pub root: String,
    files: Vec<Found>,
}

/// A file of a tree.
#[derive(Debug)]
pub(super) struct Found {
    /// Below the root, with `/`.
    pub(super) path: Box<str>,
    /// `None` where only the content says whether it has changed.
    pub(super) stamp: Option<Stamp>,
}

/// What identifies a file's content without reading it.
#[derive(Debug)]
pub(super) struct Stamp {
    pub(super) id: Digest,
    /// Nanoseconds since 1970 of the last change.
    pub(super) changed: i64,
}

impl Tree {
    pub(super) fn local(root: &str, paths: Vec<Box<str>>) -> Self {
        let folder = local_path(root);
        let found = |path: Box<str>| Found { stamp: stamp(&path, &folder.join(&*path)), path };
        Self::new(root, paths.into_par_iter().map(found).collect())
    }

    pub(super) fn new(root: &str, mut files: Vec<Found>) -> Self {
        files.par_sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Self { root: root.to_owned(), files }
    }

    /// The files' paths below the root, sorted, with `/` on every system.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &str> {
        self.files.iter().map(|found| &*found.path)
    }

    /// The root's own name, also where the path to it is `.` or ends in `..`.
    pub fn name(&self) -> String {
        let root = super::absolute(&self.root);
        root.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
    }

    /// Where a file of the tree is read.
    pub fn address(&self, path: &str) -> Result<String> {
        join(&self.root, path)
    }

    pub(super) fn find(&self, path: &str) -> Option<&Found> {
        self.files.binary_search_by(|found| (*found.path).cmp(path)).ok().map(|at| &self.files[at])
    }

    pub(super) fn stamps(&self) -> impl Iterator<Item = &Stamp> {
        self.files.iter().filter_map(|found| found.stamp.as_ref())
    }
}

/// The paths of the files below a folder. A broken link is listed, and fails where it is read.
pub(super) fn walk(folder: &Path) -> io::Result<Vec<Box<str>>> {
    if !fs::metadata(folder)?.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is no folder"));
    }
    let shown = |entry: &DirEntry| {
        let name = entry.file_name().as_encoded_bytes();
        entry.depth() == 0 || !(name.starts_with(b".") || name == b"lost+found")
    };
    let relative = |path: &Path| {
        let below = path.strip_prefix(folder).unwrap_or(path);
        let name = below.to_str().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("the name {} is not UTF-8; rename it", path.display()))
        })?;
        Ok::<_, io::Error>(Box::from(name))
    };
    let entries = WalkDir::new(folder).follow_links(true).into_iter().filter_entry(shown);
    entries
        .filter_map(|entry| match entry {
            Ok(entry) => (!entry.file_type().is_dir()).then(|| relative(entry.path())),
            // A link to a folder around it shows nothing new.
            Err(error) if error.loop_ancestor().is_some() => None,
            Err(error) => match (error.path().map(Path::to_owned), error.into_io_error()) {
                (Some(path), Some(error)) if error.kind() == io::ErrorKind::NotFound => Some(relative(&path)),
                (_, error) => Some(Err(error.unwrap_or_else(|| io::Error::other("it cannot be listed")))),
            },
        })
        .collect()
}

/// The stamp of a local file, known in its tree by `path`.
#[cfg(unix)]
pub(super) fn stamp(path: &str, file: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(file).ok().filter(|meta| meta.is_file() && meta.ctime_nsec() != 0)?;
    let numbers =
        [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec(), meta.size() as i64, meta.ino() as i64];
    let mut hasher = Hasher::new("file");
    numbers.iter().for_each(|number| hasher.raw(&number.to_le_bytes()));
    let id = hasher.field(path.as_bytes()).finish();
    Some(Stamp { id, changed: meta.ctime().saturating_mul(1_000_000_000).saturating_add(meta.ctime_nsec()) })
}

/// The stamp of a local file, known in its tree by `path`.
#[cfg(not(unix))]
pub(super) fn stamp(_: &str, _: &Path) -> Option<Stamp> {
    None
}

/// The stamp of an object, known in its tree by `path`.
pub(super) fn remote_stamp(path: &str, meta: &ObjectMeta) -> Option<Stamp> {
    let tag = meta.e_tag.as_deref().unwrap_or_default();
    // A server that gives no time is listed at 1970.
    let changed = meta.last_modified.timestamp_nanos_opt().unwrap_or(0);
    let strong = !tag.is_empty() && !tag.starts_with("W/");
    let mut hasher = Hasher::new("object");
    hasher.raw(&changed.to_le_bytes());
    hasher.raw(&meta.size.to_le_bytes());
    let texts = [tag, meta.version.as_deref().unwrap_or_default(), path];
    texts.iter().for_each(|text| {
        hasher.field(text.as_bytes());
    });
    (strong || changed != 0).then(|| Stamp { id: hasher.finish(), changed })
}

/// A folder or URL that cannot be listed.
pub(super) fn cannot_list(root: &str, error: impl std::fmt::Display) -> Error {
    Error::Input(format!("cannot list {root}: {error}"))
}
