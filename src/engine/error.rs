//! The errors of the dataflow layer.

use std::{io, path::PathBuf};

use crate::engine::{Digest, credentials::without_credentials};

/// The errors that can occur between a YAML file and a published table. Their messages show no credentials in URLs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pipeline file cannot be read.
    #[error("cannot read the pipeline {}: {source}", path.display())]
    Read {
        /// The file asked for.
        path: PathBuf,
        /// The reason why it cannot be read.
        source: std::io::Error,
    },
    /// The pipeline file is wrong at a place.
    #[error("{file}:{line}:{column}: {}", without_credentials(message))]
    Pipeline {
        /// The file as the user named it.
        file: String,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// The defect, and what would work.
        message: String,
    },
    /// The user's data, weights or arguments are wrong.
    #[error("{}", without_credentials(.0))]
    Input(String),
    /// Rows of a table failed and the table does not skip failures.
    #[error("{}", rows_failed(table, errors, *total))]
    Rows {
        /// The table.
        table: String,
        /// The first failures: row id and message.
        errors: Vec<(String, String)>,
        /// The number of rows that failed.
        total: usize,
    },
    /// A stage failed.
    #[error("{}", without_credentials(.0))]
    Stage(String),
    /// The run was asked to stop.
    #[error("interrupted; finished work is kept, and the next run continues from there")]
    Interrupted,
    /// A worker process ended before its task did.
    #[error("{}", without_credentials(.0))]
    Worker(String),
    /// Memory ran out.
    #[error("{}", without_credentials(.0))]
    Memory(String),
    /// The operating system killed a process, as it does when memory runs out.
    #[error("{}", without_credentials(.0))]
    Killed(String),
    /// The content of the store differs from what was written.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// A part or a blob is damaged or missing; a run computes it again.
    #[error("the store is damaged: {message}")]
    Lost {
        /// The digest of the part or blob.
        digest: Digest,
        /// The defect.
        message: String,
    },
    /// The store cannot be read or written.
    #[error("the store cannot be read or written: {}", without_credentials(&of_store(.0)))]
    Store(#[source] object_store::Error),
    /// Arrow returned an error.
    #[error("arrow: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// Parquet returned an error.
    #[error("parquet: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// An operation on a file or process failed.
    #[error("{}{}", .0, advice(.0))]
    Io(#[from] std::io::Error),
}

/// A result of the dataflow layer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        match Mismatch::find(&error) {
            Some(mismatch) => Self::lost(mismatch.digest, mismatch.to_string()),
            None => Self::Store(error),
        }
    }
}

impl Error {
    /// Makes the error of a part or blob that is damaged or missing.
    pub fn lost(digest: Digest, message: String) -> Self {
        Self::Lost { digest, message }
    }

    /// Names the table in which the error happened.
    pub fn in_table(self, table: &str) -> Self {
        match self {
            Self::Input(message) => Self::Input(format!("table `{table}`: {message}")),
            Self::Stage(message) => Self::Stage(format!("table `{table}`: {message}")),
            Self::Worker(message) => Self::Worker(format!("table `{table}`: {message}")),
            Self::Memory(message) => Self::Memory(format!("table `{table}`: {message}")),
            Self::Killed(message) => Self::Killed(format!("table `{table}`: {message}")),
            other => other,
        }
    }

    /// Makes an error from the failure of a library that reports only text, as libtorch and the allocator do. This is
    /// the only place where their texts are searched for memory that ran out.
    pub fn of_library(message: String) -> Self {
        const SIGNS: [&str; 3] = ["out of memory", "can't allocate memory", "bad_alloc"];
        if SIGNS.iter().any(|sign| message.contains(sign)) {
            Self::Memory(format!("memory ran out: {message}"))
        } else {
            Self::Stage(message)
        }
    }

    /// Adds advice if memory ran out or may have run out.
    pub(in crate::engine) fn advised(self, help: &str) -> Self {
        match self {
            Self::Memory(message) => Self::Memory(format!("{message}; {help}")),
            Self::Killed(message) => Self::Killed(format!("{message}; if memory ran out, {help}")),
            other => other,
        }
    }

    /// Returns true if the user can correct the error by changing arguments, YAML or data.
    pub fn is_input(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Pipeline { .. } | Self::Input(_) | Self::Rows { .. })
    }
}

/// Returns the message of a store without the name of the library's part that reports it, and what would work.
fn of_store(error: &object_store::Error) -> String {
    let object_store::Error::Generic { source, .. } = error else { return error.to_string() };
    let mut cause: &(dyn std::error::Error + 'static) = &**source;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let advice = match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::StorageFull) => "; once there is space, the next run continues from what is kept",
        Some(io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) => {
            "; `sql`, `status` and `report` only read a store, and --store names another one"
        }
        _ => "",
    };
    format!("{source}{advice}")
}

/// Returns advice about an error of the operating system that does not say where it happened.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull if error.raw_os_error().is_some() => {
            "; the disk of the store, of temporary files (TMPDIR) or of the cache (VLMDIFF_CACHE) is full"
        }
        _ => "",
    }
}

fn rows_failed(table: &str, errors: &[(String, String)], total: usize) -> String {
    let mut text = format!("table `{table}`: {total} row{} failed", if total == 1 { "" } else { "s" });
    errors.iter().for_each(|(id, message)| text += &format!("\n  {id}: {}", without_credentials(message)));
    if total > errors.len() {
        text += &format!("\n  … and {} more", total - errors.len());
    }
    text + "\nmend the data and run again (all other rows are kept), or set `on_error: skip` on the table to leave such rows out"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disk_is_an_error_with_advice() {
        let full = || io::Error::from_raw_os_error(28);
        let of_store = Error::from(object_store::Error::Generic { store: "LocalFileSystem", source: full().into() });
        assert_eq!(
            of_store.to_string(),
            format!(
                "the store cannot be read or written: {}; once there is space, the next run continues from what is kept",
                full()
            )
        );
        assert!(Error::from(full()).to_string().ends_with("or of the cache (VLMDIFF_CACHE) is full"));
        assert_eq!(
            Error::from(io::Error::new(io::ErrorKind::StorageFull, "cannot write x")).to_string(),
            "cannot write x"
        );
    }

    #[test]
    fn memory_error_contains_advice() {
        let advised = |error: Error| error.advised("lower it").to_string();
        for said in [
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
            "CUDA out of memory. Tried to allocate 2.00 MiB.",
        ] {
            assert_eq!(advised(Error::of_library(said.into())), format!("memory ran out: {said}; lower it"));
        }
        let killed = "the worker died 3 times on the same rows (signal: 9 (SIGKILL))";
        assert_eq!(advised(Error::Killed(killed.into())), format!("{killed}; if memory ran out, lower it"));
        assert_eq!(advised(Error::of_library("signal: 11 (SIGSEGV)".into())), "signal: 11 (SIGSEGV)");
    }
}

/// The bytes of an object do not match the digest in its name.
#[derive(Debug, thiserror::Error)]
#[error("{location} does not match its digest")]
pub(crate) struct Mismatch {
    pub(in crate::engine) location: String,
    pub(in crate::engine) digest: Digest,
}

impl Mismatch {
    /// Finds the mismatch in a chain of errors.
    pub(in crate::engine) fn find<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            // The source of an `io::Error` is that of the error it wraps, so the wrapped error itself has to be asked
            // for.
            let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            next = wrapped.map(|error| error as &(dyn std::error::Error + 'static)).or_else(|| error.source());
        }
        None
    }
}
