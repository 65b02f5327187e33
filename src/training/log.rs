//! The log of a training.

use serde::{Deserialize, Serialize};

/// A row of the log. Losses are means over the micro-batches of the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogRow {
    /// The step, from 1.
    pub step: u64,
    /// The number of times that every row was seen.
    pub epoch: u64,
    /// The loss of the first trainer.
    pub loss: f32,
    /// The parts of the losses of all trainers, one after another.
    pub parts: Vec<Option<f32>>,
    /// The loss of guessing on the same batches, if it is known.
    #[serde(default)]
    pub guessing: Option<f64>,
    /// The learning rate.
    pub lr: f32,
    /// The norm of the gradients of the first trainer, before clipping.
    pub grad_norm: f32,
    /// The speed since the row before, in rows per second.
    pub rows_per_s: f32,
    /// The name of the weights that were kept at this step.
    pub weights: Option<String>,
}
