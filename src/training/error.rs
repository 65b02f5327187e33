//! The errors of a training.

use std::{io, path::PathBuf};

use tch::TchError;

use crate::models::checkpoint::CheckpointError;

/// The error of a training.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// No row was given.
    #[error("there are no rows to train on; look at `where:` and at the tables above")]
    NoRows,
    /// A loss, a part of it or the norm of the gradients is not finite.
    #[error("{what} is {value} at step {step}: training diverged; lower `lr` or set `max_grad_norm`")]
    Diverged {
        /// The number, in words.
        what: &'static str,
        /// Its value.
        value: f32,
        /// The step, from 1.
        step: u64,
    },
    /// A stop was requested, and the state is saved.
    #[error("interrupted")]
    Interrupted,
    /// The saved state is not that of this training.
    #[error("a saved training state: {0}")]
    Damaged(String),
    /// A row has another shape or type than those before it.
    #[error("rows of {before} are followed by rows of {found}")]
    Shape {
        /// The type and shape of the rows before it.
        before: String,
        /// Its type and shape.
        found: String,
    },
    /// The file of the rows cannot be written or read.
    #[error("{}: {source}; a training keeps its rows in the cache folder, which VLMDIFF_CACHE names", path.display())]
    Rows {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// An operation of libtorch failed.
    #[error(transparent)]
    Torch(#[from] TchError),
    /// Weights cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}
