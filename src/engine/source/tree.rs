//! The files below a root, with stamps that show whether a file has changed.
//!
//! **Trust in stamps.** The stamp of a local file covers its path, size, times of modification and of change (to the
//! nanosecond) and inode. A program cannot set the time of change, so a replaced, rewritten or renamed file has another
//! stamp, even with the same size and a modification time set back. Three things are not trusted, and such files are
//! hashed every time: a change less than two seconds old, which the same clock tick may hide; a time of change in whole
//! seconds, as file system images and FAT have, where all files may share one; and systems other than Unix. Two things
//! are trusted: that a program which writes through a memory map lets the system note the time (it does when the pages
//! are written back), and that a network file system shows changes made elsewhere (NFS may be a minute late). Hashing
//! all files with `verify` trusts nothing.
//!
//! The stamp of a URL covers its size, entity tag, version and time of modification. If the server gives neither a
//! strong tag nor a time, the content is read.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use object_store::ObjectMeta;
use rayon::prelude::*;
use walkdir::{DirEntry, WalkDir};

use super::archive;
use crate::engine::{
    Digest, Error, Hasher, Result,
    address::{absolute, is_url, join, local_path},
};

/// Every file below a folder or URL, sorted by path. Hidden files are listed separately, links are followed.
#[derive(Debug)]
pub struct Tree {
    /// The folder or URL, as it was named.
    pub root: String,
    files: Vec<Found>,
    hidden: Vec<Box<str>>,
    dead: Vec<Box<str>>,
}

/// The paths of files below a root, with `/`.
#[derive(Debug, Default)]
pub(in crate::engine) struct Paths {
    /// The files that are shown.
    pub(in crate::engine) shown: Vec<Box<str>>,
    /// Files and folders whose names begin with a dot. A folder ends in `/`, and its content is not listed.
    pub(in crate::engine) hidden: Vec<Box<str>>,
    /// The shown files that are links to missing files.
    pub(in crate::engine) dead: Vec<Box<str>>,
}

/// A file of a tree.
#[derive(Debug)]
pub(in crate::engine) struct Found {
    /// The path below the root, with `/`.
    pub(in crate::engine) path: Box<str>,
    /// The stamp; `None` if only the content shows whether the file has changed.
    pub(in crate::engine) stamp: Option<Stamp>,
    /// The path of the member of an archive below the root, if the file is one: that of the archive, and the name in it.
    pub(in crate::engine) stored: Option<Box<str>>,
}

impl Found {
    /// Returns the path below the root at which the content lies.
    pub(in crate::engine) fn stored(&self) -> &str {
        self.stored.as_ref().unwrap_or(&self.path)
    }
}

/// Identifies a file's content without reading it.
#[derive(Debug)]
pub(in crate::engine) struct Stamp {
    pub(in crate::engine) id: Digest,
    /// Nanoseconds since 1970 of the last change.
    pub(in crate::engine) changed: i64,
}

impl Tree {
    pub(in crate::engine) fn local(root: &str, paths: Paths) -> Self {
        let folder = local_path(root);
        let found = |path: Box<str>| Found { stamp: stamp(&path, &folder.join(&*path)), path, stored: None };
        let tree = Self::new(root, paths.shown.into_par_iter().map(found).collect(), paths.hidden);
        Self { dead: paths.dead, ..tree }
    }

    pub(in crate::engine) fn new(root: &str, mut files: Vec<Found>, mut hidden: Vec<Box<str>>) -> Self {
        files.par_sort_unstable_by(|a, b| a.path.cmp(&b.path));
        hidden.sort_unstable();
        hidden.dedup();
        Self { root: root.to_owned(), files, hidden, dead: Vec::new() }
    }

    /// Adds members of archives, except where a file is at their path.
    pub(in crate::engine) fn with_members(mut self, members: impl Iterator<Item = Found>) -> Self {
        self.files.extend(members);
        self.files.par_sort_by(|a, b| a.path.cmp(&b.path).then(a.stored.is_some().cmp(&b.stored.is_some())));
        self.files.dedup_by(|second, first| second.path == first.path);
        self
    }

    /// Returns the files' paths below the root, sorted, with `/` on every system.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &str> {
        self.files.iter().map(|found| &*found.path)
    }

    /// Returns the paths of hidden files and folders below the root, sorted. A folder ends in `/`, and its content is
    /// not listed.
    pub fn hidden(&self) -> impl ExactSizeIterator<Item = &str> {
        self.hidden.iter().map(|path| &**path)
    }

    /// Returns the paths that are links to missing files, in no order.
    pub fn dead_links(&self) -> impl ExactSizeIterator<Item = &str> {
        self.dead.iter().map(|path| &**path)
    }

    /// Returns a file that is an archive compressed as a whole, with what to do with it; `None` if there is none.
    pub fn compressed(&self) -> Option<(&str, String)> {
        self.paths().find_map(|path| Some((path, archive::advice(path)?)))
    }

    /// Returns the root's own name as the user wrote it, even if it is a link. For a path that ends in `.` or `..` it
    /// is the name of the folder that the path leads to.
    pub fn name(&self) -> String {
        let written = local_path(&self.root);
        if let Some(name) = written.file_name().and_then(OsStr::to_str).filter(|_| !is_url(&self.root)) {
            return name.to_owned();
        }
        let root = absolute(&self.root);
        root.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
    }

    /// Returns the path below the root at which the content of a file of the tree lies. It differs from its path if the
    /// file is a member of an archive.
    pub fn stored<'a>(&'a self, path: &'a str) -> &'a str {
        self.find(path).map_or(path, Found::stored)
    }

    /// Returns the address of a file of the tree.
    pub fn address(&self, path: &str) -> Result<String> {
        join(&self.root, self.stored(path))
    }

    pub(in crate::engine) fn find(&self, path: &str) -> Option<&Found> {
        self.files.binary_search_by(|found| (*found.path).cmp(path)).ok().map(|at| &self.files[at])
    }

    pub(in crate::engine) fn stamps(&self) -> impl Iterator<Item = &Stamp> {
        self.files.iter().filter_map(|found| found.stamp.as_ref())
    }
}

