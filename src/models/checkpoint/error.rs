//! Errors of reading and loading weights.

use std::path::PathBuf;

use tch::TchError;

use super::super::mismatch::Mismatch;

/// Weights that cannot be read or do not fit.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file or folder cannot be read.
    #[error("cannot read the weights {}: {source}", path.display())]
    Io {
        /// The file or folder asked for.
        path: PathBuf,
        /// The error of the file system.
        source: std::io::Error,
    },
    /// The content of the file is not understood.
    #[error("cannot use {} as weights: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The reason, and what would work.
        reason: String,
    },
    /// The file lacks a tensor that is asked for.
    #[error("{} has no tensor {name}", path.display())]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// The names or shapes are not those of the model.
    #[error("the weights {} do not fit the model: {mismatch}{}", path.display(), seen(looks_like.as_deref()))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Every name that does not fit.
        mismatch: Mismatch,
        /// A description of the file, if its names are recognised.
        looks_like: Option<String>,
    },
    /// libtorch refuses a tensor, mostly for want of memory.
    #[error("cannot load {name} of {}: {source}", path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The error of libtorch.
        source: TchError,
    },
}

fn seen(looks_like: Option<&str>) -> String {
    looks_like.map_or(String::new(), |what| format!("; the file looks like {what}"))
}
