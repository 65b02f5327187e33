//! The user's cache folder.

use std::{
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// The user's cache folder: `VLMDIFF_CACHE`, else `vlmdiff` in `XDG_CACHE_HOME` or in `~/.cache`.
pub(in crate::engine) fn cache_folder() -> PathBuf {
    let named = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || std::env::home_dir().unwrap_or_default().join(".cache");
    named("VLMDIFF_CACHE").unwrap_or_else(|| named("XDG_CACHE_HOME").unwrap_or_else(home).join("vlmdiff"))
}

/// Makes a folder, and those around it, that other users may not look into. One that is there stays as it is.
pub(in crate::engine) fn make_private(folder: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// The folder of temporary files that are too large for memory; it is made where it is not there.
pub fn scratch_folder() -> io::Result<PathBuf> {
    let folder = cache_folder().join("scratch");
    make_private(&folder)?;
    Ok(folder)
}