/// Lists the paths of the files below a folder. A broken link is listed and fails when it is read; a folder that
/// cannot be listed is an error that names it.
pub(in crate::engine) fn walk(folder: &Path) -> io::Result<Paths> {
    if !fs::metadata(folder)?.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is no folder"));
    }
    let mut paths = Paths::default();
    let mut entries = WalkDir::new(folder).follow_links(true).into_iter();
    while let Some(entry) = entries.next() {
        match entry {
            Ok(entry) if entry.depth() > 0 && is_hidden(&entry) => {
                let is_folder = entry.file_type().is_dir();
                if is_folder {
                    entries.skip_current_dir();
                }
                if entry.file_name() != LOST_AND_FOUND {
                    let slash = if is_folder { "/" } else { "" };
                    // Hidden files are not read, so a lossy name suffices.
                    let name = below(folder, entry.path()).to_string_lossy();
                    paths.hidden.push(format!("{name}{slash}").into());
                }
            }
            Ok(entry) if entry.file_type().is_dir() => {}
            Ok(entry) => paths.shown.push(relative(folder, entry.path())?),
            // A link to a folder that contains it adds no files.
            Err(error) if error.loop_ancestor().is_some() => {}
            Err(error) => {
                if let Some(link) = dead_link(folder, error)? {
                    paths.shown.push(link.clone());
                    paths.dead.push(link);
                }
            }
        }
    }
    Ok(paths)
}

/// The folder in which file systems put files that they recovered without a name.
const LOST_AND_FOUND: &str = "lost+found";

fn is_hidden(entry: &DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(b".") || entry.file_name() == LOST_AND_FOUND
}

fn below<'p>(folder: &Path, path: &'p Path) -> &'p Path {
    path.strip_prefix(folder).unwrap_or(path)
}

fn relative(folder: &Path, path: &Path) -> io::Result<Box<str>> {
    let name = below(folder, path).to_str().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("the name {} is not UTF-8; rename it", path.display()))
    })?;
    Ok(Box::from(name))
}

/// Returns the path of a link that leads nowhere or to itself, unless it is hidden.
fn dead_link(folder: &Path, error: walkdir::Error) -> io::Result<Option<Box<str>>> {
    let path = error.path().map(Path::to_owned);
    let error = error.into_io_error().unwrap_or_else(|| io::Error::other("it cannot be listed"));
    match path {
        Some(path) if path != folder && is_dead(&error) => {
            let is_shown = !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            is_shown.then(|| relative(folder, &path)).transpose()
        }
        path => named(folder, path, error).map(|()| None),
    }
}

fn is_dead(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ELOOP)
}

/// The operating system's error number of a link that leads to itself, for which stable Rust has no `ErrorKind`.
const ELOOP: i32 = if cfg!(target_os = "linux") { 40 } else { 62 };

/// Adds the place to an error of a walk, unless it is the folder itself, which the caller names.
pub(in crate::engine) fn named(folder: &Path, path: Option<PathBuf>, error: io::Error) -> io::Result<()> {
    match path.filter(|path| path != folder) {
        Some(place) => Err(io::Error::new(error.kind(), At { place, error })),
        None => Err(error),
    }
}

/// An error below a folder, with its place.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", place.display())]
pub(in crate::engine) struct At {
    place: PathBuf,
    pub(in crate::engine) error: io::Error,
}

/// Returns the stamp of a local file, which has the path `path` in its tree.
#[cfg(unix)]
pub(in crate::engine) fn stamp(path: &str, file: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(file).ok().filter(|meta| meta.is_file() && meta.ctime_nsec() != 0)?;
    let numbers =
        [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec(), meta.size() as i64, meta.ino() as i64];
    let mut hasher = Hasher::new("file");
    numbers.iter().for_each(|number| hasher.raw(&number.to_le_bytes()));
    let id = hasher.field(path.as_bytes()).finish();
    Some(Stamp { id, changed: meta.ctime().saturating_mul(1_000_000_000).saturating_add(meta.ctime_nsec()) })
}

/// Returns `None`, because stamps of systems other than Unix are not trusted.
#[cfg(not(unix))]
pub(in crate::engine) fn stamp(_: &str, _: &Path) -> Option<Stamp> {
    None
}

/// Returns the stamp of an object, which has the path `path` in its tree.
pub(in crate::engine) fn remote_stamp(path: &str, meta: &ObjectMeta) -> Option<Stamp> {
    let tag = meta.e_tag.as_deref().unwrap_or_default();
    // An object for which the server gives no time is listed at 1970.
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

/// Makes the error of a folder or URL that cannot be listed.
pub(in crate::engine) fn cannot_list(root: &str, error: impl std::fmt::Display) -> Error {
    Error::Input(format!("cannot list {root}: {error}"))
}
