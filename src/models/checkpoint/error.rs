//! What can be wrong with weights.

use std::path::PathBuf;

use tch::TchError;

use super::super::mismatch::Mismatch;

/// Why weights cannot be read or do not fit.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file or folder cannot be read.
    #[error("cannot read the weights {}: {source}", path.display())]
    Io {
        /// The file or folder asked for.
        path: PathBuf,
        /// Why it cannot be read.
        source: std::io::Error,
    },
    /// The file is read and not understood.
    #[error("cannot use {} as weights: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would work.
        reason: String,
    },
    /// A tensor is asked for that the file lacks.
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
        /// What the file is instead, where its names tell.
        looks_like: Option<String>,
    },
    /// libtorch refuses a tensor, mostly for want of memory.
    #[error("cannot load {name} of {}: {source}", path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What libtorch says.
        source: TchError,
    },
}

fn seen(looks_like: Option<&str>) -> String {
    looks_like.map_or(String::new(), |what| format!("; the file looks like {what}"))
}
