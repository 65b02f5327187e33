//! Locks that are released when their process ends. They keep two runs from computing the same rows, and a clean-up
//! from deleting objects in use.

use std::{
    fs::{File, OpenOptions, TryLockError},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::objects::Store;
use crate::engine::{Digest, Hasher, Result};

/// A lock on the results recorded under a stage's key, or on the name of a pipeline.
#[derive(Debug)]
pub struct Lock {
    /// The locked file, which is released when it is closed; `None` in a remote store, which has no locks.
    file: Option<(File, PathBuf)>,
}

impl Store {
    /// Takes the lock on a stage's results; `wait` is called once where another process holds it.
    pub(in crate::engine) fn lock(&self, stage: Digest, wait: &mut dyn FnMut()) -> Result<Lock> {
        let Some(path) = self.lock_path(stage) else { return Ok(Lock { file: None }) };
        let mut waits = false;
        loop {
            let file = open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut waits, true) {
                        wait();
                    }
                    file.lock()?;
                }
                Err(TryLockError::Error(e)) => return Err(e.into()),
            }
            if is_at(&file, &path) {
                return Ok(Lock { file: Some((file, path)) });
            }
        }
    }

    /// Takes the lock; `None` if another process holds it.
    pub(in crate::engine) fn try_lock(&self, stage: Digest) -> Result<Option<Lock>> {
        let Some(path) = self.lock_path(stage) else { return Ok(Some(Lock { file: None })) };
        let file = open(&path)?;
        match file.try_lock() {
            Ok(()) if is_at(&file, &path) => Ok(Some(Lock { file: Some((file, path)) })),
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e.into()),
        }
    }

    /// Takes a pipeline's name for this process alone, as a program does that publishes its tables again and again;
    /// `None` if another process has it. Runs of the pipeline do not ask.
    pub fn claim(&self, pipeline: &str) -> Result<Option<Lock>> {
        self.try_lock(Hasher::new("pipeline").field(pipeline.as_bytes()).finish())
    }

    /// Returns true if some process works on a stage's results. The check does not disturb a process that is about to
    /// take the lock.
    pub(in crate::engine) fn is_locked(&self, stage: Digest) -> Result<bool> {
        let Some(path) = self.lock_path(stage) else { return Ok(false) };
        // The file does not exist if nobody holds the lock, because the last holder removes it.
        let file = match OpenOptions::new().append(true).open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(e)) => Err(e.into()),
        }
    }

    /// Returns true if the store has locks, which remote stores lack.
    pub fn has_locks(&self) -> bool {
        self.folder.is_some()
    }

    /// Returns the stages on whose results some process works.
    pub(in crate::engine) fn locked(&self) -> Result<Vec<Digest>> {
        let Some(folder) = self.folder.as_ref().map(|folder| folder.join("locks")).filter(|f| f.is_dir()) else {
            return Ok(Vec::new());
        };
        let mut locked = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let Ok(stage) = entry?.file_name().to_string_lossy().parse() else { continue };
            if self.try_lock(stage)?.is_none() {
                locked.push(stage);
            }
        }
        Ok(locked)
    }

    fn lock_path(&self, stage: Digest) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join("locks").join(stage.to_string()))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file is removed while it is still locked. A process that waits for it then sees that the name is gone
        // and makes a new file.
        if let Some((_, path)) = &self.file {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn open(path: &Path) -> Result<File> {
    let open = || {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        OpenOptions::new().create(true).append(true).open(path)
    };
    open().map_err(|e| std::io::Error::new(e.kind(), format!("cannot lock {}: {e}", path.display())).into())
}

/// Returns true if the path still names the file, which its last holder may have removed.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |metadata: std::io::Result<std::fs::Metadata>| metadata.map(|m| (m.dev(), m.ino())).ok();
    id(file.metadata()) == id(path.metadata())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_is_held_by_one_process_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let key = Digest::of(b"stage");
        let lock = store.lock(key, &mut || panic!("nobody holds it")).unwrap();
        assert!(store.try_lock(key).unwrap().is_none());
        assert!(store.is_locked(key).unwrap() && !store.is_locked(Digest::of(b"other")).unwrap());
        assert!(store.try_lock(Digest::of(b"other")).unwrap().is_some());
        let (here, there) = (store.clone(), std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
        let waited = there.clone();
        let waiter = std::thread::spawn(move || {
            let _lock = here.lock(key, &mut || waited.store(true, std::sync::atomic::Ordering::SeqCst)).unwrap();
        });
        while !there.load(std::sync::atomic::Ordering::SeqCst) {
            std::thread::yield_now();
        }
        drop(lock);
        waiter.join().unwrap();
        assert_eq!(std::fs::read_dir(folder.path().join("locks")).unwrap().count(), 0);
    }
}
