//! The user's cache folder.

use std::{
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use crate::engine::Hasher;

/// Returns the user's cache folder: `VLMDIFF_CACHE`, else `vlmdiff` in `XDG_CACHE_HOME` or in `~/.cache`.
pub(in crate::engine) fn cache_folder() -> PathBuf {
    let named = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || std::env::home_dir().unwrap_or_default().join(".cache");
    named("VLMDIFF_CACHE").unwrap_or_else(|| named("XDG_CACHE_HOME").unwrap_or_else(home).join("vlmdiff"))
}

/// Makes a folder and its parents, which other users may not read. An existing folder is not changed.
pub(in crate::engine) fn make_private(folder: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Returns the folder in which a server keeps photographs, by its store and the name of its tables. It is not made.
pub fn served_folder(store: &str, name: &str) -> PathBuf {
    let of = Hasher::new("served").field(store.as_bytes()).field(name.as_bytes()).finish();
    cache_folder().join("served").join(of.to_string())
}

/// Returns the folder of temporary files that are too large for memory, and makes it if it does not exist.
pub fn scratch_folder() -> io::Result<PathBuf> {
    let folder = cache_folder().join("scratch");
    make_private(&folder)?;
    Ok(folder)
}
