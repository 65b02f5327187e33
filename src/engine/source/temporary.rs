//! Files that are written beside their final place and then renamed.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::cache_folder::make_private;

/// A file that is removed on drop unless it is kept. It gets its final name atomically, when it is complete.
pub(super) struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    pub(super) fn beside(path: &Path) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let unique = format!("{}.{}.part", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = path.with_added_extension(unique);
        path.parent().map_or(Ok(()), make_private)?;
        Ok(Self { file: File::create(&path)?, path })
    }

    pub(super) fn keep_as(self, path: &Path) -> io::Result<()> {
        path.parent().map_or(Ok(()), make_private)?;
        fs::rename(&self.path, path)
    }
}

impl Write for Temporary {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After `keep_as` no file has this name, which is not an error.
        fs::remove_file(&self.path).unwrap_or(());
    }
}
