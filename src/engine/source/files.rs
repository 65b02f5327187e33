//! Reads and hashes local files, with retries for transient failures of network file systems.

use std::{io, path::Path, time::Duration};

use backon::{BlockingRetryable, ExponentialBuilder};

use super::tree::At;
use crate::engine::{Digest, Error};

pub(super) fn cannot_read(address: &str, error: impl std::fmt::Display) -> Error {
    Error::Input(format!("cannot read {address}: {error}"))
}

pub(super) fn hash_file(path: &Path) -> io::Result<Digest> {
    retry(|| is_file(path).and_then(|()| Digest::of_file(path)))
}

/// Refuses anything that is not a regular file: a pipe would block until somebody writes, and can be read only once;
/// a device may have no end.
pub(super) fn is_file(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path)?.is_file() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file, but a folder, pipe, socket or device"))
}

/// Retries after transient errors, as network file systems have them.
pub(super) fn retry<T>(read: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let waits = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_factor(4.)
        .with_max_times(3)
        .with_jitter();
    read.retry(waits).when(passes).call()
}

/// The operating systems' number of an input or output error, for which Rust has no `ErrorKind`.
pub(super) const EIO: i32 = 5;

fn passes(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, StaleNetworkFileHandle, TimedOut, WouldBlock};
    let error = error.get_ref().and_then(|inner| inner.downcast_ref::<At>()).map_or(error, |at| &at.error);
    matches!(error.kind(), Interrupted | StaleNetworkFileHandle | TimedOut | WouldBlock)
        || error.raw_os_error() == Some(EIO)
}
